//! `run`: a program on a host of the lattice, as if it ran here: its output as it comes, its exit code as one's own.

use crate::args::{self, Connect};
use crate::client::Client;
use crate::failure::Failure;
use crate::{context, duration, print};
use clap::Args;
use proto::v1::RunRequest;
use proto::v1::run_output::What;
use std::io::{IsTerminal, Read, Write};
use std::time::Duration;

/// Bytes of input that one program gets.
const STDIN_BYTES_MAX: u64 = 2 * 1024 * 1024;
/// Time in which a host begins.
const BEGIN_WAIT: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lattice run words/words -- -l            arguments behind --
  lattice run -i words/words < README.md   with this command's input
  lattice run report/make --timeout 10m > report.csv

The actor exports wasi:cli/run, as `wasi:cli/command` components and programs of
WASI preview 1 do. It runs once, on a host where it is placed, in an instance of its
own. It sees the arguments and the input given here, and variables, folders and
addresses as its manifest grants them. What it prints is in `lattice logs` too.
limits.deadline and limits.cpu of its manifest say how long it may take (30s, 10s).
Ctrl-C stops it. At a terminal its control characters are not passed on.
Exit codes: the program's own; 1 with a line that begins with error: when it did
not run to its end; 2 wrong use.")]
pub(crate) struct RunArgs {
    /// Actor to run
    #[arg(value_name = "APP/ACTOR", value_parser = args::app_and_actor)]
    actor: (String, String),
    /// Arguments for it
    #[arg(value_name = "ARGS", last = true)]
    args: Vec<String>,
    /// Give it what this command reads from stdin, at most 2 MiB
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Stop it after this time, if its own deadline is not sooner: 500ms, 30s, 2m, 1h
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    timeout: Option<Duration>,
    #[command(flatten)]
    pub(crate) connect: Connect,
}

pub(crate) async fn run(args: &RunArgs, connect: &Connect) -> Result<(), Failure> {
    let client = Client::connect(context::endpoint(connect)?).await?;
    let (app, actor) = args.actor.clone();
    let request = RunRequest {
        app,
        actor,
        args: args.args.clone(),
        stdin: args.stdin.then(input).transpose()?,
        deadline_ms: args.timeout.map_or(0, |t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX).max(1)),
    };
    // Once: it might be carried out twice.
    let mut output = client.once(BEGIN_WAIT, |mut api| async move { api.run(request).await }).await?;
    let (mut stdout, mut stderr) = (Screen::of(std::io::stdout()), Screen::of(std::io::stderr()));
    loop {
        let message = output.message().await.map_err(|status| client.failure(&status))?;
        match message.and_then(|message| message.what) {
            Some(What::Stdout(bytes)) => stdout.write(&bytes)?,
            // As everywhere: who does not listen to it loses nothing else.
            Some(What::Stderr(bytes)) => stderr.write(&bytes).unwrap_or_default(),
            Some(What::Exited(0)) => return Ok(()),
            Some(What::Exited(code)) => return Err(Failure::Exited(u8::try_from(code).unwrap_or(u8::MAX))),
            None => {
                let text = "the server ended the run before the program did; see `lattice logs`".to_owned();
                return Err(Failure::Refused(text));
            }
        }
    }
}

fn input() -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = std::io::stdin().lock().take(STDIN_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|e| Failure::Refused(format!("stdin: {e}")))?;
    if bytes.len() > usize::try_from(STDIN_BYTES_MAX).unwrap_or(usize::MAX) {
        let text = "stdin has more than 2 MiB, the most that a program is given; put it where the actor can read it";
        return Err(Failure::Refused(text.to_owned()));
    }
    Ok(bytes)
}

/// Where bytes go: as they are, but for a terminal, which what strangers print must not drive.
struct Screen<W> {
    to: W,
    is_terminal: bool,
    /// The beginning of a character whose end has not come.
    rest: Vec<u8>,
}

impl<W: Write + IsTerminal> Screen<W> {
    fn of(to: W) -> Self {
        Self { is_terminal: to.is_terminal(), to, rest: Vec::new() }
    }
}

impl<W: Write> Screen<W> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        if !self.is_terminal {
            self.to.write_all(bytes)?;
            return Ok(self.to.flush()?);
        }
        self.rest.extend_from_slice(bytes);
        let mut whole = self.rest.len();
        if let Err(e) = std::str::from_utf8(&self.rest)
            && e.error_len().is_none()
        {
            whole = e.valid_up_to();
        }
        let rest = self.rest.split_off(whole);
        let text = String::from_utf8_lossy(&self.rest).into_owned();
        self.rest = rest;
        for line in text.split_inclusive('\n') {
            let (line, end) = line.strip_suffix('\n').map_or((line, ""), |line| (line, "\n"));
            let kept = line.len() - line.trim_end().len();
            self.to.write_all(print::clean(line).as_bytes())?;
            // What ends a line is kept, or a prompt would lose its space.
            self.to.write_all(" ".repeat(kept.min(1)).as_bytes())?;
            self.to.write_all(end.as_bytes())?;
        }
        Ok(self.to.flush()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(pieces: &[&[u8]], is_terminal: bool) -> Vec<u8> {
        let mut screen = Screen { to: Vec::new(), is_terminal, rest: Vec::new() };
        for piece in pieces {
            screen.write(piece).unwrap();
        }
        screen.to
    }

    #[test]
    fn a_pipe_gets_every_byte() {
        assert_eq!(shown(&[b"\x1b[2J\0", b"\xff\n"], false), b"\x1b[2J\0\xff\n");
    }

    #[test]
    fn a_terminal_is_not_driven_and_characters_are_not_torn() {
        assert_eq!(shown(&[b"a\nname: ", b"b\n"], true), b"a\nname: b\n");
        assert_eq!(shown(&["é".as_bytes()], true), "é".as_bytes());
        assert_eq!(shown(&[b"x\xc3", b"\xa9\n"], true), "xé\n".as_bytes());
        let text = String::from_utf8(shown(&[b"\x1b]0;x\x07", b"\xc2", b"\x9b2J"], true)).unwrap();
        assert!(!text.chars().any(char::is_control), "{text:?}");
    }
}
