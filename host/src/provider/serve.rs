//! The built-in key-value provider for callers in other processes: encoded calls in, the store's answers out.

use super::keyvalue::KeyvalueStore;
use crate::call::{CallError, LinkContext, Serve};
use crate::capability::wire::{answer_keystore, answer_keyvalue};
use bytes::Bytes;
use proto::app::{Builtin, Name};

/// Serves wasi:keyvalue (store, atomics, batch) and lattice:keystore/store as the provider `component` of `app`.
pub struct KeyValueServer {
    store: KeyvalueStore,
    app: Name,
    component: Name,
}

impl KeyValueServer {
    pub fn new(store: KeyvalueStore, app: Name, component: Name) -> Self {
        Self { store, app, component }
    }

    /// What it answers.
    pub fn interfaces() -> &'static [&'static str] {
        Builtin::Keyvalue.interfaces()
    }
}

#[async_trait::async_trait]
impl Serve for KeyValueServer {
    async fn serve(
        &self,
        link: &LinkContext,
        interface: &str,
        function: &str,
        params: Bytes,
    ) -> Result<Bytes, CallError> {
        let interface = interface.split('@').next().unwrap_or(interface);
        match interface {
            "lattice:keystore/store" => {
                let view = self.store.keystore(&self.app, &self.component, link.clone());
                answer_keystore(&*view, function, params).await
            }
            _ => {
                let view = self.store.keyvalue(&self.app, &self.component, link.clone());
                answer_keyvalue(&*view, interface, function, params).await
            }
        }
    }

    /// A get is looked up at once; a write waits for the one writer.
    fn is_quick(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "helpers of tests")]
    use super::*;
    use crate::capability::keystore::{self, KeyStore};
    use crate::capability::keyvalue::{self, KeyValue, VALUE_BYTES_MAX};
    use crate::capability::wire::{KeyStoreOver, KeyValueOver};
    use crate::value::Writer;
    use std::sync::Arc;

    fn bench() -> (tempfile::TempDir, Arc<KeyValueServer>) {
        let dir = tempfile::tempdir().unwrap();
        let store = KeyvalueStore::open(&dir.path().join("keyvalue")).unwrap();
        (dir, Arc::new(KeyValueServer::new(store, "shop".parse().unwrap(), "kv".parse().unwrap())))
    }

    fn link(read_only: bool) -> LinkContext {
        let config = read_only.then(|| ("read_only".to_owned(), "true".to_owned())).into_iter().collect();
        let (app, consumer, name) = ("shop".into(), "cart".into(), "default".into());
        LinkContext { app, consumer, name, config, ..LinkContext::default() }
    }

    #[tokio::test]
    async fn every_function_of_keyvalue_crosses() {
        let (_dir, server) = bench();
        let kv = KeyValueOver::new(server.clone(), link(false));
        let v = |s: &'static str| Bytes::from_static(s.as_bytes());
        kv.open("b").await.unwrap();
        assert_eq!(kv.get("b", "k").await.unwrap(), None);
        kv.set("b", "k", v("one")).await.unwrap();
        assert_eq!(kv.get("b", "k").await.unwrap(), Some(v("one")));
        assert!(kv.exists("b", "k").await.unwrap());
        assert_eq!(kv.increment("b", "n", -5).await.unwrap(), -5);
        assert_eq!(kv.compare_and_swap("b", "k", None, v("two")).await.unwrap(), Err(Some(v("one"))));
        assert_eq!(kv.compare_and_swap("b", "k", Some(v("one")), v("two")).await.unwrap(), Ok(()));
        kv.set_many("b", vec![("x".into(), v("1")), ("y".into(), v("2"))]).await.unwrap();
        let many = kv.get_many("b", vec!["x".into(), "none".into(), "k".into()]).await.unwrap();
        assert_eq!(many, vec![Some(("x".into(), v("1"))), None, Some(("k".into(), v("two")))]);
        kv.delete_many("b", vec!["x".into(), "y".into()]).await.unwrap();
        kv.delete("b", "n").await.unwrap();
        assert_eq!(kv.list_keys("b", None).await.unwrap(), (vec!["k".to_owned()], None));
        assert_eq!(kv.list_keys("b", Some("k".into())).await.unwrap(), (vec![], None));
        let large = Bytes::from(vec![7; VALUE_BYTES_MAX]);
        kv.set("b", "large", large.clone()).await.unwrap();
        assert_eq!(kv.get("b", "large").await.unwrap(), Some(large));
    }

    #[tokio::test]
    async fn every_function_of_the_keystore_crosses() {
        let (_dir, server) = bench();
        let ks = KeyStoreOver::new(server.clone(), link(false));
        ks.set("k", Bytes::from_static(b"v"), Some(100)).await.unwrap();
        assert_eq!(ks.get("k").await.unwrap(), Some(Bytes::from_static(b"v")));
        ks.set("k", Bytes::new(), None).await.unwrap();
        assert_eq!(ks.get("k").await.unwrap(), Some(Bytes::new()));
        ks.delete("k").await.unwrap();
        assert_eq!(ks.get("k").await.unwrap(), None);
    }

    #[tokio::test]
    async fn errors_keep_their_case_and_text() {
        let (_dir, server) = bench();
        let kv = KeyValueOver::new(server.clone(), link(true));
        let denied = kv.set("", "k", Bytes::new()).await.unwrap_err();
        assert!(matches!(denied, keyvalue::Error::AccessDenied(m) if m.contains("read-only")));
        let unknown = kv.open(&"b".repeat(300)).await.unwrap_err();
        assert!(matches!(unknown, keyvalue::Error::NoSuchStore(m) if m.contains("300 bytes")));
        let other = kv.get("", "").await.unwrap_err();
        assert!(matches!(other, keyvalue::Error::Other(m) if m.contains("0 bytes")));
        let ks = KeyStoreOver::new(server.clone(), link(true));
        assert!(matches!(ks.delete("k").await, Err(keystore::Error::Denied(_))));
        assert!(matches!(ks.get("").await, Err(keystore::Error::TooLarge(_))));
    }

    #[tokio::test]
    async fn keystore_bytes_are_those_of_the_wit() {
        let (_dir, server) = bench();
        // set: func(key: string, value: list<u8>, ttl: option<u32>) -> result<_, error>
        let mut w = Writer::new();
        w.put_str("k").put_bytes(b"v").put_case(1).put_u32(60);
        let ok = server.serve(&link(false), "lattice:keystore/store@0.1.0", "set", w.finish()).await.unwrap();
        assert_eq!(ok.as_ref(), 0u32.to_le_bytes());
        // get: func(key: string) -> result<option<list<u8>>, error>
        let mut w = Writer::new();
        w.put_str("k");
        let got = server.serve(&link(false), "lattice:keystore/store", "get", w.finish()).await.unwrap();
        let mut expected = Writer::new();
        expected.put_case(0).put_case(1).put_bytes(b"v");
        assert_eq!(got, expected.finish());
    }

    #[tokio::test]
    async fn what_does_not_decode_is_invalid() {
        let (_dir, server) = bench();
        let link = link(false);
        for (interface, function, params) in [
            ("wasi:keyvalue/store", "get", &b""[..]),
            ("wasi:keyvalue/store", "get", &[0xff; 40]),
            ("wasi:keyvalue/store", "drop-table", &[0; 8]),
            ("wasi:keyvalue/watcher", "get", &[0; 8]),
            ("wasi:keyvalue/batch", "set-many", &[0, 0, 0, 0, 255, 255, 255, 255]),
            ("lattice:keystore/store", "delete", &[0; 5]),
            ("lattice:keystore/store", "list", &[0; 4]),
        ] {
            let answer = server.serve(&link, interface, function, Bytes::copy_from_slice(params)).await;
            assert!(matches!(answer, Err(CallError::Invalid(_))), "{interface}.{function}: {answer:?}");
        }
        let mut many = Writer::new();
        many.put_str("").put_len(1_000_000).put_raw(&[0; 4_000_000]);
        let answer = server.serve(&link, "wasi:keyvalue/batch", "get-many", many.finish()).await;
        assert!(matches!(answer, Err(CallError::TooLarge(m)) if m.contains("1000000 keys")));
    }
}
