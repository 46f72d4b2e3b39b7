//! Calls per second over the embedded broker and over a nats-server, beside the client library's bare request. For
//! people who change the hot path: `cargo run --release -p bus --features broker --example throughput -- [URL…]`.
#![allow(clippy::unwrap_used, reason = "a measuring tool")]

use std::future::Future;
use std::time::{Duration, Instant};

use bus::broker::{self, Broker};
use bus::{Bus, Config, Headers, Reply, Request};
use bytes::Bytes;
use futures::StreamExt;

const TIME: Duration = Duration::from_secs(2);

#[tokio::main]
async fn main() {
    let listen = ([127, 0, 0, 1], 0).into();
    let broker = Broker::start(broker::Config { listen, token: None }).unwrap();
    let mut urls = vec![format!("nats://{}", broker.addr())];
    urls.extend(std::env::args().skip(1));
    for url in urls {
        println!("{url}{}", if url.ends_with(&broker.addr().to_string()) { " (embedded)" } else { "" });
        bare(&url).await;
        ours(&url).await;
    }
}

async fn bare(url: &str) {
    let (a, b) = (async_nats::connect(url).await.unwrap(), async_nats::connect(url).await.unwrap());
    let mut requests = b.subscribe("bare").await.unwrap();
    b.flush().await.unwrap();
    tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            b.publish(request.reply.unwrap(), request.payload).await.unwrap();
        }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    for at_once in [1, 64] {
        measure("bare request", at_once, || async {
            a.request("bare", Bytes::from_static(&[7; 128])).await.unwrap();
        })
        .await;
    }
}

async fn ours(url: &str) {
    let config = Config {
        urls: vec![url.to_owned()],
        credentials: None,
        token: None,
        tls_ca: None,
        tls_cert: None,
        tls_key: None,
        name: "throughput".into(),
        lattice: "main".parse().unwrap(),
    };
    let (a, b) = (Bus::connect(&config).await.unwrap(), Bus::connect(&config).await.unwrap());
    b.connection().wait_for(|connection| connection.up).await.unwrap();
    let echo = |request: Request| async move { Ok(Reply { headers: Headers::new(), payload: request.payload }) };
    let _serving = b.serve("ours".into(), Some("group".into()), 1_000, echo).await.unwrap();
    let call = |payload: Bytes| {
        let a = &a;
        async move {
            a.call("ours".into(), Headers::new(), payload, Duration::from_secs(5)).await.unwrap();
        }
    };
    for at_once in [1, 64] {
        measure("bus call", at_once, || call(Bytes::from_static(&[7; 128]))).await;
    }
    let large = Bytes::from(vec![7; 5 * 1024 * 1024]);
    measure("bus call, 5 MiB", 2, || call(large.clone())).await;
}

async fn measure<F: Future<Output = ()>>(what: &str, at_once: usize, call: impl Fn() -> F) {
    let began = Instant::now();
    let cpu = cpu_ticks();
    let workers = (0..at_once).map(|_| async {
        let mut count = 0u32;
        let mut longest = Vec::new();
        while began.elapsed() < TIME {
            let start = Instant::now();
            call().await;
            longest.push(start.elapsed());
            count += 1;
        }
        (count, longest)
    });
    let done = futures::future::join_all(workers).await;
    let seconds = began.elapsed().as_secs_f64();
    let count: u32 = done.iter().map(|(count, _)| count).sum();
    let mut times: Vec<_> = done.into_iter().flat_map(|(_, times)| times).collect();
    times.sort_unstable();
    println!(
        "  {what:16} {at_once:3} at once: {:8.0} /s  p50 {:>9.1?}  p99 {:>9.1?}  {:5.1} us CPU of this process each",
        f64::from(count) / seconds,
        times[times.len() / 2],
        times[times.len() * 99 / 100],
        (cpu_ticks() - cpu) * 10_000.0 / f64::from(count),
    );
}

/// User and system time of this process, in hundredths of a second (Linux; elsewhere 0).
fn cpu_ticks() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let field = |n: usize| fields.get(n).and_then(|text| text.parse::<f64>().ok()).unwrap_or_default();
    field(11) + field(12)
}
