//! Guests that import key-value and key store, with a store in memory behind their links.

use super::*;
use crate::call::LinkContext;
use crate::capability::keyvalue::Error;
use crate::capability::wire::KeyStoreOver;

type Key = (String, String);

#[derive(Default)]
pub(super) struct Memory(Mutex<BTreeMap<Key, Bytes>>);

fn at(bucket: &str, key: &str) -> Key {
    (bucket.to_owned(), key.to_owned())
}

#[async_trait::async_trait]
impl KeyValue for Memory {
    async fn open(&self, _: &str) -> Result<(), Error> {
        Ok(())
    }
    async fn get(&self, bucket: &str, key: &str) -> Result<Option<Bytes>, Error> {
        Ok(self.0.lock().unwrap().get(&at(bucket, key)).cloned())
    }
    async fn set(&self, bucket: &str, key: &str, value: Bytes) -> Result<(), Error> {
        self.0.lock().unwrap().insert(at(bucket, key), value);
        Ok(())
    }
    async fn delete(&self, bucket: &str, key: &str) -> Result<(), Error> {
        self.0.lock().unwrap().remove(&at(bucket, key));
        Ok(())
    }
    async fn exists(&self, bucket: &str, key: &str) -> Result<bool, Error> {
        Ok(self.0.lock().unwrap().contains_key(&at(bucket, key)))
    }
    async fn list_keys(&self, _: &str, _: Option<String>) -> Result<(Vec<String>, Option<String>), Error> {
        Err(Error::AccessDenied("this link may not list".into()))
    }
    async fn increment(&self, bucket: &str, key: &str, delta: i64) -> Result<i64, Error> {
        let mut all = self.0.lock().unwrap();
        let value = all.entry(at(bucket, key)).or_insert_with(|| Bytes::from_static(b"0"));
        let sum = std::str::from_utf8(value).unwrap().parse::<i64>().unwrap() + delta;
        *value = sum.to_string().into();
        Ok(sum)
    }
    async fn compare_and_swap(
        &self,
        _: &str,
        _: &str,
        _: Option<Bytes>,
        _: Bytes,
    ) -> Result<Result<(), Option<Bytes>>, Error> {
        Err(Error::Other("no guest here swaps".into()))
    }
    async fn get_many(&self, _: &str, _: Vec<String>) -> Result<Vec<Option<(String, Bytes)>>, Error> {
        Err(Error::Other("no guest here asks for many".into()))
    }
    async fn set_many(&self, _: &str, _: Vec<(String, Bytes)>) -> Result<(), Error> {
        Err(Error::Other("no guest here sets many".into()))
    }
    async fn delete_many(&self, _: &str, _: Vec<String>) -> Result<(), Error> {
        Err(Error::Other("no guest here deletes many".into()))
    }
}

/// A link to the memory, and one to an actor that exports the key store.
struct Linked {
    memory: Arc<Memory>,
    vault: Option<Arc<dyn Serve>>,
}

impl Imports for Linked {
    fn keyvalue(&self, _: &str, _: &str, _: &Origin) -> Result<Arc<dyn KeyValue>, CallError> {
        Ok(self.memory.clone())
    }
    fn keystore(&self, name: &str, _: &Origin) -> Result<Arc<dyn KeyStore>, CallError> {
        let vault = self.vault.clone().ok_or_else(|| unlinked("lattice:keystore/store"))?;
        Ok(Arc::new(KeyStoreOver::new(vault, LinkContext { name: name.to_owned(), ..LinkContext::default() })))
    }
    fn dynamic(&self, interface: &str, _: &str) -> Result<Arc<dyn Serve>, CallError> {
        Err(unlinked(interface))
    }
}

#[tokio::test]
async fn a_counter_counts_in_the_store_it_is_linked_to() {
    let world = World::new();
    let memory = Arc::new(Memory::default());
    let links = Linked { memory: memory.clone(), vault: None };
    let counter = committed("manifests/counter/counter.wasm");
    let actor = world.actor(counter.clone(), Spec { imports: Arc::new(links), ..world.spec() }).await;
    assert_eq!(text(actor.http(get("/cats"), None).await).await, "1\n");
    assert_eq!(text(actor.http(get("/cats"), None).await).await, "2\n");
    assert_eq!(text(actor.http(get("/cats?peek"), None).await).await, "2\n");
    assert_eq!(memory.0.lock().unwrap().len(), 1);
    let refused = actor.http(get(&format!("/{}", "k".repeat(1025))), None).await;
    assert!(text(refused).await.contains("a key of 1025 bytes: 1 to 1024 are allowed"));

    let alone = world.actor(counter, world.spec()).await;
    assert!(text(alone.http(get("/cats"), None).await).await.contains("access denied"));
    assert!(world.lines.0.lock().unwrap().contains(&("warn".into(), "no link for wasi:keyvalue/store".into())));
}

/// Client -> vault (typed export) -> memory: values of every size that the interface allows.
#[tokio::test]
async fn a_keystore_client_is_served_by_an_actor() {
    let world = World::new();
    let memory = Arc::new(Memory::default());
    let vault = Spec { imports: Arc::new(Linked { memory: memory.clone(), vault: None }), ..world.spec() };
    let vault: Arc<dyn Serve> = world.actor(committed("manifests/keystore/vault.wasm"), vault).await;
    let client = Spec { imports: Arc::new(Linked { memory, vault: Some(vault) }), ..world.spec() };
    let client = world.actor(committed("manifests/keystore/client.wasm"), client).await;
    let put = |path: &str, value: Vec<u8>| {
        let body = Full::new(Bytes::from(value)).map_err(|never| match never {}).boxed_unsync();
        http::Request::put(path).header("host", "shop.example").body(body).unwrap()
    };
    for bytes in [0, 1, 5_000, 1024 * 1024 - 8] {
        let value: Vec<u8> = (0..bytes).map(|n: u32| n.to_le_bytes()[0]).collect();
        let done = client.http(put("/k", value.clone()), None).await.unwrap();
        assert_eq!(done.status(), 204, "{bytes} bytes");
        let got = client.http(get("/k"), None).await.unwrap();
        assert_eq!(got.status(), 200);
        assert!(got.into_body().collect().await.unwrap().to_bytes() == value, "{bytes} bytes");
    }
    assert_eq!(client.http(put("/k", vec![0; 1024 * 1024 + 1]), None).await.unwrap().status(), 413);
    assert_eq!(client.http(put("/k?ttl=0", vec![1]), None).await.unwrap().status(), 204);
    assert_eq!(client.http(get("/k"), None).await.unwrap().status(), 404);
}
