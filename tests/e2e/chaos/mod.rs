//! Everything that can happen to machines, disks, clocks and networks happens to real processes, while clients write and
//! read; afterwards what the clients saw must have been possible, and everything runs again as it was asked for.
//!
//! A run has each fault once and a few kills; LATTICE_CHAOS_KILLS=50 kills that many leaders and a fifth as
//! many hosts, and prints the same figures.
//! Needs root, network namespaces, nft and loop devices: without them it says so at the end of the run.

mod history;
mod net;
mod truth;
mod world;
mod writers;

use crate::harness::{SOON, alone, leave_out, until};
use history::Op;
use net::Way;
use proto::v1 as pb;
use std::time::{Duration, Instant};
use truth::Truth;
use world::{HOSTS, SCHEDULERS, STRICT, WORK, World};
use writers::Writers;

#[test]
fn three_schedulers_and_five_hosts_go_on_whatever_happens() {
    alone(|| match world::needs().and_then(|()| World::start()) {
        Ok(world) => go_on(world),
        Err(why) => leave_out(&format!("faults of networks, disks and clocks under real processes: {why}")),
    });
}

fn go_on(mut world: World) {
    world.until_healed("its start");
    let first = writers::revision(&world);
    let mut figures = Figures::default();
    let looking = Truth::of(&world.net);
    let (ops, looks, heard) = looking.during(|| {
        Writers::during(&mut world, |world, writers| {
            leaders_killed(world, writers, &mut figures);
            hosts_killed(world, &mut figures);
            processes_paused(world, writers, &mut figures);
            stopped_for_long(world, writers, &mut figures);
            links_cut(world, writers, &mut figures);
            bus_restarted(world, writers);
            disk_full(world, writers, &mut figures);
            clock_set(world, writers);
            power_cut(world, writers);
        })
    });
    let told = truth::judge(&looks, &heard).unwrap_or_else(|why| panic!("what hosts ran may not be: {why}"));
    assert!(told.looks > 500 && told.moments > 200 && told.strict_hosts > 1, "too little was seen to tell: {told:?}");
    let last = writers::revision(&world);
    let counts =
        history::check(&ops, first, last).unwrap_or_else(|why| panic!("what clients saw can not have been so: {why}"));
    assert!(counts.acknowledged > 500 && counts.reads > 200, "too little was done to tell: {counts:?}");
    figures.print();
    eprintln!(
        "replicas beyond those asked for, on hosts that are heard: 0 in {} moments; on two hosts at once of what is strict, \
         which was on {} hosts: 0 in {} looks; hosts that were heard again stopped their strays within {:.1} s",
        told.moments,
        told.strict_hosts,
        told.looks,
        told.strays.as_secs_f64()
    );
    eprintln!(
        "{} writes acknowledged, none lost, none applied twice; {} without an answer; {} reads, none stale; slowest write {:.1} s",
        counts.acknowledged,
        counts.uncertain,
        counts.reads,
        slowest(&ops).as_secs_f64()
    );
}

fn slowest(ops: &[Op]) -> Duration {
    ops.iter().filter(|op| op.is_acknowledged_write()).map(|op| op.end - op.begin).max().unwrap_or_default()
}

/// How many: `few`, or a share of what was asked for.
fn kills(few: usize, share: usize) -> usize {
    let asked: Option<usize> = std::env::var("LATTICE_CHAOS_KILLS").ok().and_then(|text| text.parse().ok());
    asked.map_or(few, |asked| (asked / share).max(1))
}

/// How long things took, by what had happened.
#[derive(Default)]
struct Figures(Vec<(&'static str, Vec<Duration>)>);

impl Figures {
    fn note(&mut self, what: &'static str, took: Duration) {
        match self.0.iter_mut().find(|(name, _)| *name == what) {
            Some((_, all)) => all.push(took),
            None => self.0.push((what, vec![took])),
        }
    }

    fn print(&mut self) {
        for (what, all) in &mut self.0 {
            all.sort();
            let at = |share: usize| all[(all.len() * share / 100).min(all.len() - 1)].as_secs_f64();
            eprintln!("{what}: p50 {:.2} s, p99 {:.2} s, worst {:.2} s of {}", at(50), at(99), at(100), all.len());
        }
    }
}

/// Some writes get through at each scheduler that can be reached.
fn until_more(writers: &Writers, what: &str) {
    let before = writers.count();
    until(&format!("clients go on after {what}"), Duration::from_secs(30), || {
        (writers.count() > before + 20).then_some(())
    });
}

fn leaders_killed(world: &mut World, writers: &Writers, figures: &mut Figures) {
    for _ in 0..kills(4, 1) {
        let leader = world.leader();
        until_more(writers, "nothing");
        world.kill(leader);
        let took = writers.until_written(Instant::now(), leader);
        figures.note("leader killed -> next write accepted", took);
        assert!(took < Duration::from_secs(10), "{took:?}");
        world.start_one(leader, &[]);
        world.until_healed("a killed leader came back");
    }
}

fn hosts_killed(world: &mut World, figures: &mut Figures) {
    for round in 0..kills(2, 5) {
        let host = HOSTS[round % HOSTS.len()];
        let had = world.running("s1").unwrap_or_default().get(host).copied().unwrap_or_default();
        assert!(had > 0, "{host} runs nothing, so nothing can move");
        world.kill(host);
        let killed = Instant::now();
        until("what it ran runs elsewhere", Duration::from_secs(40), || {
            let running = world.running("s2")?;
            let elsewhere: u32 = running.iter().filter(|(name, _)| *name != host).map(|(_, count)| count).sum();
            (elsewhere == WORK).then_some(())
        });
        figures.note("host killed -> its actors elsewhere", killed.elapsed());
        world.start_one(host, &[]);
        world.until_healed("a killed host came back");
        // It has its share again, for the next one.
        spread_again(world);
    }
}

/// Nothing moves back by itself to a host that returns: asked for fewer and for as many again, it is spread anew.
fn spread_again(world: &World) {
    world.cli("s1", &["scale", "work/hello", "1"]);
    until("one runs", SOON, || (world.running("s1")?.values().sum::<u32>() == 1).then_some(()));
    world.cli("s1", &["scale", "work/hello", &WORK.to_string()]);
    until("all hosts have some", SOON, || {
        let running = world.running("s1")?;
        (running.len() == HOSTS.len() && running.values().sum::<u32>() == WORK).then_some(())
    });
}

fn processes_paused(world: &mut World, writers: &Writers, figures: &mut Figures) {
    for seconds in [1, 4] {
        let leader = world.leader();
        world.process(leader).pause();
        let paused = Instant::now();
        let took = writers.until_written(paused, leader);
        if seconds > 3 {
            figures.note("leader paused -> next write accepted", took);
        }
        std::thread::sleep(Duration::from_secs(seconds).saturating_sub(paused.elapsed()));
        world.process(leader).resume();
        until_more(writers, "a pause");
        world.until_healed("a paused leader");
    }
    // Shorter than it takes to be lost: nothing moves.
    world.process("h2").pause();
    std::thread::sleep(Duration::from_secs(4));
    world.process("h2").resume();
    world.until_healed("a short pause of a host");
    assert!(world.running("s1").unwrap_or_default().contains_key("h2"), "what it ran was moved");
}

/// Longer than it takes to be lost. A host that goes on after that must stop what runs elsewhere by then.
fn stopped_for_long(world: &mut World, writers: &Writers, figures: &mut Figures) {
    // Alone for a while, then a leader and a host together.
    for (seconds, with_leader) in [(15, false), (30, true)] {
        let host = until("the strict one runs", SOON, || {
            let strict = world.running_of("s1", STRICT)?;
            HOSTS.into_iter().find(|name| strict.contains_key(*name))
        });
        let leader = world.leader();
        if with_leader {
            stop_leader(world, writers, figures, leader);
        }
        world.process(host).pause();
        let paused = Instant::now();
        let by = SCHEDULERS.into_iter().find(|name| *name != leader).unwrap();
        until("a host that stands still is lost", Duration::from_secs(40), || {
            world.host_is(by, host, "lost").then_some(())
        });
        until("what it ran runs elsewhere", SOON, || {
            let (work, strict) = (world.running(by)?, world.running_of(by, STRICT)?);
            let is_elsewhere = !work.contains_key(host) && !strict.contains_key(host);
            (is_elsewhere && work.values().sum::<u32>() == WORK && strict.len() == 1).then_some(())
        });
        std::thread::sleep(Duration::from_secs(seconds).saturating_sub(paused.elapsed()));
        assert!(world.host_is(by, host, "lost"), "nobody hears it");
        world.process(host).resume();
        let resumed = Instant::now();
        until("it has stopped what runs elsewhere", SOON, || {
            let runs = world.really(host)?;
            let none = |app: &str| runs.get(app).copied().unwrap_or_default() == 0;
            (none("work") && none(STRICT)).then_some(())
        });
        figures.note("host resumed -> it has stopped its strays", resumed.elapsed());
        if with_leader {
            world.process(leader).resume();
        }
        world.until_healed("a host that stood still for long");
        spread_again(world);
    }
    let leader = world.leader();
    stop_leader(world, writers, figures, leader);
    std::thread::sleep(Duration::from_secs(14));
    world.process(leader).resume();
    world.until_healed("a leader that stood still for long");
}

fn stop_leader(world: &mut World, writers: &Writers, figures: &mut Figures, leader: &'static str) {
    world.process(leader).pause();
    figures.note("leader stopped for long -> next write accepted", writers.until_written(Instant::now(), leader));
}

fn links_cut(world: &mut World, writers: &Writers, figures: &mut Figures) {
    let leader = world.leader();
    world.net.set_link(leader, false);
    figures.note("leader cut off -> next write accepted", writers.until_written(Instant::now(), leader));
    world.net.set_link(leader, true);
    world.until_healed("a link that was down");
    for way in [Way::Out, Way::In] {
        let leader = world.leader();
        let others = world.others(leader);
        world.net.drop_packets(leader, way, &others);
        let what = match way {
            Way::Out => "leader can not send -> next write accepted",
            Way::In => "leader can not hear -> next write accepted",
        };
        figures.note(what, writers.until_written(Instant::now(), leader));
        world.net.heal(leader);
        world.until_healed("packets that were dropped");
    }
    // A host that is cut off for less than it takes to be lost.
    world.net.set_link("h3", false);
    std::thread::sleep(Duration::from_secs(4));
    world.net.set_link("h3", true);
    world.until_healed("a host's link that was down");
}

fn bus_restarted(world: &mut World, writers: &Writers) {
    world.kill("bus");
    // Schedulers need no bus among themselves.
    until_more(writers, "the bus went");
    std::thread::sleep(Duration::from_secs(3));
    world.start_bus();
    world.until_healed("a restart of the bus");
}

fn disk_full(world: &mut World, writers: &Writers, figures: &mut Figures) {
    let leader = world.leader();
    world.disk(leader).fill();
    let begun = Instant::now();
    // It has some room left in its files, and ends when that is used up.
    until("it ends for want of room", Duration::from_secs(60), || (!world.process(leader).is_alive()).then_some(()));
    let log = world.process(leader).stderr();
    assert!(log.contains("No space left on device"), "{log}");
    figures
        .note("leader without room on its disk -> next write accepted", writers.until_written(Instant::now(), leader));
    eprintln!("the disk of a leader was full: it ended after {:.1} s", begun.elapsed().as_secs_f64());
    world.disk(leader).make_room();
    world.start_one(leader, &[]);
    world.until_healed("a full disk");
}

fn clock_set(world: &mut World, writers: &Writers) {
    if !world.has_clock() {
        return leave_out("jumps of a scheduler's clock: libfaketime is missing (package libfaketime)");
    }
    let id = until("s1 is known", SOON, || {
        let list = world.ask("s1", |mut api| async move { api.list_schedulers(pb::ListSchedulersRequest {}).await });
        let peer = format!("{}:7401", world.address("s1"));
        list.ok()?.into_inner().items.into_iter().find(|item| item.peer == peer).map(|item| item.id)
    });
    if world.leader() != "s1" {
        world.cli("s1", &["schedulers", "transfer-leader", "--to", &id.to_string()]);
    }
    for seconds in [3_600, -3_600, 0] {
        world.set_clock(seconds);
        until("the leader's clock is wrong", SOON, || (wrong_by(world, "s1")?.abs_diff(seconds) < 60).then_some(()));
        std::thread::sleep(Duration::from_secs(3));
        until_more(writers, "a jump of the clock");
        let hosts = world.running("s2").unwrap_or_default();
        assert_eq!(hosts.values().sum::<u32>(), WORK, "a jump of the leader's clock by {seconds} s moved something");
        world.until_healed("a jump of the clock");
    }
}

/// By how many seconds the clock of the scheduler differs from ours, as a token that it makes shows.
fn wrong_by(world: &World, name: &str) -> Option<i64> {
    let request = pb::CreateJoinTokenRequest { life_ms: 3_600_000 };
    let token =
        world.ask(name, |mut api| async move { Ok(api.create_join_token(request).await?.into_inner()) }).ok()?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Some(i64::try_from(token.expires_ms / 1_000).unwrap() - 3_600 - i64::try_from(now.as_secs()).unwrap())
}

/// All three at once.
fn power_cut(world: &mut World, writers: &Writers) {
    until_more(writers, "nothing");
    for name in SCHEDULERS {
        world.disk(name).cut();
    }
    for name in SCHEDULERS {
        world.kill(name);
        world.disk(name).unmount();
        world.disk(name).mount().unwrap();
    }
    for name in SCHEDULERS {
        world.start_one(name, &[]);
    }
    world.until_healed("a power cut");
    until_more(writers, "a power cut");
}
