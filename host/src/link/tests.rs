//! Resolution by tables; calls through a table with a real store, where only what runs here is the test's.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::on_bus::connect_to;
use proto::app::{Actor, Component, Grants, Limits, Provider, Scaler};
use std::sync::Mutex;

fn name(s: &str) -> Name {
    s.parse().unwrap()
}

fn actor(exports: &[&str]) -> Component {
    let kind = Kind::Actor(Actor {
        image: "x.wasm".into(),
        digest: None,
        exports: exports.iter().map(|e| (*e).to_owned()).collect(),
        ingress: vec![],
        grants: Grants::default(),
        limits: Limits::default(),
    });
    Component { kind, scaler: Scaler::default(), strict: false, config: BTreeMap::new() }
}

fn link(consumer: &str, link: &str, interface: &str, provider: &str) -> Link {
    let (namespace, rest) = interface.split_once(':').unwrap();
    let (package, interfaces) = rest.split_once('/').unwrap();
    Link {
        consumer: name(consumer),
        name: link.into(),
        namespace: namespace.into(),
        package: package.into(),
        interfaces: interfaces.split(',').map(str::to_owned).collect(),
        provider: name(provider),
        config: [("bucket".to_owned(), "carts".to_owned())].into(),
    }
}

fn shop() -> App {
    let builtin = Kind::Provider(Provider { image: "builtin:keyvalue".into(), builtin: Builtin::Keyvalue });
    App {
        name: name("shop"),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        components: [
            (name("cart"), actor(&[])),
            (name("idle"), actor(&[])),
            (name("store"), actor(&["lattice:keystore/store@0.1.0", "wasi:keyvalue/store", "shop:prices/quote"])),
            (
                name("kv"),
                Component { kind: builtin, scaler: Scaler::default(), strict: false, config: BTreeMap::new() },
            ),
        ]
        .map(|(name, component)| (name, Box::new(component)))
        .into(),
        links: vec![
            link("cart", "default", "wasi:keyvalue/store,atomics", "kv"),
            link("cart", "cache", "wasi:keyvalue/store", "kv"),
            link("cart", "default", "lattice:keystore/store", "store"),
            link("cart", "kept", "lattice:keystore/store", "kv"),
            link("cart", "odd", "wasi:keyvalue/store", "store"),
            link("cart", "default", "shop:prices/quote", "store"),
            link("cart", "wrong", "shop:prices/quote", "kv"),
            link("cart", "gone", "shop:prices/quote", "nobody"),
        ],
    }
}

#[test]
fn links_resolve() {
    let app = shop();
    let builtin = Offer::Builtin(Builtin::Keyvalue);
    let cases = [
        ("cart", "wasi:keyvalue/store", "default", Ok(("kv", builtin))),
        ("cart", "wasi:keyvalue/store@0.2.0-draft", "cache", Ok(("kv", builtin))),
        ("cart", "wasi:keyvalue/atomics", "default", Ok(("kv", builtin))),
        ("cart", "lattice:keystore/store", "default", Ok(("store", Offer::Actor))),
        ("cart", "lattice:keystore/store", "kept", Ok(("kv", builtin))),
        ("cart", "shop:prices/quote@1.2.3", "default", Ok(("store", Offer::Actor))),
        (
            "idle",
            "wasi:keyvalue/store",
            "default",
            Err("link \"default\" of actor \"idle\": no link for wasi:keyvalue/store; add a link trait"),
        ),
        (
            "cart",
            "wasi:keyvalue/batch",
            "default",
            Err("link \"default\" of actor \"cart\": no link for wasi:keyvalue/batch; add a link trait"),
        ),
        (
            "cart",
            "wasi:keyvalue/atomics",
            "cache",
            Err(
                "link \"cache\" of actor \"cart\": its links for wasi:keyvalue/atomics are \"default\"; use one, or add \
                 a link trait",
            ),
        ),
        (
            "cart",
            "shop:prices/quote",
            "wrong",
            Err("link \"wrong\" of actor \"cart\": \"kv\" does not serve shop:prices/quote; link to a component that \
                 exports it"),
        ),
        (
            "cart",
            "shop:prices/quote",
            "gone",
            Err("link \"gone\" of actor \"cart\": app \"shop\" has no component \"nobody\"; add it, or correct the \
                 link's target"),
        ),
    ];
    for (consumer, interface, name, expected) in cases {
        let got = resolve(&app, consumer, interface, name).map(|(link, offer)| (link.provider.as_str(), offer));
        assert_eq!(got.map_err(|e| e.to_string()), expected.map_err(str::to_owned), "{consumer} {interface} {name}");
    }
}

#[test]
fn only_the_apps_own_links_are_permitted() {
    let app = shop();
    let caller = Caller {
        app: name("shop"),
        consumer: name("cart"),
        provider_app: name("shop"),
        provider: name("kv"),
        interface: "wasi:keyvalue/store".into(),
        link: "cache".into(),
    };
    assert_eq!(permit(&app, &caller), Some([("bucket".to_owned(), "carts".to_owned())].into()));
    for other in [
        Caller { app: name("other"), ..caller.clone() },
        Caller { provider_app: name("other"), ..caller.clone() },
        Caller { consumer: name("idle"), ..caller.clone() },
        Caller { provider: name("store"), ..caller.clone() },
        Caller { interface: "wasi:keyvalue/batch".into(), ..caller.clone() },
        Caller { link: "nope".into(), ..caller.clone() },
    ] {
        assert_eq!(permit(&app, &other), None, "{other:?}");
    }
}

/// Nothing runs here until it is put in.
#[derive(Default)]
struct Here {
    provider: Mutex<Option<LocalProvider>>,
    actor: Mutex<Option<Arc<dyn Serve>>>,
}

impl Local for Here {
    fn provider(&self, app: &Name, component: &Name) -> Option<LocalProvider> {
        assert_eq!((app.as_str(), component.as_str()), ("shop", "kv"));
        self.provider.lock().unwrap().clone()
    }
    fn actor(&self, app: &Name, component: &Name) -> Option<Arc<dyn Serve>> {
        assert_eq!((app.as_str(), component.as_str()), ("shop", "store"));
        self.actor.lock().unwrap().clone()
    }
}

/// No server is there: what would cross the bus fails by name.
async fn table(here: &Arc<Here>) -> Table {
    let mut app = shop();
    let Kind::Actor(cart) = &mut app.components.get_mut("cart").unwrap().kind else { panic!("an actor") };
    cart.limits.deadline_ms = 50;
    Table::new(Arc::new(app), name("cart"), here.clone(), connect_to("127.0.0.1:1").await)
}

#[tokio::test]
async fn the_same_link_is_local_or_remote_as_its_provider_moves() {
    let dir = tempfile::tempdir().unwrap();
    let store = KeyvalueStore::open(&dir.path().join("keyvalue")).unwrap();
    let here = Arc::new(Here::default());
    let table = table(&here).await;

    let away =
        table.keyvalue("wasi:keyvalue/store", "default", &Origin::default()).unwrap().get("", "k").await.unwrap_err();
    assert!(away.to_string().contains("shop/kv is on another host and the bus is not connected"), "{away}");
    let keystore = table.keystore("kept", &Origin::default()).unwrap().get("k").await.unwrap_err();
    assert!(keystore.to_string().contains("link \"kept\" of actor \"cart\""), "{keystore}");

    *here.provider.lock().unwrap() = Some(LocalProvider::Keyvalue(store.clone()));
    let kv = table.keyvalue("wasi:keyvalue/store", "default", &Origin::default()).unwrap();
    kv.set("", "k", Bytes::from_static(b"v")).await.unwrap();
    assert_eq!(kv.get("carts", "k").await.unwrap().unwrap().as_ref(), b"v", "the link names the bucket");
    table.keystore("kept", &Origin::default()).unwrap().set("k", Bytes::from_static(b"w"), None).await.unwrap();
    assert_eq!(table.keystore("kept", &Origin::default()).unwrap().get("k").await.unwrap().unwrap().as_ref(), b"w");

    *here.provider.lock().unwrap() = None;
    assert!(table.keyvalue("wasi:keyvalue/store", "default", &Origin::default()).unwrap().get("", "k").await.is_err());
}

#[tokio::test]
async fn an_actor_may_stand_for_the_keystore() {
    let dir = tempfile::tempdir().unwrap();
    let store = KeyvalueStore::open(&dir.path().join("keyvalue")).unwrap();
    let here = Arc::new(Here::default());
    let table = table(&here).await;
    // The store answers the same bytes as an actor that exports the interface.
    *here.actor.lock().unwrap() = Some(Arc::new(KeyValueServer::new(store, name("shop"), name("store"))));
    let keystore = table.keystore("default", &Origin::default()).unwrap();
    keystore.set("k", Bytes::from_static(b"v"), Some(60)).await.unwrap();
    assert_eq!(keystore.get("k").await.unwrap().unwrap().as_ref(), b"v");
    let mut params = crate::value::Writer::new();
    params.put_str("k");
    let dynamic = table.dynamic("lattice:keystore/store@0.1.0", "default").unwrap();
    let answer = dynamic.serve(&LinkContext::default(), "lattice:keystore/store", "get", params.finish()).await;
    assert_eq!(answer.unwrap().len(), 13, "ok, some, one byte");
    let odd = table.keyvalue("wasi:keyvalue/store", "odd", &Origin::default()).err().unwrap();
    assert!(matches!(odd, CallError::Invalid(m) if m.contains("builtin:keyvalue")));
    assert!(matches!(table.dynamic("shop:prices/quote", "gone").err(), Some(CallError::Invalid(_))));
    assert!(matches!(table.keystore("nope", &Origin::default()).err(), Some(CallError::Denied(_))));
}
