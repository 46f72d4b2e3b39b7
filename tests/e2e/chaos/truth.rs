//! What hosts really run all through a run, as each says itself on its own machine, beside which hosts the schedulers hear;
//! and whether that may have been so: never one that is strict on two hosts, never more replicas on hosts that are heard
//! than were asked for. `judge` is pure.

use super::net::Net;
use super::world::{ADMIN, HOSTS, SCHEDULERS, STRICT, WORK, api, block};
use crate::harness::http::Request;
use proto::v1 as pb;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Between two looks at a host, and at what a scheduler hears.
const LOOK: Duration = Duration::from_millis(200);
const LISTEN: Duration = Duration::from_millis(400);
/// For a host to say what it runs: one that stands still does not.
const WAIT: Duration = Duration::from_secs(1);
/// Two looks further apart say nothing of what was between them.
const GAP: Duration = Duration::from_millis(1_500);
/// A host that returns is told what to stop; after so long it must have.
const SETTLE: Duration = Duration::from_secs(8);
/// Heard by whoever hears its heartbeat, each 2 s.
const HEARD_MS: u64 = 6_000;

/// One look at one host; that it runs nothing when it is not there is a look too.
#[derive(Debug, Clone)]
pub(super) struct Look {
    pub(super) host: &'static str,
    pub(super) begin: Instant,
    pub(super) end: Instant,
    pub(super) runs: BTreeMap<String, u32>,
}

/// The hosts that a scheduler with a quorum behind it heard.
#[derive(Debug, Clone)]
pub(super) struct Heard {
    pub(super) at: Instant,
    pub(super) hosts: BTreeSet<&'static str>,
}

/// What came of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// Looks at hosts, and moments at which hosts were added up.
    pub(super) looks: usize,
    pub(super) moments: usize,
    /// Hosts on which the strict one was seen.
    pub(super) strict_hosts: usize,
    /// The longest that a host which is heard again went on with what runs elsewhere by then.
    pub(super) strays: Duration,
}

#[derive(Default)]
pub(super) struct Truth {
    looks: Mutex<Vec<Look>>,
    heard: Mutex<Vec<Heard>>,
    end: AtomicBool,
}

impl Truth {
    /// Enters the machines that are looked at.
    pub(super) fn of(net: &Net) -> Looking<impl FnOnce() + Send + use<>> {
        Looking { hosts: HOSTS.map(|name| (name, net.enter(name))), schedulers: SCHEDULERS.map(|name| net.enter(name)) }
    }

    fn look_at(&self, host: &'static str) {
        while !self.end.load(Ordering::SeqCst) {
            let begin = Instant::now();
            if let Some(runs) = look() {
                self.looks.lock().unwrap().push(Look { host, begin, end: Instant::now(), runs });
            }
            std::thread::sleep(LOOK.saturating_sub(begin.elapsed()));
        }
    }

    async fn listen(&self) {
        let mut api = api();
        while !self.end.load(Ordering::SeqCst) {
            let asked = tokio::time::timeout(WAIT, api.list_hosts(pb::ListRequest::default()));
            if let Ok(Ok(list)) = asked.await {
                let is_heard = |host: &pb::HostStatus| host.state != "lost" && host.seen_ms < HEARD_MS;
                let names: BTreeSet<String> =
                    list.into_inner().items.into_iter().filter(is_heard).map(|host| host.name).collect();
                let hosts = HOSTS.into_iter().filter(|name| names.contains(*name)).collect();
                self.heard.lock().unwrap().push(Heard { at: Instant::now(), hosts });
            }
            tokio::time::sleep(LISTEN).await;
        }
    }
}

/// What each thread that looks begins with.
pub(super) struct Looking<E> {
    hosts: [(&'static str, E); HOSTS.len()],
    schedulers: [E; SCHEDULERS.len()],
}

impl<E: FnOnce() + Send> Looking<E> {
    /// Looks all the while that `work` does something.
    pub(super) fn during<T>(self, work: impl FnOnce() -> T) -> (T, Vec<Look>, Vec<Heard>) {
        let truth = Truth::default();
        let done = std::thread::scope(|scope| {
            for (name, enter) in self.hosts {
                let truth = &truth;
                scope.spawn(move || {
                    enter();
                    truth.look_at(name);
                });
            }
            for enter in self.schedulers {
                let truth = &truth;
                scope.spawn(move || {
                    enter();
                    block(truth.listen());
                });
            }
            // Also when it fails: these end, so that the failure is seen.
            let ending = Ending(&truth);
            let done = work();
            drop(ending);
            done
        });
        (done, truth.looks.into_inner().unwrap(), truth.heard.into_inner().unwrap())
    }
}

struct Ending<'a>(&'a Truth);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.end.store(true, Ordering::SeqCst);
    }
}

/// What the host on this thread's machine runs, by app; `None` when it does not say. A process that is gone runs nothing.
pub(super) fn look() -> Option<BTreeMap<String, u32>> {
    let request = Request { deadline: WAIT, ..Request::get(ADMIN.parse().unwrap(), "/metrics") };
    match request.send() {
        Ok(page) if page.status == 200 => Some(replicas(&page.text())),
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => Some(BTreeMap::new()),
        _ => None,
    }
}

/// App -> replicas, of the page for Prometheus.
fn replicas(page: &str) -> BTreeMap<String, u32> {
    let mut all = BTreeMap::new();
    for line in page.lines().filter_map(|line| line.strip_prefix("lattice_actor_replicas{app=\"")) {
        let (Some((app, _)), Some(count)) = (line.split_once('"'), line.rsplit(' ').next()) else { continue };
        *all.entry(app.to_owned()).or_default() +=
            count.split('.').next().and_then(|whole| whole.parse::<u32>().ok()).unwrap();
    }
    all
}

/// Whether all that was seen may have been so.
pub(super) fn judge(looks: &[Look], heard: &[Heard]) -> Result<Told, String> {
    let mut by_host: BTreeMap<&'static str, Vec<&Look>> = BTreeMap::new();
    for look in looks {
        by_host.entry(look.host).or_default().push(look);
    }
    let strict_hosts = never_twice(&by_host)?;
    let (moments, strays) = none_beyond(&by_host, heard)?;
    Ok(Told { looks: looks.len(), moments, strict_hosts, strays })
}

/// The strict one on one host at a time: between two looks that both saw it, it was there. Gives on how many it ever was.
fn never_twice(by_host: &BTreeMap<&'static str, Vec<&Look>>) -> Result<usize, String> {
    let mut spans: Vec<(Instant, Instant, &'static str)> = Vec::new();
    let mut seen = BTreeSet::new();
    for (host, looks) in by_host {
        let has = |look: &Look| look.runs.get(STRICT).is_some_and(|n| *n > 0);
        seen.extend(looks.iter().copied().any(has).then_some(*host));
        for pair in looks.windows(2) {
            if has(pair[0]) && has(pair[1]) && pair[1].begin.duration_since(pair[0].end) <= GAP {
                spans.push((pair[0].end, pair[1].begin, *host));
            }
        }
    }
    spans.sort();
    let mut last: Option<(Instant, Instant, &'static str)> = None;
    for span in spans {
        if let Some((_, until, host)) = last
            && host != span.2
            && span.0 < until
        {
            let both = until.min(span.1).duration_since(span.0);
            return Err(format!("{STRICT} ran on {host} and on {} at once, for {both:?}", span.2));
        }
        last = Some(match last {
            Some(last) if last.1 > span.1 => last,
            _ => span,
        });
    }
    Ok(seen.len())
}

/// Of the other app never more than was asked for, on hosts that were heard for a while. Gives how often that was added up,
/// and the longest that there was more on those that are heard, whether or not for long.
fn none_beyond(by_host: &BTreeMap<&'static str, Vec<&Look>>, heard: &[Heard]) -> Result<(usize, Duration), String> {
    let mut heard: Vec<&Heard> = heard.iter().collect();
    heard.sort_by_key(|heard| heard.at);
    let (mut moments, mut strays) = (0, Duration::ZERO);
    let mut beyond_since: Option<Instant> = None;
    for (n, now) in heard.iter().enumerate() {
        let at = now.at;
        let window = heard[..=n].iter().rev().take_while(|h| at.duration_since(h.at) <= SETTLE);
        let mut settled = now.hosts.clone();
        let (mut oldest, mut is_whole) = (at, true);
        for then in window {
            is_whole &= oldest.duration_since(then.at) <= GAP;
            oldest = then.at;
            settled.retain(|host| then.hosts.contains(host));
        }
        // Who was not listened to meanwhile may have been away.
        if !is_whole || at.duration_since(oldest) + GAP < SETTLE {
            settled.clear();
        }
        let sum = |hosts: &BTreeSet<&'static str>| hosts.iter().map(|host| least(by_host.get(host), at)).sum::<u32>();
        if !settled.is_empty() {
            moments += 1;
            if sum(&settled) > WORK {
                let each: BTreeMap<_, _> = settled.iter().map(|host| (*host, least(by_host.get(host), at))).collect();
                return Err(format!("{WORK} were asked for, and on hosts that are heard ran {each:?}"));
            }
        }
        if sum(&now.hosts) > WORK {
            strays = strays.max(at.duration_since(*beyond_since.get_or_insert(at)));
        } else {
            beyond_since = None;
        }
    }
    Ok((moments, strays))
}

/// The fewest that a host ran about then: what moves is seen on both for a moment when the looks are not at the same time.
fn least(looks: Option<&Vec<&Look>>, at: Instant) -> u32 {
    let Some(looks) = looks else { return 0 };
    let next = looks.partition_point(|look| look.begin < at);
    let count = |look: &&Look| look.runs.get("work").copied().unwrap_or_default();
    let near = |look: &&&Look| look.begin.max(at).duration_since(look.end.min(at)) <= GAP;
    let before = next.checked_sub(1).and_then(|n| looks.get(n)).filter(near).map(count);
    let after = looks.get(next).filter(near).map(count);
    match (before, after) {
        (Some(before), Some(after)) => before.min(after),
        // It stands still, or was not looked at.
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each: host, from and to in tenths of a second, of `work` and of the strict one.
    fn looks(zero: Instant, list: &[(&'static str, u64, u64, u32, u32)]) -> Vec<Look> {
        let mut looks = Vec::new();
        for (host, from, to, work, strict) in list.iter().copied() {
            for n in from..to {
                let begin = zero + Duration::from_millis(100 * n);
                let runs = [("work".to_owned(), work), (STRICT.to_owned(), strict)].into();
                looks.push(Look { host, begin, end: begin + Duration::from_millis(5), runs });
            }
        }
        looks
    }

    fn heard(zero: Instant, list: &[(&'static str, u64, u64)], until: u64) -> Vec<Heard> {
        let at = |n: u64| {
            let hosts = list.iter().filter(|(_, from, to)| (*from..*to).contains(&n)).map(|(host, ..)| *host).collect();
            Heard { at: zero + Duration::from_millis(100 * n + 50), hosts }
        };
        (0..until).map(at).collect()
    }

    #[test]
    fn what_may_be_is_let_through() {
        let zero = Instant::now();
        // h1 is cut off at 10 s and goes on with its five; the strict one moves; h1 is heard at 40 s and stops at 42 s.
        let list = [
            ("h1", 0, 175, 5, 1),
            ("h1", 175, 420, 5, 0),
            ("h1", 420, 600, 0, 0),
            ("h2", 0, 210, 5, 0),
            ("h2", 210, 600, 10, 1),
        ];
        let heard = heard(zero, &[("h1", 0, 160), ("h2", 0, 600), ("h1", 400, 600)], 600);
        let told = judge(&looks(zero, &list), &heard).unwrap();
        assert_eq!((told.looks, told.strict_hosts), (1_200, 2));
        assert!(told.moments > 500, "{told:?}");
        assert!(told.strays >= Duration::from_millis(1_800) && told.strays < Duration::from_millis(2_100), "{told:?}");
    }

    #[test]
    fn what_may_not_be_is_found() {
        let zero = Instant::now();
        let both = heard(zero, &[("h1", 0, 300), ("h2", 0, 300)], 300);
        let twice = [("h1", 0, 160, 5, 1), ("h1", 160, 300, 5, 0), ("h2", 0, 150, 5, 0), ("h2", 150, 300, 5, 1)];
        let why = judge(&looks(zero, &twice), &both).unwrap_err();
        assert!(why.contains("h1 and on h2 at once"), "{why}");
        let many = [("h1", 0, 300, 5, 1), ("h2", 0, 100, 5, 0), ("h2", 100, 300, 6, 0)];
        let why = judge(&looks(zero, &many), &both).unwrap_err();
        assert!(why.contains("10 were asked for"), "{why}");
        // A host that is heard again and does not stop.
        let returned = heard(zero, &[("h1", 0, 300), ("h2", 100, 300)], 300);
        let strays = [("h1", 0, 300, 10, 1), ("h2", 0, 300, 5, 0)];
        assert!(judge(&looks(zero, &strays), &returned).is_err());
        let soon = [("h1", 0, 300, 10, 1), ("h2", 0, 120, 5, 0), ("h2", 120, 300, 0, 0)];
        assert!(judge(&looks(zero, &soon), &returned).is_ok());
    }

    #[test]
    fn a_page_says_what_runs() {
        let page = "# TYPE lattice_actor_replicas gauge\nlattice_actor_replicas{app=\"work\",actor=\"hello\"} 3\n\
                    lattice_actor_replicas{app=\"strict\",actor=\"hello\"} 1.0\nlattice_host_bus_up 1\n# EOF\n";
        assert_eq!(replicas(page), [("strict".to_owned(), 1), ("work".to_owned(), 3)].into());
    }
}
