//! What some faults that are built in on purpose remember of the assignments that were sent. Without them it remembers
//! and changes nothing.

use proto::v1 as pb;

#[cfg(not(feature = "seeded-faults"))]
#[derive(Default)]
pub(super) struct Sent {}

#[cfg(not(feature = "seeded-faults"))]
impl Sent {
    pub(super) fn next(&mut self, assignment: pb::Assignment) -> Option<pb::Assignment> {
        Some(assignment)
    }
}

#[cfg(feature = "seeded-faults")]
#[derive(Default)]
pub(super) struct Sent {
    /// The first to each host.
    first: std::collections::BTreeMap<String, pb::Assignment>,
    /// Host and generation of all.
    all: std::collections::BTreeSet<(String, u64)>,
}

#[cfg(feature = "seeded-faults")]
impl Sent {
    /// What is sent in its place, if anything.
    pub(super) fn next(&mut self, mut assignment: pb::Assignment) -> Option<pb::Assignment> {
        use proto::fault::{Fault, built_in};
        let host = assignment.host.clone();
        if built_in(Fault::OldContent) {
            let first = self.first.entry(host.clone()).or_insert_with(|| assignment.clone());
            assignment.apps.clone_from(&first.apps);
        }
        let again = built_in(Fault::SentOnce) && !self.all.insert((host, assignment.generation));
        (!again).then_some(assignment)
    }
}
