//! What this host shall run, and what of that is up, on its way, failed or on its way out: so what begins next, and what is
//! told of it. Pure: the loop, which is `agent/run.rs` or that of the simulation, starts and stops, and says what came of it
//! and what time it is. `assignment` compares; this remembers.

use crate::assignment::{self, Action, Have, Key, Verdict, Wanted};
use proto::fault::{Fault, built_in};
use proto::v1 as pb;
use std::collections::BTreeMap;

/// Components brought up at once. Most of them wait: for their bytes, or for their turn to be compiled, each of which has
/// bounds of its own; what needs neither must not wait behind them.
const STARTS_MAX: usize = 1_024;
const BEAT_MS_DEFAULT: u32 = 2_000;
const RETRY_MIN_MS: u64 = 1_000;
const RETRY_MAX_MS: u64 = 60_000;
/// Of an error, told so many characters.
const ERROR_CHARS_MAX: usize = 2_000;

/// Why a component is not up.
#[derive(Debug, Clone)]
struct Failure {
    revision: u64,
    error: String,
    tries: u32,
    /// Not tried again before.
    again_ms: u64,
}

/// What became of something that was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Came {
    /// It is up. What was up of it before is let go.
    Up,
    /// Nobody wants it any more: it is let go.
    Unwanted,
    Failed,
}

/// What the loop remembers of its components. Times are in milliseconds of any clock that never goes back.
#[derive(Debug, Default)]
pub struct Keeper {
    stored: Option<pb::Assignment>,
    wanted: BTreeMap<Key, Wanted>,
    up: BTreeMap<Key, Have>,
    /// Being brought up, in which revision.
    starting: BTreeMap<Key, u64>,
    /// Stopped, and not gone yet: what is strict, and what gives way to it.
    parting: BTreeMap<Key, Have>,
    failed: BTreeMap<Key, Failure>,
    /// There is something to tell.
    changed: bool,
    /// What shall run has to be compared with what does; what is under a lease, with whether there was one.
    unsure: bool,
    leased: bool,
    /// To be brought up when there is room, the next at the end; as the last comparison found.
    waiting: Vec<(Key, Wanted)>,
    /// When the first of those that failed is tried again.
    retry_ms: Option<u64>,
}

impl Keeper {
    /// Of a host that just started, which has everything to tell.
    pub fn new() -> Self {
        Self { changed: true, unsure: true, ..Self::default() }
    }

    pub fn stored(&self) -> Option<&pb::Assignment> {
        self.stored.as_ref()
    }

    pub fn wanted(&self) -> &BTreeMap<Key, Wanted> {
        &self.wanted
    }

    pub fn up(&self) -> &BTreeMap<Key, Have> {
        &self.up
    }

    /// What was stopped and is not gone yet: what is strict, and what gives way to it.
    pub fn parting(&self) -> &BTreeMap<Key, Have> {
        &self.parting
    }

    /// Whether something strict is up: then the lease is looked at often.
    pub fn has_strict(&self) -> bool {
        self.up.values().any(|up| up.strict)
    }

    /// Term and generation of what is stored.
    pub fn fence(&self) -> (u64, u64) {
        self.stored.as_ref().map_or((0, 0), |s| (s.term, s.generation))
    }

    /// How often a heartbeat is due.
    pub fn beat_ms(&self) -> u32 {
        let asked = self.stored.as_ref().map_or(0, |s| s.beat_ms);
        if asked == 0 { BEAT_MS_DEFAULT } else { asked.clamp(100, 60_000) }
    }

    /// There is something to tell.
    pub fn has_changed(&self) -> bool {
        self.changed
    }

    /// The same, and it is being told.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    pub fn change(&mut self) {
        self.changed = true;
    }

    /// Whether an assignment is taken, with its components if they can be read. One that is, is stored before `adopt`.
    pub fn judge(&self, new: &pb::Assignment, lattice: &str, host: &str) -> (Verdict, BTreeMap<Key, Wanted>) {
        let before = self.stored.as_ref().map(|stored| (stored, &self.wanted));
        let (wanted, problem) = match assignment::wanted_after(before, new) {
            Ok(wanted) => (wanted, None),
            Err(problem) => (BTreeMap::new(), Some(problem)),
        };
        (assignment::judge(self.stored.as_ref(), new, problem, lattice, host), wanted)
    }

    /// From now on this is what shall run.
    pub fn adopt(&mut self, assignment: pb::Assignment, wanted: BTreeMap<Key, Wanted>) {
        self.wanted = wanted;
        self.failed.retain(|k, f| self.wanted.get(k).is_some_and(|w| w.revision == f.revision));
        self.stored = Some(assignment);
        self.changed = true;
        self.unsure = true;
    }

    /// What has to happen and can begin now; it has begun when this returns. What is stopped, and strict, is parting then.
    pub fn due(&mut self, now_ms: u64, leased: bool) -> Vec<Action> {
        self.unsure |= self.retry_ms.is_some_and(|at| at <= now_ms);
        self.unsure |= std::mem::replace(&mut self.leased, leased) != leased;
        let mut all = Vec::new();
        while std::mem::take(&mut self.unsure) {
            self.compare(now_ms, leased, &mut all);
        }
        while self.starting.len() < STARTS_MAX
            && let Some((key, wanted)) = self.waiting.pop()
        {
            self.starting.insert(key.clone(), wanted.revision);
            all.push(Action::Start(key, wanted));
        }
        all
    }

    /// Goes through all components: with thousands of them, not at each turn of the loop.
    fn compare(&mut self, now_ms: u64, leased: bool, all: &mut Vec<Action>) {
        let mut busy = self.starting.clone();
        busy.extend(self.failed.iter().filter(|(_, f)| f.again_ms > now_ms).map(|(k, f)| (k.clone(), f.revision)));
        self.retry_ms = self.failed.values().map(|f| f.again_ms).filter(|at| *at > now_ms).min();
        self.waiting.clear();
        for action in assignment::actions(&self.wanted, &self.up, &busy, leased) {
            match action {
                Action::Stop(key) => {
                    self.stop(&key);
                    // Another revision may have waited for that.
                    self.unsure = true;
                    all.push(Action::Stop(key));
                }
                Action::Scale(key, replicas) => {
                    if let Some(up) = self.up.get_mut(&key) {
                        up.replicas = replicas;
                    }
                    self.changed = true;
                    all.push(Action::Scale(key, replicas));
                }
                Action::Start(key, wanted) => {
                    let waits = self.starting.contains_key(&key) || self.parting.contains_key(&key);
                    if !waits || built_in(Fault::StrictOverlaps) {
                        self.waiting.push((key, wanted));
                    }
                }
            }
        }
        self.waiting.reverse();
    }

    fn stop(&mut self, key: &Key) {
        let gives_way = self.wanted.get(key).is_some_and(|wanted| wanted.strict);
        if let Some(up) = self.up.remove(key)
            && (up.strict || gives_way)
        {
            self.parting.insert(key.clone(), up);
        }
        self.changed = true;
    }

    /// Something that was begun is ready, or failed.
    pub fn started(
        &mut self,
        key: &Key,
        started: &Wanted,
        result: Result<(), String>,
        now_ms: u64,
        leased: bool,
    ) -> Came {
        self.changed = true;
        self.starting.remove(key);
        // What it was started for may have changed meanwhile: the next comparison sees to the rest.
        self.unsure |= self.wanted.get(key) != Some(started);
        let Err(error) = result else { return self.came_up(key, started, leased) };
        let before = self.failed.get(key).filter(|f| f.revision == started.revision);
        let tries = before.map_or(0, |f| f.tries) + 1;
        let again_ms = now_ms + (RETRY_MIN_MS << tries.min(6)).min(RETRY_MAX_MS);
        self.retry_ms = Some(self.retry_ms.map_or(again_ms, |at| at.min(again_ms)));
        self.failed.insert(key.clone(), Failure { revision: started.revision, error, tries, again_ms });
        Came::Failed
    }

    fn came_up(&mut self, key: &Key, started: &Wanted, leased: bool) -> Came {
        let Wanted { revision, replicas, strict, .. } = *started;
        let have = Have { revision, replicas, strict };
        let wanted = self.wanted.get(key);
        // What is strict would be stopped at once if another revision is wanted.
        let stays = leased && wanted.is_some_and(|w| w.revision == revision);
        if wanted.is_none() || strict && !stays {
            if strict {
                self.parting.insert(key.clone(), have);
            }
            return Came::Unwanted;
        }
        self.failed.remove(key);
        if let Some(old) = self.up.insert(key.clone(), have)
            && old.strict
        {
            self.parting.insert(key.clone(), old);
        }
        Came::Up
    }

    /// Whoever brought things up ended without a word.
    pub fn lost_track(&mut self) {
        self.starting.clear();
        self.changed = true;
        self.unsure = true;
    }

    /// Something that was parting is gone; `None`: whoever stopped it ended without a word.
    pub fn parted(&mut self, key: Option<&Key>) {
        if let Some(key) = key {
            self.parting.remove(key);
        }
        self.changed = true;
        self.unsure = true;
    }

    /// The host ends: nothing strict shall run any more. Gives what is stopped.
    pub fn part(&mut self) -> Vec<Key> {
        self.wanted.retain(|_, wanted| !wanted.strict);
        let strict: Vec<Key> = self.up.iter().filter(|(_, up)| up.strict).map(|(key, _)| key.clone()).collect();
        strict.iter().for_each(|key| self.stop(key));
        strict
    }

    /// The host ends: what was parting is gone, and what was on its way does not come.
    pub fn gone(&mut self) {
        self.parting.clear();
        self.starting.clear();
    }

    /// Of what shall run: how many are up as they shall, and how many failed.
    pub fn progress(&self) -> (usize, usize) {
        let is_up = |(k, w): &(&Key, &Wanted)| self.up.get(*k).is_some_and(|up| up.revision == w.revision);
        let failed = |(k, w): &(&Key, &Wanted)| self.failed.get(*k).is_some_and(|f| f.revision == w.revision);
        (self.wanted.iter().filter(is_up).count(), self.wanted.iter().filter(failed).count())
    }

    /// What is told of all that is not up: what shall be, and what may run still although it shall not.
    pub fn not_up(&self) -> Vec<pb::Running> {
        let mut items = Vec::new();
        for (key, want) in &self.wanted {
            if self.up.get(key).is_some_and(|up| up.revision == want.revision) {
                continue;
            }
            let failure = self.failed.get(key).filter(|f| f.revision == want.revision);
            let state = if failure.is_some() { pb::RunState::Failed } else { pb::RunState::Starting };
            let error = failure.map(|f| f.error.chars().take(ERROR_CHARS_MAX).collect()).unwrap_or_default();
            items.push(pb::Running { error, ..item(key, want.revision, want.replicas, state) });
        }
        let unwanted = self.starting.iter().filter(|(key, _)| !self.wanted.contains_key(*key));
        let parting = self.parting.iter().map(|(key, have)| (key, &have.revision));
        items.extend(parting.chain(unwanted).map(|(key, revision)| item(key, *revision, 1, pb::RunState::Stopping)));
        items
    }
}

/// What is told of one component.
pub fn item(key: &Key, revision: u64, replicas: u32, state: pb::RunState) -> pb::Running {
    pb::Running {
        app: key.0.to_string(),
        component: key.1.to_string(),
        revision,
        replicas,
        state: state.into(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "helpers of tests")]
    use super::*;

    /// An app with these components in this revision, each with one replica.
    fn assignment(generation: u64, revision: u64, components: &[&str], strict: bool) -> pb::Assignment {
        let component = serde_json::json!({
            "kind": { "actor": { "image": "a" } },
            "scaler": { "spread": { "replicas": 1, "spread": [] } },
            "strict": strict,
        });
        let all: BTreeMap<&str, _> = components.iter().map(|name| (*name, component.clone())).collect();
        let spec = serde_json::to_vec(&serde_json::json!({ "name": "shop", "components": all })).unwrap();
        let replicas = components.iter().map(|name| ((*name).to_owned(), 1)).collect();
        let apps = vec![pb::AppSlice { app: "shop".into(), revision, spec, replicas }];
        pb::Assignment { lattice: "l".into(), host: "h".into(), term: 1, generation, apps, ..Default::default() }
    }

    fn take(keeper: &mut Keeper, new: pb::Assignment) {
        let (verdict, wanted) = keeper.judge(&new, "l", "h");
        assert_eq!(verdict, Verdict::Accept);
        keeper.adopt(new, wanted);
    }

    fn starts(actions: &[Action]) -> Vec<(Key, Wanted)> {
        let start = |a: &Action| if let Action::Start(k, w) = a { Some((k.clone(), w.clone())) } else { None };
        actions.iter().filter_map(start).collect()
    }

    #[test]
    fn so_many_are_brought_up_at_once() {
        let names: Vec<String> = (0..STARTS_MAX + 2).map(|n| format!("c{n:05}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut keeper = Keeper::new();
        take(&mut keeper, assignment(1, 1, &names, false));
        let first = starts(&keeper.due(0, false));
        assert_eq!(first.iter().map(|(k, _)| k.1.as_str()).collect::<Vec<_>>(), names[..STARTS_MAX]);
        assert_eq!(keeper.due(0, false), [], "there is no room");
        assert_eq!(keeper.started(&first[0].0, &first[0].1, Ok(()), 0, false), Came::Up);
        assert_eq!(starts(&keeper.due(0, false))[0].0.1.as_str(), names[STARTS_MAX]);
        assert_eq!((keeper.progress(), keeper.not_up().len()), ((1, 0), STARTS_MAX + 1));
        // It came for nothing.
        take(&mut keeper, assignment(2, 2, &names[STARTS_MAX..], false));
        assert_eq!(keeper.started(&first[1].0, &first[1].1, Ok(()), 0, false), Came::Unwanted);
    }

    #[test]
    fn what_failed_is_tried_again_later_and_later() {
        let mut keeper = Keeper::new();
        take(&mut keeper, assignment(1, 1, &["a"], false));
        let mut now = 0;
        for wait in [2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000] {
            let (key, wanted) = starts(&keeper.due(now, false)).remove(0);
            assert_eq!(keeper.started(&key, &wanted, Err("no".into()), now, false), Came::Failed);
            assert_eq!((keeper.due(now + wait - 1, false), keeper.not_up()[0].error.as_str()), (vec![], "no"));
            now += wait;
        }
        // Another revision is tried at once.
        take(&mut keeper, assignment(2, 2, &["a"], false));
        assert_eq!(starts(&keeper.due(now, false)).len(), 1);
    }

    #[test]
    fn what_is_strict_is_gone_before_it_starts_again() {
        let mut keeper = Keeper::new();
        take(&mut keeper, assignment(1, 1, &["a"], true));
        assert_eq!(keeper.due(0, false), [], "there is no lease");
        let (key, wanted) = starts(&keeper.due(0, true)).remove(0);
        assert_eq!(keeper.started(&key, &wanted, Ok(()), 0, true), Came::Up);
        assert!(keeper.has_strict());
        take(&mut keeper, assignment(2, 2, &["a"], true));
        assert_eq!(keeper.due(0, true), [Action::Stop(key.clone())]);
        assert_eq!(keeper.not_up().iter().filter(|i| i.state() == pb::RunState::Stopping).count(), 1);
        assert_eq!(keeper.due(0, true), [], "it is not gone yet");
        keeper.parted(Some(&key));
        let (key, wanted) = starts(&keeper.due(0, true)).remove(0);
        // The lease ended meanwhile.
        assert_eq!(keeper.started(&key, &wanted, Ok(()), 0, false), Came::Unwanted);
        assert_eq!((keeper.has_strict(), keeper.parting().len()), (false, 1));
    }

    #[test]
    fn what_is_strict_runs_beside_nothing_that_has_its_name() {
        let mut keeper = Keeper::new();
        let shop = |generation, revision, strict| assignment(generation, revision, &["a"], strict);
        take(&mut keeper, shop(1, 1, true));
        let (key, wanted) = starts(&keeper.due(0, true)).remove(0);
        // The app was deleted and applied again, not strict, while that was on its way.
        take(&mut keeper, shop(2, 2, false));
        assert_eq!(keeper.due(0, true), []);
        assert_eq!(keeper.started(&key, &wanted, Ok(()), 0, true), Came::Unwanted);
        assert_eq!(keeper.due(0, true), [], "it is not gone yet");
        keeper.parted(Some(&key));
        let (key, wanted) = starts(&keeper.due(0, false)).remove(0);
        assert_eq!((wanted.revision, keeper.started(&key, &wanted, Ok(()), 0, false)), (2, Came::Up));
        // And while it ran, and the lease ended.
        take(&mut keeper, shop(3, 3, true));
        assert_eq!(keeper.due(0, true), [Action::Stop(key.clone())], "what is not strict goes first, too");
        assert_eq!((keeper.due(0, true), keeper.parting()[&key].revision), (vec![], 2));
        keeper.parted(Some(&key));
        let (key, wanted) = starts(&keeper.due(0, true)).remove(0);
        assert_eq!(keeper.started(&key, &wanted, Ok(()), 0, true), Came::Up);
        take(&mut keeper, shop(4, 4, false));
        assert_eq!(keeper.due(0, false), [Action::Stop(key.clone())]);
        assert_eq!(keeper.parting()[&key].revision, 3);
    }
}
