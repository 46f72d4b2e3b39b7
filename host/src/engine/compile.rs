//! Machine code of components, made by a child process: this program, started again with a hidden verb. The child has a
//! low priority, on all processors, and bounds on memory and time of its own: a component that is hard to compile costs
//! who runs here nothing but idle processors, and one that breaks the compiler breaks the child. What it gives goes into
//! this host's cache, which signs it, and is loaded from there like any other.
//!
//! Where no child can be started the component waits: it is never compiled in the process that serves, unless no
//! compiler was set up at all (tests).

use super::{Error, cache, config, not_component};
use proto::app::Digest;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::Duration;

/// The first argument that makes this program the child.
pub const ARGUMENT: &str = "compile-component";

/// Processor time of one compilation, and time on the wall: a busy machine makes it wait.
const CPU_S_MAX: u64 = 300;
const WALL_MAX: Duration = Duration::from_secs(600);
/// From being told that its time is over until it is ended.
const CPU_S_GRACE: u64 = 5;
/// Memory of the child: half of what this process may have, within these.
const MEMORY_BYTES: std::ops::RangeInclusive<u64> = (24 << 20)..=(4 << 30);
/// Its address space, of which it reserves more than it uses.
const SPACE_BYTES_MIN: u64 = 1 << 30;
/// With less than this it compiles on one processor: each further one costs memory.
const PARALLEL_BYTES: u64 = 256 << 20;
const CODE_BYTES_MAX: u64 = 1 << 30;
/// The first byte of what the child says.
const CODE: u8 = b'C';
const REFUSED: u8 = b'R';

/// How the child is started.
#[derive(Debug, Clone)]
pub struct Compiler {
    program: PathBuf,
}

impl Compiler {
    /// This very program, even if its file was replaced meanwhile. It must call `child` when it is told to.
    pub fn itself() -> Option<Self> {
        let own = Path::new("/proc/self/exe");
        let program = if own.exists() { Some(own.to_owned()) } else { std::env::current_exe().ok() };
        program.map(|program| Self { program })
    }

    /// Another program that calls `child`, or starts one that does.
    pub fn at(program: PathBuf) -> Self {
        Self { program }
    }

    /// Compiled code for an engine of this setup. Blocks.
    pub(super) fn compile(&self, digest: &Digest, bytes: &[u8], setup: &str) -> Result<Vec<u8>, Error> {
        let not_now = |reason: String| Error::NoCompiler { digest: digest.clone(), reason };
        let none = |e: io::Error| not_now(format!("no process can be started for it ({e})"));
        let memory = memory_bytes(config::machine_memory_bytes());
        let mut command = Command::new(&self.program);
        command.arg(ARGUMENT).arg(setup).arg(memory.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).env_clear();
        let mut child = command.spawn().map_err(none)?;
        // It reads everything before it writes anything; one that died is told by how it ended.
        if let Some(mut to) = child.stdin.take() {
            let _ = to.write_all(bytes);
        }
        let mut said = Vec::new();
        let read = child.stdout.take().map(|from| from.take(CODE_BYTES_MAX + 2).read_to_end(&mut said));
        let ended = child.wait().map_err(none)?;
        let is_whole = matches!(read, Some(Ok(_))) && said.len() as u64 <= CODE_BYTES_MAX;
        match (said.first().copied(), ended.success()) {
            (Some(CODE), true) if is_whole => Ok(said.split_off(1)),
            (Some(REFUSED), true) => {
                let reason = not_component(bytes, &String::from_utf8_lossy(&said[1..]));
                Err(Error::NotComponent { digest: digest.clone(), reason })
            }
            (None, true) => Err(not_now("its compiler is of another version".to_owned())),
            _ => match why(ended, memory) {
                Why::Component(reason) => Err(Error::Compile { digest: digest.clone(), reason }),
                Why::Machine(reason) => Err(not_now(reason)),
            },
        }
    }
}

/// Whose fault it is that there is no code.
#[derive(Debug, PartialEq, Eq)]
enum Why {
    Component(String),
    /// Another time it may go well.
    Machine(String),
}

fn why(ended: ExitStatus, memory: u64) -> Why {
    const ABORTED: i32 = libc::SIGABRT;
    const TOO_LONG: i32 = libc::SIGXCPU;
    const KILLED: i32 = libc::SIGKILL;
    match (ended.signal(), ended.code()) {
        (Some(ABORTED), _) => {
            Why::Component(format!("it takes more than {} MiB of memory; make it smaller", memory >> 20))
        }
        (Some(TOO_LONG), _) => {
            Why::Component(format!("it takes more than {CPU_S_MAX} s of processor time; make it smaller"))
        }
        (Some(KILLED), _) => Why::Machine("its compiler was killed, as when a machine runs out of memory".to_owned()),
        (None, Some(code)) if code == i32::from(LATE) => Why::Machine(format!(
            "it was not done after {} minutes, since the machine is busy",
            WALL_MAX.as_secs() / 60
        )),
        _ => Why::Component(format!("the compiler broke ({ended})")),
    }
}

fn memory_bytes(machine: Option<u64>) -> u64 {
    (machine.unwrap_or(u64::MAX) / 2).clamp(*MEMORY_BYTES.start(), *MEMORY_BYTES.end())
}

/// The child's exit code when it took too long.
const LATE: u8 = 124;

/// The child: a component on standard input, its code on standard output. `args` are those behind `ARGUMENT`. Says
/// nothing when its engine is not the one that was meant.
pub fn child(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let mut text = || args.next().and_then(|arg| arg.into_string().ok());
    let (Some(setup), Some(memory)) = (text(), text().and_then(|memory| memory.parse().ok())) else {
        return ExitCode::from(2);
    };
    match within_bounds(memory).and_then(|()| answer(&setup, memory >= PARALLEL_BYTES)) {
        Ok(said) if io::stdout().write_all(&said).is_ok() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn answer(setup: &str, parallel: bool) -> io::Result<Vec<u8>> {
    let Some(engine) = engine_of(setup, parallel)? else { return Ok(Vec::new()) };
    let mut bytes = Vec::new();
    io::stdin().read_to_end(&mut bytes)?;
    let mut said = vec![CODE];
    match engine.precompile_component(&bytes) {
        Ok(code) => said.extend_from_slice(&code),
        Err(error) => {
            said[0] = REFUSED;
            said.extend_from_slice(format!("{error:#}").as_bytes());
        }
    }
    Ok(said)
}

/// The engine of this build that has this setup.
fn engine_of(setup: &str, parallel: bool) -> io::Result<Option<wasmtime::Engine>> {
    for kind in [config::Kind::Plain, config::Kind::Later] {
        let mut config = config::wasmtime_config(None, kind, config::Stack::USUAL);
        config.parallel_compilation(parallel);
        let engine = wasmtime::Engine::new(&config).map_err(io::Error::other)?;
        if cache::setup(&engine) == setup {
            return Ok(Some(engine));
        }
    }
    Ok(None)
}

/// Before any thread is started, so that it holds for all of them.
fn within_bounds(memory: u64) -> io::Result<()> {
    let _ = rustix::process::nice(19);
    // Where memory runs out all the same, this process goes, and not the host that started it.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let space = memory.max(SPACE_BYTES_MIN);
    let bounds = [
        (Resource::Data, memory, 0),
        (Resource::As, space, 0),
        (Resource::Cpu, CPU_S_MAX, CPU_S_GRACE),
        (Resource::Core, 0, 0),
    ];
    for (resource, most, grace) in bounds {
        let Rlimit { maximum, .. } = getrlimit(resource);
        let within = |most: u64| Some(maximum.map_or(most, |maximum| maximum.min(most)));
        setrlimit(resource, Rlimit { current: within(most), maximum: within(most + grace) })?;
    }
    std::thread::Builder::new().name("late".into()).spawn(|| {
        std::thread::sleep(WALL_MAX);
        std::process::exit(i32::from(LATE));
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_child_ended_is_told_by_what_to_do() {
        let ended = ExitStatus::from_raw;
        let component = |ended, text: &str| match why(ended, 1 << 30) {
            Why::Component(reason) => assert!(reason.starts_with(text), "{reason}"),
            other => panic!("{other:?}"),
        };
        component(ended(libc::SIGABRT), "it takes more than 1024 MiB of memory; make it smaller");
        component(ended(libc::SIGXCPU), "it takes more than 300 s of processor time");
        component(ended(libc::SIGSEGV), "the compiler broke (signal: 11");
        for ended in [ended(libc::SIGKILL), ended(i32::from(LATE) << 8)] {
            assert!(matches!(why(ended, 1), Why::Machine(_)), "{ended}");
        }
    }

    #[test]
    fn the_child_has_half_of_the_machine_within_reason() {
        assert_eq!(memory_bytes(Some(32 << 20)), 24 << 20);
        assert_eq!(memory_bytes(Some(64 << 20)), 32 << 20);
        assert_eq!(memory_bytes(Some(6 << 30)), 3 << 30);
        assert_eq!(memory_bytes(None), 4 << 30);
    }
}
