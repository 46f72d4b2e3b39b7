//! Faults that are built in on purpose, so that the simulation can show that it finds them. Only the feature
//! `seeded-faults` has them: without it `built_in` is constantly false, and nothing of a fault is compiled. Must never
//! decide anything while no fault was chosen.

/// One fault each. Those of clients, and what a host's disk and clock do wrong, are built into the shells of the
/// simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    // The log.
    /// What has to be durable is written and not synced.
    AckBeforeFsync,
    /// Others are told before it is on disk.
    SendBeforeWrite,
    /// A sync that failed is taken for one that did not.
    SyncErrorIgnored,
    /// The vote is not written.
    VoteForgotten,
    /// Records are taken whatever their checksum.
    ChecksumIgnored,
    /// A member that lost its log begins a new one under its id.
    LostLogBegunAnew,
    /// A read is answered without asking a quorum.
    StaleRead,
    /// A read that is confirmed does not wait until that much is applied.
    ReadBeforeApplied,
    /// Whoever waits at a log index takes what is committed there for its own.
    TermOfWaiterIgnored,
    /// A snapshot does not know the members it was made with.
    SnapshotOfOldMembers,
    /// Members change before the disk knows that this is committed.
    ChangeBeforeCommit,
    // The state.
    /// A request that is sent again is applied again.
    NoDedup,
    /// A plan is taken although its base has moved.
    StalePlanTaken,
    /// A change under a version that is not the newest is taken.
    IfVersionIgnored,
    /// What a host shall run changes under the same generation.
    GenerationKept,
    /// An app that was deleted begins with revision 1 again.
    RevisionUsedTwice,
    /// Two apps may have one route.
    RouteTwice,
    /// A deleted app is gone while hosts still have it.
    GoneTooEarly,
    /// A snapshot has no answers to requests.
    SnapshotForgetsAnswers,
    /// A snapshot has no homes of stores.
    SnapshotForgetsHomes,
    /// A newcomer gets the id of a scheduler that was removed.
    IdGivenTwice,
    // The plan.
    /// A new leader counts the silence before it took office.
    NoGrace,
    /// A leader that was deposed and leads again counts the silence of its first office.
    OfficeGoesOn,
    /// However many hosts fall silent at once, they are lost.
    NoBrake,
    /// A lost host that is heard again stays lost.
    LostForGood,
    /// A drain does not wait for the replacement.
    EagerDrain,
    /// A rollout takes all hosts at once.
    RolloutAtOnce,
    /// A rollout goes on where the new revision fails.
    RolloutThroughFailures,
    /// A host that was not heard yet is taken for one that runs nothing.
    SilenceIsIdleness,
    /// A store is placed away from its data.
    StoreMoves,
    /// Old heartbeats count.
    OldBeatTaken,
    /// Heartbeats of an earlier boot count.
    OldBootTaken,
    // What is strict.
    /// A host may run what is strict for longer than it takes to call it lost.
    NoLeaseMargin,
    /// A host gets leases although it was proposed to be lost.
    LeaseWhileLosing,
    /// A host gets a lease, and takes it, although it has not stored what it shall run now.
    LeaseForOldContent,
    /// A leader gives leases without asking a quorum.
    LeaseUnconfirmed,
    /// What is strict is placed anew before its host said that it stopped.
    SlotFreedEarly,
    /// A new revision of what is strict starts beside the old one.
    StrictOverlaps,
    /// A host runs what is strict without a lease.
    LeaseIgnored,
    // Watches, and schedulers among themselves.
    /// A watch that resumes misses the entry after its index.
    WatchMissesOne,
    /// A snapshot that is taken over leaves watches believing that they missed nothing.
    WatchAcrossSnapshot,
    /// A scheduler may be removed although the others are no quorum.
    QuorumRemoved,
    /// A leader that was removed leads on.
    RemovedLeads,
    /// One that was removed may come back.
    RemovedComesBack,
    // Hosts.
    /// A host takes assignments that are older than its own.
    OlderAssignmentTaken,
    /// A host does not stop what it shall not run any more.
    StraysKept,
    /// A host keeps the number of replicas that it began with.
    ScaleForgotten,
    // Shells.
    /// A host confirms before it has stored.
    ConfirmedBeforeStored,
    /// The boot ids of a host sort backwards, as those of a clock that was set back.
    BootsGoBack,
    /// A leader sends a host what it sent first, under the newest generation.
    OldContent,
    /// A leader sends each host its assignment once, whether it arrives or not.
    SentOnce,
    /// A client that retries does so under another request id.
    NewIdOnRetry,
    /// What is not known to have taken effect is told as done.
    UncertainIsDone,
}

#[cfg(feature = "seeded-faults")]
mod chosen {
    use super::Fault;
    use std::cell::Cell;

    std::thread_local! {
        static FAULT: Cell<Option<Fault>> = const { Cell::new(None) };
    }

    /// From now on this thread has that fault.
    pub fn build_in(fault: Option<Fault>) {
        FAULT.set(fault);
    }

    /// Whether this thread has that fault.
    pub fn built_in(fault: Fault) -> bool {
        FAULT.get() == Some(fault)
    }
}

#[cfg(feature = "seeded-faults")]
pub use chosen::{build_in, built_in};

/// No fault is built in.
#[cfg(not(feature = "seeded-faults"))]
#[inline(always)]
pub const fn built_in(_: Fault) -> bool {
    false
}
