//! Why a guest ended before it was done, in words for its caller and its log: the actor, what it broke, and the limit or
//! grant to change.

use super::config::STACK_BYTES_MAX;
use super::dynamic::Failed;
use super::guard::Denied;
use super::limiter::Refused;
use super::state::Env;
use crate::call::CallError;
use wasmtime::{PoolConcurrencyLimitError, Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

/// It has had all its processor time.
#[derive(Debug, thiserror::Error)]
#[error("its processor time is used up")]
pub(super) struct CpuSpent;

/// How the engine's own error begins when a component is made of more instances than it may be.
const TOO_MANY_INSTANCES: &str = "resource limit exceeded: instance count";

pub(super) fn explain(env: &Env, refused: Option<Refused>, e: &wasmtime::Error) -> CallError {
    let (label, limits) = (&env.label, &env.limits);
    if let Some(failed) = e.downcast_ref::<Failed>() {
        return failed.for_caller(label);
    }
    if let Some(denied) = e.downcast_ref::<Denied>() {
        return CallError::Trapped(format!("actor {label} {denied}"));
    }
    if e.is::<CpuSpent>() {
        let time = time_text(limits.cpu_ms);
        return CallError::Deadline(format!("actor {label} used up its {time} of processor time; raise limits.cpu"));
    }
    if e.is::<PoolConcurrencyLimitError>() {
        return CallError::Overloaded(format!("actor {label}: this host has no room for it now: {}", e.root_cause()));
    }
    if let Some(I32Exit(code)) = e.downcast_ref::<I32Exit>() {
        return CallError::Trapped(format!("actor {label} exited with code {code} before it was done"));
    }
    let place = e.downcast_ref::<WasmBacktrace>().map_or(String::new(), place);
    let reason = match e.downcast_ref::<Trap>() {
        Some(Trap::StackOverflow) => format!("{}: more than {STACK_BYTES_MAX} bytes of it", Trap::StackOverflow),
        Some(trap) => trap.to_string(),
        None => e.root_cause().to_string(),
    };
    let reason = reason.strip_prefix("wasm trap: ").unwrap_or(&reason);
    match refused {
        Some(Refused::Budget) => CallError::Overloaded(format!(
            "actor {label}: the memory of this host for actors is used up; add hosts or try again ({reason}{place})"
        )),
        Some(Refused::Limit) => CallError::Trapped(format!(
            "actor {label} wanted more than its {} of memory; raise limits.memory ({reason}{place})",
            bytes_text(limits.memory_bytes)
        )),
        Some(Refused::Table) => CallError::Trapped(format!(
            "actor {label} wanted more than its {} table elements; raise limits.table ({reason}{place})",
            limits.table_elements_max
        )),
        None if reason.starts_with(TOO_MANY_INSTANCES) => CallError::Trapped(format!(
            "actor {label} is made of more core instances than its {}; raise limits.instances ({reason})",
            limits.instances_max
        )),
        None => CallError::Trapped(format!("actor {label} trapped: {reason}{place}")),
    }
}

/// " in function f", or as much as the component says.
fn place(backtrace: &WasmBacktrace) -> String {
    let Some(frame) = backtrace.frames().first() else { return String::new() };
    match frame.func_name() {
        // Names come from the component: as long as its author likes.
        Some(name) => format!(" in function {}", name.chars().take(120).collect::<String>()),
        None => format!(" in function number {}", frame.func_index()),
    }
}

pub(super) fn bytes_text(bytes: u64) -> String {
    match bytes {
        b if b > 0 && b % (1 << 20) == 0 => format!("{} MiB", b >> 20),
        b => format!("{b} bytes"),
    }
}

pub(super) fn time_text(ms: u64) -> String {
    match ms {
        ms if ms % 1000 == 0 => format!("{} s", ms / 1000),
        ms => format!("{ms} ms"),
    }
}
