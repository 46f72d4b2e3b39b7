//! What a follower answers: watches that go on over the death of the leader, reads that are fresh or refused, and stale
//! ones for who asks for them.

use crate::harness::{Broker, Cluster, SOON, run, until};
use proto::v1::control_client::ControlClient;
use proto::v1::watch_event::What;
use proto::v1::{CallRequest, ListRequest, LogsRequest, RunRequest, ScaleRequest, WatchEvent, WatchRequest};
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

#[test]
fn a_watch_at_a_follower_misses_nothing_when_the_leader_dies() {
    run("a_watch_at_a_follower_misses_nothing_when_the_leader_dies", Broker::Nats, |_| watch());
}

#[test]
fn without_a_majority_only_stale_reads_are_answered() {
    run("without_a_majority_only_stale_reads_are_answered", Broker::Nats, |_| no_majority());
}

#[test]
fn a_watch_goes_on_at_one_that_is_behind_only_when_it_caught_up() {
    run("a_watch_goes_on_at_one_that_is_behind_only_when_it_caught_up", Broker::Nats, |_| behind());
}

#[test]
fn who_does_not_read_a_watch_is_cut_and_told_so() {
    run("who_does_not_read_a_watch_is_cut_and_told_so", Broker::Nats, |_| unread());
}

#[test]
fn a_watch_where_no_leader_is_heard_of_is_cut_and_told_so() {
    run("a_watch_where_no_leader_is_heard_of_is_cut_and_told_so", Broker::Nats, |_| leaderless());
}

#[test]
fn who_asks_an_actor_by_one_that_is_behind_is_not_told_that_there_is_none() {
    run("who_asks_an_actor_by_one_that_is_behind_is_not_told_that_there_is_none", Broker::Nats, |_| unheard_of());
}

fn leaderless() {
    let mut cluster = Cluster::start(3);
    cluster.ok(1, &["apply", "--detach", &cluster.manifest("hello", "/", 2)]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let watch = |after| WatchRequest { after, app: "hello".into(), ..WatchRequest::default() };
    let mut api = runtime.block_on(client(&cluster, 3));
    let mut stream = runtime.block_on(api.watch(watch(0))).unwrap().into_inner();
    let mut last = (0, 0);
    runtime.block_on(read(&mut stream, &mut last, 2));
    cluster.kill(1);
    cluster.kill(2);
    let error = runtime.block_on(async {
        loop {
            match tokio::time::timeout(Duration::from_secs(60), stream.message()).await.expect("it is cut") {
                Ok(event) => last.0 = event.expect("an end with its reason").index,
                Err(error) => break error,
            }
        }
    });
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    let next = format!("go on behind index {} at another one", last.0);
    assert!(error.message().contains("known no leader") && error.message().contains(&next), "{last:?}: {error}");
    cluster.restart(1);
    cluster.ok(1, &["scale", "hello/hello", "3"]);
    runtime.block_on(async {
        let mut stream = client(&cluster, 1).await.watch(watch(last.0)).await.unwrap().into_inner();
        read(&mut stream, &mut last, 3).await;
    });
}

fn unheard_of() {
    let mut cluster = Cluster::start(3);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    cluster.ok(1, &["apply", "--detach", &cluster.manifest("first", "/", 1)]);
    for round in 0..3 {
        let leader = cluster.leader();
        let follower = cluster.alive().into_iter().find(|id| *id != leader).unwrap();
        let (mut api, mut behind) =
            runtime.block_on(async { (client(&cluster, leader).await, client(&cluster, follower).await) });
        cluster.process(follower).pause();
        for replicas in 2..102 {
            let (app, actor) = ("first".into(), "hello".into());
            let request_id = format!("{round}-{replicas}");
            let request = ScaleRequest { app, actor, replicas, request_id, if_version: 0 };
            runtime.block_on(api.scale(request)).unwrap();
        }
        let app = format!("app{round}");
        cluster.ok(leader, &["apply", "--detach", &cluster.manifest(&app, &format!("/{app}"), 1)]);
        let actor = || "hello".to_owned();
        let logs = LogsRequest { app: app.clone(), actor: actor(), ..LogsRequest::default() };
        let call = CallRequest { app: app.clone(), actor: actor(), ..CallRequest::default() };
        let program = RunRequest { app, actor: actor(), ..RunRequest::default() };
        let (mut calling, mut running) = (behind.clone(), behind.clone());
        runtime.block_on(async {
            // Sent before it goes on, so that it is asked before it has heard.
            let asked = async { tokio::join!(behind.logs(logs), calling.call(call), running.run(program)) };
            let (asked, ()) = tokio::join!(asked, async { cluster.process(follower).resume() });
            // No host runs it, and this scheduler may know no leader yet; it never says that there is no such app.
            let errors = [asked.0.err(), asked.1.err(), asked.2.err()];
            for error in errors.into_iter().flatten() {
                assert_eq!(error.code(), Code::Unavailable, "round {round}: {error}");
            }
        });
        cluster.until_ready(&[1, 2, 3]);
    }
}

fn behind() {
    let mut cluster = Cluster::start(3);
    cluster.ok(1, &["apply", "--detach", &cluster.manifest("hello", "/", 1)]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let leader = cluster.leader();
    let follower = cluster.alive().into_iter().find(|id| *id != leader).unwrap();
    let watch = |after| WatchRequest { after, app: "hello".into(), ..WatchRequest::default() };
    let mut api = runtime.block_on(client(&cluster, leader));
    let mut stream = runtime.block_on(api.watch(watch(0))).unwrap().into_inner();
    let mut last = (0, 0);
    for round in 0..3 {
        let mut other = runtime.block_on(client(&cluster, follower));
        cluster.process(follower).pause();
        for n in 1..=20 {
            cluster.ok(leader, &["scale", "hello/hello", &(round * 20 + n + 1).to_string()]);
        }
        let desired = round * 20 + 21;
        runtime.block_on(read(&mut stream, &mut last, desired));
        cluster.process(follower).resume();
        runtime.block_on(async {
            // It may say that it is behind, or knows no leader again yet; never what is older.
            let mut stream = loop {
                match other.watch(watch(last.0)).await {
                    Ok(stream) => break stream.into_inner(),
                    Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
                }
                tokio::time::sleep(crate::harness::POLL).await;
            };
            let event = stream.message().await.unwrap().expect("what there is");
            let Some(What::App(app)) = &event.what else { panic!("{event:?}") };
            assert!(event.index >= last.0 && app.version >= last.1, "{last:?}, then {event:?}");
            assert_eq!(app.desired, desired);
        });
        cluster.until_ready(&[1, 2, 3]);
    }
}

fn unread() {
    let cluster = Cluster::start(1);
    cluster.ok(1, &["apply", "--detach", &cluster.manifest("hello", "/", 1)]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        // A window of a few events: what is not read does not hide in buffers.
        let url = format!("http://{}", cluster.schedulers[&1].api);
        let narrow = Channel::from_shared(url).unwrap().initial_stream_window_size(1_024);
        let mut watching = ControlClient::new(narrow.connect().await.unwrap());
        let watch = |after| WatchRequest { after, app: "hello".into(), ..WatchRequest::default() };
        let mut stream = watching.watch(watch(0)).await.unwrap().into_inner();
        let mut api = client(&cluster, 1).await;
        let begun = std::time::Instant::now();
        let mut replicas = 1;
        while begun.elapsed() < Duration::from_secs(14) {
            replicas += 1;
            let request = ScaleRequest { app: "hello".into(), actor: "hello".into(), replicas, ..Default::default() };
            api.scale(request).await.unwrap();
            // So many that they can not all wait for it, and not so many that the index to go on behind is forgotten.
            if replicas > 1_000 {
                tokio::time::sleep(crate::harness::POLL).await;
            }
        }
        let (mut events, mut last) = (0, 0);
        let error = loop {
            match tokio::time::timeout(Duration::from_secs(10), stream.message()).await.expect("it is cut") {
                Ok(event) => (events, last) = (events + 1, event.expect("an end with its reason").index),
                Err(error) => break error,
            }
        };
        assert_eq!(error.code(), Code::Unavailable, "{error}");
        assert!(error.message().contains("was cut; go on behind the index"), "{error}");
        assert!(events < 1_000 && events < replicas, "{events} events of {replicas} writes were kept for it");
        let mut stream = api.watch(watch(last)).await.unwrap().into_inner();
        read(&mut stream, &mut (last, 0), replicas).await;
    });
}

async fn client(cluster: &Cluster, id: u64) -> ControlClient<Channel> {
    let url = format!("http://{}", cluster.schedulers[&id].api);
    ControlClient::new(Channel::from_shared(url).unwrap().connect().await.unwrap())
}

/// Reads until so many replicas are desired; checks that neither index nor version ever falls.
async fn read(stream: &mut Streaming<WatchEvent>, last: &mut (u64, u64), desired: u32) {
    loop {
        let event = tokio::time::timeout(Duration::from_secs(30), stream.message()).await.expect("a change in time");
        let event = event.unwrap().expect("a watch does not end");
        assert!(event.index >= last.0, "index {} after {}", event.index, last.0);
        last.0 = event.index;
        if let Some(What::App(app)) = event.what {
            assert!(app.version >= last.1, "version {} after {}", app.version, last.1);
            last.1 = app.version;
            if app.desired == desired {
                return;
            }
        }
    }
}

fn watch() {
    let mut cluster = Cluster::start(3);
    cluster.ok(1, &["apply", "--detach", &cluster.manifest("hello", "/", 1)]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let leader = cluster.leader();
    let follower = cluster.alive().into_iter().find(|id| *id != leader).unwrap();
    let (mut api, mut stream) = runtime.block_on(async {
        let mut api = client(&cluster, follower).await;
        let request = WatchRequest { app: "hello".into(), ..WatchRequest::default() };
        let stream = api.watch(request).await.unwrap().into_inner();
        (api, stream)
    });
    let mut last = (0, 0);
    for desired in 2..8 {
        cluster.ok(leader, &["scale", "hello/hello", &desired.to_string()]);
        runtime.block_on(read(&mut stream, &mut last, desired));
    }
    cluster.kill(leader);
    cluster.ok(follower, &["scale", "hello/hello", "20"]);
    runtime.block_on(read(&mut stream, &mut last, 20));
    // Whoever comes back goes on behind what it saw, at another scheduler.
    let third = cluster.alive().into_iter().find(|id| *id != follower).unwrap();
    cluster.ok(third, &["scale", "hello/hello", "21"]);
    runtime.block_on(async {
        let mut other = client(&cluster, third).await;
        let request = WatchRequest { after: last.0, app: "hello".into(), ..WatchRequest::default() };
        let mut stream = other.watch(request).await.unwrap().into_inner();
        read(&mut stream, &mut last, 21).await;
        // An index that is still to come is refused by name.
        let request = WatchRequest { after: u64::MAX, ..WatchRequest::default() };
        let refused = api.watch(request).await.err().unwrap();
        assert_eq!(refused.code(), Code::OutOfRange);
        assert!(refused.message().contains("list again"), "{}", refused.message());
    });
}

fn no_majority() {
    let mut cluster = Cluster::start(3);
    cluster.ok(1, &["apply", "--detach", &cluster.manifest("hello", "/", 4)]);
    until("all have it", SOON, || (1..=3).all(|id| cluster.replicas(id, "hello") == 4).then_some(()));
    cluster.kill(1);
    cluster.kill(2);
    let stale = cluster.ok(3, &["get", "apps", "-o", "json", "--stale"]);
    assert!(stale.contains("\"desired\": 4"), "{stale}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let refused = runtime.block_on(async {
        let mut api = client(&cluster, 3).await;
        let fresh = tokio::time::timeout(Duration::from_secs(60), api.list_apps(ListRequest::default()));
        fresh.await.expect("an answer, not silence").expect_err("nobody can confirm it")
    });
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(cluster.refused(3, &["scale", "hello/hello", "5"]).contains("lattice schedulers list"));
    cluster.restart(1);
    until("it is fresh again", SOON, || {
        let (code, stdout, _) = cluster.cli(3, &["get", "apps", "-o", "json"]);
        (code == 0 && stdout.contains("\"desired\"")).then_some(())
    });
}
