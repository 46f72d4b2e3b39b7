//! The `limits` trait: the bounds of one actor on one host.

use super::reader::{Cursor, Fields, Reader, shown};
use super::traits::{Refusal, checked};
use crate::app::{Limits, STACK_BYTES};
use std::ops::RangeInclusive;

const FIELDS: &[&str] = &[
    "memory",
    "table",
    "instances",
    "stack",
    "deadline",
    "cpu",
    "queue",
    "request",
    "response",
    "log",
    "outgoing",
    "reuse",
    "concurrency",
];
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const MEMORY_BYTES: RangeInclusive<u64> = 64 * KIB..=4 * GIB;
const STACK: RangeInclusive<u64> = STACK_BYTES..=8 * MIB;
const BODY_BYTES: RangeInclusive<u64> = 0..=1024 * GIB;
const LOG_BYTES: RangeInclusive<u64> = 0..=64 * MIB;
const TIME_MS: RangeInclusive<u64> = 1..=24 * 60 * 60 * 1_000;
pub(crate) const QUEUE_LEN: RangeInclusive<u64> = 0..=1_000_000;
pub(crate) const TABLE_ELEMENTS: RangeInclusive<u64> = 1..=1_000_000;
/// What the engine has room for in one component.
pub(crate) const INSTANCES: RangeInclusive<u64> = 1..=64;
pub(crate) const OUTGOING_LEN: RangeInclusive<u64> = 0..=10_000;
pub(crate) const REUSE: RangeInclusive<u64> = 1..=1_000_000;
pub(crate) const CONCURRENCY: RangeInclusive<u64> = 1..=10_000;

pub(super) fn limits(at: &Cursor<'_>, reader: &mut Reader) -> Option<Limits> {
    let mut fields = reader.fields(at, FIELDS)?;
    let default = Limits::default();
    // Each is read before any is missed: all that is wrong is told at once.
    let memory = bytes(&mut fields, "memory", default.memory_bytes, memory, reader);
    let table = count(&mut fields, "table", default.table_elements_max, TABLE_ELEMENTS, reader);
    let instances = count(&mut fields, "instances", default.instances_max, INSTANCES, reader);
    let stack = bytes(&mut fields, "stack", default.stack_bytes, stack, reader);
    let deadline = bytes(&mut fields, "deadline", default.deadline_ms, deadline, reader);
    let cpu = bytes(&mut fields, "cpu", default.cpu_ms, cpu, reader);
    let queue = count(&mut fields, "queue", default.queue_len_max, QUEUE_LEN, reader);
    let request = bytes(&mut fields, "request", default.request_bytes_max, body, reader);
    let response = bytes(&mut fields, "response", default.response_bytes_max, body, reader);
    let log = bytes(&mut fields, "log", default.log_bytes_per_s, log, reader);
    let outgoing = count(&mut fields, "outgoing", default.outgoing_len_max, OUTGOING_LEN, reader);
    let reuse = count(&mut fields, "reuse", default.reuse, REUSE, reader);
    let concurrency = count(&mut fields, "concurrency", default.concurrency, CONCURRENCY, reader);
    Some(Limits {
        memory_bytes: memory?,
        table_elements_max: table?,
        instances_max: instances?,
        stack_bytes: stack?,
        deadline_ms: deadline?,
        cpu_ms: cpu?,
        queue_len_max: queue?,
        request_bytes_max: request?,
        response_bytes_max: response?,
        log_bytes_per_s: log?,
        outgoing_len_max: outgoing?,
        reuse: reuse?,
        concurrency: concurrency?,
    })
}

/// An amount with its unit: bytes or milliseconds.
fn bytes(
    fields: &mut Fields<'_>,
    name: &str,
    default: u64,
    read: fn(&str) -> Result<u64, Refusal>,
    reader: &mut Reader,
) -> Option<u64> {
    match fields.optional(name) {
        Some(at) => reader.text(&at).and_then(|text| checked(&at.place(), read(&text), reader)),
        None => Some(default),
    }
}

fn count(
    fields: &mut Fields<'_>,
    name: &str,
    default: u32,
    range: RangeInclusive<u64>,
    reader: &mut Reader,
) -> Option<u32> {
    let Some(at) = fields.optional(name) else { return Some(default) };
    within_range(&at, name, range, reader).and_then(|count| u32::try_from(count).ok())
}

/// A whole number that this range has.
pub(crate) fn within_range(
    at: &Cursor<'_>,
    name: &str,
    range: RangeInclusive<u64>,
    reader: &mut Reader,
) -> Option<u64> {
    let count = reader.whole(at, *range.end())?;
    if !range.contains(&count) {
        let message = format!("{name} of {count} is out of range");
        reader.report(&at.place(), message, format!("give {} to {}", range.start(), range.end()));
        return None;
    }
    Some(count)
}

const BYTES: &[(&str, u64)] = &[
    ("KiB", KIB),
    ("MiB", MIB),
    ("GiB", GIB),
    ("Ki", KIB),
    ("Mi", MIB),
    ("Gi", GIB),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("B", 1),
    ("", 1),
];
const TIMES: &[(&str, u64)] = &[("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];

pub(crate) fn memory(text: &str) -> Result<u64, Refusal> {
    match amount(text, BYTES) {
        Some(bytes) if MEMORY_BYTES.contains(&bytes) => Ok(bytes),
        Some(_) => Err((format!("{} of memory is out of range", shown(text)), "give 64KiB to 4GiB")),
        None => Err((format!("{} is not an amount of memory", shown(text)), "write it as 64MiB")),
    }
}

pub(crate) fn stack(text: &str) -> Result<u64, Refusal> {
    match amount(text, BYTES) {
        Some(bytes) if STACK.contains(&bytes) => Ok(bytes),
        Some(_) => Err((format!("a call stack of {} is out of range", shown(text)), "give 512KiB to 8MiB")),
        None => Err((format!("{} is not a size of a call stack", shown(text)), "write it as 1MiB")),
    }
}

pub(crate) fn body(text: &str) -> Result<u64, Refusal> {
    match amount(text, BYTES) {
        Some(bytes) if BODY_BYTES.contains(&bytes) => Ok(bytes),
        Some(_) => Err((format!("a body of {} is out of range", shown(text)), "give 0 to 1024GiB")),
        None => Err((format!("{} is not a size of a body", shown(text)), "write it as 64MiB")),
    }
}

pub(crate) fn log(text: &str) -> Result<u64, Refusal> {
    match amount(text, BYTES) {
        Some(bytes) if LOG_BYTES.contains(&bytes) => Ok(bytes),
        Some(_) => Err((format!("{} of log a second is out of range", shown(text)), "give 0 to 64MiB")),
        None => Err((format!("{} is not an amount of log", shown(text)), "write the bytes of one second, as 64KiB")),
    }
}

pub(crate) fn deadline(text: &str) -> Result<u64, Refusal> {
    match amount(text, TIMES) {
        Some(ms) if TIME_MS.contains(&ms) => Ok(ms),
        Some(_) => Err((format!("a deadline of {} is out of range", shown(text)), "give 1ms to 24h")),
        None => Err((format!("{} is not a time", shown(text)), "write it with its unit, as 30s or 500ms")),
    }
}

pub(crate) fn cpu(text: &str) -> Result<u64, Refusal> {
    match amount(text, TIMES) {
        Some(ms) if TIME_MS.contains(&ms) => Ok(ms),
        Some(_) => Err((format!("processor time of {} is out of range", shown(text)), "give 1ms to 24h")),
        None => Err((format!("{} is not a time", shown(text)), "write it with its unit, as 10s or 500ms")),
    }
}

/// A whole number and one of the units behind it.
fn amount(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start_matches(' '))?;
    // Too large for 64 bits is out of range, not another form.
    (digits > 0).then(|| number.parse::<u64>().unwrap_or(u64::MAX).saturating_mul(*factor))
}
