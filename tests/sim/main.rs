//! The simulation: the real state machine, planner, assignment core and consensus machine under a seeded network,
//! clock, disk and power supply. One seed is one run, the same each time; what goes wrong is found here before it is
//! found by somebody's machines. Absent here: threads, sockets, files and time.
//!
//! `LATTICE_SIM_SEED=7 cargo test --release --test sim simulation -- --nocapture` runs one seed and tells what happens;
//! `LATTICE_SIM_SEEDS=5000` runs so many. A seed that fails goes into `seeds.txt` with the fix.
//!
//! Reading order: `world` (what goes wrong, and when it has to be right again), `history` (what must always hold),
//! `judge` (what a leader may plan), `settled` (what must hold in the end), `members`, `hosts` and `clients` (the
//! shells), `log` and `quorum` (the two logs), `ctx` (network and clock).

mod clients;
mod ctx;
mod dice;
mod history;
mod hosts;
mod judge;
mod log;
mod members;
mod quorum;
mod settled;
mod world;

use ctx::{Mutation, Params};
use std::collections::BTreeMap;
use std::time::Instant;
use world::World;

/// Fresh seeds are drawn from here.
const BASE: u64 = 0x1a77_1ce0;
const SEEDS: u64 = 300;
/// What has to happen at least once in a suite, or it shows nothing.
const COVERED: &[&str] = &[
    "app created",
    "app created again after its deletion",
    "assignment confirmed again",
    "assignment of a leader that lags refused",
    "brake pulled",
    "bus down",
    "crash while dispatching",
    "crash while storing",
    "drain finished",
    "goodbye heard",
    "hello asked for",
    "host cut off",
    "host forgotten",
    "host left",
    "host lost",
    "host paused",
    "host returned after lost",
    "inventory asked for",
    "leader took office",
    "message lost",
    "outcome unknown to who proposed",
    "placement removed",
    "plan refused as stale",
    "request refused",
    "retry answered from memory",
    "revision replaced on a host",
    "rollout stopped",
    "scheduler isolated",
    "scheduler restarted",
    "snapshot of the leader taken over",
    "snapshot stored",
    "stale assignment refused",
    "stale heartbeat dropped",
    "start failed",
    "started for nothing",
    "started from the last assignment",
    "torn assignment",
];

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|e| panic!("{variable}={text}: {e}; give a number")))
}

/// Runs one seed; what is wrong, with the last events, if anything is.
fn run(seed: u64, print: bool) -> (World, Result<(), String>) {
    let mut world = World::new(Params::draw(seed, None), None, print, print);
    world.run();
    let Some(failure) = world.ctx.failure.clone() else { return (world, Ok(())) };
    if print {
        return (world, Err(failure));
    }
    let mut again = World::new(Params::draw(seed, None), None, true, false);
    again.run();
    let last: Vec<String> = again.ctx.trace.unwrap_or_default().into();
    let told = format!(
        "seed {seed}: {failure}\n\n{}\n\nseed {seed}: {failure}\nagain, all of it: LATTICE_SIM_SEED={seed} cargo test \
         --release --test sim simulation -- --nocapture",
        last.join("\n")
    );
    (world, Err(told))
}

#[test]
fn simulation() {
    if let Some(seed) = number("LATTICE_SIM_SEED") {
        let (world, result) = run(seed, true);
        println!("{:#?}\nat rest after {} ms", world.ctx.counts, world.rested_ms);
        return result.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
    let seeds = number("LATTICE_SIM_SEEDS").unwrap_or(SEEDS);
    let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
    let (mut simulated_ms, mut events, mut slowest, mut failures) = (0, 0, (0, 0), Vec::new());
    let begun = Instant::now();
    for n in 0..seeds {
        let seed = dice::mix(BASE + n) >> 16;
        let (world, result) = run(seed, false);
        failures.extend(result.err());
        simulated_ms += world.ctx.now;
        events += world.ctx.delivered;
        slowest = slowest.max((world.rested_ms, seed));
        for (what, n) in world.ctx.counts {
            *counts.entry(what).or_default() += n;
        }
    }
    let took = begun.elapsed().as_secs_f64();
    let simulated = simulated_ms / 1_000;
    println!("{counts:#?}");
    println!(
        "{seeds} seeds: {simulated} simulated seconds, {events} events in {took:.1} s: {:.0} simulated seconds per second",
        simulated as f64 / took
    );
    println!("the slowest, seed {}, came to rest {} ms after the end of all faults", slowest.1, slowest.0);
    if let Some(first) = failures.first() {
        let all: Vec<&str> = failures.iter().filter_map(|f| f.lines().next()).collect();
        panic!("{} of {seeds} seeds failed:\n{}\n\nthe first:\n{first}", failures.len(), all.join("\n"));
    }
    let missing: Vec<&&str> = COVERED.iter().filter(|c| !counts.contains_key(**c)).collect();
    assert!(seeds < SEEDS || missing.is_empty(), "never happened in {seeds} seeds: {missing:?}");
}

/// Every seed that ever failed.
#[test]
fn regressions() {
    let lines = include_str!("seeds.txt").lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    for line in lines {
        let seed = line.split_whitespace().next().unwrap_or_default();
        let seed = seed.parse().unwrap_or_else(|e| panic!("seeds.txt: {line}: {e}"));
        if let (_, Err(told)) = run(seed, false) {
            panic!("{told}");
        }
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for n in [1, 2, 3] {
        let seed = dice::mix(BASE ^ n) >> 16;
        let one = run(seed, false).0.ctx;
        let two = run(seed, false).0.ctx;
        assert_eq!((one.hash, one.counts), (two.hash, two.counts));
        assert_ne!(one.hash, run(seed + 1, false).0.ctx.hash);
    }
}

/// Faults that are built in on purpose must be found within so many seeds.
#[test]
fn what_is_broken_on_purpose_is_found() {
    let broken = [
        (Mutation::HostTakesOlder, 1, 20, "went back"),
        (Mutation::ConfirmBeforeStore, 1, 40, "confirmed"),
        (Mutation::OldContent, 1, 20, ""),
        (Mutation::NewIdOnRetry, 1, 20, "was applied"),
        (Mutation::LosesLastEntry, 1, 20, "two histories"),
        (Mutation::SnapshotForgetsAnswers, 1, 20, "differ"),
        (Mutation::KeepsStrays, 1, 20, "not placed there"),
        (Mutation::SendsOnce, 1, 20, ""),
        (Mutation::HostTrustsTerm, 3, 400, "went back"),
        (Mutation::BootsGoBack, 1, 20, "not at rest"),
        (Mutation::ForgetsVote, 3, 60, ""),
    ];
    let mut missed = Vec::new();
    for (mutation, members, within, says) in broken {
        let within = number("LATTICE_SIM_SEEDS").unwrap_or(within);
        let found = (0..within).find_map(|n| {
            let seed = dice::mix(BASE ^ 0xb0b0_0000 ^ n) >> 16;
            let params = Params::draw(seed, Some(members));
            let mut world = World::new(params, Some(mutation), false, false);
            // The machine itself may stop at what can not be.
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.run()));
            let failure = match ended {
                Ok(()) => world.ctx.failure.clone()?,
                Err(_) => "panicked".to_owned(),
            };
            (failure == "panicked" || failure.contains(says)).then_some((n, failure))
        });
        match found {
            Some((seeds, failure)) => println!("{mutation:?}: found by seed {} of {within}: {failure}", seeds + 1),
            None => missed.push(format!("{mutation:?} in {within} seeds")),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
