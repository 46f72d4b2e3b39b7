//! End to end: the real program, real components, a real log and real disks, on both buses. Each scenario is a
//! sentence that must hold; `harness` has what they stand on. Must never reach into a process: what is seen here is
//! what a user sees, by the command line, the API, HTTP and the bus.
//!
//!   tests/run --test e2e                      all of them
//!   tests/run --test e2e lost_host            those with that in their name

#![cfg(all(feature = "host", feature = "scheduler"))]
#![allow(clippy::unwrap_used, reason = "a test that meets what it did not expect shall end")]

mod alone;
mod apart;
mod api;
mod apply;
mod bad;
mod garbage;
mod harness;
mod hostile;
mod keystore;
mod look;
mod lost;
mod moving;
#[cfg(target_os = "linux")]
mod power;
mod registry;
mod schedulers;
#[cfg(feature = "otel")]
mod tracing;
mod walls;
mod watching;
