//! The log of one member on a real disk, beside what that disk does when a plain file is written and synced.

use crate::Bench;
use crate::figures::{Series, Table, number};
use anyhow::{Context as _, Result};
use scheduler::raft::{self, Alone, Config, Handle, StateMachine};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

const ENTRY_BYTES: usize = 1024;
const IN_FLIGHT: [usize; 3] = [1, 64, 1_000];
/// Entries that fit the file that does not grow.
const ENTRIES_IN_PLACE: u64 = 8_192;

pub(crate) fn run(bench: &Bench) -> Result<()> {
    let dir = bench.folder("raft")?;
    let (in_place, growing) = (whole_file(&dir.join("in-place"))?, File::create(dir.join("growing")));
    let growing = growing.context("a file to sync")?;
    let handle = raft::start(Config::alone(1, dir.join("log")), Count::default(), Alone).context("the log")?;
    let (mut plain, mut appended, mut grown) = (Series::default(), Series::default(), 0);
    let mut figures = vec![Figures::default(); IN_FLIGHT.len()];
    let measured = bench.runtime.block_on(async {
        // Also waits until it leads.
        handle.propose(vec![0]).await.context("the first proposal")?;
        for _ in 0..bench.rounds() {
            plain.push(sync_rate(&in_place, bench.time(), |count| count % ENTRIES_IN_PLACE)?);
            appended.push(sync_rate(&growing, bench.time(), |_| {
                grown += 1;
                grown - 1
            })?);
            for (in_flight, figures) in IN_FLIGHT.iter().zip(&mut figures) {
                propose(&handle, *in_flight, bench.time(), figures).await?;
            }
        }
        anyhow::Ok(())
    });
    bench.runtime.block_on(handle.shutdown());
    measured?;
    let mut table = Table::new([
        "what",
        "in flight",
        "writes/s",
        "min-max",
        "mean wait ms",
        "writes per flush",
        "to the disk alone",
    ]);
    let mut row = |what: &str, in_flight: usize, rate: &Series, per_flush: &Series| {
        let wait_ms = in_flight as f64 * 1e3 / rate.median();
        let to = rate.ratio_to(&plain);
        table.row([
            what.into(),
            in_flight.to_string(),
            rate.show(),
            rate.spread(),
            number(wait_ms),
            per_flush.show(),
            to,
        ]);
    };
    let one = [1.0].into_iter().collect();
    row("a file, written in place and synced", 1, &plain, &one);
    row("a file, appended to and synced", 1, &appended, &one);
    for (in_flight, f) in IN_FLIGHT.iter().zip(&figures) {
        row("the log, until committed and applied", *in_flight, &f.per_second, &f.per_flush);
    }
    table.print();
    let bytes = folder_bytes(&dir.join("log"))?;
    println!("  {} MB on disk at the end", number(bytes as f64 / 1e6));
    Ok(())
}

#[derive(Default, Clone)]
struct Figures {
    per_second: Series,
    per_flush: Series,
}

/// A state as small as it gets: the log is what is measured.
#[derive(Default)]
struct Count(u64);

impl StateMachine for Count {
    fn apply(&mut self, _: u64, _: &[u8]) -> Vec<u8> {
        self.0 += 1;
        Vec::new()
    }

    fn snapshot(&self) -> Vec<u8> {
        self.0.to_le_bytes().to_vec()
    }

    fn restore(&mut self, _: u64, snapshot: &[u8]) -> Result<(), String> {
        let bytes = snapshot.try_into().map_err(|_| format!("a count of {} bytes", snapshot.len()))?;
        self.0 = u64::from_le_bytes(bytes);
        Ok(())
    }
}

async fn propose(handle: &Handle, in_flight: usize, time: Duration, figures: &mut Figures) -> Result<()> {
    let syncs = handle.status().borrow().syncs;
    let began = Instant::now();
    let mut proposers = tokio::task::JoinSet::new();
    for _ in 0..in_flight {
        let handle = handle.clone();
        proposers.spawn(async move {
            let mut count = 0u64;
            while began.elapsed() < time {
                handle.propose(vec![7; ENTRY_BYTES]).await?;
                count += 1;
            }
            Ok::<_, raft::Error>(count)
        });
    }
    let mut count = 0;
    while let Some(done) = proposers.join_next().await {
        count += done.context("a proposer's task")??;
    }
    figures.per_second.push(count as f64 / began.elapsed().as_secs_f64());
    let syncs = handle.status().borrow().syncs - syncs;
    figures.per_flush.push(count as f64 / syncs.max(1) as f64);
    Ok(())
}

/// A file that does not grow while it is measured: what the disk itself takes to make a write durable.
fn whole_file(path: &Path) -> Result<File> {
    let file = File::create(path).context("a file to sync")?;
    for number in 0..ENTRIES_IN_PLACE {
        file.write_all_at(&[0; ENTRY_BYTES], number * ENTRY_BYTES as u64).context("writing")?;
    }
    file.sync_all().context("syncing")?;
    Ok(file)
}

/// Writes of the size of an entry, each made durable before the next, per second. `place` says where each goes.
fn sync_rate(file: &File, time: Duration, mut place: impl FnMut(u64) -> u64) -> Result<f64> {
    let began = Instant::now();
    let mut count = 0;
    while began.elapsed() < time {
        file.write_all_at(&[7; ENTRY_BYTES], place(count) * ENTRY_BYTES as u64).context("writing")?;
        file.sync_data().context("syncing")?;
        count += 1;
    }
    Ok(count as f64 / began.elapsed().as_secs_f64())
}

pub(crate) fn folder_bytes(dir: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(dir).with_context(|| format!("can not read {}", dir.display()))? {
        let entry = entry.context("a folder's entry")?;
        let about = entry.metadata().context("a folder's entry")?;
        sum += if about.is_dir() { folder_bytes(&entry.path())? } else { about.len() };
    }
    Ok(sum)
}
