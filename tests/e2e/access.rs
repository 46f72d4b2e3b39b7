//! Tokens of the API: who has none is told where to get one, who may look may not change, who is removed is out, at every
//! scheduler.

use crate::harness::{Broker, Cluster, SOON, finish, run, until};

#[test]
fn the_api_does_what_the_token_allows() {
    run("the_api_does_what_the_token_allows", Broker::Nats, |_| tokens());
}

#[test]
fn an_api_with_its_own_authority_is_known_by_its_fingerprint() {
    run("an_api_with_its_own_authority_is_known_by_its_fingerprint", Broker::Nats, |_| own_tls());
}

#[test]
fn a_whole_lattice_with_its_own_authority_is_known_by_its_fingerprint() {
    run("a_whole_lattice_with_its_own_authority_is_known_by_its_fingerprint", Broker::Embedded, |_| up_own_tls());
}

fn up_own_tls() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = dir.path().join("hello.yaml");
    std::fs::write(&manifest, crate::harness::manifests::Hello::default().text()).unwrap();
    let start = |name: &str, more: &[&str]| {
        let mut command = std::process::Command::new(crate::harness::PROGRAM);
        command.args(["up", "--api", "0.0.0.0:0", "--bus", "127.0.0.1:0", "--ingress", "127.0.0.1:0", "--data"]);
        command.arg(dir.path().join("data")).args(more);
        crate::harness::Process::spawn(name, dir.path(), crate::harness::clean(&mut command))
    };
    // Beyond loopback not in the clear, and what to do about it.
    let mut refused = start("refused", &[]);
    assert_eq!(refused.exit_code(), Some(2));
    assert!(refused.stderr().contains("--own-tls"), "{}", refused.stderr());
    let mut process = start("up", &["--own-tls", &manifest.display().to_string()]);
    let (api, fingerprint, token) = (process.field("api"), process.field("fingerprint"), process.field("token"));
    // It applies what it was given by its own API, and says how others reach it.
    until("its app runs", SOON, || process.stdout().contains("app/hello running").then_some(()));
    let port = api.rsplit(':').next().unwrap();
    let url = format!("https://127.0.0.1:{port}");
    let ask = |more: &[&str]| {
        let mut command = std::process::Command::new(crate::harness::PROGRAM);
        let command = crate::harness::clean(&mut command).args(["get", "apps", "-o", "name"]);
        finish(command.args(["--api", &url]).args(more))
    };
    let (code, stdout, stderr) = ask(&["--fingerprint", &fingerprint, "--token-file", &token]);
    assert_eq!((code, stdout.as_str()), (0, "app/hello\n"), "{stderr}");
    let (code, _, stderr) = ask(&["--fingerprint", &fingerprint]);
    assert!(code == 1 && stderr.contains("wants a token"), "{stderr}");
    let (code, _, stderr) = ask(&["--fingerprint", &"0".repeat(64), "--token-file", &token]);
    assert!(code == 1 && stderr.contains("another lattice"), "{stderr}");
    process.interrupt();
    let mut again = start("up", &["--own-tls"]);
    assert_eq!(again.field("fingerprint"), fingerprint);
}

fn own_tls() {
    let mut cluster = Cluster::start_with(1, &[]);
    cluster.kill(1);
    let data = cluster.schedulers[&1].data.clone();
    let (_, mut command) = cluster.command("own", &data, &["--own-tls", "--require-token"]);
    let mut process = crate::harness::Process::spawn("own", cluster.path(), &mut command);
    let (api, fingerprint) = (process.field("api"), process.field("fingerprint"));
    let token = std::fs::read_to_string(process.field("token")).unwrap();
    let ask = |api: &str, more: &[&str]| {
        let mut command = std::process::Command::new(crate::harness::PROGRAM);
        let command = crate::harness::clean(&mut command).args(["status", "--api", api]).args(more);
        finish(command.env("LATTICE_TOKEN", token.trim()))
    };
    let url = format!("https://{api}");
    let (code, stdout, stderr) = ask(&url, &["--fingerprint", &fingerprint]);
    assert!(code == 0 && stdout.contains("default"), "{stdout}{stderr}");
    let (code, _, stderr) = ask(&url, &["--fingerprint", &"0".repeat(64)]);
    assert!(code == 1 && stderr.contains("another lattice"), "{stderr}");
    let (code, _, stderr) = ask(&url, &[]);
    assert!(code == 2 && stderr.contains("--fingerprint"), "{stderr}");
    let (code, _, stderr) = ask(&api, &[]);
    assert!(code == 1, "in the clear there is no answer: {stderr}");
    process.interrupt();
    // It is the same one after a restart.
    let (_, mut command) = cluster.command("own", &data, &["--own-tls", "--require-token"]);
    let mut process = crate::harness::Process::spawn("own-again", cluster.path(), &mut command);
    assert_eq!(process.field("fingerprint"), fingerprint);
    let (code, _, stderr) = ask(&format!("https://{}", process.field("api")), &["--fingerprint", &fingerprint]);
    assert_eq!(code, 0, "{stderr}");
}

fn tokens() {
    let mut cluster = Cluster::start_with(1, &["--require-token"]);
    cluster.join("two");
    let file = cluster.schedulers[&1].data.join("api/admin-token");
    let own = std::fs::read_to_string(&file).unwrap().trim().to_owned();
    let refused = |id: u64, token: Option<&str>, args: &[&str]| {
        let (code, stdout, stderr) = cluster.cli_with(id, token, args);
        assert_eq!((code, stdout.as_str()), (1, ""), "{args:?}: {stderr}");
        stderr
    };
    let allowed = |id: u64, token: &str, args: &[&str]| {
        let (code, stdout, stderr) = cluster.cli_with(id, Some(token), args);
        assert_eq!(code, 0, "{args:?}: {stderr}");
        stdout
    };
    let stderr = refused(1, None, &["get", "apps"]);
    assert!(stderr.contains("lattice access add") && stderr.contains(&file.display().to_string()), "{stderr}");
    for args in [&["status"][..], &["backup", "b"], &["schedulers", "token"], &["events"], &["scale", "a/b", "1"]] {
        assert!(refused(1, None, args).contains("wants a token"));
        assert!(refused(1, Some("la1-00"), args).contains("is not known here"));
    }
    // What is kept in a folder is good where that folder is.
    assert!(refused(2, Some(&own), &["status"]).contains("is not known here"));

    let manifest = cluster.manifest("hello", "/", 1);
    allowed(1, &own, &["apply", "--detach", &manifest]);
    let viewer = allowed(1, &own, &["access", "add", "looks"]).trim().to_owned();
    let admin = allowed(1, &own, &["access", "add", "does", "--role", "admin"]).trim().to_owned();
    assert!(viewer.starts_with("la1-") && viewer != admin);
    until("the other one knows them", SOON, || (cluster.cli_with(2, Some(&viewer), &["status"]).0 == 0).then_some(()));
    for id in [1, 2] {
        for args in [&["get", "apps"][..], &["status"], &["events"], &["schedulers", "list"], &["access", "list"]] {
            allowed(id, &viewer, args);
        }
        for args in [
            &["scale", "hello/hello", "3"][..],
            &["delete", "app", "hello"],
            &["apply", "--detach", &manifest],
            &["backup", "b"],
            &["schedulers", "token"],
            &["access", "add", "more"],
            &["access", "remove", "does"],
            &["cordon", "a"],
            &["call", "hello/hello", "lattice:keystore/store.get"],
        ] {
            let stderr = refused(id, Some(&viewer), args);
            assert!(stderr.contains("token looks has the role viewer"), "{args:?}: {stderr}");
        }
        allowed(id, &admin, &["scale", "hello/hello", &(id + 3).to_string()]);
    }
    assert!(refused(1, Some(&admin), &["access", "add", "does"]).contains("lattice access remove does"));

    // The three ways to show one.
    let context = cluster.path().join("context.yaml");
    let text = format!("current: c\ncontexts: {{c: {{api: \"{}\", token: {viewer}}}}}\n", cluster.schedulers[&1].api);
    std::fs::write(&context, text).unwrap();
    std::fs::write(cluster.path().join("token"), format!("{viewer}\n")).unwrap();
    let mut command = std::process::Command::new(crate::harness::PROGRAM);
    let by_context = crate::harness::clean(&mut command).env("LATTICE_CONFIG", &context).args(["get", "apps"]);
    assert!(by_context.status().unwrap().success());
    assert_eq!(cluster.cli_with(1, None, &["get", "apps", "--token-file", "token"]).0, 0);

    allowed(2, &admin, &["access", "remove", "looks"]);
    until("it is out everywhere", SOON, || {
        let out = |id| cluster.cli_with(id, Some(&viewer), &["status"]).0 == 1;
        (out(1) && out(2)).then_some(())
    });
    assert_eq!(allowed(1, &admin, &["access", "list", "-o", "name"]), "access/does\n");
}
