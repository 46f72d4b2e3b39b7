//! Instances that serve several requests: as many as they may, each actor its own, and none after anything went wrong.
//! The guest's random numbers go on from request to request within an instance and begin anew in each: they tell which.

use super::*;
use proto::app::{Grants, Limits, Random};
use std::time::Duration;

fn reusing(world: &World, reuse: u32) -> Spec {
    let grants = Grants { random: Some(Random::Seed(7)), ..Grants::default() };
    let limits = Limits { reuse, deadline_ms: 20_000, memory_bytes: 8 << 20, ..Limits::default() };
    Spec { grants, limits, ..world.spec() }
}

/// What its instance answers; waits until that is free for another request.
async fn number(actor: &Actor) -> String {
    let number = text(actor.http(get("/random"), None).await).await;
    settled(actor).await;
    number
}

async fn settled(actor: &Actor) {
    while actor.stats().in_flight > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn an_instance_serves_as_many_requests_as_it_may_and_then_comes_a_fresh_one() {
    let world = World::new();
    let actor = world.actor(hostile(), reusing(&world, 3)).await;
    let mut numbers = Vec::new();
    for _ in 0..6 {
        numbers.push(number(&actor).await);
    }
    assert_eq!(numbers[..3], numbers[3..]);
    assert!(numbers[0] != numbers[1] && numbers[1] != numbers[2], "{numbers:?}");
    // Who did not ask for it has a fresh one each time.
    let actor = world.actor(hostile(), reusing(&world, 1)).await;
    assert_eq!(number(&actor).await, numbers[0]);
    assert_eq!(number(&actor).await, numbers[0]);
}

#[tokio::test]
async fn a_trap_a_timeout_or_a_limit_that_was_hit_is_an_instances_end() {
    let world = World::new();
    let actor = world.actor(hostile(), reusing(&world, 1_000)).await;
    let first = number(&actor).await;
    for path in ["/trap", "/sleep?ms=60000", "/memory", "/silent"] {
        assert_ne!(number(&actor).await, first, "before {path}");
        let answer = actor.http(get(path), Some(Duration::from_millis(300))).await;
        if let Ok(response) = answer {
            assert!(text(Ok(response)).await.starts_with("denied: memory"), "{path}");
        }
        settled(&actor).await;
        // What went on without an answer but well may serve on.
        match path {
            "/silent" => assert_ne!(number(&actor).await, first, "after {path}"),
            _ => assert_eq!(number(&actor).await, first, "after {path}"),
        }
    }
    actor.http(get("/cut"), None).await.unwrap().into_body().collect().await.unwrap_err();
    settled(&actor).await;
    assert_eq!(number(&actor).await, first);
}

#[tokio::test]
async fn an_instance_never_comes_to_another_actor_nor_to_another_revision() {
    let world = World::new();
    let one = world.actor(hostile(), reusing(&world, 100)).await;
    let other = world.actor(hostile(), Spec { actor: "other".parse().unwrap(), ..reusing(&world, 100) }).await;
    let (first, second) = (number(&one).await, number(&one).await);
    assert_eq!(number(&other).await, first);
    assert_eq!(number(&other).await, second);
    let newer = world.actor(hostile(), Spec { revision: 2, ..reusing(&world, 100) }).await;
    assert_eq!(number(&newer).await, first);
    assert!(![first, second].contains(&number(&one).await));
    assert!(one.drain(Duration::from_secs(10)).await);
    drop((one, other, newer));
    assert_eq!(world.engine.memory_bytes().0, 0);
}

#[tokio::test]
async fn whoever_waits_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::new(Config { instances_max: 2, ..config(&dir) }).unwrap();
    let world = World { engine, dir, lines: Arc::default() };
    let warm = world.actor(hostile(), reusing(&world, 100)).await;
    let busy = world.actor(hostile(), world.spec()).await;
    let first = number(&warm).await;
    assert_ne!(number(&warm).await, first);
    assert!(world.engine.memory_bytes().0 > 0);
    // Two at once are all that this engine has room for.
    let (one, two) = tokio::join!(busy.http(get("/sleep?ms=100"), None), busy.http(get("/sleep?ms=100"), None));
    assert!(one.is_ok() && two.is_ok());
    settled(&busy).await;
    assert_eq!(number(&warm).await, first);
}

#[tokio::test]
async fn bodies_of_one_request_are_over_before_the_next() {
    let world = World::new();
    let actor = world.actor(hostile(), reusing(&world, 100)).await;
    let first = number(&actor).await;
    for round in 0..20 {
        assert_eq!(text(actor.http(post("/echo", "there and back"), None).await).await, "there and back", "{round}");
        // A body that the guest never looks at.
        assert!(text(actor.http(post("/", "left lying"), None).await).await.contains("/trap"));
    }
    settled(&actor).await;
    assert_ne!(number(&actor).await, first);
    let lines = world.lines.0.lock().unwrap();
    assert!(lines.iter().all(|(stream, _)| stream != "error"), "{lines:?}");
}
