//! What clients ask of a scheduler, as `api` and `peer/ask.rs` answer it: reads by a round of the quorum, writes by
//! whoever leads, wherever they were asked. Must never answer what is not known.

use crate::clients::Told;
use crate::ctx::{Ask, Ctx, Node, Packet};
use crate::history::request_id;
use crate::linear::Register;
use crate::process::{Came, Process, Reading, Waiter};
use prost::Message;
use proto::v1 as pb;
use proto::v1::command::What;
use scheduler::peer::roster;
use scheduler::raft;

impl Process {
    pub(crate) fn ask(&mut self, ctx: &mut Ctx, intent: usize, via: Option<usize>, what: Ask) {
        match what {
            Ask::Read(app) => self.read(Reading { intent, app }),
            what => self.lead_or_pass(ctx, intent, via, what),
        }
    }

    fn read(&mut self, reading: Reading) {
        let handle = self.handle.clone();
        self.wait_for(async move { Came::Fresh(handle.read_index().await, reading) });
    }

    /// The state is fresh for who asked, or could not be made so.
    pub(crate) fn fresh(&mut self, ctx: &mut Ctx, result: Result<u64, raft::Error>, reading: Reading) {
        let Reading { intent, app } = reading;
        if result.is_err() {
            return self.reply(ctx, intent, None, Told::Again);
        }
        let register = {
            let state = self.replica.read();
            state
                .apps
                .get(&app)
                .map_or(Register::Absent, |at| Register::Here { version: at.version, deleting: at.deleting })
        };
        if !self.governs() {
            ctx.count("read answered by a follower");
        }
        self.reply(ctx, intent, None, Told::App(register));
    }

    fn lead_or_pass(&mut self, ctx: &mut Ctx, intent: usize, via: Option<usize>, what: Ask) {
        let (leader, governs) = self.status(|s| (s.leader, s.governs));
        if governs {
            return self.lead(ctx, intent, via, what);
        }
        let seat = leader.filter(|leader| *leader != self.id && via.is_none()).and_then(|id| ctx.seat_of(id));
        match seat {
            Some(seat) => {
                ctx.count("request passed on to the leader");
                let packet = Packet::Ask { intent, via: Some(self.number), what };
                ctx.send(self.me(), Node::Member(seat), packet);
            }
            None => self.reply(ctx, intent, via, Told::Again),
        }
    }

    fn lead(&mut self, ctx: &mut Ctx, intent: usize, via: Option<usize>, what: Ask) {
        match what {
            Ask::Write(command) => self.propose(ctx, vec![command], Waiter::Ask { intent, via }),
            Ask::Read(_) => self.reply(ctx, intent, via, Told::Again),
            Ask::Transfer => self.transfer(ctx, intent, via, false),
            Ask::Remove(id) => {
                let checked = {
                    let state = self.replica.read();
                    self.status(|s| roster::check_removal(id, &state.members, &s.members, &self.reached(ctx, s)))
                };
                if checked.is_ok() {
                    self.look_at_removal(ctx, id);
                }
                let what = match checked {
                    // By the log, so that no copy of it that is still under way is carried out.
                    Err(error) => What::Refuse(pb::Refuse { code: "precondition".to_owned(), error }),
                    Ok(()) if id == self.id => return self.transfer(ctx, intent, via, true),
                    Ok(()) => What::RemoveMember(pb::RemoveMember { id }),
                };
                if matches!(what, What::Refuse(_)) {
                    ctx.count("change of schedulers refused");
                } else {
                    self.may_crash_in_a_change(ctx, true);
                }
                let what = Some(what);
                let command = pb::Command { request_id: request_id(intent), what };
                self.propose(ctx, vec![command], Waiter::Ask { intent, via });
            }
        }
    }

    /// Scheduler `id` is about to be removed: the others must be able to agree on anything without it.
    fn look_at_removal(&self, ctx: &mut Ctx, id: u64) {
        let (voters, reached) = self.status(|s| (s.members.voters.clone(), self.reached(ctx, s)));
        let of = voters.iter().filter(|other| **other != id).count();
        let reached = voters.iter().filter(|other| **other != id && reached.contains(other)).count();
        if voters.contains(&id) && reached * 2 <= of {
            ctx.fail(format!("scheduler {id} is removed though {reached} of {of} others that vote are reached"));
        }
    }

    /// Hands leadership over. `again`: so that the heir does what was asked.
    fn transfer(&mut self, ctx: &mut Ctx, intent: usize, via: Option<usize>, again: bool) {
        let wanted = self.replica.read().members.clone();
        let heir = self.status(|s| roster::heir(self.id, &wanted, &s.members, &self.reached(ctx, s), &s.progress));
        let Some(heir) = heir else {
            return self.reply(ctx, intent, via, Told::Refused("nobody can lead in its place".to_owned()));
        };
        let handle = self.handle.clone();
        self.wait_for(async move {
            let result = handle.transfer(heir).await;
            // Refused for now: asked again, the heir does it.
            let result = if again { result.and(Err(raft::Error::NotLeader { leader: None })) } else { result };
            Came::Transferred(result, intent, via)
        });
    }

    pub(crate) fn transferred(
        &mut self,
        ctx: &mut Ctx,
        result: Result<(), raft::Error>,
        intent: usize,
        via: Option<usize>,
    ) {
        ctx.count("leadership handed over");
        let told = if result.is_ok() { Told::Done } else { Told::Again };
        self.reply(ctx, intent, via, told);
    }

    /// What was proposed for a client came about, or nothing is known. `done`: it is told as done all the same.
    pub(crate) fn told(
        &mut self,
        ctx: &mut Ctx,
        intent: usize,
        via: Option<usize>,
        applied: Option<raft::Applied>,
        done: bool,
    ) {
        let outcome = applied.and_then(|a| pb::Outcomes::decode(&a.outcome[..]).ok()?.items.into_iter().next());
        let made_up = || pb::Outcome { change: "configured".to_owned(), version: 1, ..Default::default() };
        let told = outcome.or_else(|| done.then(made_up)).map_or(Told::Again, Told::Outcome);
        self.reply(ctx, intent, via, told);
    }

    fn reply(&self, ctx: &mut Ctx, intent: usize, via: Option<usize>, told: Told) {
        let to = via.map_or(Node::Client, Node::Member);
        ctx.send(self.me(), to, Packet::Answer { intent, told });
    }
}
