//! End to end: the real program, real components, a real log and real disks, on both buses. Each scenario is a
//! sentence that must hold; `harness` has what they stand on. Must never reach into a process: what is seen here is
//! what a user sees, by the command line, the API, HTTP and the bus.
//!
//!   tests/run --test e2e                      all of them
//!   tests/run --test e2e lost_host            those with that in their name

#![cfg(all(feature = "host", feature = "scheduler"))]
#![allow(clippy::unwrap_used, reason = "a test that meets what it did not expect shall end")]

mod access;
mod adding;
mod addresses;
mod alone;
mod among;
mod apart;
mod api;
mod apply;
mod backup;
mod bad;
mod buses;
mod certificates;
#[cfg(target_os = "linux")]
mod chaos;
#[cfg(target_os = "linux")]
mod edge;
mod garbage;
mod harness;
mod hostile;
mod keystore;
mod languages;
mod later;
mod look;
mod lost;
mod moving;
mod other;
#[cfg(target_os = "linux")]
mod power;
mod programs;
mod progress;
mod reads;
mod registry;
mod schedulers;
mod status;
mod streaming;
mod strict;
#[cfg(target_os = "linux")]
mod sync;
mod terminal;
#[cfg(feature = "otel")]
mod tracing;
mod unused;
mod versions;
mod walls;
mod watching;
mod websocket;
