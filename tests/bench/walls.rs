//! A hundred hostile actors beside one good one: what the good one's clients notice. The good one is asked at a steady
//! rate, in turns alone, beside a hundred that answer at once, and beside a hundred that trap, loop, grow, recurse, flood
//! the host with calls, are sent heads a byte at a time and bodies without an end. Attacks begin one after the other; in
//! the last rows all at the same moments, which alone makes a queue, whatever they do. Those who attack would do so from
//! machines of their own: here they run on threads that give way to all others, so that the good one's clients notice
//! the host and not them.

use crate::Bench;
use crate::figures::{Series, Table, number, percentile, ratio};
use crate::lattice::{App, Up};
use crate::load::{Connection, Target};
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

const HOSTILE: usize = 100;
/// Of all of them, two each.
const CLIENTS: u32 = 200;
/// Connections of the good one's clients, and requests a second of all of them together.
const CONNECTIONS: u32 = 8;
const PER_SECOND: u32 = 400;
/// An attacker begins again this long after it began, or when it is answered if that is later.
const AGAIN: Duration = Duration::from_millis(250);
const ATTACK_WAIT: Duration = Duration::from_secs(20);
/// Between the bytes of a slow head, and the pieces of a body without an end.
const DRIP: Duration = Duration::from_millis(200);
/// After an attack, until what it left behind has ended too.
const SETTLE: Duration = Duration::from_secs(3);

/// What an actor is asked for, and by which path.
type Wanted = (&'static str, &'static str);

/// When those who attack begin.
#[derive(Clone, Copy)]
enum Begin {
    InTurns,
    AtOnce,
}

/// As many requests, of actors that answer at once: what they cost the good one is no attack's doing.
const HARMLESS: Wanted = ("nothing hostile", "/");

/// What a hostile actor is asked for; the last two are attacks of its clients.
const ATTACKS: [Wanted; 12] = [
    ("trap", "/trap"),
    ("loop", "/loop"),
    ("memory", "/memory?then=loop"),
    ("recursion", "/recurse"),
    ("flood of calls", "/flood?of=clock"),
    ("flood of waits", "/flood?of=poll"),
    ("flood of log", "/flood?of=log"),
    ("hoard of headers", "/hoard?of=headers"),
    ("hoard of bodies", "/hoard?of=bodies"),
    ("hoard of handles", "/hoard?of=handles"),
    ("slow head", ""),
    ("endless body", "/echo"),
];

pub(crate) fn run(bench: &Bench) -> Result<()> {
    let dir = bench.folder("walls")?;
    let up = Up::start(&dir.join("up"), &[])?;
    let component = bench.component("hello");
    let good = App { name: "good", image: &component, at: None, store_at: None };
    up.apply(&good.write(&dir)?)?;
    up.apply(&hostile(&dir)?)?;
    let target = Target::new(up.ingress, &good.host_name(), "/");
    let attackers = attackers()?;
    let strike = |time, only, begin| {
        let attack = under_attack(attackers.handle(), &target, up.ingress, time, only, begin);
        let ended = bench.runtime.block_on(attack);
        std::thread::sleep(SETTLE);
        ended
    };
    let time = bench.time() * 2;
    let (mut alone, mut harmless, mut beside) = (Vec::new(), Vec::new(), Vec::new());
    let mut outcomes = BTreeMap::new();
    bench.runtime.block_on(ask(&target, time / 4))?;
    for _ in 0..bench.rounds() {
        alone.push(bench.runtime.block_on(ask(&target, time))?);
        for (only, all_times) in [(Some(HARMLESS), &mut harmless), (None, &mut beside)] {
            let (times, ended) = strike(time, only, Begin::InTurns)?;
            all_times.push(times);
            for (outcome, count) in ended.into_iter().filter(|_| only.is_none()) {
                *outcomes.entry(outcome).or_insert(0) += count;
            }
        }
    }
    let mut rows: Vec<_> =
        [("alone", &alone), ("beside 100 harmless ones", &harmless), ("beside 100 hostile ones", &beside)]
            .map(|(name, rounds)| Row::new(name.to_owned(), rounds))
            .into();
    let mut more = |name: String, wanted: Option<Wanted>, begin: Begin| -> Result<()> {
        rows.push(Row::new(name, &[strike(time / 2, wanted, begin)?.0]));
        Ok(())
    };
    for wanted in ATTACKS {
        more(format!("  all of them: {}", wanted.0), Some(wanted), Begin::InTurns)?;
    }
    more("  at the same moments: nothing hostile".to_owned(), Some(HARMLESS), Begin::AtOnce)?;
    more("  at the same moments: each its own attack".to_owned(), None, Begin::AtOnce)?;
    if bench.runtime.block_on(ask(&target, time / 4))?.is_empty() {
        bail!("the host did not live");
    }
    print(&rows);
    let outcomes: Vec<_> = outcomes.iter().map(|(outcome, count)| format!("{outcome} {count}")).collect();
    println!("  what became of the attacks: {}", outcomes.join(", "));
    Ok(())
}

/// Where those who attack run.
fn attackers() -> Result<Runtime> {
    let give_way = || {
        use thread_priority::{NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy};
        let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
        let thread = thread_priority::thread_native_id();
        thread_priority::set_thread_priority_and_policy(thread, ThreadPriority::Min, idle)
            .expect("any thread may give way");
    };
    let attackers = Builder::new_multi_thread().worker_threads(2).enable_all().on_thread_start(give_way).build();
    attackers.context("can not start threads for those who attack")
}

/// One file of as many apps, each of one actor.
fn hostile(dir: &Path) -> Result<PathBuf> {
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guests/hostile/hostile.wasm");
    let mut text = String::new();
    for number in 0..HOSTILE {
        let _ = write!(
            text,
            "---\napiVersion: core.oam.dev/v1beta1\nkind: Application\nmetadata: {{ name: hostile-{number} }}\nspec:\n  \
             components:\n    - name: web\n      type: component\n      properties: {{ image: {:?} }}\n      traits:\n        \
             - {{ type: ingress, properties: {{ host: hostile-{number}.localhost }} }}\n        \
             - {{ type: spreadscaler, properties: {{ instances: 4 }} }}\n        \
             - {{ type: limits, properties: {{ deadline: 2s, queue: 8 }} }}\n",
            image.display().to_string()
        );
    }
    let path = dir.join("hostile.yaml");
    std::fs::write(&path, text).with_context(|| format!("can not write {}", path.display()))?;
    Ok(path)
}

/// Asks at a steady rate for `time`, after a start that is not counted: a machine that was idle has to fetch from afar what
/// it needs. The microseconds of each answer, in order of size.
async fn ask(target: &Target, time: Duration) -> Result<Vec<u32>> {
    let every = Duration::from_secs(1) * CONNECTIONS / PER_SECOND;
    let mut clients = JoinSet::new();
    let begin = Instant::now() + Duration::from_millis(50);
    let counts = begin + time / 4;
    for number in 0..CONNECTIONS {
        let mut connection = Connection::open(target.clone()).await?;
        let first = begin + every * number / CONNECTIONS;
        clients.spawn(async move {
            let mut times = Vec::new();
            let mut due = first;
            while due < counts + time {
                sleep_until(due).await;
                // A timer that is late is no fault of the server; an answer so late that the next is due is.
                let late = due.elapsed() > every;
                let began = if late { due } else { Instant::now() };
                let status = connection.get().await?;
                if status != 200 {
                    bail!("the good actor answered {status}");
                }
                if due >= counts {
                    times.push(u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX));
                }
                due += every;
            }
            Ok(times)
        });
    }
    let mut all = Vec::new();
    while let Some(client) = clients.join_next().await {
        all.extend(client.context("a client's task")??);
    }
    all.sort_unstable();
    Ok(all)
}

/// The same while every hostile actor has two clients, each with an attack of its own or all with the same.
async fn under_attack(
    attackers: &Handle,
    target: &Target,
    ingress: SocketAddr,
    time: Duration,
    only: Option<Wanted>,
    begin: Begin,
) -> Result<(Vec<u32>, BTreeMap<String, usize>)> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut attacks = JoinSet::new();
    let now = Instant::now();
    for number in 0..CLIENTS {
        let (actor, stop) = (usize::try_from(number)? % HOSTILE, stop.clone());
        let wanted = only.unwrap_or(ATTACKS[actor % ATTACKS.len()]);
        let first = match begin {
            Begin::InTurns => now + AGAIN * number / CLIENTS,
            Begin::AtOnce => now,
        };
        let attack = async move {
            sleep_until(first).await;
            attack(ingress, actor, wanted, stop).await
        };
        attacks.spawn_on(attack, attackers);
    }
    // Until the attack is under way.
    sleep(time / 4).await;
    let times = ask(target, time).await;
    stop.store(true, Ordering::Relaxed);
    let mut outcomes = BTreeMap::new();
    while let Some(attack) = attacks.join_next().await {
        for (outcome, count) in attack.context("an attacker's task")? {
            *outcomes.entry(outcome).or_insert(0) += count;
        }
    }
    Ok((times?, outcomes))
}

/// How often each attack ended how.
async fn attack(ingress: SocketAddr, number: usize, wanted: Wanted, stop: Arc<AtomicBool>) -> BTreeMap<String, usize> {
    let (name, path) = wanted;
    let mut outcomes = BTreeMap::new();
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let ended = timeout(ATTACK_WAIT, once(ingress, number, path, &stop)).await;
        let outcome = match ended {
            Ok(Ok(status)) => format!("{name}: {status}"),
            Ok(Err(_)) => format!("{name}: cut off"),
            Err(_) => format!("{name}: NO END after {ATTACK_WAIT:?}"),
        };
        *outcomes.entry(outcome).or_insert(0) += 1;
        sleep_until(began + AGAIN).await;
    }
    outcomes
}

async fn once(ingress: SocketAddr, number: usize, path: &str, stop: &AtomicBool) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(ingress).await?;
    let host = format!("hostile-{number}.localhost");
    if path.is_empty() {
        drip(&mut stream, b"GET / HTTP/1.1\r\nHost: nowhere\r\nX-Slow: ", b"x", stop).await?;
    } else if path == "/echo" {
        let head = format!("POST /echo HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n");
        drip(&mut stream, head.as_bytes(), b"1\r\nx\r\n", stop).await?;
    } else {
        let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let status = answer.get(9..12).map(|status| String::from_utf8_lossy(status).into_owned());
    Ok(status.unwrap_or_else(|| "closed".to_owned()))
}

/// Sends the start, then a piece now and then until the other side has had enough.
async fn drip(stream: &mut TcpStream, start: &[u8], piece: &[u8], stop: &AtomicBool) -> std::io::Result<()> {
    stream.write_all(start).await?;
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(piece).await?;
        sleep(DRIP).await;
    }
    Ok(())
}

/// What the good one's clients noticed.
struct Row {
    name: String,
    /// Of each round, for it may be disturbed by others on this machine.
    p50: Series,
    p90: Series,
    p99: Series,
    /// The times of all rounds, in order of size.
    all: Vec<u32>,
}

impl Row {
    fn new(name: String, rounds: &[Vec<u32>]) -> Self {
        let of_each = |share| rounds.iter().map(|times| percentile(times, share)).collect();
        let mut all: Vec<u32> = rounds.iter().flatten().copied().collect();
        all.sort_unstable();
        Self { name, p50: of_each(0.5), p90: of_each(0.9), p99: of_each(0.99), all }
    }
}

/// Round by round where there are as many of both.
fn compared(one: &Series, other: &Series) -> String {
    if one.len() == other.len() { one.ratio_to(other) } else { ratio(one.median() / other.median().max(1.0)) }
}

/// The first two rows are what the others are compared to.
fn print(rows: &[Row]) {
    let mut table = Table::new([
        "the good actor",
        "requests",
        "p50 us",
        "p90 us",
        "p99 us",
        "p99.9 us",
        "slowest us",
        "p50 to alone",
        "p99 to alone",
        "p99 to harmless",
    ]);
    for row in rows {
        table.row([
            row.name.clone(),
            row.all.len().to_string(),
            row.p50.show(),
            row.p90.show(),
            row.p99.show(),
            number(percentile(&row.all, 0.999)),
            number(percentile(&row.all, 1.0)),
            compared(&row.p50, &rows[0].p50),
            compared(&row.p99, &rows[0].p99),
            compared(&row.p99, &rows[1].p99),
        ]);
    }
    table.print();
    println!(
        "  {PER_SECOND} requests a second of the good one on {CONNECTIONS} connections, in turns alone and beside both; \
         p50, p90 and p99 are medians of the rounds, the others of all of them"
    );
}
