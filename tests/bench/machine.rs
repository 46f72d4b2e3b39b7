//! What Linux tells of this machine and of processes: CPU time, resident memory, and how busy everybody else is.

use anyhow::{Context as _, Result, bail};
use std::fs;
use std::time::{Duration, Instant};

/// Length of the kernel's clock tick as /proc tells it: USER_HZ is 100 on every architecture this runs on.
const TICK: Duration = Duration::from_millis(10);

/// User and system time that a process, all its threads together, has used so far.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    Ok(TICK * ticks(&pid.to_string(), 13..15)?)
}

/// The same of its children that have ended.
pub(crate) fn cpu_of_children(pid: u32) -> Result<Duration> {
    Ok(TICK * ticks(&pid.to_string(), 15..17)?)
}

/// Sum of fields of /proc/PID/stat, counted from 0.
fn ticks(pid: &str, fields: std::ops::Range<usize>) -> Result<u32> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("{path}: the process has ended; see its log"))?;
    // The name, field 1, may hold blanks and brackets.
    let rest = text.rsplit_once(") ").with_context(|| format!("{path} is not as Linux writes it"))?.1;
    let numbers = rest.split(' ').skip(fields.start - 2).take(fields.len());
    numbers.map(|n| n.parse::<u32>().with_context(|| format!("{path} has {n:?} for a number"))).sum()
}

/// Memory of a process, in bytes.
pub(crate) struct Memory {
    pub(crate) resident: u64,
    /// Of it, what is in no file: it can not be shared or dropped.
    pub(crate) anonymous: u64,
    pub(crate) threads: u64,
}

pub(crate) fn memory(pid: u32) -> Result<Memory> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("{path}: the process has ended; see its log"))?;
    let field = |name: &str| -> Result<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.with_context(|| format!("{path} has no {name}"))
    };
    Ok(Memory { resident: field("VmRSS")? * 1024, anonymous: field("RssAnon")? * 1024, threads: field("Threads")? })
}

/// One line for every report: what the figures were measured on.
pub(crate) fn line() -> String {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!(
        "{cpus} cpus ({}), Linux {}, load average {} before the start",
        model.unwrap_or("of unknown make"),
        kernel.trim(),
        load.split(' ').next().unwrap_or("unknown")
    )
}

/// How much of the machine others took while something was measured: figures of a busy machine are not to be trusted.
pub(crate) struct Others {
    began: Instant,
    busy: Duration,
    own: Duration,
}

impl Others {
    pub(crate) fn watch() -> Result<Self> {
        Ok(Self { began: Instant::now(), busy: busy()?, own: own()? })
    }

    /// Percent of all cpus. Exact once the processes started here have ended, as their time counts only then.
    pub(crate) fn percent(&self) -> Result<f64> {
        let others = (busy()? - self.busy).saturating_sub(own()? - self.own);
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(100.0 * others.as_secs_f64() / (self.began.elapsed().as_secs_f64() * cpus as f64))
    }
}

/// Time that this process and the children that it has waited for have used.
fn own() -> Result<Duration> {
    Ok(TICK * ticks("self", 13..17)?)
}

/// Time that all cpus together were not idle.
fn busy() -> Result<Duration> {
    let text = fs::read_to_string("/proc/stat").context("/proc/stat: the bench runs on Linux only")?;
    let numbers: Vec<u32> = text.lines().next().unwrap_or_default().split_whitespace().flat_map(str::parse).collect();
    // user nice system idle iowait irq softirq steal
    let [user, nice, system, _, _, irq, softirq, steal, ..] = numbers[..] else {
        bail!("/proc/stat is not as Linux writes it");
    };
    Ok(TICK * (user + nice + system + irq + softirq + steal))
}
