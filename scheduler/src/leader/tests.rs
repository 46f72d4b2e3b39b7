//! Transcripts: what happens to a leader, and what it does about that.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]
use super::*;
use crate::state::HostState;

fn id(n: u128) -> HostId {
    ulid::Ulid::from(n).to_string().parse().unwrap()
}

fn hello(n: u128) -> pb::Hello {
    pb::Hello {
        lattice: "l".into(),
        host: id(n).to_string(),
        name: format!("h{n}"),
        boot: ulid::Ulid::from(7u128).to_string(),
        facts: Some(pb::Facts::default()),
        ..Default::default()
    }
}

fn beat(n: u128, seq: u64, generation: u64) -> pb::Beat {
    let pb::Hello { lattice, host, boot, .. } = hello(n);
    let inventory = Some(pb::Inventory::default());
    pb::Beat { lattice, host, boot, seq, generation, inventory, inventory_version: 1, ..Default::default() }
}

fn outcome(error: &str) -> pb::Outcome {
    pb::Outcome { error: error.to_owned(), ..Default::default() }
}

/// A leader of term 3, the state it reads, and the time.
struct Lab {
    leader: Leader,
    state: State,
    governs: bool,
    term: u64,
    ms: u64,
}

impl Lab {
    /// With hosts that are registered and shall store generation 5.
    fn new(hosts: u128) -> Self {
        let mut state = State::default();
        for n in 1..=hosts {
            let (hello, generation) = (hello(n), 5);
            let (cordoned, draining, lost) = (false, false, false);
            state.hosts.insert(id(n), HostState { hello, cordoned, draining, lost, generation, changed_ms: 0 });
        }
        Self { leader: Leader::new("l".into(), Timers::default()), state, governs: true, term: 3, ms: 0 }
    }

    fn lead<T>(&mut self, f: impl FnOnce(&mut Leader, &Now<'_>) -> T) -> T {
        let now = Now { state: &self.state, term: self.term, governs: self.governs, ms: self.ms };
        f(&mut self.leader, &now)
    }

    fn beat(&mut self, n: u128, seq: u64, generation: u64) -> Vec<Effect> {
        self.lead(|leader, now| leader.beat(now, &id(n), &beat(n, seq, generation)))
    }

    fn round(&mut self) -> Vec<Effect> {
        let Some(plan) = self.lead(Leader::plan) else { return Vec::new() };
        self.lead(|leader, now| leader.carry_out(now, plan))
    }

    fn proposed(&mut self, result: Result<Vec<pb::Outcome>, String>) -> Vec<Effect> {
        self.lead(|leader, now| leader.proposed(now, result))
    }

    fn answered(&mut self, n: u128, answer: Answer) -> Vec<Effect> {
        self.lead(|leader, now| leader.answered(now, id(n), answer))
    }
}

fn told<'a>(effects: &'a [Effect]) -> Vec<&'a str> {
    let message = |e: &'a Effect| if let Effect::Tell(notice) = e { Some(notice.message.as_str()) } else { None };
    effects.iter().filter_map(message).collect()
}

#[test]
fn a_stranger_is_asked_registered_and_announced() {
    let mut lab = Lab::new(0);
    assert_eq!(lab.beat(1, 1, 0), [Effect::AskHello(id(1))]);
    assert_eq!(lab.beat(1, 2, 0), [], "it is being asked");
    let mut other = hello(1);
    other.lattice = "else".into();
    assert_eq!(lab.lead(|leader, now| leader.hello(now, &id(1), other)), [Effect::Drop(bus::Reason::Foreign)]);
    let effects = lab.answered(1, Answer::Hello(Some(hello(1))));
    assert!(matches!(&effects[..], [Effect::Propose(commands), Effect::Look] if commands.len() == 1), "{effects:?}");
    assert!(lab.leader.waits());
    assert_eq!(told(&lab.proposed(Ok(vec![outcome("")]))), ["host h1 joined"]);
    assert!(!lab.leader.waits());
}

#[test]
fn who_does_not_lead_hears_and_does_nothing() {
    let mut lab = Lab::new(1);
    lab.governs = false;
    assert_eq!(lab.beat(1, 1, 0), [Effect::Heard(Heard::Changed), Effect::Look]);
    assert_eq!(lab.beat(2, 1, 0), [], "whoever leads asks it");
    assert_eq!(lab.lead(|leader, now| leader.hello(now, &id(2), hello(2))), []);
    assert_eq!(lab.round(), []);
}

#[test]
fn an_assignment_goes_out_until_it_is_confirmed() {
    let mut lab = Lab::new(1);
    lab.beat(1, 1, 4);
    assert_eq!(lab.round(), [Effect::Assign(id(1), 3)]);
    let sent = lab.lead(|leader, now| leader.assignment(now.state, &id(1), 3)).unwrap();
    assert_eq!((sent.term, sent.generation, sent.beat_ms), (3, 5, BEAT_MS));
    assert_eq!(lab.round(), [], "a call is under way");
    let refused = |error: &str| Answer::Assigned(5, Ok(pb::Assigned { error: error.into(), ..Default::default() }));
    let effects = lab.answered(1, refused("its disk is full"));
    assert_eq!(told(&effects), ["host h1 did not take its assignment: its disk is full"]);
    assert_eq!(lab.round(), [], "it failed right now");
    lab.ms = 1_000;
    assert_eq!(lab.round(), [Effect::Assign(id(1), 3)]);
    assert_eq!(lab.answered(1, refused("its disk is full")), [Effect::Look], "it is told once");
    lab.ms = 2_000;
    assert_eq!(lab.round(), [Effect::Assign(id(1), 3)]);
    let taken = pb::Assigned { accepted: true, term: 3, generation: 5, error: String::new() };
    assert_eq!(lab.answered(1, Answer::Assigned(5, Ok(taken))), [Effect::Look]);
    assert_eq!(lab.round(), []);
}

#[test]
fn all_apps_are_planned_again_only_when_something_changed() {
    let mut lab = Lab::new(2);
    let plans_all = |lab: &mut Lab| {
        let plan = lab.lead(Leader::plan).unwrap();
        let all = lab.leader.planned.is_some();
        assert_eq!(lab.lead(|leader, now| leader.carry_out(now, plan)), []);
        all
    };
    for (n, generation) in [(1, 5), (2, 5)] {
        lab.beat(n, 1, generation);
    }
    assert!(plans_all(&mut lab));
    assert!(!plans_all(&mut lab), "nothing happened");
    lab.ms = 2_000;
    assert_eq!(lab.beat(1, 2, 5), [Effect::Heard(Heard::Same)]);
    assert!(!plans_all(&mut lab), "it lives, as before");
    lab.state.applied += 1;
    assert!(plans_all(&mut lab) && !plans_all(&mut lab), "the state moved");
    lab.lead(|leader, _| leader.observed.stored(&id(1), 4, 5));
    assert!(plans_all(&mut lab) && !plans_all(&mut lab), "it stored another one");
    lab.ms = 6_000;
    assert!(plans_all(&mut lab) && !plans_all(&mut lab), "one is suspect");
    lab.term += 1;
    assert!(plans_all(&mut lab) && !plans_all(&mut lab), "it took office anew");
    lab.ms = 11_000;
    assert!(plans_all(&mut lab), "the other one is suspect, too");
    let later = beat(1, 3, 4);
    assert!(lab.lead(|leader, now| leader.beat(now, &id(1), &later)).contains(&Effect::Look), "it lost what it had");
    assert!(lab.lead(Leader::plan).is_some() && lab.leader.planned.is_some());
}

#[test]
fn a_silent_host_is_proposed_to_be_lost_and_nothing_happens_until_that_is_known() {
    let mut lab = Lab::new(1);
    lab.beat(1, 1, 5);
    assert_eq!(lab.round(), []);
    lab.ms = 9_999;
    assert_eq!(lab.round(), []);
    lab.ms = 10_000;
    let effects = lab.round();
    let lost = What::MarkLost(pb::MarkLost { host: id(1).to_string() });
    let commands = vec![pb::Command { request_id: String::new(), what: Some(lost) }];
    assert_eq!(effects, [Effect::Propose(commands.clone())]);
    assert!(lab.leader.waits());
    let effects = lab.proposed(Err("no quorum".into()));
    let warning = Warning { what: "plan not committed", host: None, error: "no quorum".into() };
    assert_eq!(effects, [Effect::Warn(warning)]);
    lab.beat(1, 2, 5);
    assert_eq!(lab.round(), [Effect::Propose(commands)], "what became of it is not known");
    assert_eq!(told(&lab.proposed(Ok(vec![outcome("")]))), ["host h1 is lost"]);
}

#[test]
fn a_plan_of_an_office_that_ended_is_not_proposed() {
    let mut lab = Lab::new(1);
    lab.round();
    lab.ms = 10_000;
    let plan = lab.lead(Leader::plan).unwrap();
    assert_eq!(plan.lost, [id(1)]);
    // It was deposed, and elected again.
    lab.term = 5;
    assert_eq!(lab.lead(|leader, now| leader.carry_out(now, plan)), []);
    assert_eq!(lab.round(), [], "its grace begins anew");
    assert_eq!(lab.leader.observed().since_ms, 10_000);
}

#[test]
fn whoever_was_deposed_while_it_proposed_sends_nothing() {
    let mut lab = Lab::new(2);
    lab.beat(1, 1, 5);
    lab.beat(2, 1, 4);
    lab.round();
    let refused = Answer::Assigned(5, Ok(pb::Assigned { error: "no".into(), ..Default::default() }));
    lab.answered(2, refused);
    lab.ms = 10_000;
    lab.beat(2, 2, 4);
    assert!(matches!(lab.round()[..], [Effect::Propose(_)]), "h1 is lost");
    (lab.term, lab.governs) = (4, false);
    assert!(matches!(lab.proposed(Err("deposed".into()))[..], [Effect::Warn(_)]), "h2 is the next leader's");
    lab.governs = true;
    assert_eq!(lab.round(), [Effect::Assign(id(2), 4)], "which it is itself");
}

#[test]
fn only_what_the_log_took_is_told() {
    let lab = Lab::new(0);
    let (lost, returned) = ([id(1), id(2)], [id(3)]);
    let mut stale = outcome("its base moved");
    stale.code = "stale".into();
    let taken = [outcome(""), outcome("there is no host"), outcome(""), stale];
    let effects = notice::moved(&lab.state, &lost, &returned, &taken);
    let warning = Warning { what: "the log refused a plan", host: None, error: "there is no host".into() };
    assert_eq!(effects[0], Effect::Warn(warning));
    let (one, three) = (format!("host {} is lost", id(1)), format!("host {} is returned", id(3)));
    assert_eq!(told(&effects), [one, three]);
    assert!(notice::moved(&lab.state, &lost, &returned, &[]).is_empty(), "none is known to be committed");
}

#[test]
fn a_quorum_that_can_not_say_is_not_asked_again_at_once() {
    let mut lab = Lab::new(1);
    lab.beat(1, 1, 5);
    lab.round();
    assert_eq!(lab.lead(|leader, now| leader.confirmed(now, false)), [], "nobody asked");
    lab.leader.asking = Some((lab.term, Vec::new()));
    assert_eq!(lab.lead(|leader, now| leader.confirmed(now, false)), []);
    assert!(lab.leader.asking.is_none(), "the next round may ask");
}
