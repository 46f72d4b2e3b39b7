//! Manifests as people have them: ours, and those written for wasmCloud v1, which must parse unchanged.
#![allow(clippy::unwrap_used, reason = "tests")]

use proto::app::{App, Builtin, Folder, IngressRoute, Kind, Limits, Scaler, Spread};
use proto::manifest::{self, ImageRef, Parsed};
use std::collections::BTreeMap;

#[track_caller]
fn parse(text: &str) -> Vec<Parsed> {
    match manifest::parse(text, "app.yaml") {
        Ok(parsed) => parsed,
        Err(problems) => panic!("{}", problems.iter().map(|p| format!("{p}\n")).collect::<String>()),
    }
}

#[track_caller]
fn one(text: &str) -> App {
    let mut parsed = parse(text);
    assert_eq!(parsed.len(), 1);
    parsed.remove(0).app
}

fn pairs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

const SHOP: &str = r#"
apiVersion: core.oam.dev/v1beta1
kind: Application
metadata:
  name: shop
  labels: {team: checkout}
  annotations:
    version: 1.10
    description: "A shop"
spec:
  components:
    - name: cart
      type: component
      properties:
        image: ./cart.wasm
        config:
          - name: tax
            properties: {rate: 0.19, inclusive: true, note: "a: b"}
          - name: more
            properties: {rate: 7, empty: }
      traits:
        - type: spreadscaler
          properties:
            instances: 12
            spread:
              - {name: paris, requirements: {site: paris, hostcore.arch: x86_64}, weight: 80}
              - {name: rest}
        - type: ingress
          properties:
            routes: [{host: Shop.Example.org, path: /cart/}, {host: "*.example.org"}]
        - type: grants
          properties:
            env: {LOG: debug, RETRIES: 3}
            http: [API.example.org, "127.0.0.1:8080", "*.example.net", "[::1]:80"]
            folders: [{host: /srv/cart, guest: /data, write: true}, {host: /etc/cart, guest: /etc}]
            sockets: true
        - type: limits
          properties: {memory: 128MiB, deadline: 2s, queue: 50, cpu: 300ms, table: 900, instances: 7, stack: 1MiB, request: 1MB, response: 2MB, log: 3KB, outgoing: 5, reuse: 40, concurrency: 6}
        - type: link
          properties:
            target: {name: kv, config: [{name: b, properties: {bucket: carts}}]}
            namespace: wasi
            package: keyvalue
            interfaces: [store, atomics]
        - type: link
          properties: {target: tax, name: eu, namespace: acme, package: tax, interfaces: [rates]}
    - name: tax
      type: component
      properties: {image: "oci://ghcr.io/acme/tax:1.2"}
      traits:
        - type: daemonscaler
          properties: {replicas: 2, spread: [{requirements: {tier: edge}}]}
    - name: kv
      type: capability
      properties: {image: "builtin:keyvalue"}
"#;

#[test]
fn all_that_the_language_has() {
    let parsed = parse(SHOP).remove(0);
    let app = &parsed.app;
    assert_eq!(app.annotations, pairs(&[("description", "A shop"), ("version", "1.10")]));
    assert_eq!(app.labels, pairs(&[("team", "checkout")]));
    let cart = &app.components["cart"];
    assert_eq!(cart.config, pairs(&[("empty", ""), ("inclusive", "true"), ("note", "a: b"), ("rate", "7")]));
    let spread = |name: &str, requirements: &[(&str, &str)], weight| Spread {
        name: name.into(),
        requirements: pairs(requirements),
        weight,
    };
    assert_eq!(
        cart.scaler,
        Scaler::Spread {
            replicas: 12,
            spread: vec![
                spread("paris", &[("site", "paris"), ("hostcore.arch", "x86_64")], 80),
                spread("rest", &[], 100)
            ]
        }
    );
    let actor = app.actor("cart").unwrap();
    let route = |host: &str, path: &str| IngressRoute { host: host.into(), path: path.into() };
    assert_eq!(actor.ingress, [route("shop.example.org", "/cart"), route("*.example.org", "/")]);
    assert_eq!(actor.grants.env, pairs(&[("LOG", "debug"), ("RETRIES", "3")]));
    assert_eq!(actor.grants.http, ["api.example.org", "127.0.0.1:8080", "*.example.net", "[::1]:80"]);
    let folder = |host: &str, guest: &str, write| Folder { host: host.into(), guest: guest.into(), write };
    assert_eq!(actor.grants.folders, [folder("/srv/cart", "/data", true), folder("/etc/cart", "/etc", false)]);
    assert!(actor.grants.sockets);
    let limits = Limits {
        memory_bytes: 128 << 20,
        table_elements_max: 900,
        instances_max: 7,
        stack_bytes: 1 << 20,
        deadline_ms: 2_000,
        cpu_ms: 300,
        queue_len_max: 50,
        request_bytes_max: 1_000_000,
        response_bytes_max: 2_000_000,
        log_bytes_per_s: 3_000,
        outgoing_len_max: 5,
        reuse: 40,
        concurrency: 6,
    };
    assert_eq!(actor.limits, limits);
    assert_eq!(
        app.components["tax"].scaler,
        Scaler::Daemon { replicas: 2, spread: vec![spread("", &[("tier", "edge")], 100)] }
    );
    assert_eq!(app.components["kv"].scaler, Scaler::default());
    assert!(matches!(&app.components["kv"].kind, Kind::Provider(p) if p.builtin == Builtin::Keyvalue));
    let links: Vec<_> = app.links.iter().map(|l| (l.consumer.as_str(), l.name.as_str(), l.provider.as_str())).collect();
    assert_eq!(links, [("cart", "default", "kv"), ("cart", "eu", "tax")]);
    assert_eq!(app.links[0].interfaces, ["store", "atomics"]);
    assert_eq!(app.links[0].config, pairs(&[("bucket", "carts")]));
    let images: Vec<_> = manifest::images(app).into_iter().map(|(name, image)| (name.to_string(), image)).collect();
    assert_eq!(
        images,
        [
            ("cart".to_owned(), ImageRef::Local("./cart.wasm".into())),
            ("tax".to_owned(), ImageRef::Registry("ghcr.io/acme/tax:1.2".into()))
        ]
    );
    // Problems that show later find their line.
    let at = |place: &manifest::Place| (place.line, place.column, place.path.clone());
    assert_eq!(at(&parsed.positions.app), (5, 9, "metadata.name".into()));
    assert_eq!(at(parsed.positions.component("kv")), (53, 13, "spec.components[2].name".into()));
    assert_eq!(at(parsed.positions.image("cart")), (15, 16, "spec.components[0].properties.image".into()));
    assert_eq!(at(parsed.positions.link(1)), (46, 23, "spec.components[0].traits[5].properties".into()));
    assert_eq!(
        at(&parsed.positions.components["cart"].ingress[1]),
        (30, 62, "spec.components[0].traits[1].properties.routes[1]".into())
    );
    // What is stored is what was read.
    assert_eq!(App::from_json(&app.to_json()).unwrap(), *app);
}

#[test]
fn the_smallest_app_and_two_in_a_file() {
    let text = "---\napiVersion: core.oam.dev/v1beta1\nkind: Application\nmetadata: {name: a}\n\
                spec: {components: [{name: hello, type: component, properties: {image: hello.wasm}}]}\n";
    let app = one(text);
    let hello = app.actor("hello").unwrap();
    assert_eq!((hello.image.as_str(), &hello.digest, hello.ingress.len()), ("hello.wasm", &None, 0));
    assert_eq!(app.components["hello"].scaler, Scaler::default());
    let both = parse(&format!("{text}---\n{}---\n", text.replacen("name: a", "name: b", 1)));
    assert_eq!(both.iter().map(|p| p.app.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    // Windows line ends, a byte order mark, JSON, and anchors.
    assert_eq!(one(&format!("\u{feff}{}", text.replace('\n', "\r\n"))), app);
    let json = r#"{"apiVersion": "core.oam.dev/v1beta1", "kind": "Application", "metadata": {"name": "a"},
	"spec": {"components": [{"name": "hello", "type": "component", "properties": {"image": "hello.wasm"}}]}}"#;
    assert_eq!(one(json), app);
    let anchors = text.replace(
        "components: [{name: hello",
        "components: [{traits: [&t {type: ingress, properties: {path: /a}}], name: hello",
    );
    let anchors = anchors.replace(
        "image: hello.wasm}}]",
        "image: hello.wasm}}, {name: b, type: component, properties: {image: b.wasm}, traits: []}]",
    );
    assert_eq!(one(&anchors).actor("hello").unwrap().ingress.len(), 1);
}

#[test]
fn a_shorthand_ingress_and_zero_replicas() {
    let app = one("apiVersion: core.oam.dev/v1beta1\nkind: Application\nmetadata: {name: a}\nspec:\n  components:\n\
         \x20 - name: hello\n    type: actor\n    properties: {image: ghcr.io/acme/hello@sha256:0000000000000000000000000000000000000000000000000000000000000000}\n\
         \x20   traits:\n    - {type: ingress, properties: {host: hello.example.org}}\n\
         \x20   - {type: spreadscaler, properties: {replicas: 0}}\n\
         \x20   - {type: limits, properties: {memory: 1048576, deadline: 500ms}}\n");
    let hello = app.actor("hello").unwrap();
    assert_eq!(hello.ingress, [IngressRoute { host: "hello.example.org".into(), path: "/".into() }]);
    assert_eq!(app.components["hello"].replicas(), Some(0));
    assert_eq!((hello.limits.memory_bytes, hello.limits.deadline_ms), (1 << 20, 500));
}

#[test]
fn wasmcloud_hello_world() {
    let app = one(r#"
apiVersion: core.oam.dev/v1beta1
kind: Application
metadata:
  name: greeter
  annotations:
    description: 'Greets over HTTP'
    wasmcloud.dev/authors: someone
    wasmcloud.dev/homepage:
spec:
  components:
    - name: greeter
      type: component
      properties:
        image: file://./build/greeter_s.wasm
        id: greeter_1
      traits:
        # Run it a hundred times
        - type: spreadscaler
          properties:
            instances: 100
    - name: web
      type: capability
      properties:
        image: ghcr.io/wasmcloud/http-server:0.23.2
      traits:
        - type: spreadscaler
          properties:
            instances: 1
        - type: link
          properties:
            target: greeter
            namespace: wasi
            package: http
            interfaces: [incoming-handler]
            source_config:
              - name: listen
                properties:
                  address: 127.0.0.1:8080
"#);
    assert_eq!(app.components.keys().map(|n| n.as_str()).collect::<Vec<_>>(), ["greeter"]);
    assert!(app.links.is_empty());
    let greeter = app.actor("greeter").unwrap();
    assert_eq!(greeter.ingress, [IngressRoute { host: String::new(), path: "/".into() }]);
    assert_eq!(greeter.image.parse(), Ok(ImageRef::Local("./build/greeter_s.wasm".into())));
    assert_eq!(app.annotations["wasmcloud.dev/homepage"], "");
}

#[test]
fn wasmcloud_counter_with_redis_and_the_old_word_actor() {
    let app = one(r#"
apiVersion: core.oam.dev/v1beta1
kind: Application
metadata:
  name: visits
  annotations:
    version: v0.0.3
spec:
  policies:
    - name: vault
      type: policy.secret.wasmcloud.dev/v1alpha1
      properties: {backend: vault}
  components:
    - name: visits
      type: actor
      properties:
        image: ghcr.io/acme/visits:0.1.0
        config:
          - name: redis-at
      traits:
        - type: spreadscaler
          properties:
            replicas: 5
            spread:
              - name: east
                requirements: {zone: east-1}
                weight: 40
              - name: west
                requirements: {zone: west-1}
        - type: link
          properties:
            target: store
            namespace: wasi
            package: keyvalue
            interfaces: [atomics, store]
            target_config:
              - name: redis-at
                properties: {url: "redis://127.0.0.1:6379"}
    - name: store
      type: capability
      properties:
        image: ghcr.io/wasmcloud/keyvalue-redis:0.28.1
        config: []
        secrets: []
      traits:
        - type: daemonscaler
          properties: {instances: 1}
"#);
    assert_eq!(app.links[0].config, pairs(&[("url", "redis://127.0.0.1:6379")]));
    // A config that is only named is the one of that name elsewhere in the manifest.
    assert_eq!(app.components["visits"].config, pairs(&[("url", "redis://127.0.0.1:6379")]));
    assert!(matches!(&app.components["store"].kind, Kind::Provider(p) if p.image.contains("redis")));
}

#[test]
fn wasmcloud_routing_by_path_and_host_and_the_http_client() {
    let app = one(r#"
apiVersion: core.oam.dev/v1beta1
kind: Application
metadata: {name: sites}
spec:
  components:
    - name: one
      type: component
      properties: {image: registry.acme.io:5000/sites/one:2}
      traits:
        - type: link
          properties:
            target: {name: client}
            namespace: wasi
            package: http
            interfaces: [outgoing-handler]
        - type: link
          properties: {target: two, namespace: acme, package: sites, interfaces: [index]}
    - name: two
      type: component
      properties: {image: /srv/two.wasm}
    - name: web
      type: capability
      properties:
        image: "wasmcloud+builtin://http-server"
        config:
          - name: mode
            properties: {routing_mode: path, default_address: "0.0.0.0:8081", port: 80}
      traits:
        - type: link
          properties:
            name: a
            target: {name: one}
            namespace: wasi
            package: http
            interfaces: [incoming-handler]
            source: {name: web, config: [{name: p1, properties: {PATH: /one}}]}
        - type: link
          properties:
            name: b
            target: {name: two}
            namespace: wasi
            package: http
            interfaces: [incoming-handler]
            source: {config: [{name: p2, properties: {host: two.example.org, paths: "/x, /y"}}]}
    - name: client
      type: capability
      properties: {image: "ghcr.io/wasmcloud/http-client:0.13.1"}
"#);
    assert_eq!(app.components.len(), 2);
    let routes = |name: &str| {
        app.actor(name).unwrap().ingress.iter().map(|r| format!("{}{}", r.host, r.path)).collect::<Vec<_>>()
    };
    assert_eq!(routes("one"), ["/one"]);
    assert_eq!(routes("two"), ["two.example.org/x", "two.example.org/y"]);
    assert_eq!(app.actor("one").unwrap().grants.http, ["*"]);
    assert!(app.actor("two").unwrap().grants.http.is_empty());
    assert_eq!(app.links.len(), 1);
}

#[test]
fn images() {
    let local = |s: &str| Ok(ImageRef::Local(s.into()));
    let registry = |s: &str| Ok(ImageRef::Registry(s.into()));
    assert_eq!("./x.wasm".parse(), local("./x.wasm"));
    assert_eq!("x.wasm".parse(), local("x.wasm"));
    assert_eq!("../x".parse(), local("../x"));
    assert_eq!("file:///srv/x.wasm".parse(), local("/srv/x.wasm"));
    assert_eq!("file://./x.wasm".parse(), local("./x.wasm"));
    assert_eq!("ghcr.io/a/b:1".parse(), registry("ghcr.io/a/b:1"));
    assert_eq!("oci://localhost:5000/a/b".parse(), registry("localhost:5000/a/b"));
    assert_eq!("hello:latest".parse(), registry("hello:latest"));
    let digest = format!("sha256:{}", "0".repeat(64));
    assert_eq!(digest.parse(), Ok(ImageRef::Digest(digest.parse().unwrap())));
    assert_eq!("builtin:keyvalue".parse(), Ok(ImageRef::Builtin(Builtin::Keyvalue)));
    for bad in [
        "",
        " ",
        "builtin:redis",
        "sha256:12",
        "GHCR.io/A/b:1",
        "ghcr.io/a/b:",
        "ghcr.io/a/b@sha256:1",
        "ghcr.io//b",
        "ghcr.io:99999/b",
        "ftp://x/y.wasm",
        "~/x.wasm",
        "./",
        "{{.Image}}",
        "a b",
        "x/../y",
        ".x\n.wasm",
    ] {
        assert!(bad.parse::<ImageRef>().is_err(), "{bad:?}");
    }
}

/// Enough randomness to damage text, the same on every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(n.max(1)).unwrap()).unwrap()
    }
}

#[test]
fn damaged_manifests_never_panic_and_problems_have_places() {
    let pieces: &[&[u8]] = &[
        b"*",
        b"&a ",
        b"*a",
        b"!!str ",
        b"\"",
        b"'",
        b"[",
        b"]",
        b"{",
        b"}",
        b"---\n",
        b"...\n",
        b"? ",
        b": ",
        b"- ",
        b"\t",
        b"\0",
        b"|\n",
        b">-\n",
        b"<<: ",
        b"~",
        b"\xff",
        b"\xe2\x80\xae",
        b"#",
        b"%YAML 1.2\n",
        b"99999999999999999999",
        b"-1",
    ];
    let mut accepted = 0;
    for seed in 1..=4_000_u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut bytes = SHOP.as_bytes().to_vec();
        for _ in 0..=dice.below(4) {
            let at = dice.below(bytes.len());
            let end = (at + 1 + dice.below(30)).min(bytes.len());
            match dice.below(6) {
                0 => drop(bytes.drain(at..end)),
                1 => {
                    let copy = bytes[at..end].to_vec();
                    bytes.splice(at..at, copy);
                }
                2 => bytes[at] = u8::try_from(dice.below(256)).unwrap(),
                3 => drop(bytes.splice(at..at, pieces[dice.below(pieces.len())].iter().copied())),
                4 => bytes.truncate(at),
                _ => bytes[at..end].reverse(),
            }
            if bytes.is_empty() {
                break;
            }
        }
        match manifest::parse_bytes(&bytes, "app.yaml") {
            Ok(parsed) => {
                accepted += 1;
                for one in parsed {
                    assert_eq!(App::from_json(&one.app.to_json()).unwrap(), one.app, "seed {seed}");
                    assert_eq!(one.app.links.len(), one.positions.links.len(), "seed {seed}");
                }
            }
            Err(problems) => {
                assert!(!problems.is_empty(), "seed {seed}");
                let lines = bytes.split(|b| *b == b'\n').count() + 1;
                for p in problems {
                    assert!(p.line <= lines && !p.message.is_empty(), "seed {seed}: {p}");
                }
            }
        }
    }
    assert!(accepted > 100, "{accepted} accepted: the damage is not small enough to reach beyond the YAML");
}
