//! The store on a real disk; only its clock, and where said its sync, are the test's.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::capability::{keystore, keyvalue};
use bytes::Bytes;
use std::sync::atomic::{AtomicU64, Ordering};

struct Bench {
    dir: tempfile::TempDir,
    now: Arc<AtomicU64>,
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), now: Arc::new(AtomicU64::new(1_000_000)) }
    }
    fn clock(&self) -> Clock {
        let now = self.now.clone();
        Arc::new(move || now.load(Ordering::SeqCst))
    }
    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("keyvalue")
    }
    /// Waits for the lock of a store that was just dropped: sled's own threads let go of it a little later.
    fn open(&self) -> KeyvalueStore {
        for _ in 0..2000 {
            match KeyvalueStore::open_with_clock(&self.path(), self.clock()) {
                Err(Error::Busy { .. }) => std::thread::yield_now(),
                other => return other.unwrap(),
            }
            std::thread::park_timeout(Duration::from_millis(2));
        }
        panic!("the store stayed locked");
    }
}

fn name(s: &str) -> Name {
    s.parse().unwrap()
}

fn link(config: &[(&str, &str)]) -> LinkContext {
    LinkContext {
        app: "shop".into(),
        consumer: "cart".into(),
        name: "default".into(),
        config: config.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        deadline: None,
        origin: Default::default(),
    }
}

fn kv(store: &KeyvalueStore) -> Arc<dyn KeyValue> {
    store.keyvalue(&name("shop"), &name("kv"), link(&[]))
}

fn ks(store: &KeyvalueStore) -> Arc<dyn KeyStore> {
    store.keystore(&name("shop"), &name("kv"), link(&[]))
}

fn value(bytes: usize, seed: usize) -> Bytes {
    (0..bytes).map(|i| u8::try_from((i * 31 + seed) % 251).unwrap()).collect::<Vec<_>>().into()
}

#[tokio::test]
async fn values_of_every_size_survive_a_restart() {
    let bench = Bench::new();
    let sizes = [0, 1, 3072, 3073, 4096, 4097, 100_000, VALUE_BYTES_MAX];
    {
        let store = bench.open();
        let kv = kv(&store);
        for (i, size) in sizes.iter().enumerate() {
            kv.set("", &format!("k{i}"), value(*size, 1)).await.unwrap();
            kv.set("", &format!("k{i}"), value(*size, 2)).await.unwrap();
        }
        kv.delete("", "k7").await.unwrap();
        kv.set("", "k7", value(VALUE_BYTES_MAX, 2)).await.unwrap();
    }
    let store = bench.open();
    let kv = kv(&store);
    for (i, size) in sizes.iter().enumerate() {
        assert_eq!(kv.get("default", &format!("k{i}")).await.unwrap(), Some(value(*size, 2)), "{size}");
    }
    kv.set("", "more", value(9000, 3)).await.unwrap();
    assert_eq!(kv.get("", "k7").await.unwrap(), Some(value(VALUE_BYTES_MAX, 2)), "its chunks were not overwritten");
}

#[tokio::test]
async fn nothing_lies_in_files_that_sled_never_syncs() {
    let bench = Bench::new();
    let store = bench.open();
    let kv = kv(&store);
    for round in 0..3usize {
        for i in 0..60usize {
            let key = format!("{}-{i:03}", "k".repeat(1000));
            kv.set("", &key, value((i * 67 + round * 1000) % 5000, round)).await.unwrap();
        }
    }
    kv.set("", "large", value(VALUE_BYTES_MAX, 1)).await.unwrap();
    let blobs = std::fs::read_dir(bench.path().join("blobs")).unwrap().count();
    assert_eq!(blobs, 0);
}

/// Why values are cut at all. When this fails, sled has learnt to do without.
#[test]
fn sled_puts_large_leaves_into_files_of_their_own() {
    let bench = Bench::new();
    let db = sled::Config::new().path(bench.path()).flush_every_ms(None).open().unwrap();
    for i in 0..200u32 {
        db.insert(i.to_be_bytes(), vec![7; 20_000]).unwrap();
    }
    db.flush().unwrap();
    assert!(std::fs::read_dir(bench.path().join("blobs")).unwrap().count() > 0);
}

#[tokio::test]
async fn replaced_and_deleted_values_leave_no_chunks() {
    let bench = Bench::new();
    let store = bench.open();
    let kv = kv(&store);
    for seed in 0..3 {
        kv.set("", "k", value(50_000, seed)).await.unwrap();
    }
    kv.set("", "k", value(10, 0)).await.unwrap();
    kv.set("", "l", value(50_000, 0)).await.unwrap();
    kv.delete("", "l").await.unwrap();
    assert_eq!(store.inner.table.chunk_id_after_last().unwrap(), 1);
}

#[tokio::test]
async fn keys_expire_and_are_swept() {
    let bench = Bench::new();
    let store = bench.open();
    let ks = ks(&store);
    ks.set("short", value(10, 0), Some(2)).await.unwrap();
    ks.set("large", value(50_000, 0), Some(3)).await.unwrap();
    ks.set("renewed", value(10, 0), Some(2)).await.unwrap();
    ks.set("renewed", value(10, 1), Some(100)).await.unwrap();
    ks.set("forever", value(10, 0), None).await.unwrap();
    ks.set("once", value(10, 0), Some(100)).await.unwrap();
    ks.set("once", value(10, 0), Some(0)).await.unwrap();
    assert_eq!(ks.get("once").await.unwrap(), None, "a time to live of 0 removes at once");
    assert_eq!(ks.get("short").await.unwrap(), Some(value(10, 0)));
    bench.now.fetch_add(1_999, Ordering::SeqCst);
    assert!(ks.get("short").await.unwrap().is_some());
    bench.now.fetch_add(1, Ordering::SeqCst);
    assert_eq!(ks.get("short").await.unwrap(), None, "invisible from the moment it expires");
    bench.now.fetch_add(1_000, Ordering::SeqCst);
    // The sweeper's own thread may have been first.
    store.sweep().await.unwrap();
    assert_eq!(store.inner.table.expired(u64::MAX - 1, 100).unwrap().len(), 1, "only the renewed one is indexed");
    assert_eq!(store.inner.table.chunk_id_after_last().unwrap(), 1);
    assert_eq!(ks.get("renewed").await.unwrap(), Some(value(10, 1)));
    assert_eq!(ks.get("forever").await.unwrap(), Some(value(10, 0)));
    ks.delete("renewed").await.unwrap();
    assert_eq!(store.inner.table.expired(u64::MAX - 1, 100).unwrap(), Vec::new());
}

#[tokio::test]
async fn owners_buckets_and_capabilities_never_meet() {
    let bench = Bench::new();
    let store = bench.open();
    let other_app = store.keyvalue(&name("other"), &name("kv"), link(&[]));
    let carts = store.keyvalue(&name("shop"), &name("kv"), link(&[("bucket", "carts")]));
    let (kv, ks) = (kv(&store), ks(&store));
    kv.set("", "k", value(1, 1)).await.unwrap();
    assert_eq!(other_app.get("", "k").await.unwrap(), None);
    assert_eq!(ks.get("k").await.unwrap(), None);
    assert_eq!(carts.get("default", "k").await.unwrap(), None, "the link's bucket stands for the default one");
    carts.set("", "k", value(1, 2)).await.unwrap();
    assert_eq!(kv.get("carts", "k").await.unwrap(), Some(value(1, 2)));
    assert_eq!(carts.list_keys("", None).await.unwrap(), (vec!["k".to_owned()], None));
}

#[tokio::test]
async fn a_read_only_link_reads() {
    let bench = Bench::new();
    let store = bench.open();
    kv(&store).set("", "k", value(1, 1)).await.unwrap();
    let config = [("read_only", "true")];
    let reader = store.keyvalue(&name("shop"), &name("kv"), link(&config));
    assert_eq!(reader.get("", "k").await.unwrap(), Some(value(1, 1)));
    let denied = [
        reader.set("", "k", value(1, 2)).await.err(),
        reader.delete("", "k").await.err(),
        reader.increment("", "k", 1).await.err(),
        reader.compare_and_swap("", "k", None, value(1, 2)).await.err(),
        reader.set_many("", vec![]).await.err(),
        reader.delete_many("", vec![]).await.err(),
    ];
    for error in denied {
        assert!(matches!(error, Some(keyvalue::Error::AccessDenied(m)) if m.contains("\"cart\"")));
    }
    let reader = store.keystore(&name("shop"), &name("kv"), link(&config));
    assert!(matches!(reader.set("k", value(1, 1), Some(0)).await, Err(keystore::Error::Denied(_))));
    assert_eq!(reader.get("k").await.unwrap(), None);
}

#[tokio::test]
async fn bounds_are_named() {
    let bench = Bench::new();
    let store = bench.open();
    let (kv, ks) = (kv(&store), ks(&store));
    let long = "k".repeat(1025);
    for (error, part) in [
        (kv.get("", "").await.err(), "0 bytes"),
        (kv.get("", &long).await.err(), "1025 bytes"),
        (kv.set("", "k", value(VALUE_BYTES_MAX + 1, 0)).await.err(), "1048577 bytes"),
        (kv.set_many("", vec![("k".into(), Bytes::new()); 1001]).await.err(), "1001 keys"),
        (kv.set_many("", (0..9).map(|i| (i.to_string(), value(1_000_000, 0))).collect()).await.err(), "8388608"),
        (kv.open(&"b".repeat(257)).await.err(), "257 bytes"),
    ] {
        let text = error.unwrap().to_string();
        assert!(text.contains(part) && text.contains("link \"default\" of actor \"cart\""), "{text}");
    }
    assert!(matches!(ks.get("").await, Err(keystore::Error::TooLarge(_))));
    assert!(matches!(ks.set("k", value(VALUE_BYTES_MAX + 1, 0), None).await, Err(keystore::Error::TooLarge(_))));
    kv.set("", &"k".repeat(1024), Bytes::new()).await.unwrap();
    kv.set("", "text", Bytes::from_static(b"seven")).await.unwrap();
    let error = kv.increment("", "text", 1).await.unwrap_err();
    assert!(matches!(&error, keyvalue::Error::Other(m) if m.contains("\"text\"")));
}

#[tokio::test]
async fn keys_are_listed_in_pages() {
    let bench = Bench::new();
    let store = bench.open();
    let kv = kv(&store);
    for batch in (0..2500).collect::<Vec<_>>().chunks(1000) {
        kv.set_many("b", batch.iter().map(|i| (format!("k{i:05}"), Bytes::new())).collect()).await.unwrap();
    }
    let (mut all, mut cursor, mut pages) = (Vec::new(), None, 0);
    loop {
        let (keys, next) = kv.list_keys("b", cursor).await.unwrap();
        all.extend(keys);
        pages += 1;
        cursor = next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(pages, 3);
    assert_eq!(all, (0..2500).map(|i| format!("k{i:05}")).collect::<Vec<_>>());
    kv.delete_many("b", all[..1000].to_vec()).await.unwrap();
    assert_eq!(kv.list_keys("b", None).await.unwrap().0.first().unwrap(), "k01000");
    let many = kv.get_many("b", vec!["k00001".into(), "k01000".into()]).await.unwrap();
    assert_eq!(many, vec![None, Some(("k01000".to_owned(), Bytes::new()))]);
}

#[tokio::test]
async fn a_swap_takes_place_once() {
    let bench = Bench::new();
    let store = bench.open();
    let kv = kv(&store);
    let (a, b) = (value(3, 1), value(9000, 2));
    assert_eq!(kv.compare_and_swap("", "k", Some(b.clone()), a.clone()).await.unwrap(), Err(None));
    assert_eq!(kv.compare_and_swap("", "k", None, a.clone()).await.unwrap(), Ok(()));
    assert_eq!(kv.compare_and_swap("", "k", None, b.clone()).await.unwrap(), Err(Some(a.clone())));
    assert_eq!(kv.compare_and_swap("", "k", Some(a), b.clone()).await.unwrap(), Ok(()));
    assert_eq!(kv.get("", "k").await.unwrap(), Some(b));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_increments_sum_right_and_share_syncs() {
    let bench = Bench::new();
    let store = bench.open();
    let before = store.stats();
    let tasks: Vec<_> = (0..64)
        .map(|_| {
            let kv = kv(&store);
            tokio::spawn(async move {
                for _ in 0..5 {
                    kv.increment("", "n", 3).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(kv(&store).get("", "n").await.unwrap(), Some(Bytes::from_static(b"960")));
    let after = store.stats();
    let (writes, syncs) = (after.writes - before.writes, after.syncs - before.syncs);
    assert!(writes >= 320 && syncs >= 1 && syncs * 4 <= writes, "{writes} writes took {syncs} syncs");
}

#[tokio::test]
async fn a_store_is_opened_once() {
    let bench = Bench::new();
    let _store = bench.open();
    let again = KeyvalueStore::open(&bench.path());
    assert!(matches!(again.err(), Some(Error::Busy { .. })));
}

#[tokio::test]
async fn a_failed_sync_ends_the_store() {
    let bench = Bench::new();
    let calls = Arc::new(AtomicU64::new(0));
    let counted = calls.clone();
    // Fails the second time only: that a later one would succeed must change nothing.
    let sync: commit::Sync = Box::new(move |table| match counted.fetch_add(1, Ordering::SeqCst) {
        1 => Err(Fault::Broken("input/output error".into())),
        _ => table.sync(),
    });
    let store = KeyvalueStore::open_with(&bench.path(), bench.clock(), sync).unwrap();
    let kv = kv(&store);
    kv.set("", "k", value(1, 1)).await.unwrap();
    let error = kv.set("", "k", value(1, 2)).await.unwrap_err();
    assert!(error.to_string().contains("input/output error"), "{error}");
    for error in [kv.set("", "k", value(1, 3)).await.err(), kv.get("", "k").await.err()] {
        assert!(error.unwrap().to_string().contains("serves nothing until the disk is checked"));
    }
    assert!(store.failure().is_some());
    assert_eq!(calls.load(Ordering::SeqCst), 2, "never tried again");
}

#[tokio::test]
async fn damage_is_told_not_served() {
    let bench = Bench::new();
    let store = bench.open();
    let kv = kv(&store);
    kv.set("", "small", value(100, 1)).await.unwrap();
    kv.set("", "large", value(10_000, 1)).await.unwrap();
    store.inner.table.flip_a_bit_everywhere();
    for key in ["small", "large"] {
        let error = kv.get("", key).await.unwrap_err();
        assert!(error.to_string().contains("damaged"), "{error}");
        kv.set("", key, value(5, 5)).await.unwrap();
        assert_eq!(kv.get("", key).await.unwrap(), Some(value(5, 5)));
    }
}
