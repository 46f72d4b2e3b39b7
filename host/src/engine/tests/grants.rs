//! Denied until granted.

use super::*;
use proto::app::{Folder, Grants};
use std::io::{Read as _, Write as _};

/// Answers one request, on a thread of its own.
fn serve_once() -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n");
        }
    });
    addr
}

#[tokio::test]
async fn nothing_is_granted_by_default() {
    let world = World::new();
    let actor = world.actor(hostile(), world.spec()).await;
    assert_eq!(text(actor.http(get("/env"), None).await).await, "denied: no variables\n0 arguments\n");
    let files = text(actor.http(get("/file"), None).await).await;
    assert_eq!(files.matches("denied").count(), 3, "{files}");
    assert!(files.ends_with("0 folders\n"), "{files}");
    let addr = serve_once();
    let socket = text(actor.http(get(&format!("/socket?to={addr}")), None).await).await;
    assert!(socket.starts_with("denied"), "{socket}");
    let out = text(actor.http(get(&format!("/out?url=http://{addr}/")), None).await).await;
    assert!(out.contains("HttpRequestDenied"), "{out}");
    let lines = world.lines.0.lock().unwrap();
    assert!(lines.iter().any(|(s, t)| s == "warn" && t.contains("name it in grants.http")), "{lines:?}");
}

#[tokio::test]
async fn what_is_granted_is_there() {
    let world = World::new();
    let folder = world.dir.path().join("shared");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("note"), "hi").unwrap();
    let addr = serve_once();
    let grants = Grants {
        env: BTreeMap::from([("MODE".to_owned(), "test".to_owned())]),
        http: vec![addr.to_string()],
        folders: vec![Folder { host: folder.display().to_string(), guest: "/".into(), write: false }],
        sockets: true,
    };
    let actor = world.actor(hostile(), Spec { grants, ..world.spec() }).await;
    assert_eq!(text(actor.http(get("/env"), None).await).await, "MODE=test\n0 arguments\n");
    let files = text(actor.http(get("/file?path=/note"), None).await).await;
    assert!(files.contains("read 2 bytes of /note") && files.contains("denied: write"), "{files}");
    let files = text(actor.http(get("/file?path=/../../etc/passwd"), None).await).await;
    assert!(files.contains("denied: read"), "{files}");
    let socket = text(actor.http(get(&format!("/socket?to={addr}")), None).await).await;
    assert!(socket.starts_with("connected"), "{socket}");
    let out = text(actor.http(get(&format!("/out?url=http://{addr}/")), None).await).await;
    assert!(out.starts_with("status 204"), "{out}");
    let out = text(actor.http(get("/out?url=http://127.0.0.1:1/"), None).await).await;
    assert!(out.contains("HttpRequestDenied"), "{out}");
}

#[tokio::test]
async fn grants_that_can_not_be_given_are_refused_when_prepared() {
    let world = World::new();
    let bytes = hello();
    let module = world.engine.load(&Digest::of(&bytes), || Ok(bytes)).await.unwrap();
    let folders = vec![Folder { host: "/no/such/folder".into(), guest: "/".into(), write: false }];
    for grants in
        [Grants { folders, ..Grants::default() }, Grants { http: vec!["not a host".into()], ..Grants::default() }]
    {
        let error = world.engine.prepare(&module, Spec { grants, ..world.spec() }).err().unwrap();
        assert!(matches!(error, crate::engine::Error::Grant { .. }), "{error}");
    }
}
