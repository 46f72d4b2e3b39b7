//! Bodies of unknown size, on both brokers: whole and in order, no faster than they are taken, and told of the other end's
//! end.
#![allow(clippy::unwrap_used, reason = "tests and their helpers")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bus::{Bus, Error, Offer, Pull, Reason, Refusal, STREAMS_MAX};
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, stream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::started::{Kind, PATIENCE, Started, wait_for};
use crate::{megabytes, until};

on_both![
    streams_arrive_whole_and_in_order,
    a_piece_arrives_when_it_is_sent,
    no_more_is_made_than_is_taken,
    who_wants_no_more_ends_the_sender,
    who_stops_sending_ends_the_reader,
    an_error_of_the_body_reaches_its_reader,
    a_deadline_ends_both,
    a_deadline_ends_who_always_finds_a_piece,
    a_lost_connection_ends_both,
    streams_are_bounded,
    garbage_to_a_stream_is_dropped_or_ends_it,
];

type Piece = Result<Bytes, Refusal>;

fn soon() -> Instant {
    Instant::now() + PATIENCE * 3
}

fn send(offer: Offer, body: impl Stream<Item = Piece> + Send + 'static) -> JoinHandle<Result<(), Error>> {
    tokio::spawn(offer.send(body, soon()))
}

/// Zeros without end, and how many were made.
fn endless() -> (Arc<AtomicUsize>, impl Stream<Item = Piece> + Send + 'static) {
    let made = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&made);
    let body = stream::repeat_with(move || {
        count.fetch_add(1 << 14, Ordering::SeqCst);
        Ok(Bytes::from(vec![0; 1 << 14]))
    });
    (made, body)
}

async fn next(pull: &mut Pull) -> Result<Option<Bytes>, Error> {
    timeout(PATIENCE, pull.next()).await.expect("a piece or an end comes")
}

async fn two(kind: Kind) -> (Started, Bus, Bus) {
    let broker = Started::on(kind, None).await;
    let (a, b) = (broker.bus().await, broker.bus().await);
    (broker, a, b)
}

async fn streams_arrive_whole_and_in_order(kind: Kind) {
    let (_broker, a, b) = two(kind).await;
    let one = async |from: &Bus, to: &Bus, seed: u32, sizes: &'static [usize]| {
        let sent = megabytes(5, seed);
        let mut left = sent.clone();
        let pieces = sizes
            .iter()
            .cycle()
            .map_while(move |size| (!left.is_empty()).then(|| Ok(left.split_to(left.len().min(*size)))));
        let offer = from.offer().unwrap();
        let address = offer.address();
        let sending = send(offer, stream::iter(pieces));
        let mut pull = to.pull(&address, soon()).await.unwrap();
        let mut came = BytesMut::new();
        while let Some(piece) = next(&mut pull).await.unwrap() {
            assert!(!piece.is_empty());
            came.extend_from_slice(&piece);
        }
        assert!(came == sent, "{} bytes of {}", came.len(), sent.len());
        assert_eq!(next(&mut pull).await, Ok(None));
        sending.await.unwrap().unwrap();
    };
    // Pieces that are empty, tiny, odd, and above what a message takes.
    tokio::join!(
        one(&a, &b, 1, &[0, 300_001, 7, 65_536]),
        one(&b, &a, 2, &[3 << 20]),
        one(&a, &b, 3, &[1_999]),
        one(&a, &a, 4, &[1 << 16]),
    );
    // The last grants may come when all was sent.
    let drops = |bus: &Bus| bus.drops().total() - bus.drops().get(Reason::Stale);
    assert_eq!((drops(&a), drops(&b)), (0, 0));
}

async fn a_piece_arrives_when_it_is_sent(kind: Kind) {
    let (_broker, a, b) = two(kind).await;
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<Bytes>(1);
    let offer = a.offer().unwrap();
    let mut pull = b.pull(&offer.address(), soon()).await.unwrap();
    let sending = send(offer, stream::poll_fn(move |cx| receiver.poll_recv(cx)).map(Ok));
    for n in 0..2_000_u32 {
        let word = Bytes::from(n.to_string());
        sender.send(word.clone()).await.unwrap();
        assert_eq!(next(&mut pull).await, Ok(Some(word)));
    }
    drop(sender);
    assert_eq!(next(&mut pull).await, Ok(None));
    sending.await.unwrap().unwrap();
}

async fn no_more_is_made_than_is_taken(kind: Kind) {
    let (_broker, a, b) = two(kind).await;
    let (made, body) = endless();
    let offer = a.offer().unwrap();
    let mut pull = b.pull(&offer.address(), soon()).await.unwrap();
    let _sending = send(offer, body);
    let mut taken = 0;
    for wanted in [1, 1 << 16, 1 << 20, 8 << 20] {
        while taken < wanted {
            taken += next(&mut pull).await.unwrap().unwrap().len();
        }
        // As much as is granted comes, then it stands.
        let mut before = usize::MAX;
        until(async || {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now = made.load(Ordering::SeqCst);
            std::mem::replace(&mut before, now) == now
        })
        .await;
        let ahead = before - taken;
        assert!((1..=300 << 10).contains(&ahead), "{ahead} bytes are ahead of {taken}");
    }
    assert_eq!(b.drops().total(), 0);
}

async fn who_wants_no_more_ends_the_sender(kind: Kind) {
    let (_broker, a, b) = two(kind).await;
    let offer = a.offer().unwrap();
    let mut pull = b.pull(&offer.address(), soon()).await.unwrap();
    let sending = send(offer, endless().1);
    next(&mut pull).await.unwrap().unwrap();
    drop(pull);
    let ended = timeout(PATIENCE, sending).await.unwrap().unwrap();
    assert!(matches!(&ended, Err(Error::Refused { code, .. }) if code == "cancelled"), "{ended:?}");
}

async fn who_stops_sending_ends_the_reader(kind: Kind) {
    let (_broker, a, b) = two(kind).await;
    let is_told = |end: Result<Option<Bytes>, Error>| {
        let Err(Error::Refused { code, message }) = end else { return false };
        code == "cancelled" && message.contains("stopped")
    };
    // In the middle of it.
    let offer = a.offer().unwrap();
    let mut pull = b.pull(&offer.address(), soon()).await.unwrap();
    let sending = send(offer, stream::iter([Ok("half".into())]).chain(stream::pending()));
    assert_eq!(next(&mut pull).await, Ok(Some("half".into())));
    sending.abort();
    assert!(is_told(next(&mut pull).await));
    assert_eq!(next(&mut pull).await, Ok(None));
    // Before it was asked.
    let offer = a.offer().unwrap();
    let address = offer.address();
    drop(offer);
    let mut pull = b.pull(&address, soon()).await.unwrap();
    assert!(is_told(next(&mut pull).await));
    // With its whole connection.
    let offer = a.offer().unwrap();
    let address = offer.address();
    a.close().await;
    let mut pull = b.pull(&address, soon()).await.unwrap();
    assert_eq!(next(&mut pull).await, Err(Error::NoResponders { subject: address }));
}

async fn an_error_of_the_body_reaches_its_reader(kind: Kind) {
    let (_broker, a, b) = two(kind).await;
    let offer = a.offer().unwrap();
    let mut pull = b.pull(&offer.address(), soon()).await.unwrap();
    let trap = Refusal { code: "trapped".into(), message: "the guest trapped".into() };
    let sending = send(offer, stream::iter([Ok("half".into()), Err(trap)]));
    assert_eq!(next(&mut pull).await, Ok(Some("half".into())));
    let error = next(&mut pull).await.unwrap_err();
    assert_eq!(error, Error::Refused { code: "trapped".into(), message: "the guest trapped".into() });
    sending.await.unwrap().unwrap();
}

async fn a_deadline_ends_both(kind: Kind) {
    let (_broker, a, b) = two(kind).await;
    let after = Duration::from_millis(300);
    let offer = a.offer().unwrap();
    let mut pull = b.pull(&offer.address(), Instant::now() + after).await.unwrap();
    let sending = tokio::spawn(offer.send(stream::pending(), Instant::now() + after * 2));
    let error = next(&mut pull).await.unwrap_err();
    assert!(matches!(error, Error::Deadline { .. }), "{error}");
    // Told by who reads, which is sooner.
    drop(pull);
    let ended = timeout(PATIENCE, sending).await.unwrap().unwrap();
    assert!(matches!(&ended, Err(Error::Refused { code, .. }) if code == "cancelled"), "{ended:?}");

    let offer = a.offer().unwrap();
    let mut pull = b.pull(&offer.address(), soon()).await.unwrap();
    let sending = tokio::spawn(offer.send(stream::pending(), Instant::now() + after));
    let error = next(&mut pull).await.unwrap_err();
    assert!(matches!(&error, Error::Refused { code, .. } if code == "unavailable"), "{error}");
    assert!(matches!(sending.await.unwrap(), Err(Error::Deadline { .. })));
}

async fn a_deadline_ends_who_always_finds_a_piece(kind: Kind) {
    let (_broker, a, b) = two(kind).await;
    let offer = a.offer().unwrap();
    let end = Instant::now() + Duration::from_millis(300);
    let mut pull = b.pull(&offer.address(), end).await.unwrap();
    let _sending = send(offer, endless().1);
    let error = loop {
        match next(&mut pull).await {
            Ok(piece) => assert!(piece.is_some() && end.elapsed() < PATIENCE),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Deadline { .. }), "{error}");
}

async fn a_lost_connection_ends_both(kind: Kind) {
    let (mut broker, a, b) = two(kind).await;
    let offer = a.offer().unwrap();
    let mut pull = b.pull(&offer.address(), soon()).await.unwrap();
    let sending = send(offer, stream::iter([Ok("half".into())]).chain(stream::pending()));
    assert_eq!(next(&mut pull).await, Ok(Some("half".into())));
    broker.stop().await;
    assert_eq!(next(&mut pull).await, Err(Error::Disconnected));
    assert_eq!(timeout(PATIENCE, sending).await.unwrap().unwrap(), Err(Error::Disconnected));
    broker.start().await;
    for bus in [&a, &b] {
        wait_for(bus, |connection| connection.up).await;
    }
    // A connection is up a moment before what listens on it listens again.
    until(async || a_stream_flows(&a, &b).await.is_ok()).await;
}

async fn streams_flow(from: &Bus, to: &Bus) {
    a_stream_flows(from, to).await.unwrap();
}

/// An error means that nobody had the stream.
async fn a_stream_flows(from: &Bus, to: &Bus) -> Result<(), Error> {
    let offer = from.offer().unwrap();
    let mut pull = to.pull(&offer.address(), soon()).await.unwrap();
    let sending = send(offer, stream::iter([Ok("all".into())]));
    match next(&mut pull).await {
        Err(error @ Error::NoResponders { .. }) => return Err(error),
        piece => assert_eq!(piece, Ok(Some("all".into()))),
    }
    assert_eq!(next(&mut pull).await, Ok(None));
    sending.await.unwrap().unwrap();
    Ok(())
}

async fn streams_are_bounded(kind: Kind) {
    let (_broker, a, b) = two(kind).await;
    let offers: Vec<Offer> = (0..STREAMS_MAX).map(|_| a.offer().unwrap()).collect();
    assert_eq!(a.offer().err(), Some(Error::Streams { max: STREAMS_MAX }));
    let mut pulls = Vec::new();
    for offer in &offers {
        pulls.push(b.pull(&offer.address(), soon()).await.unwrap());
    }
    let over = b.pull("anywhere", soon()).await.err();
    assert_eq!(over, Some(Error::Streams { max: STREAMS_MAX }));
    drop((offers, pulls));
    streams_flow(&a, &b).await;
}

async fn garbage_to_a_stream_is_dropped_or_ends_it(kind: Kind) {
    let (broker, a, b) = two(kind).await;
    let mut raw = broker.raw().await;
    // To who sends: grants of too much, with no address, and what is none.
    let offer = a.offer().unwrap();
    let address = offer.address();
    let mut garbage = String::new();
    for header in ["Bus-Grant: 99999999999", "Bus-Grant: x", "Bus-Offset: 0", "Else: x"] {
        let head = format!("NATS/1.0\r\n{header}\r\n\r\n");
        garbage += &format!("HPUB {address} {0} {0}\r\n{head}\r\n", head.len());
    }
    raw.write(garbage.as_bytes()).await;
    let sending = send(offer, stream::iter([Ok("all".into())]));
    until(async || a.drops().get(Reason::Malformed) == 4).await;
    let mut pull = b.pull(&address, soon()).await.unwrap();
    assert_eq!(next(&mut pull).await, Ok(Some("all".into())));
    sending.await.unwrap().unwrap();

    // From who sends: a piece from elsewhere in it.
    raw.write(b"SUB peer 1\r\nPING\r\n").await;
    raw.until("PONG").await;
    let mut pull = b.pull("peer", soon()).await.unwrap();
    let seen = raw.until("Bus-Grant").await;
    let to = seen.split("HMSG peer 1 ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    let head = "NATS/1.0\r\nBus-Offset: 5\r\n\r\n";
    raw.write(format!("HPUB {to} {} {}\r\n{head}abc\r\n", head.len(), head.len() + 3).as_bytes()).await;
    assert_eq!(next(&mut pull).await, Err(Error::Garbled { subject: "peer".into() }));
    drop(pull);
    raw.until("cancelled").await;
}
