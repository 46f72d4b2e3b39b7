//! TLS on both sides of an actor. An ingress with certificates from its command line: each name has its own, a changed one
//! is shown without a restart, and what a client asks comes to the actor as over any connection. And what an actor asks by
//! HTTPS, of a server that the host's machine trusts and of one that it does not.

use crate::harness::{Broker, Lattice, PROGRAM, SOON, http, manifests, run, until};
use crate::walls;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;

#[test]
fn an_ingress_has_the_certificates_that_it_is_told_of() {
    run("an_ingress_has_the_certificates_that_it_is_told_of", Broker::Embedded, certificates);
}

#[test]
fn what_leaves_by_https_goes_to_whom_the_machine_trusts() {
    run("what_leaves_by_https_goes_to_whom_the_machine_trusts", Broker::Embedded, outgoing);
}

fn certificates(broker: Broker) {
    let mut lattice = Lattice::start(broker);
    let dir = lattice.dir().to_owned();
    let shop = make(&dir, ("shop.pem", "shop.key"), "shop.example.test");
    // As Kubernetes mounts a secret.
    let secret = dir.join("secret");
    fs::create_dir(&secret).unwrap();
    let cart = make(&secret, ("tls.crt", "tls.key"), "cart.example.test");
    let at = |name: &str| dir.join(name).display().to_string();
    let (cert, key) = (at("shop.pem"), at("shop.key"));
    lattice.add_host_with(
        "b",
        &[],
        true,
        &["--tls-cert", &cert, "--tls-key", &key, "--tls-secret", &secret.display().to_string()],
    );
    lattice.apply(&manifests::hello());
    let ingress = lattice.ingress("b");
    let hello = || until("it answers", SOON, || get(ingress, "shop.example.test", &shop).ok());
    assert!(hello().ends_with("Hello from lattice!\n"), "{}", hello());
    assert!(get(ingress, "cart.example.test", &cart).unwrap().starts_with("HTTP/1.1 200"));
    // Whoever trusts another one sees that it is not the one.
    let wrong = get(ingress, "cart.example.test", &shop).unwrap_err().to_string();
    assert!(wrong.contains("certificate"), "{wrong}");
    // Nothing is said in the clear there.
    let mut clear = TcpStream::connect(ingress).unwrap();
    clear.set_read_timeout(Some(SOON)).unwrap();
    clear.write_all(b"GET / HTTP/1.1\r\nHost: shop.example.test\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = clear.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&answer));

    let renewed = make(&secret, ("tls.crt", "tls.key"), "cart.example.test");
    until("the renewed certificate is shown", SOON, || get(ingress, "cart.example.test", &renewed).ok());
    assert!(hello().starts_with("HTTP/1.1 200"), "the other is as it was");
}

fn outgoing(broker: Broker) {
    let mut lattice = Lattice::start_labelled(broker, &["trusts=nobody"]);
    let dir = lattice.dir().to_owned();
    let made = make(&dir, ("server.pem", "server.key"), "127.0.0.1");
    let server = serve(made, &fs::read(dir.join("server.key")).unwrap());
    // As a company's machines have its authority.
    let trusts = format!("SSL_CERT_FILE={}", dir.join("server.pem").display());
    lattice.add_host_of("b", vec!["env".into(), trusts.into(), PROGRAM.into()], &["trusts=it"], false, &[]);
    lattice.until_hosts(&[("a", "ready"), ("b", "ready")]);
    let grants = format!("        - type: grants\n          properties: {{http: [\"https://{server}\"]}}\n");
    for (name, on, says) in
        [("trusting", "trusts: it", "status 204"), ("doubting", "trusts: nobody", "TlsProtocolError")]
    {
        lattice.apply(&walls::with_trait(&lattice, name, &grants, on));
        let (host, target) = (format!("{name}.localhost"), format!("/out?url=https://{server}/"));
        let request = http::Request { host: &host, ..http::Request::get(lattice.ingress("a"), &target) };
        let said = request.send().unwrap().text();
        assert!(said.contains(says), "{name}: {said}");
    }
}

/// Answers 204 by HTTPS, on a port of loopback, for as long as the test runs.
fn serve(cert: CertificateDer<'static>, key: &[u8]) -> SocketAddr {
    let key = PrivateKeyDer::from_pem_slice(key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_no_client_auth().with_single_cert(vec![cert], key).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let mut stream = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream);
            let _ = stream.read(&mut [0; 1_024]);
            let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n");
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
    });
    at
}

/// Writes a certificate of its own for this name, and its key.
fn make(dir: &Path, (cert, key): (&str, &str), name: &str) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    fs::write(dir.join(key), made.signing_key.serialize_pem()).unwrap();
    fs::write(dir.join(cert), made.cert.pem()).unwrap();
    made.cert.der().clone()
}

/// The whole answer, for a client that trusts only this certificate.
fn get(at: SocketAddr, name: &'static str, trusted: &CertificateDer<'static>) -> std::io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
    let client = ClientConnection::new(config, ServerName::try_from(name).unwrap()).unwrap();
    let stream = TcpStream::connect(at)?;
    stream.set_read_timeout(Some(SOON))?;
    let mut stream = StreamOwned::new(client, stream);
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
