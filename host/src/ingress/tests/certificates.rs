//! Certificates: by name, and new ones.

use super::*;

/// A certificate for a name, as files.
pub(in crate::ingress) fn write_pair(
    dir: &std::path::Path,
    file: &str,
    name: &str,
) -> (tls::Pair, rustls::pki_types::CertificateDer<'static>) {
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let pair = (dir.join(format!("{file}.pem")), dir.join(format!("{file}.key")));
    std::fs::write(&pair.0, made.cert.pem()).unwrap();
    std::fs::write(&pair.1, made.signing_key.serialize_pem()).unwrap();
    (pair, made.cert.der().clone())
}

/// Connects as a client that trusts only this certificate.
pub(in crate::ingress) async fn connect_tls(
    at: std::net::SocketAddr,
    name: &'static str,
    alpn: &[u8],
    trusted: &rustls::pki_types::CertificateDer<'static>,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut client = client.unwrap().with_root_certificates(roots).with_no_client_auth();
    client.alpn_protocols = vec![alpn.to_vec()];
    let stream = TcpStream::connect(at).await.unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name.try_into().unwrap(), stream).await
}

async fn ask_tls(stream: &mut tokio_rustls::client::TlsStream<TcpStream>) -> String {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn tls_has_a_certificate_for_each_name_and_takes_new_ones_up() {
    let dir = tempfile::tempdir().unwrap();
    let (shop, shop_cert) = write_pair(dir.path(), "shop", "shop.example");
    let (cafe, cafe_cert) = write_pair(dir.path(), "cafe", "cafe.example");
    let secrets = dir.path().join("secrets");
    std::fs::create_dir(&secrets).unwrap();
    let sources =
        [tls::Source::Files(shop.clone()), tls::Source::Files(cafe.clone()), tls::Source::Secret(secrets.clone())];
    let served = tls::server(&sources).unwrap();
    let (_routes, seen) = watch::channel(table(&[route("", "/", "root")], &Book::default()));
    let limits = Limits { head_wait: Duration::from_millis(500), ..Limits::default() };
    let behind = Behind { limits, ..Behind::new(seen, Arc::new(Actors::default())) };
    let meter = behind.meter.clone();
    let ingress = Ingress::start("127.0.0.1:0".parse().unwrap(), Some(served.config), behind).await.unwrap();
    let at = ingress.addr();

    for (name, cert) in [("shop.example", &shop_cert), ("cafe.example", &cafe_cert)] {
        let answer = ask_tls(&mut connect_tls(at, name, b"http/1.1", cert).await.unwrap()).await;
        assert!(answer.contains("app/root GET /"), "{answer}");
    }
    assert!(connect_tls(at, "cafe.example", b"http/1.1", &shop_cert).await.is_err(), "it is not the first one's");
    let http2 = connect_tls(at, "shop.example", b"h2", &shop_cert).await.unwrap();
    assert_eq!(http2.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(http2)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::builder().uri("https://shop.example/h2").body(body(String::new())).unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), 200);

    // Who never shakes hands, or speaks in the clear, is cut off.
    for bytes in [b"".as_slice(), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"] {
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await;
        assert!(ended.is_ok() && !answer.starts_with(b"HTTP"), "{answer:?}");
    }
    assert!(meter.handshakes_failed.get() >= 3, "the wrong name is one, too");

    // A broken file changes nothing; a good one is shown without a new start.
    std::fs::write(&shop.0, "garbage").unwrap();
    let (_, renewed) = write_pair(dir.path(), "cafe", "cafe.example");
    let end = std::time::Instant::now() + Duration::from_secs(60);
    while connect_tls(at, "cafe.example", b"http/1.1", &renewed).await.is_err() {
        assert!(std::time::Instant::now() < end, "the new certificate is not shown");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(connect_tls(at, "cafe.example", b"http/1.1", &cafe_cert).await.is_err());
    let answer = ask_tls(&mut connect_tls(at, "shop.example", b"http/1.1", &shop_cert).await.unwrap()).await;
    assert!(answer.contains("app/root GET /"), "{answer}");
    assert_eq!(served.certificates.failed(), 1);

    // A secret that is mounted meanwhile, and then again with what is new in it.
    for version in ["..1", "..2"] {
        let (pair, cert) = write_pair(dir.path(), "bar", "bar.example");
        let at = secrets.join("bar");
        std::fs::create_dir_all(at.join(version)).unwrap();
        std::fs::rename(&pair.0, at.join(version).join("tls.crt")).unwrap();
        std::fs::rename(&pair.1, at.join(version).join("tls.key")).unwrap();
        std::os::unix::fs::symlink(version, at.join("..next")).unwrap();
        std::fs::rename(at.join("..next"), at.join("..data")).unwrap();
        for file in ["tls.crt", "tls.key"] {
            let _ = std::os::unix::fs::symlink(std::path::Path::new("..data").join(file), at.join(file));
        }
        let end = std::time::Instant::now() + Duration::from_secs(60);
        while connect_tls(ingress.addr(), "bar.example", b"http/1.1", &cert).await.is_err() {
            assert!(std::time::Instant::now() < end, "version {version} is not shown");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
