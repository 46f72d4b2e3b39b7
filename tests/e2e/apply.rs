//! The first things that anybody does: apply, look, scale, go back, delete.

use crate::harness::{Broker, Lattice, SOON, http, manifests, scenarios, until};
use serde_json::json;
use std::time::{Duration, Instant};

scenarios!(
    an_applied_app_answers_and_a_deleted_one_does_not,
    scale_and_rollback_make_revisions,
    a_million_replicas_are_a_number,
    exit_codes_say_how_it_ended,
);

fn an_applied_app_answers_and_a_deleted_one_does_not(broker: Broker) {
    let lattice = Lattice::start(broker);
    let at = lattice.ingress("a");
    let manifest = manifests::hello().display().to_string();
    assert_eq!(http::get(at, "/").status, 404, "nothing is applied yet");

    let begun = Instant::now();
    let cli = lattice.cli(&["apply", &manifest]);
    assert_eq!(cli.code, 0, "{cli:#?}");
    assert!(cli.stdout.starts_with("app/hello created\n"), "{cli:#?}");
    assert!(cli.stdout.contains(&format!("app/hello running 1/1  http://{at}/\n")), "{cli:#?}");
    let response = http::get(at, "/");
    eprintln!("apply to first 200 on {broker:?}: {:.2} s", begun.elapsed().as_secs_f64());
    assert_eq!((response.status, response.text().as_str()), (200, "Hello from lattice!\n"));

    let again = lattice.ok(&["apply", &manifest]);
    assert!(again.starts_with("app/hello unchanged\n"), "{again}");
    let app = &lattice.items("apps")[0];
    assert_eq!(
        (&app["name"], &app["revision"], &app["state"], &app["desired"], &app["running"]),
        (&json!("hello"), &json!(1), &json!("running"), &json!(1), &json!(1))
    );

    let begun = Instant::now();
    assert_eq!(lattice.ok(&["delete", "app", "hello"]), "app/hello deleted\n");
    until("the route is gone", Duration::from_secs(5), || (http::get(at, "/").status == 404).then_some(()));
    eprintln!("delete to 404 on {broker:?}: {:.2} s", begun.elapsed().as_secs_f64());
    assert!(lattice.items("apps").is_empty() && lattice.items("actors").is_empty());
    assert_eq!(lattice.host("a")["running"], 0);

    // A name is free again once its app is gone.
    assert!(lattice.ok(&["apply", &manifest]).starts_with("app/hello created\n"));
    assert_eq!(http::get(at, "/").status, 200);
    assert_eq!(lattice.ok(&["delete", "-f", &manifest]), "app/hello deleted\n");
}

fn scale_and_rollback_make_revisions(broker: Broker) {
    let lattice = Lattice::start(broker);
    lattice.apply(&manifests::hello());
    let scaled = lattice.ok(&["scale", "hello/hello", "7"]);
    assert_eq!(scaled, "actor/hello/hello scaled to 7 (revision 2)\n");
    lattice.until_spread("hello", "hello", &[("a", 7)], SOON);
    assert_eq!(lattice.ok(&["scale", "hello/hello", "7"]), "actor/hello/hello unchanged\n");

    assert_eq!(lattice.ok(&["rollback", "hello"]), "app/hello rolled back (revision 3)\n");
    lattice.until_spread("hello", "hello", &[("a", 1)], SOON);
    assert_eq!(lattice.ok(&["rollback", "hello", "--to", "2"]), "app/hello rolled back to 2 (revision 4)\n");
    lattice.until_spread("hello", "hello", &[("a", 7)], SOON);

    let revisions = lattice.items_of("revisions", "hello");
    let told: Vec<_> =
        revisions.iter().map(|r| (r["revision"].clone(), r["cause"].clone(), r["current"].clone())).collect();
    assert_eq!(
        told,
        [
            (json!(1), json!("apply"), json!(false)),
            (json!(2), json!("scale"), json!(false)),
            (json!(3), json!("rollback to 1"), json!(false)),
            (json!(4), json!("rollback to 2"), json!(true)),
        ]
    );
    assert_eq!(http::get(lattice.ingress("a"), "/").status, 200);

    // None at all: the route stays and says why nobody answers.
    lattice.ok(&["scale", "hello/hello", "0"]);
    let response = until("nobody answers", SOON, || {
        let response = http::get(lattice.ingress("a"), "/");
        (response.status != 200).then_some(response)
    });
    assert_eq!(response.status, 503, "{}", response.text());
    assert!(response.text().contains("hello/hello"), "{}", response.text());
    lattice.ok(&["scale", "hello/hello", "1"]);
    until("it answers again", SOON, || (http::get(lattice.ingress("a"), "/").status == 200).then_some(()));
}

fn a_million_replicas_are_a_number(broker: Broker) {
    let mut lattice = Lattice::start(broker);
    lattice.add_host("b", &[], false);
    lattice.until_hosts(&[("b", "ready")]);
    let begun = Instant::now();
    lattice.apply(&manifests::Hello { replicas: 1_000_000, ..Default::default() }.write(&lattice));
    lattice.until_spread("hello", "hello", &[("a", 500_000), ("b", 500_000)], SOON);
    eprintln!("a million replicas placed and ready on {broker:?}: {:.2} s", begun.elapsed().as_secs_f64());
    assert_eq!(http::get(lattice.ingress("a"), "/").status, 200);
    let more = lattice.cli(&["scale", "hello/hello", "1000001"]);
    assert_eq!(more.code, 2, "{more:#?}");
}

fn exit_codes_say_how_it_ended(broker: Broker) {
    let lattice = Lattice::start(broker);
    let hello = manifests::Hello { name: "nowhere", on: "site: atlantis", ..Default::default() }.write(&lattice);
    let hello = hello.display().to_string();

    // 3: accepted, but no host has the label.
    let begun = Instant::now();
    let late = lattice.cli(&["apply", &hello, "--timeout", "1s"]);
    assert_eq!(late.code, 3, "{late:#?}");
    assert!(late.stderr.contains("no ready host has site=atlantis"), "{late:#?}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let app = &lattice.items("apps")[0];
    assert_eq!((&app["state"], &app["running"]), (&json!("deploying"), &json!(0)));
    assert_eq!(lattice.items("actors")[0]["state"], "unplaced");
    // 0: asked to come back at once.
    assert_eq!(lattice.cli(&["apply", &hello, "--detach"]).code, 0);
    assert_eq!(lattice.cli(&["delete", "app", "nowhere"]).code, 0);

    // 1: refused.
    for args in [
        &["delete", "app", "nobody"][..],
        &["scale", "nobody/none", "1"],
        &["rollback", "nobody"],
        &["describe", "app", "nobody"],
        &["cordon", "nobody"],
        &["get", "apps", "nobody"],
        &["logs", "nobody"],
        &["apply", "/nonexistent/app.yaml"],
    ] {
        let cli = lattice.cli(args);
        assert_eq!(cli.code, 1, "{args:?}: {cli:#?}");
        assert!(cli.stderr.starts_with("error: ") || cli.stderr.contains("\nerror: "), "{args:?}: {cli:#?}");
        assert!(cli.stderr.contains("nobody") || cli.stderr.contains("/nonexistent"), "{args:?}: {cli:#?}");
    }
    // 2: wrong use.
    for args in [&["scale", "hello/hello", "1.5"][..], &["scale", "hello/hello", "-1"], &["apply"], &["frobnicate"]] {
        assert_eq!(lattice.cli(args).code, 2, "{args:?}");
    }
    let away = lattice.cli(&["get", "apps", "--api", "127.0.0.1:1"]);
    assert_eq!(away.code, 1, "{away:#?}");
    assert!(away.stderr.contains("127.0.0.1:1"), "{away:#?}");
}
