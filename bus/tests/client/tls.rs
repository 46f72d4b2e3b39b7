//! TLS, with certificates both ways, against nats-server; the embedded broker has none.
#![allow(clippy::unwrap_used, reason = "tests and their helpers")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bus::{Bus, Config};
use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

use crate::started::{Server, wait_for};
use crate::until;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_checked_both_ways() {
    let dir = tempfile::tempdir().unwrap();
    let ours = Authority::new(dir.path(), "ours");
    let theirs = Authority::new(dir.path(), "theirs");
    let (server_cert, server_key) = ours.issue("server");
    let (cert, key) = ours.issue("client");
    let flag = OsStr::new;
    let args = [
        flag("--tlsverify"),
        flag("--tlscert"),
        server_cert.as_os_str(),
        flag("--tlskey"),
        server_key.as_os_str(),
        flag("--tlscacert"),
        ours.pem.as_os_str(),
    ];
    let server = Server::start(dir.path(), &args).await;
    let config = Config {
        urls: vec![format!("tls://127.0.0.1:{}", server.port)],
        credentials: None,
        token: None,
        tls_ca: Some(ours.pem.clone()),
        tls_cert: Some(cert),
        tls_key: Some(key),
        name: "tls".into(),
        lattice: "main".parse().unwrap(),
    };
    let bus = Bus::connect(&config).await.unwrap();
    wait_for(&bus, |connection| connection.up).await;
    let mut heard = bus.subscribe("a".into()).await.unwrap();
    bus.publish("a".into(), Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(heard.next().await.unwrap().payload, "x");

    let (foreign_cert, foreign_key) = theirs.issue("client");
    let wrong = [
        Config { tls_ca: Some(theirs.pem.clone()), ..config.clone() },
        Config { tls_cert: Some(foreign_cert), tls_key: Some(foreign_key), ..config.clone() },
        Config { tls_cert: None, tls_key: None, ..config.clone() },
    ];
    for config in wrong {
        let bus = Bus::connect(&config).await.unwrap();
        until(async || bus.problem().is_some()).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!bus.connection().borrow().up, "{config:?}");
    }
}

struct Authority {
    dir: PathBuf,
    name: &'static str,
    pem: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(dir: &Path, name: &'static str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = dir.join(format!("{name}.pem"));
        std::fs::write(&pem, params.self_signed(&key).unwrap().pem()).unwrap();
        Self { dir: dir.to_owned(), name, pem, issuer: Issuer::new(params, key) }
    }

    fn issue(&self, what: &str) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let path = |end: &str| self.dir.join(format!("{}-{what}.{end}", self.name));
        let (cert_path, key_path) = (path("pem"), path("key"));
        std::fs::write(&cert_path, params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        std::fs::write(&key_path, key.serialize_pem()).unwrap();
        (cert_path, key_path)
    }
}
