//! A credentials file against a nats-server with an operator and accounts; the embedded broker has none.
#![allow(clippy::unwrap_used, reason = "tests and their helpers")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bus::{Bus, Config};
use bytes::Bytes;
use nkeys::KeyPair;
use serde_json::{Value, json};

use crate::started::{Server, wait_for};
use crate::until;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credentials_file_opens_its_account_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let (operator, ours, theirs) = (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_account());
    let config = format!(
        "operator: {}\nresolver: MEMORY\nresolver_preload: {{\n  {}: {}\n  {}: {}\n}}\n",
        token(&operator, &operator, json!({"type": "operator", "version": 2})),
        ours.public_key(),
        account(&operator, &ours),
        theirs.public_key(),
        account(&operator, &theirs),
    );
    let path = dir.path().join("server.conf");
    std::fs::write(&path, config).unwrap();
    let server = Server::start(dir.path(), &["-c".as_ref(), path.as_os_str()]).await;
    let with = |credentials: Option<PathBuf>| Config {
        urls: vec![format!("nats://127.0.0.1:{}", server.port)],
        credentials,
        token: None,
        tls_ca: None,
        tls_cert: None,
        tls_key: None,
        name: "credentials".into(),
        lattice: "main".parse().unwrap(),
    };
    let (a, b, other) = (user(dir.path(), "a", &ours), user(dir.path(), "b", &ours), user(dir.path(), "c", &theirs));
    let mut buses = Vec::new();
    for credentials in [a, b, other] {
        let bus = Bus::connect(&with(Some(credentials))).await.unwrap();
        wait_for(&bus, |connection| connection.up).await;
        buses.push(bus);
    }
    let (mut heard, mut unheard) =
        (buses[1].subscribe("x".into()).await.unwrap(), buses[2].subscribe("x".into()).await.unwrap());
    buses[0].publish("x".into(), Bytes::from_static(b"ours")).await.unwrap();
    assert_eq!(heard.next().await.unwrap().payload, "ours");
    assert!(tokio::time::timeout(Duration::from_millis(200), unheard.next()).await.is_err(), "of another account");

    // Signed by an account that the operator does not know, and none at all.
    let stranger = user(dir.path(), "stranger", &KeyPair::new_account());
    for credentials in [Some(stranger), None] {
        let bus = Bus::connect(&with(credentials)).await.unwrap();
        until(async || bus.problem().is_some_and(|problem| problem.contains("authorization violation"))).await;
        assert!(!bus.connection().borrow().up);
    }
}

fn account(operator: &KeyPair, account: &KeyPair) -> String {
    let limits = json!({"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true,
        "conn": -1, "leaf": -1});
    token(operator, account, json!({"type": "account", "version": 2, "limits": limits}))
}

/// A credentials file as `nsc` writes it.
fn user(dir: &Path, name: &str, account: &KeyPair) -> PathBuf {
    let user = KeyPair::new_user();
    let claims = json!({"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1, "pub": {}, "sub": {}});
    let text = format!(
        "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
        token(account, &user, claims),
        user.seed().unwrap()
    );
    let path = dir.join(format!("{name}.creds"));
    std::fs::write(&path, text).unwrap();
    path
}

/// What `issuer` says of `subject`, signed.
fn token(issuer: &KeyPair, subject: &KeyPair, nats: Value) -> String {
    let part = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let claims = json!({"jti": subject.public_key(), "iat": 1_700_000_000, "iss": issuer.public_key(), "name": "test",
        "sub": subject.public_key(), "nats": nats});
    let signed = format!("{}.{}", part(json!({"typ": "JWT", "alg": "ed25519-nkey"})), part(claims));
    let signature = BASE64_URL_SAFE_NO_PAD.encode(issuer.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}
