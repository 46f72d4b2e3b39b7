//! The control API as any gRPC client has it: retries applied once, versions compared, watches resumed, reflection and
//! health answered.

use crate::harness::{Broker, Lattice, file, manifests, scenarios};
use proto::app::Digest;
use proto::v1::control_client::ControlClient;
use proto::v1::watch_event::What;
use proto::v1::{
    ApplyRequest, ArtifactChunk, DeleteRequest, ListRequest, MissingArtifactsRequest, ScaleRequest, SetCordonRequest,
    WatchEvent, WatchRequest,
};
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

scenarios!(
    a_retried_write_is_applied_once,
    a_write_to_another_version_is_refused,
    a_repeated_apply_is_told_what_became_of_the_first,
    a_watch_goes_on_where_it_was,
    an_upload_is_what_its_digest_says,
    any_client_finds_its_way_by_reflection_and_health,
);

fn block<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), future).await.expect("an answer in time") })
}

async fn channel(lattice: &Lattice) -> Channel {
    Channel::from_shared(format!("http://{}", lattice.api())).unwrap().connect().await.unwrap()
}

async fn client(lattice: &Lattice) -> ControlClient<Channel> {
    ControlClient::new(channel(lattice).await)
}

fn scale(replicas: u32, request_id: &str, if_version: u64) -> ScaleRequest {
    ScaleRequest { app: "hello".into(), actor: "hello".into(), replicas, request_id: request_id.into(), if_version }
}

fn a_retried_write_is_applied_once(broker: Broker) {
    let lattice = Lattice::start(broker);
    lattice.apply(&manifests::hello());
    block(async {
        let mut api = client(&lattice).await;
        let first = api.scale(scale(3, "one", 0)).await.unwrap().into_inner();
        assert_eq!((first.change.as_str(), first.revision), ("scaled", 2));
        let other = api.scale(scale(5, "two", 0)).await.unwrap().into_inner();
        assert_eq!(other.revision, 3);
        // The answer to the first got lost, so it comes again, after the second.
        let again = api.scale(scale(3, "one", 0)).await.unwrap().into_inner();
        assert_eq!(again, first);
        // Ten at once under one id.
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..10 {
            let mut api = api.clone();
            all.spawn(async move { api.scale(scale(7, "three", 0)).await.unwrap().into_inner() });
        }
        let answers = all.join_all().await;
        assert!(answers.iter().all(|a| *a == answers[0]), "{answers:?}");
        let revisions = api.list_revisions(ListRequest::default()).await.unwrap().into_inner().items;
        assert_eq!(revisions.len(), 4, "{revisions:?}");
        assert!(revisions.iter().all(|r| r.current == (r.revision == 4)));
    });
    // They are known to be done after a restart, too.
    let mut lattice = lattice;
    lattice.kill_main();
    lattice.start_main();
    lattice.until_hosts(&[("a", "ready")]);
    block(async {
        let mut api = client(&lattice).await;
        let again = api.scale(scale(3, "one", 0)).await.unwrap().into_inner();
        assert_eq!(again.revision, 2);
        let long = api.scale(scale(3, &"x".repeat(65), 0)).await.unwrap_err();
        assert_eq!(long.code(), Code::InvalidArgument, "{long}");
        assert_eq!(api.list_revisions(ListRequest::default()).await.unwrap().into_inner().items.len(), 4);
    });
}

fn a_write_to_another_version_is_refused(broker: Broker) {
    let lattice = Lattice::start(broker);
    lattice.apply(&manifests::hello());
    block(async {
        let mut api = client(&lattice).await;
        let version = api.list_apps(ListRequest::default()).await.unwrap().into_inner().items[0].version;
        let moved = api.scale(scale(2, "", version)).await.unwrap().into_inner();
        assert!(moved.version > version);
        let code = |result: Result<_, Status>| {
            let status = result.map(|_| ()).unwrap_err();
            assert!(!status.message().is_empty());
            status.code()
        };
        assert_eq!(code(api.scale(scale(3, "", version)).await), Code::Aborted);
        let delete = |app: &str, if_version| DeleteRequest { app: app.into(), if_version, ..Default::default() };
        assert_eq!(code(api.delete(delete("hello", version)).await), Code::Aborted);
        assert_eq!(code(api.delete(delete("nobody", 0)).await), Code::NotFound);
        assert_eq!(code(api.delete(delete("NO/BODY", 0)).await), Code::NotFound);
        let cordon = SetCordonRequest { host: "nobody".into(), cordoned: true, ..Default::default() };
        assert_eq!(api.set_cordon(cordon).await.unwrap_err().code(), Code::NotFound);
        // A client that checks nothing is checked all the same.
        let hello = std::fs::read_to_string(manifests::hello()).unwrap();
        for (manifest, says) in [
            (String::new(), "declares no app"),
            ("kind: [".to_owned(), "not valid YAML"),
            (hello.clone(), "was not uploaded"),
            (hello.replace("instances: 1", "instances: -1"), "instances"),
            (format!("{hello}# {}", "x".repeat(2_000_000)), "1048576"),
        ] {
            let request = ApplyRequest { manifest, file: "app.yaml".into(), ..Default::default() };
            let status = api.apply(request).await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{says}: {status}");
            assert!(status.message().contains(says), "{says}: {status}");
        }
        let mut images = std::collections::BTreeMap::new();
        images.insert("./hello.wasm".to_owned(), format!("sha256:{}", "0".repeat(64)));
        let request = ApplyRequest { manifest: hello, file: "app.yaml".into(), images, ..Default::default() };
        let status = api.apply(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        let after = api.list_apps(ListRequest::default()).await.unwrap().into_inner().items;
        assert_eq!((after.len(), after[0].version), (1, moved.version));
    });
}

/// By now the component may be missing, or be there, and other apps may be in the way, or gone: a request is carried out
/// once or never, and its id tells which.
fn a_repeated_apply_is_told_what_became_of_the_first(broker: Broker) {
    let lattice = Lattice::start(broker);
    let bytes = std::fs::read(file("manifests/hello/hello.wasm")).unwrap();
    let digest = Digest::of(&bytes).to_string();
    let app = |name: &'static str, path| {
        let text = manifests::Hello { path, ..Default::default() }.text();
        manifests::change(&text, "metadata: {name: hello}", &format!("metadata: {{name: {name}}}"))
    };
    let image = manifests::Hello::default().image;
    let apply = |manifest: &str, request_id: &str, has_image: bool| ApplyRequest {
        manifest: manifest.to_owned(),
        file: "app.yaml".into(),
        request_id: request_id.into(),
        images: has_image.then(|| (image.clone(), digest.clone())).into_iter().collect(),
        ..Default::default()
    };
    block(async {
        let mut api = client(&lattice).await;
        let missing = api.apply(apply(&app("one", "/one"), "a", true)).await.unwrap_err();
        assert!(missing.message().contains("upload it with PutArtifact"), "{missing}");
        let piece = ArtifactChunk { digest: digest.clone(), size: u64::try_from(bytes.len()).unwrap(), data: bytes };
        api.put_artifact(futures::stream::iter([piece])).await.unwrap();
        // A copy of what was refused comes late, when nothing is missing any more.
        let late = api.apply(apply(&app("one", "/one"), "a", true)).await.unwrap_err();
        assert_eq!((late.code(), late.message()), (missing.code(), missing.message()));
        let first = api.apply(apply(&app("one", "/one"), "b", true)).await.unwrap().into_inner();
        assert_eq!((first.apps[0].change.as_str(), first.apps[0].revision), ("created", 1));
        // A copy of what was carried out, at a scheduler that would refuse it now.
        assert_eq!(api.apply(apply(&app("one", "/one"), "b", false)).await.unwrap().into_inner(), first);

        // Of two apps none is taken while one has the route of another app, nor by a late copy.
        let both = format!("{}---\n{}", app("two", "/two"), app("three", "/one"));
        let refused = api.apply(apply(&both, "c", true)).await.unwrap_err();
        assert!(refused.code() == Code::Aborted && refused.message().contains("belongs to app \"one\""), "{refused}");
        let delete = DeleteRequest { app: "one".into(), request_id: "d".into(), ..Default::default() };
        let deleted = api.delete(delete.clone()).await.unwrap().into_inner();
        while !api.list_apps(ListRequest::default()).await.unwrap().into_inner().items.is_empty() {
            tokio::time::sleep(crate::harness::POLL).await;
        }
        assert_eq!(api.delete(delete).await.unwrap().into_inner(), deleted);
        let late = api.apply(apply(&both, "c", true)).await.unwrap_err();
        assert_eq!((late.code(), late.message()), (refused.code(), refused.message()));
        assert!(api.list_apps(ListRequest::default()).await.unwrap().into_inner().items.is_empty());
        let dry = ApplyRequest { dry_run: true, ..apply(&both, "c", true) };
        assert!(api.apply(dry).await.is_err(), "of a request that was refused");
        let taken = api.apply(apply(&both, "e", true)).await.unwrap().into_inner();
        assert_eq!(taken.apps.len(), 2);
        assert_eq!(api.apply(apply(&both, "e", false)).await.unwrap().into_inner(), taken);
    });
}

/// Reads until an event that `wanted` takes; checks that the index never falls.
async fn read(stream: &mut Streaming<WatchEvent>, last: &mut u64, wanted: impl Fn(&What) -> bool) -> Vec<What> {
    let mut seen = Vec::new();
    loop {
        let event = stream.message().await.unwrap().expect("a watch does not end");
        assert!(event.index >= *last, "index {} after {last}", event.index);
        *last = event.index;
        let what = event.what.expect("an event says what");
        seen.push(what.clone());
        if wanted(&what) {
            return seen;
        }
    }
}

fn is_running(what: &What, name: &str, replicas: u32) -> bool {
    matches!(what, What::App(a) if a.name == name && a.state == "running" && a.running == replicas)
}

fn a_watch_goes_on_where_it_was(broker: Broker) {
    let lattice = Lattice::start(broker);
    lattice.apply(&manifests::hello());
    lattice.apply(&manifests::counter());
    block(async {
        let mut api = client(&lattice).await;
        let watch = |after, app: &str| WatchRequest { after, app: app.into(), hosts: app.is_empty(), progress: false };
        let mut last = 0;
        let mut stream = api.watch(watch(0, "")).await.unwrap().into_inner();
        let list = read(&mut stream, &mut last, |w| matches!(w, What::Synced(true))).await;
        let names: Vec<&str> =
            list.iter().filter_map(|w| if let What::App(a) = w { Some(a.name.as_str()) } else { None }).collect();
        assert_eq!(names, ["counter", "hello"]);
        assert!(list.iter().any(|w| matches!(w, What::Host(h) if h.name == "a")), "{list:?}");
        api.scale(scale(2, "", 0)).await.unwrap();
        read(&mut stream, &mut last, |w| is_running(w, "hello", 2)).await;
        drop(stream);

        // Meanwhile one app changes and another goes.
        let (behind, mut last) = (last, last);
        api.scale(scale(4, "", 0)).await.unwrap();
        api.delete(DeleteRequest { app: "counter".into(), ..Default::default() }).await.unwrap();
        while api.list_apps(ListRequest::default()).await.unwrap().into_inner().items.len() > 1 {
            tokio::time::sleep(crate::harness::POLL).await;
        }
        let mut stream = api.watch(watch(behind, "")).await.unwrap().into_inner();
        let seen = read(&mut stream, &mut last, |w| matches!(w, What::Synced(true))).await;
        assert!(seen.iter().any(|w| matches!(w, What::AppDeleted(n) if n == "counter")), "{seen:?}");
        assert!(seen.iter().any(|w| matches!(w, What::App(a) if a.name == "hello" && a.desired == 4)), "{seen:?}");

        // Of one app only, from the index of a list, there is nothing until something changes.
        let index = api.list_apps(ListRequest::default()).await.unwrap().into_inner().index;
        let mut stream = api.watch(watch(index, "hello")).await.unwrap().into_inner();
        let seen = read(&mut stream, &mut last, |w| matches!(w, What::Synced(true))).await;
        assert!(!seen.iter().any(|w| matches!(w, What::AppDeleted(_))), "{seen:?}");
        api.scale(scale(1, "", 0)).await.unwrap();
        read(&mut stream, &mut last, |w| is_running(w, "hello", 1)).await;
    });
}

fn an_upload_is_what_its_digest_says(broker: Broker) {
    let lattice = Lattice::start(broker);
    let bytes = std::fs::read(file("manifests/hello/hello.wasm")).unwrap();
    let digest = Digest::of(&bytes).to_string();
    block(async {
        let mut api = client(&lattice).await;
        let missing = MissingArtifactsRequest { digests: vec![digest.clone()] };
        assert_eq!(
            api.missing_artifacts(missing.clone()).await.unwrap().into_inner().digests,
            std::slice::from_ref(&digest)
        );
        let odd = MissingArtifactsRequest { digests: vec!["sha256:../../etc".into()] };
        assert_eq!(api.missing_artifacts(odd).await.unwrap_err().code(), Code::InvalidArgument);
        let size = u64::try_from(bytes.len()).unwrap();
        let piece =
            |digest: &str, size: u64, data: &[u8]| ArtifactChunk { digest: digest.into(), size, data: data.into() };
        let other = Digest::of(b"other").to_string();
        for (why, pieces) in [
            ("nothing", vec![]),
            ("no digest", vec![piece("", size, &bytes)]),
            ("another's digest", vec![piece(&other, size, &bytes)]),
            ("fewer bytes", vec![piece(&digest, size, &bytes[..100])]),
            ("more bytes", vec![piece(&digest, 100, &bytes)]),
            ("too many bytes", vec![piece(&digest, u64::MAX, &bytes)]),
            ("one byte other", vec![piece(&digest, size, &bytes[1..]), piece("", 0, b"x")]),
        ] {
            let status = api.put_artifact(futures::stream::iter(pieces)).await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{why}: {status}");
            assert!(!status.message().is_empty(), "{why}");
        }
        assert_eq!(
            api.missing_artifacts(missing.clone()).await.unwrap().into_inner().digests,
            std::slice::from_ref(&digest)
        );
        let pieces = vec![piece(&digest, size, &bytes[..10_000]), piece("", 0, &bytes[10_000..])];
        let stored = api.put_artifact(futures::stream::iter(pieces)).await.unwrap().into_inner();
        assert_eq!((stored.digest, stored.size), (digest.clone(), size));
        assert!(api.missing_artifacts(missing).await.unwrap().into_inner().digests.is_empty());
        // By its digest alone it can be an image.
        let manifest = std::fs::read_to_string(manifests::hello()).unwrap().replace("./hello.wasm", &digest);
        let request = ApplyRequest { manifest, file: "app.yaml".into(), ..Default::default() };
        let applied = api.apply(request).await.unwrap().into_inner().apps;
        assert_eq!(applied[0].change, "created");
    });
    lattice.until_spread("hello", "hello", &[("a", 1)], crate::harness::SOON);
}

fn any_client_finds_its_way_by_reflection_and_health(broker: Broker) {
    let lattice = Lattice::start(broker);
    block(async {
        let mut health = HealthClient::new(channel(&lattice).await);
        for service in ["", "lattice.v1.Control"] {
            let answer = health.check(HealthCheckRequest { service: service.into() }).await.unwrap().into_inner();
            assert_eq!(answer.status().as_str_name(), "SERVING", "{service:?}");
        }
        let mut reflection = ServerReflectionClient::new(channel(&lattice).await);
        let ask = |what| ServerReflectionRequest { host: String::new(), message_request: Some(what) };
        let asked = [
            ask(MessageRequest::ListServices(String::new())),
            ask(MessageRequest::FileContainingSymbol("lattice.v1.Control".into())),
        ];
        let mut answers = reflection.server_reflection_info(futures::stream::iter(asked)).await.unwrap().into_inner();
        let Some(MessageResponse::ListServicesResponse(list)) =
            answers.message().await.unwrap().unwrap().message_response
        else {
            panic!("no list of services");
        };
        let names: Vec<&str> = list.service.iter().map(|s| s.name.as_str()).collect();
        for service in ["lattice.v1.Control", "grpc.health.v1.Health"] {
            assert!(names.contains(&service), "{names:?}");
        }
        let Some(MessageResponse::FileDescriptorResponse(files)) =
            answers.message().await.unwrap().unwrap().message_response
        else {
            panic!("no file of the service");
        };
        let text = files.file_descriptor_proto.iter().map(|f| String::from_utf8_lossy(f)).collect::<String>();
        for method in ["Apply", "Watch", "PutArtifact", "SetCordon"] {
            assert!(text.contains(method), "{method}");
        }
    });
}
