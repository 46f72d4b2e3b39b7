//! Why a guest ended before it was done, in words for its caller and its log: the actor, what it broke, and the limit or
//! grant to change.

use super::config::Stack;
use super::dynamic::Failed;
use super::guard::Denied;
use super::limiter::Refused;
use super::state::{Env, RESOURCES_MAX};
use crate::call::CallError;
use wasmtime::component::ResourceTableError;
use wasmtime::{PoolConcurrencyLimitError, Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

/// It has had all its processor time.
#[derive(Debug, thiserror::Error)]
#[error("its processor time is used up")]
pub(super) struct CpuSpent;

/// It left more with the host than it may.
#[derive(Debug, thiserror::Error)]
#[error("headers and bodies that the host keeps for it")]
pub(super) struct KeepsTooMuch;

/// How the engine's own error begins when a component is made of more instances than it may be.
const TOO_MANY_INSTANCES: &str = "resource limit exceeded: instance count";

/// Of an error that a guest gave for an answer, what is passed on.
const ANSWERED_BYTES_MAX: usize = 1_024;
/// What it says when one call passes more to the host than it may.
const TOO_MUCH_AT_ONCE: &str = "fuel allocated for hostcalls has been exhausted";

pub(super) fn no_room(env: &Env, refused: Refused) -> CallError {
    let label = &env.label;
    CallError::Overloaded(match refused {
        Refused::Share => format!(
            "actor {label} has {} of this host's memory for actors, as much as is left for all others; add hosts or try \
             again",
            bytes_text(env.memory.held())
        ),
        _ => format!("actor {label}: the memory of this host for actors is used up; add hosts or try again"),
    })
}

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
        Some(Trap::StackOverflow) => {
            let stack = bytes_text(Stack::of(limits.stack_bytes).bytes());
            return CallError::Trapped(format!(
                "actor {label} used up its {stack} of call stack{place}; raise limits.stack"
            ));
        }
        Some(trap) => trap.to_string(),
        None => e.root_cause().to_string(),
    };
    let reason = reason.strip_prefix("wasm trap: ").unwrap_or(&reason);
    match refused {
        Some(refused @ (Refused::Budget | Refused::Share)) => {
            CallError::Overloaded(format!("{} ({reason}{place})", no_room(env, refused)))
        }
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
        None if reason.ends_with(TOO_MUCH_AT_ONCE) => CallError::Trapped(format!(
            "actor {label} passed too much to the host in one call; pass it in pieces{place}"
        )),
        None if matches!(e.downcast_ref(), Some(ResourceTableError::Full)) => CallError::Trapped(format!(
            "actor {label} has more than {RESOURCES_MAX} handles; drop those that are done with{place}"
        )),
        None => CallError::Trapped(format!("actor {label} trapped: {reason}{place}")),
    }
}

/// An error that the guest gave for an answer, whose text is as long as it likes.
pub(super) fn answered(label: &str, code: &impl std::fmt::Display) -> CallError {
    let text = code.to_string();
    let shown = &text[..text.floor_char_boundary(ANSWERED_BYTES_MAX)];
    CallError::Trapped(format!("actor {label} answered with an error: {shown}"))
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
        b if b > 0 && b % (1 << 10) == 0 => format!("{} KiB", b >> 10),
        b => format!("{b} bytes"),
    }
}

pub(super) fn time_text(ms: u64) -> String {
    match ms {
        ms if ms % 1000 == 0 => format!("{} s", ms / 1000),
        ms => format!("{ms} ms"),
    }
}
