//! One child process: its output in files, its banner read, ended by its own pid and by nobody else's.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const START: Duration = Duration::from_secs(120);
const END: Duration = Duration::from_secs(20);
/// Lines of a log that a failed test prints.
const TAIL: usize = 120;

pub(crate) struct Process {
    pub(crate) name: String,
    child: Child,
    out: PathBuf,
    err: PathBuf,
    /// Where this start's output begins: files go on over restarts.
    begin: u64,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `command`, its output appended to `<dir>/<name>.out` and `.err`.
    pub(crate) fn spawn(name: &str, dir: &Path, command: &mut Command) -> Self {
        let out = dir.join(format!("{name}.out"));
        let err = dir.join(format!("{name}.err"));
        let append = |path: &Path| OpenOptions::new().create(true).append(true).open(path).unwrap();
        let stdout = append(&out);
        let begin = stdout.metadata().unwrap().len();
        let child = command
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(append(&err))
            .spawn()
            .unwrap_or_else(|e| panic!("{name}: {:?}: {e}", command.get_program()));
        Self { name: name.to_owned(), child, out, err, begin, ended: None }
    }

    /// The value of a line `  name   value` of its banner; waits for it.
    pub(crate) fn field(&mut self, name: &str) -> String {
        let end = Instant::now() + START;
        loop {
            let found = self.stdout().lines().find_map(|line| {
                let mut words = line.split_whitespace();
                (line.starts_with("  ") && words.next() == Some(name)).then(|| words.next().map(str::to_owned))?
            });
            if let Some(found) = found {
                return found;
            }
            assert!(self.is_alive(), "{} ended before it said {name:?}", self.name);
            assert!(Instant::now() < end, "{} did not say {name:?} within {START:?}", self.name);
            std::thread::sleep(super::POLL);
        }
    }

    /// All of its log, of earlier starts too.
    pub(crate) fn stderr(&self) -> String {
        fs::read_to_string(&self.err).unwrap()
    }

    /// What it printed since this start.
    pub(crate) fn stdout(&self) -> String {
        let mut text = String::new();
        let mut file = File::open(&self.out).unwrap();
        file.seek(SeekFrom::Start(self.begin)).unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().unwrap();
        }
        self.ended.is_none()
    }

    pub(crate) fn assert_alive(&mut self) {
        assert!(self.is_alive(), "{} has ended: {:?}", self.name, self.ended);
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        if self.is_alive() {
            self.child.kill().unwrap();
            self.ended = Some(self.child.wait().unwrap());
        }
    }

    /// Ctrl-C; it must end well, and soon.
    pub(crate) fn interrupt(&mut self) {
        self.end_by("INT");
    }

    /// As a service manager ends it; it must end well, and soon.
    pub(crate) fn terminate(&mut self) {
        self.end_by("TERM");
    }

    fn end_by(&mut self, signal: &str) {
        self.signal(signal);
        let end = Instant::now() + END;
        while self.is_alive() {
            assert!(Instant::now() < end, "{} did not end within {END:?} of SIG{signal}", self.name);
            std::thread::sleep(super::POLL);
        }
        let status = self.ended.unwrap();
        assert!(status.success(), "{} ended with {status} after SIG{signal}", self.name);
    }

    /// Waits until it has ended by itself; gives its exit code.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        let end = Instant::now() + END;
        while self.is_alive() {
            assert!(Instant::now() < end, "{} did not end within {END:?}", self.name);
            std::thread::sleep(super::POLL);
        }
        self.ended.and_then(|status| status.code())
    }

    /// Not a step further, until `resume`.
    pub(crate) fn pause(&mut self) {
        self.signal("STOP");
    }

    pub(crate) fn resume(&mut self) {
        self.signal("CONT");
    }

    fn signal(&mut self, signal: &str) {
        self.assert_alive();
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
    }

    /// The end of its output, in one piece: other tests print at the same time.
    fn shown(&self) -> String {
        let mut shown = String::new();
        for path in [&self.out, &self.err] {
            let text = fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let tail = &lines[lines.len().saturating_sub(TAIL)..];
            shown += &format!("--- {} (last {} of {} lines)\n", path.display(), tail.len(), lines.len());
            shown += &tail.join("\n");
            shown += "\n";
        }
        shown
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprint!("{}", self.shown());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
