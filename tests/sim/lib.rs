//! The simulation: the real log with its loop, its records and its handle, the real state, planner, watches, rules of
//! membership, and what decides in the loops of leader and host, under a seeded network, disk and clock. One seed is one run,
//! the same each time; what goes wrong is found here before it is found by somebody's machines. Absent here: threads in a
//! run, sockets, files and time.
//!
//! `docs/simulation.md` says how to run it, repeat a seed, and print the table of faults that it finds.
//!
//! Reading order: `world` (everything together, and its end), `trouble` (what goes wrong), `ambush` (what goes wrong in one
//! moment), `history` (what must always hold), `linear` (what clients may see), `judge` (what a leader may plan), `crowd`
//! (how many may run), `settled` (what must hold in the end), `watch`; the shells: `seat`, `process`, `ask`, `control` (a
//! scheduler), `hosts`, `clients`, `operators`; `disk` and `ctx` (network and clock); `faults` (what is built in on purpose).

#![cfg(test)]

mod ambush;
mod ask;
/// What a host decides, without the engine that it is compiled with there.
#[path = "../../host/src/assignment.rs"]
pub mod assignment;
#[path = "../../host/src/beats.rs"]
pub mod beats;
mod clients;
mod control;
mod crowd;
mod ctx;
mod dice;
mod disk;
#[cfg(feature = "seeded-faults")]
mod faults;
mod history;
mod hosts;
mod judge;
#[path = "../../host/src/keeper.rs"]
pub mod keeper;
#[path = "../../host/src/lease.rs"]
pub mod lease;
mod linear;
mod operators;
mod params;
mod process;
mod seat;
mod settled;
mod suite;
mod trouble;
mod watch;
mod world;
