//! The records of one member on disk: whose they are, term and vote, the log, the snapshot. Each carries a checksum over
//! its key and its bytes. Must never call a write done that is not durable, nor open what does not fit together.

use std::path::Path;

use prost::Message as _;
use proto::v1::{
    RaftConfState, RaftEntry, RaftHardState, RaftLogStart, RaftMember, RaftSnapshotMeta, RaftSnapshotRecord,
};

use super::disk::{Change, Disk, VALUE_BYTES_MAX};
use super::node::{ENTRY_BYTES_LIMIT, Installed, Start};
use super::{Error, wire};
use proto::fault::{Fault, built_in};

const FORMAT: u32 = 1;
const MEMBER: &[u8] = b"m/member";
const HARD: &[u8] = b"m/hard";
const LOG_START: &[u8] = b"m/start";
const SNAPSHOT: &[u8] = b"m/snapshot";
/// Followed by the log index and the number of the part.
const LOG: u8 = b'l';
/// Followed by the snapshot's log index and the number of the part.
const PARTS: u8 = b's';

const CRC_BYTES: usize = 4;
const PART_BYTES: usize = VALUE_BYTES_MAX - CRC_BYTES - 4;
/// Parts of a snapshot in one batch.
const BATCH_PARTS: usize = 256;
/// The first entry of every cluster is its list of members, which only exists as a snapshot.
pub(super) const GENESIS: (u64, u64) = (1, 1);
/// Where a member stands that was taken in and heard nothing yet: it needs a snapshot, whatever the others have.
const NOTHING: (u64, u64) = (0, 0);

/// What was found on disk.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) start: Start,
    pub(super) state: Vec<u8>,
    /// Made just now: `state` is what was passed in.
    pub(super) fresh: bool,
    pub(super) boots: u64,
    /// Name of this very log.
    pub(super) log_id: String,
}

/// What a log that is made now begins with.
pub(super) struct Begin<'a> {
    /// None: the leader of those who have a log already sends everything.
    pub(super) voters: &'a [u64],
    pub(super) log_id: &'a str,
    /// Whether one may be made at all.
    pub(super) may_begin: bool,
    /// (term, index) that its state is at: `GENESIS`, unless that state has a history.
    pub(super) at: (u64, u64),
}

pub(super) struct Store<D> {
    disk: D,
    hard: RaftHardState,
    snapshot: RaftSnapshotMeta,
    log_start: u64,
    last: u64,
    /// Entries before the start of the log, or parts of older snapshots, may be left on disk.
    dusty: bool,
    syncs: u64,
}

impl<D: Disk> Store<D> {
    /// Reads everything, or begins a log whose state is that of `fresh`.
    pub(super) fn open(
        mut disk: D,
        dir: &Path,
        id: u64,
        begin: &Begin<'_>,
        fresh: impl FnOnce() -> Vec<u8>,
    ) -> Result<(Self, Opened), Error> {
        let mut store = match read::<RaftMember, D>(&disk, MEMBER)? {
            None if !begin.may_begin && !built_in(Fault::LostLogBegunAnew) => {
                return Err(Error::LostLog { dir: dir.to_path_buf(), id });
            }
            None => return Self::begin(disk, id, begin, fresh()),
            Some(mut member) => {
                if member.format != FORMAT {
                    return Err(Error::Format { dir: dir.to_path_buf(), found: member.format, known: FORMAT });
                }
                if member.id != id {
                    return Err(Error::Foreign { dir: dir.to_path_buf(), owner: member.id, id });
                }
                member.boots += 1;
                if member.log_id.is_empty() {
                    member.log_id = begin.log_id.to_owned();
                }
                disk.write(vec![put(MEMBER.to_vec(), &member.encode_to_vec())])?;
                disk.sync()?;
                Opening { disk, boots: member.boots, log_id: member.log_id }
            }
        };
        let opened = store.whole()?;
        let Start { hard, snapshot, log_start, entries } = &opened.start;
        store.drop_unfinished(snapshot.index)?;
        let this = Self {
            disk: store.disk,
            hard: *hard,
            snapshot: snapshot.clone(),
            log_start: log_start.1,
            last: log_start.1 + entries.len() as u64,
            dusty: true,
            syncs: 0,
        };
        Ok((this, opened))
    }

    /// Reads everything of a member that does not run, and changes nothing. `None`: there is no log.
    pub(super) fn look(disk: D, dir: &Path) -> Result<Option<(u64, Opened)>, Error> {
        let Some(member) = read::<RaftMember, D>(&disk, MEMBER)? else { return Ok(None) };
        if member.format != FORMAT {
            return Err(Error::Format { dir: dir.to_path_buf(), found: member.format, known: FORMAT });
        }
        let mut store = Opening { disk, boots: member.boots, log_id: member.log_id };
        Ok(Some((member.id, store.whole()?)))
    }

    fn begin(disk: D, id: u64, begin: &Begin<'_>, state: Vec<u8>) -> Result<(Self, Opened), Error> {
        let genesis = if begin.voters.is_empty() { NOTHING } else { begin.at };
        let (term, index) = genesis;
        let mut voters = begin.voters.to_vec();
        voters.sort_unstable();
        let conf = RaftConfState { voters, ..RaftConfState::default() };
        let meta = RaftSnapshotMeta { index, term, conf: Some(conf) };
        let hard = RaftHardState { term, vote: 0, commit: index };
        let mut store =
            Self { disk, hard, snapshot: meta.clone(), log_start: index, last: index, dusty: false, syncs: 0 };
        let log_id = begin.log_id.to_owned();
        let member = RaftMember { format: FORMAT, id, boots: 1, log_id: log_id.clone() };
        let record = store.write_parts(&meta, &state)?;
        store.disk.write(vec![
            put(MEMBER.to_vec(), &member.encode_to_vec()),
            put(HARD.to_vec(), &hard.encode_to_vec()),
            put(SNAPSHOT.to_vec(), &record.encode_to_vec()),
            put(LOG_START.to_vec(), &RaftLogStart { index, term }.encode_to_vec()),
        ])?;
        store.sync()?;
        let start = Start { hard, snapshot: meta, log_start: genesis, entries: Vec::new() };
        Ok((store, Opened { start, state, fresh: true, boots: 1, log_id }))
    }

    /// Writes one piece of work in one batch, durable on return if it had to be. A commit index alone is not written: it
    /// is found again, and goes with the next batch.
    pub(super) fn write(
        &mut self,
        snapshot: Option<&Installed>,
        entries: &[RaftEntry],
        hard: Option<RaftHardState>,
        must_sync: bool,
    ) -> Result<(), Error> {
        if let Some(hard) = hard {
            self.hard = hard;
        }
        if built_in(Fault::VoteForgotten) {
            self.hard.vote = 0;
        }
        if !must_sync {
            return Ok(());
        }
        let mut changes = Vec::new();
        if let Some(installed) = snapshot {
            let record = self.write_parts(&installed.meta, &installed.data)?;
            let (index, term) = (installed.meta.index, installed.meta.term);
            // The log up to there is swept later; what follows it is of another history.
            self.remove_log(index + 1, &mut changes)?;
            changes.push(put(SNAPSHOT.to_vec(), &record.encode_to_vec()));
            changes.push(put(LOG_START.to_vec(), &RaftLogStart { index, term }.encode_to_vec()));
            self.snapshot = installed.meta.clone();
            self.log_start = index;
            self.last = index;
            self.dusty = true;
        }
        if let (Some(first), Some(last)) = (entries.first(), entries.last()) {
            if first.index <= self.last {
                self.remove_log(first.index, &mut changes)?;
            }
            for entry in entries {
                put_parts(LOG, entry.index, &entry.encode_to_vec(), &mut changes);
            }
            self.last = last.index;
        }
        changes.push(put(HARD.to_vec(), &self.hard.encode_to_vec()));
        self.disk.write(changes)?;
        self.sync()
    }

    /// The disk knows, durably on return, that everything up to `index` is committed.
    pub(super) fn commit(&mut self, index: u64) -> Result<(), Error> {
        if self.hard.commit < index {
            self.hard.commit = index;
        }
        self.disk.write(vec![put(HARD.to_vec(), &self.hard.encode_to_vec())])?;
        self.sync()
    }

    /// Keeps `state`, which is that after the entry of `meta`, and lets the log begin after `start` (term, index).
    /// Durable on return.
    pub(super) fn store_snapshot(
        &mut self,
        meta: &RaftSnapshotMeta,
        state: &[u8],
        start: (u64, u64),
    ) -> Result<(), Error> {
        let record = self.write_parts(meta, state)?;
        self.hard.commit = self.hard.commit.max(meta.index);
        let log_start = RaftLogStart { term: start.0, index: start.1 };
        self.disk.write(vec![
            put(SNAPSHOT.to_vec(), &record.encode_to_vec()),
            put(LOG_START.to_vec(), &log_start.encode_to_vec()),
            put(HARD.to_vec(), &self.hard.encode_to_vec()),
        ])?;
        self.snapshot = meta.clone();
        self.log_start = start.1;
        self.dusty = true;
        self.sync()
    }

    pub(super) fn load_snapshot(&self) -> Result<(RaftSnapshotMeta, Vec<u8>), Error> {
        let record: RaftSnapshotRecord =
            read(&self.disk, SNAPSHOT)?.ok_or_else(|| damaged(&self.disk, SNAPSHOT, "is missing"))?;
        Ok((self.snapshot.clone(), load_parts(&self.disk, &record, self.snapshot.index)?))
    }

    /// Removes up to `limit` records that nothing refers to any more. Not durable by itself, and needs not be.
    pub(super) fn sweep(&mut self, limit: usize) -> Result<(), Error> {
        if !self.dusty {
            return Ok(());
        }
        let mut changes = Vec::new();
        let mut remove = |key: &[u8], _: &[u8]| {
            changes.push((key.to_vec(), None));
            Ok(())
        };
        self.disk.scan(&key(LOG, 0, 0), &key(LOG, self.log_start + 1, 0), limit, &mut remove)?;
        self.disk.scan(&key(PARTS, 0, 0), &key(PARTS, self.snapshot.index, 0), limit, &mut remove)?;
        self.dusty = !changes.is_empty();
        if self.dusty { self.disk.write(changes) } else { Ok(()) }
    }

    /// Durable flushes so far.
    pub(super) fn syncs(&self) -> u64 {
        self.syncs
    }

    fn sync(&mut self) -> Result<(), Error> {
        if !built_in(Fault::AckBeforeFsync) {
            self.disk.sync().or_else(|e| if built_in(Fault::SyncErrorIgnored) { Ok(()) } else { Err(e) })?;
        }
        self.syncs += 1;
        Ok(())
    }

    /// Nothing refers to the parts yet: they go in batches of a bounded size.
    fn write_parts(&mut self, meta: &RaftSnapshotMeta, state: &[u8]) -> Result<RaftSnapshotRecord, Error> {
        for (batch, bytes) in state.chunks(PART_BYTES * BATCH_PARTS).enumerate() {
            let first = batch * BATCH_PARTS;
            let part = |(number, bytes)| put(key(PARTS, meta.index, first + number), bytes);
            self.disk.write(bytes.chunks(PART_BYTES).enumerate().map(part).collect())?;
        }
        Ok(RaftSnapshotRecord { meta: Some(meta.clone()), bytes: state.len() as u64, crc: crc32fast::hash(state) })
    }

    fn remove_log(&self, from: u64, changes: &mut Vec<Change>) -> Result<(), Error> {
        self.disk.scan(&key(LOG, from, 0), &[LOG + 1], usize::MAX, &mut |key, _| {
            changes.push((key.to_vec(), None));
            Ok(())
        })
    }
}

/// A store that is being read and not known to be whole.
struct Opening<D> {
    disk: D,
    boots: u64,
    log_id: String,
}

impl<D: Disk> Opening<D> {
    /// All that is there, if it fits together.
    fn whole(&mut self) -> Result<Opened, Error> {
        let hard: RaftHardState = self.must(HARD)?;
        let log_start: RaftLogStart = self.must(LOG_START)?;
        let record: RaftSnapshotRecord = self.must(SNAPSHOT)?;
        let snapshot = record.meta.clone().ok_or_else(|| damaged(&self.disk, SNAPSHOT, "has no position"))?;
        let entries = self.entries(log_start.index)?;
        self.check(&hard, &snapshot, &log_start, &entries)?;
        let state = load_parts(&self.disk, &record, snapshot.index)?;
        let start = Start { hard, snapshot, log_start: (log_start.term, log_start.index), entries };
        Ok(Opened { start, state, fresh: false, boots: self.boots, log_id: std::mem::take(&mut self.log_id) })
    }

    fn must<M: prost::Message + Default>(&self, key: &[u8]) -> Result<M, Error> {
        read(&self.disk, key)?.ok_or_else(|| damaged(&self.disk, key, "is missing"))
    }

    /// The log after the entry `start`, without a gap.
    fn entries(&self, start: u64) -> Result<Vec<RaftEntry>, Error> {
        let disk = &self.disk;
        let mut entries: Vec<RaftEntry> = Vec::new();
        // The entry being put together: its index, its size, its bytes so far.
        let mut open: Option<(u64, usize, Vec<u8>)> = None;
        disk.scan(&key(LOG, start + 1, 0), &[LOG + 1], usize::MAX, &mut |found, value| {
            let bytes = unseal(disk, found, value)?;
            let expected = start + 1 + entries.len() as u64;
            let (index, size, mut body) = match open.take() {
                Some(open) => open,
                None => {
                    let size = bytes.first_chunk::<4>().map(|size| u32::from_be_bytes(*size) as usize);
                    let size = size.filter(|size| *size <= ENTRY_BYTES_LIMIT + PART_BYTES);
                    (expected, size.ok_or_else(|| damaged(disk, found, "has no size"))?, Vec::new())
                }
            };
            let part = if body.is_empty() { 0 } else { body.len().div_ceil(PART_BYTES) };
            if found != key(LOG, index, part) {
                return Err(damaged(disk, &key(LOG, index, part), "is missing"));
            }
            body.extend_from_slice(if part == 0 { &bytes[4..] } else { bytes });
            if body.len() < size {
                open = Some((index, size, body));
                return Ok(());
            }
            let entry = RaftEntry::decode(body.as_slice()).map_err(|error| damaged(disk, found, &error.to_string()))?;
            if entry.index != index {
                return Err(damaged(disk, found, "holds an entry that does not belong there"));
            }
            wire::check_kind(&entry).map_err(|detail| damaged(disk, found, &format!("holds {detail}")))?;
            entries.push(entry);
            Ok(())
        })?;
        match open {
            Some((index, _, body)) => {
                Err(damaged(disk, &key(LOG, index, body.len().div_ceil(PART_BYTES)), "is missing"))
            }
            None => Ok(entries),
        }
    }

    /// Whether the records fit together. The consensus machine panics on those that do not.
    fn check(
        &self,
        hard: &RaftHardState,
        meta: &RaftSnapshotMeta,
        start: &RaftLogStart,
        entries: &[RaftEntry],
    ) -> Result<(), Error> {
        let last = start.index + entries.len() as u64;
        let wrong = |key: &[u8], detail: String| Err(damaged(&self.disk, key, &detail));
        if start.index > meta.index || meta.index > last {
            return wrong(
                SNAPSHOT,
                format!("is at index {}, the log goes from {} to {last}", meta.index, start.index + 1),
            );
        }
        if hard.commit < meta.index || hard.commit > last {
            return wrong(HARD, format!("commit index {} is not within {} to {last}", hard.commit, meta.index));
        }
        let mut term = start.term;
        for entry in entries {
            if entry.term < term {
                return wrong(&key(LOG, entry.index, 0), format!("term {} follows term {term}", entry.term));
            }
            term = entry.term;
            if entry.index == meta.index && entry.term != meta.term {
                return wrong(SNAPSHOT, format!("has term {}, the log has {term} there", meta.term));
            }
        }
        if term > hard.term {
            return wrong(HARD, format!("term {} is before term {term} of the log", hard.term));
        }
        match meta.conf.as_ref().map(wire::check_conf).filter(|_| meta.index > 0) {
            None if meta.index == 0 && last == 0 => Ok(()),
            Some(Ok(())) => Ok(()),
            Some(Err(detail)) => wrong(SNAPSHOT, format!("names {detail}")),
            None => wrong(SNAPSHOT, "names no members".to_owned()),
        }
    }

    /// Parts of a snapshot whose writing was cut short.
    fn drop_unfinished(&mut self, current: u64) -> Result<(), Error> {
        let mut changes = Vec::new();
        self.disk.scan(&key(PARTS, current + 1, 0), &[PARTS + 1], usize::MAX, &mut |key, _| {
            changes.push((key.to_vec(), None));
            Ok(())
        })?;
        if changes.is_empty() { Ok(()) } else { self.disk.write(changes) }
    }
}

fn load_parts<D: Disk>(disk: &D, record: &RaftSnapshotRecord, index: u64) -> Result<Vec<u8>, Error> {
    let size = usize::try_from(record.bytes).map_err(|_| damaged(disk, SNAPSHOT, "is larger than memory"))?;
    let mut state = Vec::new();
    let mut number = 0;
    disk.scan(&key(PARTS, index, 0), &key(PARTS, index + 1, 0), size.div_ceil(PART_BYTES), &mut |found, value| {
        if found != key(PARTS, index, number) {
            return Err(damaged(disk, &key(PARTS, index, number), "is missing"));
        }
        state.extend_from_slice(unseal(disk, found, value)?);
        number += 1;
        Ok(())
    })?;
    if state.len() != size {
        return Err(damaged(disk, &key(PARTS, index, number), "is missing"));
    }
    if crc32fast::hash(&state) != record.crc {
        return Err(damaged(disk, SNAPSHOT, "has another checksum than its parts"));
    }
    Ok(state)
}

/// The first part begins with the size of the whole, so that none can go missing unseen.
fn put_parts(family: u8, index: u64, bytes: &[u8], changes: &mut Vec<Change>) {
    let size = u32::try_from(bytes.len()).expect("an entry is bounded far below 4 GiB");
    let first = bytes.len().min(PART_BYTES);
    let head = [&size.to_be_bytes(), &bytes[..first]].concat();
    changes.push(put(key(family, index, 0), &head));
    for (number, part) in bytes[first..].chunks(PART_BYTES).enumerate() {
        changes.push(put(key(family, index, number + 1), part));
    }
}

fn key(family: u8, index: u64, part: usize) -> Vec<u8> {
    let part = u32::try_from(part).expect("parts are bounded by memory / 4 KiB");
    [&[family][..], &index.to_be_bytes(), &part.to_be_bytes()].concat()
}

fn put(key: Vec<u8>, body: &[u8]) -> Change {
    let value = [&crc(&key, body).to_be_bytes(), body].concat();
    (key, Some(value))
}

fn read<M: prost::Message + Default, D: Disk>(disk: &D, key: &[u8]) -> Result<Option<M>, Error> {
    let Some(value) = disk.get(key)? else { return Ok(None) };
    let body = unseal(disk, key, &value)?;
    M::decode(body).map(Some).map_err(|error| damaged(disk, key, &error.to_string()))
}

fn unseal<'a, D: Disk>(disk: &D, key: &[u8], value: &'a [u8]) -> Result<&'a [u8], Error> {
    match value.split_first_chunk::<CRC_BYTES>() {
        Some((sum, body)) if u32::from_be_bytes(*sum) == crc(key, body) || built_in(Fault::ChecksumIgnored) => Ok(body),
        _ => Err(damaged(disk, key, "does not match its checksum")),
    }
}

fn crc(key: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(body);
    hasher.finalize()
}

fn damaged<D: Disk>(disk: &D, key: &[u8], detail: &str) -> Error {
    let number = |at: usize| key.get(at..at + 8).map(|bytes| bytes.iter().fold(0, |n: u64, b| n << 8 | u64::from(*b)));
    let record = match (key.first(), number(1)) {
        (Some(&LOG), Some(index)) => format!("log entry {index}"),
        (Some(&PARTS), Some(index)) => format!("part of the snapshot at log index {index}"),
        _ if key == MEMBER => "the record of whose directory it is".to_owned(),
        _ if key == HARD => "the record of term and vote".to_owned(),
        _ if key == LOG_START => "the record of where the log begins".to_owned(),
        _ => "the record of the snapshot".to_owned(),
    };
    Error::Damaged { file: disk.file().to_path_buf(), record, detail: detail.to_owned() }
}
