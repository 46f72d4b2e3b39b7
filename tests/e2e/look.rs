//! Looking at a lattice: lists in every form, watches, logs, events, descriptions.

use crate::harness::{Broker, Lattice, Process, SOON, http, manifests, scenarios, until};
use serde_json::{Value, json};
use std::time::Duration;

scenarios!(
    what_actors_print_is_shown,
    every_list_has_every_form,
    watches_print_what_changes,
    an_app_and_a_host_are_described,
);

/// Waits until a command that goes on has printed a line that `wanted` takes.
fn until_line(process: &mut Process, what: &str, wanted: impl Fn(&str) -> bool) -> String {
    until(&format!("{} prints {what}", process.name), SOON, || {
        process.assert_alive();
        process.stdout().lines().find(|line| wanted(line)).map(str::to_owned)
    })
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

fn what_actors_print_is_shown(broker: Broker) {
    let mut lattice = Lattice::start(broker);
    lattice.add_host("b", &["tier=edge"], false);
    lattice.until_hosts(&[("b", "ready")]);
    lattice.apply(&manifests::hostile(&lattice, "tier: edge"));
    let log = |text: &str| {
        let at = lattice.ingress("a");
        assert_eq!(http::get_host(at, "hostile.localhost", &format!("/log?text={text}")).status, 200);
    };
    assert_eq!(lattice.ok(&["logs", "hostile"]), "", "nothing yet");
    log("first");
    // From the host that ran it, with who said it where.
    let found = until("three lines", SOON, || {
        let found = lines(&lattice.ok(&["logs", "hostile", "-o", "json"]));
        (found.len() >= 3).then_some(found)
    });
    let told: Vec<(&str, &str)> =
        found.iter().map(|l| (l["stream"].as_str().unwrap(), l["text"].as_str().unwrap())).collect();
    for want in [("stdout", "stdout first"), ("stderr", "stderr first")] {
        assert!(told.contains(&want), "{want:?} in {told:?}");
    }
    assert!(told.iter().any(|(stream, text)| *stream == "warn" && text.contains("first")), "{told:?}");
    for line in &found {
        assert_eq!((&line["app"], &line["actor"]), (&json!("hostile"), &json!("hostile")));
        assert_eq!(line["host"], lattice.host("b")["id"]);
        assert!(line["time"].as_str().unwrap().ends_with('Z') && line["instance"].is_u64(), "{line}");
    }
    let text = lattice.ok(&["logs", "hostile/hostile"]);
    assert!(text.contains("stdout first") && text.contains("stderr first"), "{text}");
    assert!(lattice.ok(&["logs", "hostile", "-o", "raw"]).lines().any(|line| line == "stdout first"));
    assert_eq!(lattice.ok(&["logs", "hostile", "--lines", "1"]).lines().count(), 1);

    // With -f it goes on; what was said before comes first, and nothing twice.
    let mut follow = lattice.background("logs", &["logs", "hostile", "-f", "-o", "raw"]);
    until_line(&mut follow, "what was said", |line| line == "stdout first");
    log("second");
    until_line(&mut follow, "what is said now", |line| line == "stdout second");
    until_line(&mut follow, "what is said now", |line| line == "stderr second");
    let count = follow.stdout().lines().filter(|line| *line == "stdout second").count();
    assert_eq!(count, 1);

    let wrong = lattice.cli(&["logs", "hostile/nobody"]);
    assert_eq!(wrong.code, 1);
    assert!(wrong.stderr.contains("nobody") && wrong.stderr.contains("it has hostile"), "{wrong:#?}");
}

fn every_list_has_every_form(broker: Broker) {
    let lattice = Lattice::start(broker);
    for kind in ["apps", "actors", "links", "revisions"] {
        assert_eq!(lattice.cli(&["get", kind, "-o", "json"]).json(), json!({"items": []}), "{kind}");
        let none = lattice.cli(&["get", kind]);
        assert_eq!((none.code, none.stdout.as_str()), (0, ""), "{kind}");
        let step = if kind == "links" { "`link` trait" } else { "`lattice apply" };
        assert!(none.stderr.contains(step), "the next step: {none:#?}");
    }
    lattice.apply(&manifests::hello());
    lattice.apply(&manifests::counter());
    let id = lattice.host("a")["id"].as_str().unwrap().to_owned();
    for (kind, head, names) in [
        ("apps", "NAME", "app/counter\napp/hello\n".to_owned()),
        ("actors", "APP", "actor/counter/counter\nactor/counter/store\nactor/hello/hello\n".to_owned()),
        ("hosts", "NAME", format!("host/{id}\n")),
        (
            "links",
            "APP",
            "link/counter/counter/wasi:keyvalue/atomics/default\nlink/counter/counter/wasi:keyvalue/store/default\n"
                .to_owned(),
        ),
        ("revisions", "APP", "revision/counter/1\nrevision/hello/1\n".to_owned()),
    ] {
        assert_eq!(lattice.ok(&["get", kind, "-o", "name"]), names, "{kind}");
        let rows = lattice.items(kind).len();
        let table = lattice.ok(&["get", kind]);
        assert!(table.starts_with(head) && table.lines().count() == rows + 1, "{table}");
        let wide = lattice.ok(&["get", kind, "-o", "wide"]);
        assert!(wide.starts_with(head) && wide.lines().count() == rows + 1, "{wide}");
        assert!(wide.lines().next().unwrap().len() >= table.lines().next().unwrap().len(), "{wide}");
        let yaml = lattice.ok(&["get", kind, "-o", "yaml"]);
        assert!(yaml.starts_with("items:\n"), "{yaml}");
    }
    // Only what was asked for.
    assert_eq!(lattice.ok(&["get", "apps", "hello", "-o", "name"]), "app/hello\n");
    assert_eq!(lattice.ok(&["get", "actors", "--app", "hello", "-o", "name"]), "actor/hello/hello\n");
    assert_eq!(lattice.ok(&["get", "apps", "--stale", "-o", "name"]), "app/counter\napp/hello\n");
    let fields = |kind: &str| lattice.items(kind)[0].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    for (kind, want) in [
        ("hosts", &["id", "name", "state", "labels", "facts", "running"][..]),
        ("apps", &["name", "revision", "state", "desired", "running"]),
        ("actors", &["app", "actor", "revision", "host", "replicas", "running"]),
    ] {
        let have = fields(kind);
        assert!(want.iter().all(|w| have.iter().any(|h| h == w)), "{kind}: {have:?}");
    }
    let status = lattice.cli(&["status", "-o", "json"]).json();
    assert_eq!((&status["leader"], &status["hosts"], &status["bus"]), (&json!(true), &json!(1), &json!("connected")));
    assert!(lattice.ok(&["status"]).contains(lattice.api()));
}

fn watches_print_what_changes(broker: Broker) {
    let mut lattice = Lattice::start(broker);
    let mut apps = lattice.background("watch-apps", &["get", "apps", "-w", "-o", "json"]);
    let mut table = lattice.background("watch-table", &["get", "apps", "-w"]);
    let mut actors = lattice.background("watch-actors", &["get", "actors", "-w", "-o", "name"]);
    let mut hosts = lattice.background("watch-hosts", &["get", "hosts", "-w"]);
    let mut events = lattice.background("watch-events", &["events", "-w", "-o", "json"]);
    // The list as it is comes first.
    until_line(&mut apps, "the empty list", |line| line == "{\"items\":[]}");
    until_line(&mut hosts, "host a", |line| line.starts_with("a ") && line.contains("ready"));

    lattice.apply(&manifests::hello());
    until_line(&mut apps, "hello running", |line| {
        line.contains("\"hello\"") && line.contains("\"running\",\"desired\":1")
    });
    until_line(&mut table, "hello running", |line| line.starts_with("hello") && line.contains("1/1"));
    until_line(&mut actors, "the actor", |line| line == "actor/hello/hello");
    until_line(&mut events, "an event", |line| line.contains("\"app.running\"") && line.contains("app/hello"));
    lattice.ok(&["scale", "hello/hello", "3"]);
    until_line(&mut table, "three of three", |line| line.starts_with("hello") && line.contains("3/3"));
    lattice.add_host("b", &[], false);
    until_line(&mut hosts, "host b", |line| line.starts_with("b ") && line.contains("ready"));
    lattice.interrupt_host("b");
    until_line(&mut hosts, "host b lost", |line| line.starts_with("b ") && line.contains("lost"));
    lattice.ok(&["delete", "app", "hello"]);
    until_line(&mut table, "hello gone", |line| line.starts_with("hello") && line.contains("gone"));
    until_line(&mut events, "its end", |line| line.contains("\"app.deleted\""));
    // The last of its lists is empty again.
    until("the empty list", SOON, || (apps.stdout().lines().last()? == "{\"items\":[]}").then_some(()));

    // A watch outlives what it watches.
    lattice.apply(&manifests::hello());
    until_line(&mut events, "the app again", |line| line.contains("app.running"));
}

fn an_app_and_a_host_are_described(broker: Broker) {
    let lattice = Lattice::start_labelled(broker, &["site=paris"]);
    lattice.apply(&manifests::counter());
    let text = lattice.ok(&["describe", "app", "counter"]);
    for part in ["counter", "running", "wasi:keyvalue/store", "bound", "local", "apply"] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    let json = lattice.cli(&["describe", "app", "counter", "-o", "json"]).json();
    assert_eq!((&json["name"], &json["state"]), (&json!("counter"), &json!("running")));
    for (list, count) in [("actors", 2), ("links", 2), ("revisions", 1)] {
        assert_eq!(json[list].as_array().unwrap().len(), count, "{list} of {json}");
    }
    assert_eq!(json["spec"]["name"], "counter");
    let kinds: Vec<&str> = json["events"].as_array().unwrap().iter().map(|e| e["kind"].as_str().unwrap()).collect();
    assert!(kinds.contains(&"app.running"), "{kinds:?}");
    assert!(lattice.ok(&["describe", "app", "counter", "-o", "yaml"]).contains("name: counter"));

    let text = lattice.ok(&["describe", "host", "a"]);
    for part in ["site", "paris", std::env::consts::ARCH, "wasmtime", "counter"] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    let json = lattice.cli(&["describe", "host", "a", "-o", "json"]).json();
    assert_eq!((&json["name"], &json["labels"]["site"]), (&json!("a"), &json!("paris")));
    assert_eq!(json["actors"].as_array().unwrap().len(), 2, "{json}");

    // The same events to whoever asks for them all.
    let events = lattice.cli(&["events", "-o", "json"]).json();
    let kinds: Vec<&str> = events["items"].as_array().unwrap().iter().map(|e| e["kind"].as_str().unwrap()).collect();
    assert!(kinds.contains(&"host.joined") && kinds.contains(&"app.running"), "{kinds:?}");
    assert!(
        lattice.ok(&["events", "--app", "counter"]).lines().all(|l| l.starts_with("TIME") || l.contains("counter"))
    );
    until("requests are counted", Duration::from_secs(30), || {
        http::get_host(lattice.ingress("a"), "counter.localhost", "/cats");
        (lattice.items_of("actors", "counter").iter().any(|a| a["requests"].as_u64() > Some(0))).then_some(())
    });
}
