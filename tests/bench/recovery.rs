//! How long it takes until one that was killed answers again, with a log as long as told: `lattice scheduler`, whose bound
//! on the log is raised for it, and etcd, told to take no snapshot. By default the log of a scheduler holds 64 MiB, and up
//! to as much again that is not committed.

use crate::figures::{Table, number};
use crate::lattice::Scheduler;
use crate::process::Nats;
use crate::raft::folder_bytes;
use crate::{Bench, etcd};
use anyhow::{Context as _, Result};
use proto::v1::control_client::ControlClient;
use proto::v1::{ApplyRequest, ListRequest};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};

/// Of an entry: an app with an annotation of that size, a value of that size.
const ENTRY_BYTES: u64 = 48 << 10;
const WRITERS: u64 = 16;
/// Apps, and keys, that are written again and again: what is kept is small beside the log.
const NAMES: u64 = 16;
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn run(bench: &Bench) -> Result<()> {
    let nats = bench.nats_server().context("there is no nats-server: the scheduler needs a bus")?;
    let log_bytes: u64 = if bench.quick { 64 << 20 } else { 1 << 30 };
    let dir = bench.folder("recovery")?;
    let _in_context = bench.runtime.enter();
    let mut table = Table::new(["what", "log MB", "on disk MB", "written in s", "killed -> answers s"]);
    let mb = |bytes: u64| number(bytes as f64 / 1e6);
    let mut row = |what: &str, log: u64, disk: u64, wrote: Duration, back: Duration| {
        let seconds = |time: Duration| number(time.as_secs_f64());
        table.row([what.into(), mb(log), mb(disk), seconds(wrote), seconds(back)]);
    };
    {
        let bus = Nats::start(&nats, &dir)?;
        for (what, bytes, more) in [
            ("lattice, its bound raised", log_bytes, vec!["--log-bytes-max".to_owned(), (8 * log_bytes).to_string()]),
            ("lattice, as it comes", log_bytes.min(256 << 20), Vec::new()),
        ] {
            let data = dir.join(if more.is_empty() { "bounded" } else { "raised" });
            let scheduler = Scheduler::start_with(&data, &bus.url, None, &more)?;
            let (begun, api) = (Instant::now(), scheduler.api.clone());
            bench.runtime.block_on(fill(bytes, connect(&api)?, |channel, n| async move { apply(channel, n).await }))?;
            let wrote = begun.elapsed();
            scheduler.process.kill()?;
            let disk = folder_bytes(&scheduler.dir.join("data/raft"))?;
            let begun = Instant::now();
            let again = scheduler.again()?;
            bench.runtime.block_on(until(connect(&again.api)?, list))?;
            row(what, bytes, disk, wrote, begun.elapsed());
        }
    }
    if let Some(binary) = bench.etcd() {
        let more = ["--snapshot-count", "1000000000", "--quota-backend-bytes", "8589934592"];
        let member = etcd::start_with(&binary, &dir, 1, &more)?.remove(0);
        let channel = connect(member.api.trim_start_matches("http://"))?;
        bench.runtime.block_on(until(channel.clone(), leads))?;
        let begun = Instant::now();
        bench.runtime.block_on(fill(log_bytes, channel, |channel, n| async move { put(channel, n).await }))?;
        let wrote = begun.elapsed();
        member.process.kill()?;
        let disk = folder_bytes(&dir.join("m0"))?;
        let begun = Instant::now();
        let again = member.again()?;
        bench.runtime.block_on(until(connect(again.api.trim_start_matches("http://"))?, leads))?;
        row("etcd, without snapshots", log_bytes, disk, wrote, begun.elapsed());
    }
    table.print();
    println!("  entries of {} KiB, to {NAMES} apps or keys", ENTRY_BYTES >> 10);
    Ok(())
}

fn connect(address: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).context("an address")?;
    Ok(endpoint.tcp_nodelay(true).connect_lazy())
}

/// Writes until so many bytes were acknowledged.
async fn fill<W>(bytes: u64, channel: Channel, write: impl Fn(Channel, u64) -> W) -> Result<()>
where
    W: Future<Output = Result<()>> + Send + 'static,
{
    let count = bytes / ENTRY_BYTES;
    let next = Arc::new(AtomicU64::new(0));
    let mut writing = JoinSet::new();
    let begin = |writing: &mut JoinSet<Result<()>>| {
        let n = next.fetch_add(1, Ordering::Relaxed);
        if n < count {
            writing.spawn(write(channel.clone(), n));
        }
    };
    (0..WRITERS).for_each(|_| begin(&mut writing));
    while let Some(done) = writing.join_next().await {
        done.context("a writer's task")??;
        begin(&mut writing);
    }
    Ok(())
}

async fn apply(channel: Channel, n: u64) -> Result<()> {
    // Never what was there before: that would be no change.
    let text = format!("{n:0>width$}", width = usize::try_from(ENTRY_BYTES).context("a size")?);
    let manifest = format!(
        "apiVersion: core.oam.dev/v1beta1\nkind: Application\nmetadata:\n  name: app-{}\n  annotations: {{ text: \"{text}\" \
         }}\nspec:\n  components:\n    - name: store\n      type: capability\n      properties: {{ image: builtin:keyvalue }}\n",
        n % NAMES
    );
    let request = ApplyRequest { manifest, file: "app.yaml".into(), ..ApplyRequest::default() };
    ControlClient::new(channel).apply(request).await.context("an app was refused").map(drop)
}

async fn put(channel: Channel, n: u64) -> Result<()> {
    let value = vec![u8::try_from(n % 251).context("a byte")?; usize::try_from(ENTRY_BYTES).context("a size")?];
    etcd::put(channel, &format!("key-{}", n % NAMES), value).await
}

async fn list(channel: Channel) -> Result<bool> {
    ControlClient::new(channel).list_apps(ListRequest::default()).await?;
    Ok(true)
}

async fn leads(channel: Channel) -> Result<bool> {
    etcd::leads(channel).await
}

async fn until<A: Future<Output = Result<bool>>>(channel: Channel, ask: impl Fn(Channel) -> A) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        match ask(channel.clone()).await {
            Ok(true) => return Ok(()),
            Err(error) if Instant::now() > end => return Err(error.context("it does not answer")),
            _ if Instant::now() > end => anyhow::bail!("nobody leads"),
            _ => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}
