//! The `grants` trait: what an actor may reach besides its links. Nothing is granted that is not written.

use super::reader::{Cursor, Reader, shown};
use crate::address::Pattern;
use crate::app::{Folder, Grants, Invalid, Random};
use std::collections::{BTreeMap, BTreeSet};

const FIELDS: &[&str] = &["env", "args", "http", "folders", "sockets", "clocks", "random", "stdin", "exit"];
/// Arguments of one actor, and addresses of one list.
const ARGS_MAX: usize = 1_000;
const PATTERNS_MAX: usize = 1_000;

pub(super) fn grants(at: &Cursor<'_>, reader: &mut Reader) -> Option<Grants> {
    let mut fields = reader.fields(at, FIELDS)?;
    let mut grants = Grants {
        env: fields.optional("env").map(|at| env(&at, reader)).unwrap_or_default(),
        args: fields.optional("args").map(|at| args(&at, reader)).unwrap_or_default(),
        http: fields.optional("http").map(|at| patterns(&at, Pattern::http, reader)).unwrap_or_default(),
        folders: fields.optional("folders").map(|at| folders(&at, reader)).unwrap_or_default(),
        random: fields.optional("random").and_then(|at| random(&at, reader)),
        stdin: fields.optional("stdin").and_then(|at| reader.text(&at)),
        ..Grants::default()
    };
    // What is wrong in one has been told; the others are looked at all the same.
    let sockets = fields.optional("sockets").map_or(Some(()), |at| sockets(&at, &mut grants, reader));
    let clocks = fields.optional("clocks").map_or(Some((false, false)), |at| clocks(&at, reader));
    let exit = fields.optional("exit").map_or(Some(false), |at| reader.flag(&at));
    sockets?;
    (grants.wall_clock, grants.fine_clock) = clocks?;
    grants.exit = exit?;
    Some(grants)
}

fn env(at: &Cursor<'_>, reader: &mut Reader) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    for pair in reader.pairs(at) {
        if pair.key.is_empty() || pair.key.contains(['=', '\0']) {
            reader.report(&pair.place, format!("{} is no variable's name", shown(&pair.key)), "write it without =");
        }
        env.insert(pair.key, pair.value);
    }
    env
}

fn args(at: &Cursor<'_>, reader: &mut Reader) -> Vec<String> {
    let items = reader.list(at, "arguments");
    if items.len() > ARGS_MAX {
        let message = format!("{} arguments; at most {ARGS_MAX} are allowed", items.len());
        reader.report(&at.place(), message, "give a long list as a file, in a folder that is granted");
        return Vec::new();
    }
    items.iter().filter_map(|item| reader.text(item)).collect()
}

/// A list of addresses, in lower case.
pub(crate) fn patterns(
    at: &Cursor<'_>,
    read: fn(&str) -> Result<Pattern, Invalid>,
    reader: &mut Reader,
) -> Vec<String> {
    let items = reader.list(at, "addresses");
    if items.len() > PATTERNS_MAX {
        let message = format!("{} addresses; at most {PATTERNS_MAX} are allowed", items.len());
        reader.report(&at.place(), message, "write ranges, as 10.0.0.0/8 or *.example.org");
        return Vec::new();
    }
    let mut found = Vec::new();
    for item in items {
        let Some(text) = reader.text(&item) else { continue };
        match read(&text) {
            Ok(_) => found.push(text.to_ascii_lowercase()),
            Err(help) => reader.report(&item.place(), format!("{} is not an address", shown(&text)), help.to_string()),
        }
    }
    found
}

/// `true` is everything; else a map of what is granted.
fn sockets(at: &Cursor<'_>, grants: &mut Grants, reader: &mut Reader) -> Option<()> {
    if !at.is_map() {
        grants.sockets = reader.flag(at)?;
        return Some(());
    }
    let mut fields = reader.fields(at, &["tcp", "udp", "lookups"])?;
    let mut list = |name, reader: &mut Reader| {
        fields.optional(name).map(|at| patterns(&at, Pattern::socket, reader)).unwrap_or_default()
    };
    grants.tcp = list("tcp", reader);
    grants.udp = list("udp", reader);
    grants.lookups = fields.optional("lookups").map_or(Some(false), |at| reader.flag(&at))?;
    Some(())
}

/// The time of day, and clocks finer than a millisecond.
pub(crate) fn clocks(at: &Cursor<'_>, reader: &mut Reader) -> Option<(bool, bool)> {
    let mut fields = reader.fields(at, &["wall", "monotonic"])?;
    let wall = fields.optional("wall").map_or(Some(false), |at| reader.flag(&at));
    let fine = match fields.optional("monotonic") {
        None => Some(false),
        Some(at) => match reader.text(&at)?.as_str() {
            "coarse" => Some(false),
            "fine" => Some(true),
            other => {
                let message = format!("{} is no monotonic clock", shown(other));
                reader.report(&at.place(), message, "write coarse (whole milliseconds) or fine");
                None
            }
        },
    };
    Some((wall?, fine?))
}

/// `true`, or `{seed: N}`.
fn random(at: &Cursor<'_>, reader: &mut Reader) -> Option<Random> {
    if !at.is_map() {
        return reader.flag(at)?.then_some(Random::System);
    }
    let mut fields = reader.fields(at, &["seed"])?;
    let seed = reader.required(&mut fields, "seed", "42")?;
    reader.whole(&seed, u64::MAX).map(Random::Seed)
}

fn folders(at: &Cursor<'_>, reader: &mut Reader) -> Vec<Folder> {
    let mut folders: Vec<Folder> = Vec::new();
    let mut guests = BTreeSet::new();
    for item in reader.list(at, "folders") {
        let Some(folder) = folder(&item, reader) else { continue };
        if !guests.insert(folder.guest.clone()) {
            let message = format!("two folders stand at {} of the guest", shown(&folder.guest));
            reader.report(&item.place(), message, "give each its own guest path");
        }
        folders.push(folder);
    }
    folders
}

fn folder(at: &Cursor<'_>, reader: &mut Reader) -> Option<Folder> {
    let mut fields = reader.fields(at, &["host", "guest", "write"])?;
    let host = reader.required(&mut fields, "host", "/srv/data").and_then(|at| full_path(&at, reader));
    let guest = reader.required(&mut fields, "guest", "/data").and_then(|at| full_path(&at, reader));
    let write = fields.optional("write").map_or(Some(false), |at| reader.flag(&at));
    Some(Folder { host: host?, guest: guest?, write: write? })
}

pub(crate) fn full_path(at: &Cursor<'_>, reader: &mut Reader) -> Option<String> {
    let text = reader.text(at)?;
    let clean = text.starts_with('/') && !text.split('/').any(|part| part == "..") && !text.contains('\0');
    if clean {
        return Some(text);
    }
    reader.report(&at.place(), format!("{} is not a full path", shown(&text)), "start it with / and use no ..");
    None
}
