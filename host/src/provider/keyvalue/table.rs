//! Records in sled: reads from any thread, changes from the one writer. Blocking. Never syncs on its own: what is
//! changed here is durable only after `sync`, and nothing is acknowledged before that.

use super::record::{self, Body, CHUNK_BYTES_MAX, CHUNKS, INLINE_BYTES_MAX, Record};
use bytes::Bytes;
use sled::IVec;
use std::fs::File;
use std::path::Path;

/// Why an operation gave nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// This one is refused; the text says why and what to do.
    Refused(String),
    /// The disk failed: the store serves nothing from here on.
    Broken(String),
}

impl From<sled::Error> for Fault {
    fn from(e: sled::Error) -> Self {
        Self::Broken(e.to_string())
    }
}

#[derive(Debug)]
pub(super) struct Table {
    db: sled::Db,
    /// The file that sled writes to, opened once more to be synced.
    file: File,
}

impl Table {
    pub(super) fn open(dir: &Path) -> Result<Self, super::Error> {
        let at = || dir.display().to_string();
        std::fs::create_dir_all(dir).map_err(|source| super::Error::Folder { dir: at(), source })?;
        let db = sled::Config::new()
            .path(dir)
            .mode(sled::Mode::HighThroughput)
            .cache_capacity(64 * 1024 * 1024)
            .flush_every_ms(None)
            .open()
            .map_err(|source| super::Error::from_open(dir, source))?;
        let sync = || {
            let file = File::open(dir.join("db"))?;
            file.sync_all()?;
            // The names of new files, and of the folder itself, are data of the folders above.
            for path in [dir.join("conf"), dir.to_path_buf()] {
                File::open(path)?.sync_all()?;
            }
            if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
                File::open(parent)?.sync_all()?;
            }
            Ok(file)
        };
        let file = sync().map_err(|source| super::Error::Folder { dir: at(), source })?;
        Ok(Self { db, file })
    }

    /// Makes every change so far durable: sled's flush hands it to the kernel, and only the sync puts it on disk.
    pub(super) fn sync(&self) -> Result<(), Fault> {
        self.db.flush()?;
        self.file.sync_all().map_err(|e| Fault::Broken(e.to_string()))
    }

    /// An id for chunks above every one in use.
    pub(super) fn chunk_id_after_last(&self) -> Result<u64, Fault> {
        let last = self.db.scan_prefix(CHUNKS).next_back().transpose()?;
        Ok(last.and_then(|(key, _)| record::chunk_id(&key)).map_or(1, |id| id + 1))
    }

    /// The value of `key` if it has not expired. A read sees what the writer changed before it was synced.
    pub(super) fn get(&self, key: &[u8], now_ms: u64) -> Result<Option<Bytes>, Fault> {
        let mut seen: Option<IVec> = None;
        loop {
            let Some(bytes) = self.db.get(key)? else { return Ok(None) };
            let record = record::decode(&bytes).map_err(|_| damaged(key))?;
            if !record.is_live(now_ms) {
                return Ok(None);
            }
            let value = match record.body {
                Body::Inline(value) => Some(Bytes::copy_from_slice(value)),
                Body::Chunked { id, bytes } => self.chunks(id, bytes)?,
            };
            match value {
                Some(v) if record::checksum(key, record.expires_ms, &[&v]) == record.checksum => return Ok(Some(v)),
                Some(_) => return Err(damaged(key)),
                // The record was replaced while its chunks were read: what is there now has others.
                None if seen.as_ref() != Some(&bytes) => seen = Some(bytes),
                None => return Err(damaged(key)),
            }
        }
    }

    /// A large value, unless chunks are missing.
    fn chunks(&self, id: u64, len: u32) -> Result<Option<Bytes>, Fault> {
        let mut value = Vec::new();
        for number in record::chunk_numbers(len) {
            match self.db.get(record::chunk_key(id, number))? {
                Some(chunk) => value.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
        Ok(Some(value.into()))
    }

    /// At most `limit` guest keys of a bucket after `cursor`, in order, and whether there are more.
    pub(super) fn list(
        &self,
        bucket: &[u8],
        cursor: Option<&str>,
        limit: usize,
        now_ms: u64,
    ) -> Result<(Vec<String>, bool), Fault> {
        let mut start = bucket.to_vec();
        if let Some(cursor) = cursor {
            start.extend_from_slice(cursor.as_bytes());
            // The first key that is greater than the cursor's.
            start.push(0);
        }
        let mut keys = Vec::new();
        for item in self.db.range(start..) {
            let (key, bytes) = item?;
            let Some(name) = key.strip_prefix(bucket) else { break };
            if !record::decode(&bytes).map_err(|_| damaged(&key))?.is_live(now_ms) {
                continue;
            }
            if keys.len() == limit {
                return Ok((keys, true));
            }
            keys.push(String::from_utf8_lossy(name).into_owned());
        }
        Ok((keys, false))
    }

    /// Record keys that expired at or before `now_ms`, at most `limit`.
    pub(super) fn expired(&self, now_ms: u64, limit: usize) -> Result<Vec<(u64, Vec<u8>)>, Fault> {
        let mut found = Vec::new();
        for key in self.db.range(record::expired_range(now_ms)).keys().take(limit) {
            let key = key?;
            if let Some((expires_ms, record_key)) = record::split_expiry_key(&key) {
                found.push((expires_ms, record_key.to_vec()));
            }
        }
        Ok(found)
    }

    /// Flips the last bit of every value.
    #[cfg(test)]
    pub(super) fn flip_a_bit_everywhere(&self) {
        for (key, value) in self.db.iter().flatten().collect::<Vec<_>>() {
            let mut bytes = value.to_vec();
            if let Some(last) = bytes.last_mut() {
                *last ^= 1;
            }
            self.db.insert(key, bytes).expect("a test's disk works");
        }
    }

    pub(super) fn stage(&self) -> Stage<'_> {
        Stage { db: &self.db, writes: Vec::new() }
    }
}

/// The entry fails its checksum: it is never served.
fn damaged(key: &[u8]) -> Fault {
    let name = String::from_utf8_lossy(&key[key.len().saturating_sub(64)..]).into_owned();
    Fault::Refused(format!("the value of {name:?} is damaged on this host's disk: set it again or restore the disk"))
}

/// Changes that become visible, and after a crash are there, all or none.
pub(super) struct Stage<'a> {
    db: &'a sled::Db,
    writes: Vec<(IVec, Option<IVec>)>,
}

impl Stage<'_> {
    /// `key` must not be staged twice. `chunk_id` is used when the value is large.
    pub(super) fn put(&mut self, key: &[u8], value: &[u8], expires_ms: u64, chunk_id: u64) -> Result<(), Fault> {
        self.clear(key)?;
        let checksum = record::checksum(key, expires_ms, &[value]);
        let body = if value.len() <= INLINE_BYTES_MAX {
            Body::Inline(value)
        } else {
            let bytes = u32::try_from(value.len()).map_err(|_| Fault::Refused("a value of 4 GiB or more".into()))?;
            for (number, chunk) in (0u32..).zip(value.chunks(CHUNK_BYTES_MAX)) {
                self.writes.push((record::chunk_key(chunk_id, number).as_slice().into(), Some(chunk.into())));
            }
            Body::Chunked { id: chunk_id, bytes }
        };
        if expires_ms != 0 {
            self.writes.push((record::expiry_key(expires_ms, key).into(), Some(IVec::default())));
        }
        let record = record::encode(&Record { expires_ms, checksum, body });
        self.writes.push((key.into(), Some(record.into())));
        Ok(())
    }

    pub(super) fn remove(&mut self, key: &[u8]) -> Result<(), Fault> {
        if self.clear(key)? {
            self.writes.push((key.into(), None));
        }
        Ok(())
    }

    /// Removes an expired record and its place in the index; a record set anew since then stays.
    pub(super) fn expire(&mut self, key: &[u8], expires_ms: u64) -> Result<(), Fault> {
        let current = self.db.get(key)?;
        let same = current.as_ref().is_some_and(|b| record::decode(b).is_ok_and(|r| r.expires_ms == expires_ms));
        if same {
            self.remove(key)?;
        } else {
            self.writes.push((record::expiry_key(expires_ms, key).into(), None));
        }
        Ok(())
    }

    /// What hangs on the record that is there: its chunks and its place in the index. Whether there is one.
    fn clear(&mut self, key: &[u8]) -> Result<bool, Fault> {
        let Some(bytes) = self.db.get(key)? else { return Ok(false) };
        // A damaged record is replaced like any other; at worst its chunks stay behind.
        let Ok(record) = record::decode(&bytes) else { return Ok(true) };
        if let Body::Chunked { id, bytes } = record.body {
            for number in record::chunk_numbers(bytes.min(u32::try_from(super::VALUE_BYTES_MAX).unwrap_or(u32::MAX))) {
                self.writes.push((record::chunk_key(id, number).as_slice().into(), None));
            }
        }
        if record.expires_ms != 0 {
            self.writes.push((record::expiry_key(record.expires_ms, key).into(), None));
        }
        Ok(true)
    }

    /// Makes the changes visible. Whether there were any.
    pub(super) fn apply(self) -> Result<bool, Fault> {
        let mut writes = self.writes;
        match writes.len() {
            0 => return Ok(false),
            1 => match writes.remove(0) {
                (key, Some(value)) => drop(self.db.insert(key, value)?),
                (key, None) => drop(self.db.remove(key)?),
            },
            _ => {
                // In order: an index entry that is cleared and put again stays put.
                let mut batch = sled::Batch::default();
                for (key, value) in writes {
                    match value {
                        Some(value) => batch.insert(key, value),
                        None => batch.remove(key),
                    }
                }
                self.db.apply_batch(batch)?;
            }
        }
        Ok(true)
    }
}
