//! What hosts say: unasked, and when they are called.

use super::calls::Call;
use super::notice::{Notice, name_of};
use super::{Effect, Leader, Now, Proposed};
use crate::plan::Heard;
use proto::app::HostId;
use proto::fault::{Fault, built_in};
use proto::v1 as pb;
use proto::v1::command::What;

/// What a call to a host brought; `None` where it failed.
#[derive(Debug)]
pub enum Answer {
    Hello(Option<pb::Hello>),
    Inventory(Option<pb::Beat>),
    /// Of the assignment of this generation, or why there is no answer.
    Assigned(u64, Result<pb::Assigned, String>),
}

impl Leader {
    /// A host says who it is; `from` is whose subject that was said on.
    pub fn hello(&mut self, now: &Now<'_>, from: &HostId, hello: pb::Hello) -> Vec<Effect> {
        if hello.lattice != self.lattice || hello.host != from.as_str() {
            return vec![Effect::Drop(bus::Reason::Foreign)];
        }
        self.register(now, from, hello).into_iter().collect()
    }

    fn register(&mut self, now: &Now<'_>, id: &HostId, hello: pb::Hello) -> Option<Effect> {
        if !sane(&hello) {
            return Some(Effect::Drop(bus::Reason::Malformed));
        }
        now.leads_in()?;
        if !self.observed.hello(id, &hello, now.ms) {
            return Some(Effect::Drop(bus::Reason::Overflow));
        }
        let bare = pb::Hello { term: 0, generation: 0, ..hello.clone() };
        let known = now.state.hosts.get(id);
        if known.is_some_and(|h| h.hello == bare && !h.lost) {
            return None;
        }
        self.waits_for = Some(Proposed::Host { name: hello.name.clone(), is_new: known.is_none() });
        let what = What::RegisterHost(pb::RegisterHost { hello: Some(hello) });
        Some(Effect::Propose(vec![pb::Command { request_id: String::new(), what: Some(what) }]))
    }

    /// A host says that it lives; `from` is whose subject that was said on.
    pub fn beat(&mut self, now: &Now<'_>, from: &HostId, beat: &pb::Beat) -> Vec<Effect> {
        if beat.lattice != self.lattice || beat.host != from.as_str() {
            return vec![Effect::Drop(bus::Reason::Foreign)];
        }
        let mut effects = self.take(now, from, beat);
        if built_in(Fault::LeaseWhileLosing) && self.waits() {
            effects.extend(self.lease(now));
        }
        effects
    }

    fn take(&mut self, now: &Now<'_>, id: &HostId, beat: &pb::Beat) -> Vec<Effect> {
        let mut effects = Vec::new();
        let is_known_boot = now.state.hosts.get(id).map(|h| h.hello.boot == beat.boot);
        if is_known_boot != Some(true) {
            if now.governs {
                effects.extend(self.ask(now, id, Call::Hello));
            }
            if is_known_boot.is_none() {
                return effects;
            }
        }
        let heard = self.observed.beat(id, beat, now.ms);
        effects.push(Effect::Heard(heard));
        match heard {
            Heard::Stale => effects.push(Effect::Drop(bus::Reason::Stale)),
            Heard::Same if beat.starting.is_empty() => {}
            Heard::Same => effects.push(Effect::Progress),
            Heard::Changed => effects.push(Effect::Look),
            Heard::AskInventory => effects.extend(self.ask(now, id, Call::Inventory)),
        }
        effects
    }

    fn ask(&mut self, now: &Now<'_>, id: &HostId, call: Call) -> Option<Effect> {
        if !self.calls.may(id, call, now.ms) || !self.calls.has_room() {
            return None;
        }
        self.calls.begin(id, call);
        Some(if call == Call::Hello { Effect::AskHello(id.clone()) } else { Effect::AskInventory(id.clone()) })
    }

    /// What a call to host `id` brought.
    pub fn answered(&mut self, now: &Now<'_>, id: HostId, answer: Answer) -> Vec<Effect> {
        let mut effects = Vec::new();
        match answer {
            Answer::Hello(hello) => {
                let hello = hello.filter(|h| h.host == id.as_str() && h.lattice == self.lattice);
                self.calls.settle(id.clone(), Call::Hello, hello.is_some(), now.ms);
                effects.extend(hello.and_then(|hello| self.register(now, &id, hello)));
            }
            Answer::Inventory(beat) => {
                self.calls.settle(id.clone(), Call::Inventory, beat.is_some(), now.ms);
                if let Some(beat) = beat.filter(|b| b.host == id.as_str()) {
                    effects.extend(self.take(now, &id, &beat));
                }
            }
            Answer::Assigned(generation, result) => effects.extend(self.assigned(now, id, generation, result)),
        }
        effects.push(Effect::Look);
        effects
    }

    fn assigned(
        &mut self,
        now: &Now<'_>,
        id: HostId,
        generation: u64,
        result: Result<pb::Assigned, String>,
    ) -> Option<Effect> {
        let error = match result {
            Ok(answer) if answer.accepted => {
                self.observed.stored(&id, answer.term, generation);
                self.refused.remove(&id);
                self.calls.settle(id, Call::Assign, true, now.ms);
                return None;
            }
            Ok(answer) => answer.error,
            Err(error) => error,
        };
        self.calls.settle(id.clone(), Call::Assign, false, now.ms);
        if self.refused.get(&id) == Some(&error) {
            return None;
        }
        let name = name_of(now.state, &id);
        let message = format!("host {name} did not take its assignment: {error}");
        self.refused.insert(id, error);
        Some(Notice::of_host("refused", &name, message))
    }
}

/// Bounds of what a host may say of itself.
fn sane(hello: &pb::Hello) -> bool {
    let short = |s: &str| s.len() <= 256 && !s.chars().any(char::is_control);
    hello.host.parse::<HostId>().is_ok()
        && !hello.name.is_empty()
        && short(&hello.name)
        && hello.boot.len() == 26
        && short(&hello.ingress)
        && hello.labels.len() <= 64
        && hello.labels.iter().all(|(k, v)| short(k) && short(v))
        && hello.facts.as_ref().is_some_and(|f| f.interfaces.len() <= 256 && f.interfaces.iter().all(|i| short(i)))
}
