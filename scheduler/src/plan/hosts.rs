//! Which hosts fit what. Columns rather than objects: a wave of replicas looks at arrays.

use crate::state::{HostState, State};
use proto::app::{Builtin, HostId, Name};
use std::collections::BTreeMap;
use std::rc::Rc;

/// What must hold for a host to fit: labels or facts, and a provider's interfaces.
pub(super) type Needs<'a> = (&'a BTreeMap<String, String>, Option<Builtin>);

/// The hosts of one plan, by number.
pub(super) struct Columns<'a> {
    pub(super) ids: Vec<&'a HostId>,
    pub(super) hosts: Vec<&'a HostState>,
    /// Replicas placed on it, this plan's included.
    pub(super) load: Vec<u64>,
    index: BTreeMap<&'a HostId, usize>,
    /// App and component -> the hosts that it is placed on, in the order of the placements; none for one unknown.
    placed: BTreeMap<&'a (Name, Name), Vec<Option<usize>>>,
    /// Needs -> the hosts that meet them, whatever their state.
    fits: BTreeMap<(String, Option<Builtin>), Rc<Vec<bool>>>,
}

impl<'a> Columns<'a> {
    pub(super) fn new(state: &'a State) -> Self {
        let ids: Vec<&HostId> = state.hosts.keys().collect();
        let hosts: Vec<&HostState> = state.hosts.values().collect();
        let index = ids.iter().enumerate().map(|(i, id)| (*id, i)).collect::<BTreeMap<_, _>>();
        let mut load = vec![0u64; ids.len()];
        let mut placed = BTreeMap::new();
        for (key, on) in &state.placements {
            let numbers: Vec<Option<usize>> = on.keys().map(|host| index.get(host).copied()).collect();
            for (number, p) in numbers.iter().zip(on.values()) {
                if let Some(i) = number {
                    load[*i] += u64::from(p.replicas);
                }
            }
            placed.insert(key, numbers);
        }
        Self { ids, hosts, load, index, placed, fits: BTreeMap::new() }
    }

    /// The hosts that a component is placed on, in the order of the placements.
    pub(super) fn placed(&self, key: &(Name, Name)) -> &[Option<usize>] {
        self.placed.get(key).map_or(&[], Vec::as_slice)
    }

    pub(super) fn number(&self, host: &HostId) -> Option<usize> {
        self.index.get(host).copied()
    }

    /// For each host, whether it meets `needs`.
    pub(super) fn fits(&mut self, needs: Needs<'_>) -> Rc<Vec<bool>> {
        let key = (format!("{:?}", needs.0), needs.1);
        let hosts = &self.hosts;
        self.fits
            .entry(key)
            .or_insert_with(|| Rc::new(hosts.iter().map(|h| meets(h, needs.0) && serves(h, needs.1)).collect()))
            .clone()
    }
}

/// Whether labels and facts of `host` have every pair of `requirements`. Labels of the operator come first; facts are
/// known as `arch`, `os` and by wasmCloud's names.
pub fn meets(host: &HostState, requirements: &BTreeMap<String, String>) -> bool {
    requirements.iter().all(|(key, want)| match host.hello.labels.get(key) {
        Some(have) => have == want,
        None => fact(host, key).is_some_and(|have| have == want),
    })
}

fn fact<'a>(host: &'a HostState, key: &str) -> Option<&'a str> {
    let facts = host.hello.facts.as_ref()?;
    match key {
        "arch" | "hostcore.arch" => Some(&facts.arch),
        "os" | "hostcore.os" => Some(&facts.os),
        "hostcore.osfamily" => Some(if facts.os == "windows" { "windows" } else { "unix" }),
        _ => None,
    }
}

fn serves(host: &HostState, builtin: Option<Builtin>) -> bool {
    let Some(builtin) = builtin else { return true };
    let Some(facts) = &host.hello.facts else { return false };
    builtin.interfaces().iter().all(|i| facts.interfaces.iter().any(|have| have == i))
}
