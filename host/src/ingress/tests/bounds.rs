//! What clients may keep a connection or a place for, and how many of them one address may have.

use super::*;

#[tokio::test]
async fn an_idle_http2_client_is_let_go() {
    let limits = Limits { idle: Duration::from_millis(50), ..Limits::default() };
    let bench = bench(limits).await;
    let io = TokioIo::new(bench.connect().await);
    let (sender, connection) =
        hyper::client::conn::http2::handshake::<_, _, Body>(TokioExecutor::new(), io).await.unwrap();
    tokio::time::timeout(Duration::from_secs(5), connection).await.unwrap().unwrap();
    drop(sender);
}

#[tokio::test]
async fn slow_heads_are_cut_off() {
    let limits = Limits { head_wait: Duration::from_millis(100), ..Limits::default() };
    let bench = bench(limits).await;
    for begun in ["", "P", "PRI * HTTP", "GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "] {
        let answer = tokio::time::timeout(Duration::from_secs(5), bench.raw(begun.as_bytes())).await;
        assert!(answer.is_ok(), "{begun:?} still holds its connection");
    }
    // Each is counted, once its connection has ended.
    let counted = async {
        while bench.meter.headless.get() < 4 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), counted).await.unwrap();
    let mut stream = bench.connect().await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n").await.unwrap();
    // Sending a little now and then does not help.
    let dripped = async {
        while stream.write_all(b"X-A: b\r\n").await.is_ok() {
            tokio::task::yield_now().await
        }
    };
    tokio::time::timeout(Duration::from_secs(5), dripped).await.unwrap();
    assert_eq!(bench.actors.asked.load(Ordering::SeqCst), 0);
    assert!(bench.get("x", "/").await.starts_with("HTTP/1.1 200"), "others are served");
}

#[tokio::test]
async fn a_full_house_waits_for_a_place() {
    let limits = Limits { connections_max: 1, head_wait: Duration::from_millis(200), ..Limits::default() };
    let bench = bench(limits).await;
    let _idle = bench.connect().await;
    // Served when the idle one has been cut off.
    let answer = tokio::time::timeout(Duration::from_secs(5), bench.get("x", "/")).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_body_that_stops_coming_ends_its_request() {
    let limits = Limits { body_wait: Duration::from_millis(100), ..Limits::default() };
    let bench = bench(limits).await;
    let begun = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf";
    let answer = tokio::time::timeout(Duration::from_secs(20), bench.raw(begun)).await.unwrap();
    let text = "nothing came of the request's body for 0.1 s, and it is not complete";
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains(text), "{answer}");
}

#[tokio::test]
async fn one_address_has_its_share_of_the_connections() {
    let bench = bench(Limits { connections_max: 9, share_min: 2, ..Limits::default() }).await;
    let mut open = Vec::new();
    // Those that are within the share are served, and stay.
    for _ in 0..5 {
        let mut stream = bench.connect().await;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        assert!(stream.read(&mut [0; 4_096]).await.unwrap() > 0);
        open.push(stream);
    }
    assert_eq!(bench.get("x", "/").await, "");
    assert_eq!(bench.meter.crowded.get(), 1);
    // Another address of the same machine.
    let other = tokio::net::TcpSocket::new_v4().unwrap();
    other.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = other.connect(bench.ingress.addr()).await.unwrap();
    other.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    other.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    drop(open);
    while bench.meter.taken.get() > bench.meter.ended.get() {
        tokio::task::yield_now().await;
    }
    assert!(bench.get("x", "/").await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn clients_that_take_nothing_are_cut_off() {
    let limits =
        Limits { take_wait: Duration::from_millis(200), idle: Duration::from_millis(200), ..Limits::default() };
    let bench = bench(limits).await;
    // HTTP/1: the socket's buffers are full, and nobody reads.
    let mut stream = bench.connect().await;
    stream.write_all(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    bench.actors.endless_ended.notified().await;
    // HTTP/2: the stream's window is closed, the connection lives.
    let io = TokioIo::new(bench.connect().await);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::builder().uri("http://x/endless").body(body(String::new())).unwrap();
    let response = sender.send_request(request).await.unwrap();
    bench.actors.endless_ended.notified().await;
    assert_eq!(bench.meter.stalled.get(), 1);
    drop(response);
    let _ = connection.await;
    // An actor that lets its client wait is no such client's fault.
    let io = TokioIo::new(bench.connect().await);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let request = Request::builder().uri("http://x/slow").body(body(String::new())).unwrap();
    let asked = tokio::spawn(async move { sender.send_request(request).await });
    bench.actors.slow_begun.notified().await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    bench.actors.slow_may_end.notify_one();
    assert_eq!(asked.await.unwrap().unwrap().status(), 200);
}
