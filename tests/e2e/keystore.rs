//! The key store: the same client linked to the built-in provider and to an actor that exports the interface, on one
//! host and on two.

use crate::harness::{Broker, Lattice, SOON, http, manifests, scenarios, until};
use serde_json::json;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

scenarios!(
    the_builtin_store_keeps_values_until_their_time,
    an_actor_serves_the_store_that_another_imports,
    an_actor_on_another_host_serves_the_store,
);

struct Client {
    at: SocketAddr,
    host: &'static str,
}

impl Client {
    fn ask(&self, method: &str, target: &str, body: &[u8]) -> http::Response {
        let (at, host, deadline) = (self.at, self.host, Duration::from_secs(20));
        http::Request { at, method, host, target, body, more: "", deadline }.send().unwrap()
    }

    fn put(&self, target: &str, body: &[u8]) {
        let response = self.ask("PUT", target, body);
        assert_eq!(response.status, 204, "{}", response.text());
    }

    fn get(&self, key: &str) -> Option<Vec<u8>> {
        let response = self.ask("GET", key, b"");
        match response.status {
            200 => Some(response.body),
            404 => None,
            status => panic!("GET {key}: {status} {}", response.text()),
        }
    }

    /// What every implementation of the interface must do.
    fn holds_to_the_contract(&self) {
        assert_eq!(self.get("/name"), None);
        self.put("/name", b"Ada");
        assert_eq!(self.get("/name").as_deref(), Some(&b"Ada"[..]));
        self.put("/name", b"");
        assert_eq!(self.get("/name").as_deref(), Some(&b""[..]), "an empty value is a value");
        let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
        self.put("/name", &bytes);
        assert_eq!(self.get("/name"), Some(bytes));
        assert_eq!(self.ask("DELETE", "/name", b"").status, 204);
        assert_eq!(self.get("/name"), None);
        assert_eq!(self.ask("DELETE", "/name", b"").status, 204, "what is not there is deleted already");

        let set = Instant::now();
        self.put("/short?ttl=2", b"soon gone");
        self.put("/long?ttl=600", b"stays");
        self.put("/kept?ttl=1", b"with a time");
        self.put("/kept", b"without");
        // What was seen before its time was up must be there; the clock is read before the answer is known.
        until("the value expires", SOON, || {
            let found = self.get("/short");
            if found.is_some() {
                return None;
            }
            let age = set.elapsed();
            assert!(age >= Duration::from_millis(1_900), "expired after {age:?}, not 2 s");
            Some(())
        });
        let late = set.elapsed();
        assert!(late < Duration::from_secs(5), "still there after {late:?}, not 2 s");
        assert!(self.get("/long").is_some());
        assert_eq!(self.get("/kept").as_deref(), Some(&b"without"[..]), "setting anew takes the time away");
    }
}

fn the_builtin_store_keeps_values_until_their_time(broker: Broker) {
    let mut lattice = Lattice::start(broker);
    lattice.apply(&manifests::keystore_builtin());
    let client = |lattice: &Lattice| Client { at: lattice.ingress("a"), host: "keystore.localhost" };
    client(&lattice).holds_to_the_contract();
    let large = client(&lattice).ask("PUT", "/large", &vec![7; 1024 * 1024 + 1]);
    assert_eq!(large.status, 413, "{}", large.text());

    // Durable, times included: 3 s from now, wherever the process is meanwhile.
    let set = Instant::now();
    client(&lattice).put("/short?ttl=3", b"soon gone");
    client(&lattice).put("/durable", b"stays");
    lattice.kill_main();
    lattice.start_main();
    let client = client(&lattice);
    until("the app answers", SOON, || (client.ask("GET", "/durable", b"").status == 200).then_some(()));
    assert_eq!(client.get("/durable").as_deref(), Some(&b"stays"[..]));
    until("the value expires", SOON, || client.get("/short").is_none().then_some(()));
    assert!(set.elapsed() >= Duration::from_millis(2_900), "{:?}", set.elapsed());
}

fn an_actor_serves_the_store_that_another_imports(broker: Broker) {
    let lattice = Lattice::start(broker);
    lattice.apply(&manifests::keystore_actor());
    let client = Client { at: lattice.ingress("a"), host: "keystore-actor.localhost" };
    client.holds_to_the_contract();

    // The same functions by hand, with their values as text.
    let call = |args: &[&str]| {
        let mut all = vec!["call", "keystore-actor/vault"];
        all.extend(args);
        lattice.cli(&all)
    };
    client.put("/k", b"v");
    let get = call(&["lattice:keystore/store.get", "\"k\""]);
    assert_eq!((get.code, get.stdout.as_str()), (0, "ok(some([118]))\n"), "{get:#?}");
    let set = call(&["lattice:keystore/store.set", "\"k\"", "[104, 105]", "none"]);
    assert_eq!((set.code, set.stdout.as_str()), (0, "ok\n"), "{set:#?}");
    assert_eq!(client.get("/k").as_deref(), Some(&b"hi"[..]));
    let none = call(&["lattice:keystore/store.get", "\"nothing\""]);
    assert_eq!((none.code, none.stdout.as_str()), (0, "ok(none)\n"), "{none:#?}");
    for (args, says) in [
        (&["lattice:keystore/store.frobnicate"][..], "frobnicate"),
        (&["acme:other/store.get", "\"k\""], "acme:other/store"),
        (&["lattice:keystore/store.get", "17"], "get"),
        (&["lattice:keystore/store.get"], "get"),
        (&["lattice:keystore/store.get", "\"k"], "get"),
    ] {
        let cli = call(args);
        assert_eq!(cli.code, 1, "{args:?}: {cli:#?}");
        assert!(cli.stderr.contains(says), "{args:?}: {cli:#?}");
    }
    let nobody = lattice.cli(&["call", "keystore-actor/nobody", "lattice:keystore/store.get", "\"k\""]);
    assert_eq!(nobody.code, 1, "{nobody:#?}");
    assert!(nobody.stderr.contains("vault"), "it names who is there: {nobody:#?}");
}

fn an_actor_on_another_host_serves_the_store(broker: Broker) {
    let mut lattice = Lattice::start_labelled(broker, &["tier=cloud"]);
    lattice.add_host("b", &["tier=edge"], false);
    lattice.until_hosts(&[("a", "ready"), ("b", "ready")]);
    lattice.apply(&manifests::keystore_actor_apart(&lattice));
    let app = "keystore-actor";
    for (actor, host) in [("client", "a"), ("vault", "b"), ("store", "a")] {
        lattice.until_spread(app, actor, &[(host, 1)], SOON);
    }
    Client { at: lattice.ingress("a"), host: "keystore-actor.localhost" }.holds_to_the_contract();
    for link in lattice.items_of("links", app) {
        assert_eq!((&link["state"], &link["path"]), (&json!("bound"), &json!("bus")), "{link}");
    }
    // `call` goes to the host that runs it.
    let set =
        lattice.cli(&["call", "keystore-actor/vault", "lattice:keystore/store.set", "\"k\"", "[104]", "some(60)"]);
    assert_eq!((set.code, set.stdout.as_str()), (0, "ok\n"), "{set:#?}");
}
