//! How keys and values lie in the tree. Pure. Never lets two owners' keys meet: each part of a key is in front of
//! its length, and only the guest's own key, the last part, is not.
//!
//! | first byte | then | value |
//! |---|---|---|
//! | `r` | namespace, app, component, bucket, key | a record: the value itself if small, else where its chunks are |
//! | `c` | chunk id, number | at most `CHUNK_BYTES_MAX` of a large value |
//! | `x` | expiry in Unix ms, big-endian, and the record's key | nothing: the index that the sweeper walks |
//!
//! Large values are cut because sled 0.34 writes a leaf of more than 128 KiB (a quarter of its segment) into a file
//! of its own that it never syncs. A leaf holds at most about 20 entries, so entries stay below 5 KiB.

/// Bytes of a value that stays in its record.
pub(super) const INLINE_BYTES_MAX: usize = 3 * 1024;
/// Bytes of one piece of a larger value.
pub(super) const CHUNK_BYTES_MAX: usize = 4 * 1024;

const RECORD: u8 = b'r';
const CHUNK: u8 = b'c';
const EXPIRY: u8 = b'x';
const FORMAT: u8 = 1;
const INLINE: u8 = 0;
const CHUNKED: u8 = 1;
/// Format, kind, expiry, checksum.
const HEAD_BYTES: usize = 1 + 1 + 8 + 4;

/// Whose keys: the two capabilities share a store but no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Namespace {
    KeyValue,
    KeyStore,
}

/// The bytes on disk are not those that were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Damaged;

/// What a record says. `expires_ms` 0 is never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) expires_ms: u64,
    pub(super) checksum: u32,
    pub(super) body: Body<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body<'a> {
    Inline(&'a [u8]),
    Chunked { id: u64, bytes: u32 },
}

impl Record<'_> {
    pub(super) fn is_live(&self, now_ms: u64) -> bool {
        self.expires_ms == 0 || self.expires_ms > now_ms
    }
}

/// The part of a record's key that says who owns it.
pub(super) fn owner(namespace: Namespace, app: &str, component: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(6 + app.len() + component.len());
    key.push(RECORD);
    key.push(match namespace {
        Namespace::KeyValue => b'v',
        Namespace::KeyStore => b's',
    });
    put_part(&mut key, app);
    put_part(&mut key, component);
    key
}

/// The part in front of every key of one bucket.
pub(super) fn bucket(owner: &[u8], bucket: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(owner.len() + 2 + bucket.len() + 64);
    key.extend_from_slice(owner);
    put_part(&mut key, bucket);
    key
}

pub(super) fn key(owner: &[u8], bucket_name: &str, key: &str) -> Vec<u8> {
    let mut whole = bucket(owner, bucket_name);
    whole.extend_from_slice(key.as_bytes());
    whole
}

fn put_part(key: &mut Vec<u8>, part: &str) {
    let len = u16::try_from(part.len()).expect("names and buckets are at most 256 bytes");
    key.extend_from_slice(&len.to_be_bytes());
    key.extend_from_slice(part.as_bytes());
}

pub(super) fn chunk_key(id: u64, number: u32) -> [u8; 13] {
    let mut key = [CHUNK; 13];
    key[1..9].copy_from_slice(&id.to_be_bytes());
    key[9..].copy_from_slice(&number.to_be_bytes());
    key
}

/// The id in the key of a chunk.
pub(super) fn chunk_id(key: &[u8]) -> Option<u64> {
    let id = key.strip_prefix(&[CHUNK])?.first_chunk::<8>()?;
    Some(u64::from_be_bytes(*id))
}

pub(super) const CHUNKS: &[u8] = &[CHUNK];

/// Numbers of the chunks of a value of so many bytes.
pub(super) fn chunk_numbers(bytes: u32) -> std::ops::Range<u32> {
    0..bytes.div_ceil(u32::try_from(CHUNK_BYTES_MAX).expect("a constant that fits"))
}

pub(super) fn expiry_key(expires_ms: u64, record_key: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(9 + record_key.len());
    key.push(EXPIRY);
    key.extend_from_slice(&expires_ms.to_be_bytes());
    key.extend_from_slice(record_key);
    key
}

/// Every expiry key at or before `now_ms` is in this range.
pub(super) fn expired_range(now_ms: u64) -> std::ops::Range<Vec<u8>> {
    vec![EXPIRY]..expiry_key(now_ms.saturating_add(1), &[])
}

/// The time and the record's key in an expiry key.
pub(super) fn split_expiry_key(key: &[u8]) -> Option<(u64, &[u8])> {
    let rest = key.strip_prefix(&[EXPIRY])?;
    let (expires_ms, record_key) = rest.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*expires_ms), record_key))
}

/// Over the key too, so that a value can not pass for another's.
pub(super) fn checksum(record_key: &[u8], expires_ms: u64, pieces: &[&[u8]]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(record_key);
    crc.update(&expires_ms.to_be_bytes());
    for piece in pieces {
        crc.update(piece);
    }
    crc.finalize()
}

pub(super) fn encode(record: &Record) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES + 12);
    let kind = match record.body {
        Body::Inline(_) => INLINE,
        Body::Chunked { .. } => CHUNKED,
    };
    bytes.extend_from_slice(&[FORMAT, kind]);
    bytes.extend_from_slice(&record.expires_ms.to_be_bytes());
    bytes.extend_from_slice(&record.checksum.to_be_bytes());
    match record.body {
        Body::Inline(value) => bytes.extend_from_slice(value),
        Body::Chunked { id, bytes: len } => {
            bytes.extend_from_slice(&id.to_be_bytes());
            bytes.extend_from_slice(&len.to_be_bytes());
        }
    }
    bytes
}

/// Reads a record's form. Its value is checked by `check`, once all of it is there.
pub(super) fn decode(bytes: &[u8]) -> Result<Record<'_>, Damaged> {
    let (head, rest) = bytes.split_first_chunk::<HEAD_BYTES>().ok_or(Damaged)?;
    let [FORMAT, kind, e0, e1, e2, e3, e4, e5, e6, e7, c0, c1, c2, c3] = *head else {
        return Err(Damaged);
    };
    let body = match kind {
        INLINE => Body::Inline(rest),
        CHUNKED => {
            let (id, len) = rest.split_first_chunk::<8>().ok_or(Damaged)?;
            let len: [u8; 4] = len.try_into().map_err(|_| Damaged)?;
            Body::Chunked { id: u64::from_be_bytes(*id), bytes: u32::from_be_bytes(len) }
        }
        _ => return Err(Damaged),
    };
    Ok(Record {
        expires_ms: u64::from_be_bytes([e0, e1, e2, e3, e4, e5, e6, e7]),
        checksum: u32::from_be_bytes([c0, c1, c2, c3]),
        body,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_and_buckets_never_share_a_key() {
        let mut all = Vec::new();
        for namespace in [Namespace::KeyValue, Namespace::KeyStore] {
            for (app, component) in [("a", "bc"), ("ab", "c"), ("a", "b")] {
                let owner = owner(namespace, app, component);
                for (bucket, name) in [("c", "k"), ("ck", ""), ("", "ck")] {
                    all.push(key(&owner, bucket, name));
                }
            }
        }
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn a_bucket_is_no_prefix_of_another() {
        let owner = owner(Namespace::KeyValue, "app", "kv");
        assert!(!bucket(&owner, "ab").starts_with(&bucket(&owner, "a")));
    }

    #[test]
    fn records_come_back_and_damage_is_seen() {
        for body in [Body::Inline(b"value"), Body::Inline(b""), Body::Chunked { id: 7, bytes: 9000 }] {
            let record = Record { expires_ms: 12, checksum: 34, body };
            assert_eq!(decode(&encode(&record)), Ok(record));
        }
        assert_eq!(decode(b""), Err(Damaged));
        assert_eq!(decode(&[9; 40]), Err(Damaged));
        let mut short = encode(&Record { expires_ms: 0, checksum: 0, body: Body::Chunked { id: 1, bytes: 2 } });
        short.pop();
        assert_eq!(decode(&short), Err(Damaged));
        assert_ne!(checksum(b"k", 0, &[b"v"]), checksum(b"l", 0, &[b"v"]));
        assert_eq!(checksum(b"k", 0, &[b"v", b"w"]), checksum(b"k", 0, &[b"vw"]));
    }

    #[test]
    fn the_expiry_index_is_ordered_by_time() {
        let range = expired_range(1000);
        let within = |t| range.contains(&expiry_key(t, b"rkey"));
        assert!(within(1) && within(999) && within(1000));
        assert!(!within(1001) && !within(u64::MAX));
        assert_eq!(split_expiry_key(&expiry_key(5, b"rkey")), Some((5, b"rkey".as_slice())));
        assert_eq!(chunk_id(&chunk_key(77, 3)), Some(77));
        assert_eq!(chunk_numbers(4096), 0..1);
        assert_eq!(chunk_numbers(4097), 0..2);
    }
}
