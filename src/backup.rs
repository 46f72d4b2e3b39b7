//! `backup` and `restore`: the state of a lattice and its components as one file, and a new scheduler from such a file.
//! What is written is read again as it is written: a file that is there under its name is whole.

use crate::args::Connect;
use crate::client::Client;
use crate::failure::Failure;
use crate::print::rows::bytes;
use crate::{context, print};
use clap::Args;
use proto::backup::{Problem, Reader};
use proto::v1;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// For a piece of the file to come.
const PIECE_WAIT: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lattice backup plant-1.backup            of the lattice that the context names
  lattice backup plant-1.backup --bare     without the components: the hosts have them
  lattice backup rest.backup --data DIR    of what a scheduler left that has ended

The file holds what is desired and where it is placed: apps with their revisions,
hosts, homes of stores, components. It does not hold what stores hold: the data of
builtin:keyvalue is on its host, beneath keyvalue/. It may hold secrets that
manifests have in them; nobody else can read it.")]
pub(crate) struct BackupArgs {
    /// File to write; it must not be there yet
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Leave the components out
    #[arg(long)]
    bare: bool,
    /// Data folder of a scheduler that has ended: read that instead of asking one that runs
    #[cfg(feature = "scheduler")]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// With --data: name of the lattice that it was of
    #[cfg(feature = "scheduler")]
    #[arg(long, value_name = "NAME", default_value = "default", value_parser = crate::run::lattice_name, requires = "data")]
    lattice: proto::app::LatticeName,
    #[command(flatten)]
    pub(crate) connect: Connect,
}

pub(crate) async fn backup(args: &BackupArgs, connect: &Connect) -> Result<(), Failure> {
    let mut target = Target::begin(&args.file)?;
    #[cfg(feature = "scheduler")]
    if let Some(data) = &args.data {
        let made = restoring::of_folder(args, data, &mut target);
        return tell(&args.file, target.end(made)?);
    }
    let made = fetch(args, connect, &mut target).await;
    tell(&args.file, target.end(made)?)
}

async fn fetch(args: &BackupArgs, connect: &Connect, target: &mut Target) -> Result<(), Failure> {
    let client = Client::connect(context::endpoint(connect)?).await?;
    let request = v1::BackupRequest { bare: args.bare };
    let mut pieces = client.once(PIECE_WAIT, |mut api| async move { api.backup(request).await }).await?;
    loop {
        match tokio::time::timeout(PIECE_WAIT, pieces.message()).await {
            Ok(Ok(Some(piece))) => target.write(&piece.data)?,
            Ok(Ok(None)) => return Ok(()),
            Ok(Err(status)) => return Err(client.failure(&status)),
            Err(_) => return Err(Failure::Refused("the lattice sent nothing more for a minute; try again".into())),
        }
    }
}

fn tell(file: &Path, (made, size): (v1::Backup, u64)) -> Result<(), Failure> {
    print::out(format!("{}: {}, {}", file.display(), what(&made), bytes(size)))?;
    if made.uncertain > 0 {
        print::note(format!(
            "its last {} log entries were not known to be committed where it was made; they are in it, as others may have \
             acknowledged them",
            made.uncertain
        ));
    }
    if made.hosts > 0 {
        print::note("what stores hold is not in it: each is on its own host, beneath keyvalue/ of the data folder");
    }
    Ok(())
}

/// What a backup is of.
fn what(made: &v1::Backup) -> String {
    let components =
        if made.bare { "no components".to_owned() } else { count(made.components.len() as u64, "component") };
    format!(
        "lattice {} at log index {}: {}, {}, {components}",
        print::clean(&made.lattice),
        made.index,
        count(made.apps, "app"),
        count(made.hosts, "host")
    )
}

fn count(n: u64, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// The file under another name until it is whole and on the disk.
struct Target {
    file: PathBuf,
    new: PathBuf,
    out: File,
    size: u64,
    reader: Reader,
}

impl Target {
    fn begin(file: &Path) -> Result<Self, Failure> {
        if file.exists() {
            return Err(Failure::Refused(format!("{} is there already; name another file", file.display())));
        }
        let mut name = file.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let new = file.with_file_name(name);
        let _ = std::fs::remove_file(&new);
        let out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new);
        let out = out.map_err(|e| refuse(&new, &e))?;
        Ok(Self { file: file.to_path_buf(), new, out, size: 0, reader: Reader::default() })
    }

    fn write(&mut self, piece: &[u8]) -> Result<(), Failure> {
        let wrong = |problem: Problem| Failure::Refused(format!("what the lattice sent {problem}"));
        self.reader.take::<Problem>(piece, |_| Ok(())).map_err(wrong)?;
        self.size += piece.len() as u64;
        self.out.write_all(piece).map_err(|e| refuse(&self.new, &e))
    }

    /// Gives the file its name if all went well; else nothing of it stays.
    fn end(self, made: Result<(), Failure>) -> Result<(v1::Backup, u64), Failure> {
        let Self { file, new, out, size, reader } = self;
        let whole = made.and_then(|()| {
            let made = reader.end().map_err(|problem| Failure::Refused(format!("what the lattice sent {problem}")))?;
            let folder = file.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let kept = out.sync_all().and_then(|()| std::fs::rename(&new, &file));
            kept.and_then(|()| File::open(folder)?.sync_all()).map_err(|e| refuse(&file, &e))?;
            Ok((made, size))
        });
        if whole.is_err() {
            let _ = std::fs::remove_file(&new);
        }
        whole
    }
}

fn refuse(path: &Path, error: &std::io::Error) -> Failure {
    Failure::Refused(format!("{}: {error}; name a file on a disk with space that this user can write", path.display()))
}

#[cfg(feature = "scheduler")]
pub(crate) use restoring::{RestoreArgs, restore};

/// What needs the scheduler's own code: it reads and makes data folders.
#[cfg(feature = "scheduler")]
mod restoring {
    use super::{Args, BackupArgs, Failure, Path, PathBuf, Target, print, what};
    use scheduler::backup;

    #[derive(Debug, Args)]
    #[command(after_help = "\
Examples:
  lattice restore plant-1.backup --check   is the file whole, and what is in it
  lattice restore plant-1.backup --data /var/lib/lattice/new --yes
  lattice scheduler --nats URL --data /var/lib/lattice/new

A restore makes a new scheduler that is alone, with an authority of its own; others
join it anew. Hosts take what it sends, stop what was applied after the backup, and
take nothing any more from schedulers of before: end all of those first.")]
    pub(crate) struct RestoreArgs {
        /// File that `lattice backup` wrote
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Folder for the new scheduler; it must be empty or not there [default: as with `lattice scheduler`]
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
        /// Name of the lattice
        #[arg(long, value_name = "NAME", default_value = "default", value_parser = crate::run::lattice_name)]
        lattice: proto::app::LatticeName,
        /// Read the file and say what is in it, no more
        #[arg(long, conflicts_with_all = ["data", "yes"])]
        check: bool,
        /// The schedulers of before have ended, and will not be started again
        #[arg(long)]
        yes: bool,
    }

    pub(crate) fn restore(args: &RestoreArgs) -> Result<(), Failure> {
        let refused = |error: backup::Error| Failure::Refused(print::clean(&error.to_string()));
        if args.check {
            let made = backup::check(&args.file).map_err(refused)?;
            return print::out(format!("{} is whole: {}", args.file.display(), what(&made)));
        }
        let data = crate::run::data_dir(args.data.as_deref(), "scheduler")?;
        if !args.yes {
            return Err(Failure::Usage(format!(
                "a restore makes a new scheduler that takes over all hosts of lattice {}: what was applied after the backup \
                 is stopped there. End every scheduler of before, for good, then add --yes",
                args.lattice
            )));
        }
        let made = backup::restore(&args.file, &data, &args.lattice, crate::print::time::now_ms()).map_err(refused)?;
        print::out(format!("restored {}", what(&made)))?;
        print::out(format!("next: lattice scheduler --nats URL --lattice {} --data {}", args.lattice, data.display()))
    }

    pub(super) fn of_folder(args: &BackupArgs, data: &Path, target: &mut Target) -> Result<(), Failure> {
        let mut failed = None;
        let now_ms = crate::print::time::now_ms();
        let made = backup::of_folder(data, &args.lattice, args.bare, now_ms, &mut |piece| {
            target.write(piece).map_err(|failure| {
                failed = Some(failure);
                std::io::Error::other("not written")
            })
        });
        match (failed, made) {
            (Some(failure), _) => Err(failure),
            (None, Ok(_)) => Ok(()),
            (None, Err(error)) => Err(Failure::Refused(print::clean(&error.to_string()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::app::Digest;

    fn bytes_of(state: &[u8]) -> Vec<u8> {
        let part = v1::BackupPart { digest: Digest::of(state).to_string(), size: state.len() as u64 };
        let backup = v1::Backup { lattice: "plant".into(), index: 9, apps: 1, state: Some(part), ..Default::default() };
        [proto::backup::head(&backup), state.to_vec()].concat()
    }

    #[test]
    fn a_file_is_there_when_it_is_whole_and_is_never_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("b");
        let bytes = bytes_of(b"state");
        let names = || {
            let entries = std::fs::read_dir(dir.path()).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
        };
        let mut target = Target::begin(&file).unwrap();
        target.write(&bytes[..bytes.len() - 1]).unwrap();
        assert_eq!(names(), ["b.new"]);
        let failure = target.end(Ok(())).unwrap_err();
        assert!(failure.to_string().contains("cut short"), "{failure}");
        assert!(names().is_empty());

        let mut target = Target::begin(&file).unwrap();
        target.write(&bytes).unwrap();
        let (made, size) = target.end(Ok(())).unwrap();
        assert_eq!((names(), size), (vec!["b".to_owned()], bytes.len() as u64));
        assert_eq!(what(&made), "lattice plant at log index 9: 1 app, 0 hosts, 0 components");
        let Err(failure) = Target::begin(&file) else { panic!("it is there") };
        assert!(failure.to_string().contains("name another file"), "{failure}");
    }
}
