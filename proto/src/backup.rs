//! The file of a backup: a head that says what it is of, the replicated state, the components by digest. Written in one
//! pass, read in one pass, every byte of it covered by a checksum. Pure: bytes in, checked pieces out. Must never hand
//! out a part as whole whose digest is not the one that the head names.
//!
//! The bytes: `MAGIC`, the format and the length of the head (32 bits each, big-endian), the head (`v1::Backup`), the
//! SHA-256 of all that, then the parts in the order of the head: the state, then the components.

use crate::app::{ARTIFACT_BYTES_MAX, Digest};
use crate::v1 as pb;
use prost::Message;
use sha2::{Digest as _, Sha256};

/// The format that this build writes, and the newest that it reads.
pub const FORMAT: u32 = 1;
/// The line end shows a file that was carried as text.
const MAGIC: &[u8; 16] = b"lattice backup\r\n";
const FIXED_BYTES: usize = MAGIC.len() + 8;
const SUM_BYTES: usize = 32;
/// A million components have their digests in less.
const HEAD_BYTES_MAX: usize = 128 << 20;
/// The largest state that one scheduler sends to another.
pub const STATE_BYTES_MAX: u64 = 1 << 30;

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("not a backup of lattice: it begins with other bytes; name a file that `lattice backup` wrote")]
    Foreign,
    #[error("has format {found}, this build reads up to {FORMAT}; read it with the lattice version that wrote it")]
    Newer { found: u32 },
    #[error("is cut short in {place}; take another copy of it, or an older backup")]
    Truncated { place: String },
    #[error("is damaged: {place}; take another copy of it, or an older backup")]
    Damaged { place: String },
}

/// What stands before the parts.
pub fn head(backup: &pb::Backup) -> Vec<u8> {
    let body = backup.encode_to_vec();
    let mut bytes = MAGIC.to_vec();
    bytes.extend(FORMAT.to_be_bytes());
    bytes.extend(u32::try_from(body.len()).expect("a head is far below 4 GiB").to_be_bytes());
    bytes.extend(body);
    let sum = Sha256::digest(&bytes);
    bytes.extend(sum);
    bytes
}

/// Bytes of one part, as they come.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    pub of: Part<'a>,
    pub data: &'a [u8],
    /// The last of its part, which has the digest that the head names.
    pub whole: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part<'a> {
    State,
    Component { digest: &'a Digest, size: u64 },
}

/// Reads a file as it comes.
#[derive(Default)]
pub struct Reader {
    /// Bytes of a head that is not whole.
    begun: Vec<u8>,
    head: Option<Head>,
    /// The part that is being read, its sum and how much of it came.
    part: usize,
    sum: Sha256,
    came: u64,
}

struct Head {
    backup: pb::Backup,
    /// The state first.
    parts: Vec<(Digest, u64)>,
}

impl Reader {
    /// What the file is of, once its head came.
    pub fn backup(&self) -> Option<&pb::Backup> {
        self.head.as_ref().map(|head| &head.backup)
    }

    /// Takes the next bytes, and hands on what they hold of each part.
    pub fn take<E: From<Problem>>(
        &mut self,
        bytes: &[u8],
        mut sink: impl FnMut(Piece<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut rest = bytes;
        let began;
        if self.head.is_none() {
            self.begun.extend_from_slice(bytes);
            let Some((head, len)) = read_head(&self.begun)? else { return Ok(()) };
            self.head = Some(head);
            began = std::mem::take(&mut self.begun);
            rest = &began[len..];
        }
        let head = self.head.as_ref().expect("read just now, or before");
        loop {
            let Some((digest, size)) = head.parts.get(self.part) else {
                let extra = |n: usize| Problem::Damaged { place: format!("{n} bytes or more follow its end") };
                return if rest.is_empty() { Ok(()) } else { Err(extra(rest.len()).into()) };
            };
            let left = usize::try_from(size - self.came).unwrap_or(usize::MAX);
            if rest.is_empty() && left > 0 {
                return Ok(());
            }
            let (data, after) = rest.split_at(left.min(rest.len()));
            rest = after;
            self.sum.update(data);
            self.came += data.len() as u64;
            let whole = self.came == *size;
            let of = if self.part == 0 { Part::State } else { Part::Component { digest, size: *size } };
            if whole {
                let sum = std::mem::take(&mut self.sum).finalize().into();
                if Digest::of_sum(&sum) != *digest {
                    return Err(
                        Problem::Damaged { place: format!("{} has other bytes", place(self.part, digest)) }.into()
                    );
                }
                self.came = 0;
                self.part += 1;
            }
            sink(Piece { of, data, whole })?;
        }
    }

    /// The file has ended; gives what it is of, if all of it came.
    pub fn end(self) -> Result<pb::Backup, Problem> {
        let Some(head) = self.head else {
            let foreign = !MAGIC.starts_with(&self.begun[..self.begun.len().min(MAGIC.len())]);
            let truncated = Problem::Truncated { place: "its head".to_owned() };
            return Err(if foreign || self.begun.is_empty() { Problem::Foreign } else { truncated });
        };
        match head.parts.get(self.part) {
            Some((digest, _)) => Err(Problem::Truncated { place: place(self.part, digest) }),
            None => Ok(head.backup),
        }
    }
}

fn place(part: usize, digest: &Digest) -> String {
    if part == 0 { "its state".to_owned() } else { format!("its component {digest}") }
}

/// The head and how many bytes it takes; `None` when more must come.
fn read_head(bytes: &[u8]) -> Result<Option<(Head, usize)>, Problem> {
    let begins = bytes.len().min(MAGIC.len());
    if bytes[..begins] != MAGIC[..begins] {
        return Err(Problem::Foreign);
    }
    if bytes.len() < FIXED_BYTES {
        return Ok(None);
    }
    let number = |at: usize| bytes[at..at + 4].iter().fold(0u32, |n, byte| n << 8 | u32::from(*byte));
    let found = number(MAGIC.len());
    if found == 0 || found > FORMAT {
        return Err(Problem::Newer { found });
    }
    let damaged = |what: &str| Problem::Damaged { place: format!("its head {what}") };
    let body = number(MAGIC.len() + 4) as usize;
    if body > HEAD_BYTES_MAX {
        return Err(damaged("says that it is larger than any is"));
    }
    let Some(whole) = bytes.get(..FIXED_BYTES + body + SUM_BYTES) else { return Ok(None) };
    let (summed, sum) = whole.split_at(FIXED_BYTES + body);
    if Sha256::digest(summed).as_slice() != sum {
        return Err(damaged("does not have its checksum"));
    }
    let backup = pb::Backup::decode(&summed[FIXED_BYTES..]).map_err(|_| damaged("does not decode"))?;
    let mut parts = Vec::new();
    for part in backup.state.iter().chain(&backup.components) {
        let digest = part.digest.parse().map_err(|_| damaged("names a digest that is none"))?;
        let most = if parts.is_empty() { STATE_BYTES_MAX } else { ARTIFACT_BYTES_MAX };
        if part.size > most {
            return Err(damaged("names a part that is larger than any is"));
        }
        parts.push((digest, part.size));
    }
    if backup.state.is_none() {
        return Err(damaged("names no state"));
    }
    Ok(Some((Head { backup, parts }, whole.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(bytes: &[u8]) -> pb::BackupPart {
        pb::BackupPart { digest: Digest::of(bytes).to_string(), size: bytes.len() as u64 }
    }

    fn file(state: &[u8], components: &[&[u8]]) -> Vec<u8> {
        let components_named = components.iter().map(|bytes| part(bytes)).collect();
        let backup = pb::Backup {
            lattice: "plant".into(),
            index: 9,
            state: Some(part(state)),
            components: components_named,
            ..pb::Backup::default()
        };
        [&head(&backup), state, &components.concat()].concat()
    }

    /// What came of each part, read in pieces of `step` bytes.
    fn read(file: &[u8], step: usize) -> Result<Vec<Vec<u8>>, Problem> {
        let mut reader = Reader::default();
        let mut parts = vec![Vec::new()];
        for bytes in file.chunks(step.max(1)) {
            reader.take::<Problem>(bytes, |piece| {
                assert_eq!(piece.of == Part::State, parts.len() == 1);
                parts.last_mut().expect("begun with one").extend_from_slice(piece.data);
                if piece.whole {
                    parts.push(Vec::new());
                }
                Ok(())
            })?;
        }
        assert_eq!(reader.end()?.index, 9);
        parts.pop();
        Ok(parts)
    }

    #[test]
    fn what_went_in_comes_out_however_it_is_cut() {
        let (state, parts): (&[u8], [&[u8]; 3]) = (b"the state", [b"one", b"", b"three"]);
        let bytes = file(state, &parts);
        for step in [1, 2, 7, 100, bytes.len()] {
            assert_eq!(read(&bytes, step).unwrap(), [state, parts[0], parts[1], parts[2]], "{step}");
        }
        assert_eq!(read(&file(b"", &[]), 5).unwrap(), [b""]);
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_seen() {
        let bytes = file(b"the state", &[b"one component", b"another"]);
        for end in 0..bytes.len() {
            let problem = read(&bytes[..end], 11).unwrap_err();
            let expected = matches!(problem, Problem::Truncated { .. }) || end == 0 && problem == Problem::Foreign;
            assert!(expected, "{end}: {problem}");
        }
        for at in 0..bytes.len() {
            let mut worse = bytes.clone();
            worse[at] ^= 1;
            assert!(read(&worse, 11).is_err(), "byte {at}");
        }
        let longer = [bytes.as_slice(), b"x"].concat();
        assert!(read(&longer, 1000).unwrap_err().to_string().contains("follow its end"));
        assert!(read(&longer, 1).unwrap_err().to_string().contains("follow its end"));
    }

    #[test]
    fn what_is_wrong_is_named_with_the_next_step() {
        let bytes = file(b"the state", &[b"one component"]);
        for foreign in [&b"#!/bin/sh\necho"[..], b"", b"lattice backup\n\n"] {
            assert!(read(foreign, 100).unwrap_err().to_string().contains("`lattice backup`"), "{foreign:?}");
        }
        let mut newer = bytes.clone();
        newer[MAGIC.len() + 3] = 2;
        let says = read(&newer, 100).unwrap_err().to_string();
        assert!(says.contains("format 2") && says.contains("version that wrote it"), "{says}");
        let mut worse = bytes.clone();
        *worse.last_mut().unwrap() ^= 1;
        let says = read(&worse, 100).unwrap_err().to_string();
        assert!(says.contains("component sha256:") && says.contains("older backup"), "{says}");
        let says = read(&bytes[..bytes.len() - 1], 100).unwrap_err().to_string();
        assert!(says.contains("cut short in its component sha256:"), "{says}");
    }
}
