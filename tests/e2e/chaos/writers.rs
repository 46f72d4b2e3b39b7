//! Clients that write and read one register all the while, one beside each scheduler, each noting what it was told.

use super::history::{Op, What};
use super::world::{Api, SCHEDULERS, World, api, block};
use proto::v1 as pb;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tonic::{Code, Status};

/// Between two operations of a client: enough happens, and the machine has other things to do.
const PAUSE: Duration = Duration::from_millis(15);
/// After which an answer is no longer waited for, and the same request is sent again.
const ATTEMPT: Duration = Duration::from_secs(4);
/// After which nobody knows whether it was applied.
const GIVEN_UP: Duration = Duration::from_secs(40);

#[derive(Default)]
pub(super) struct Writers {
    ops: Mutex<Vec<Op>>,
    end: AtomicBool,
    next: AtomicU32,
}

impl Writers {
    /// Runs the clients while `faults` does its work; gives what they saw.
    pub(super) fn during(world: &mut World, faults: impl FnOnce(&mut World, &Self)) -> Vec<Op> {
        let writers = Self { next: AtomicU32::new(2), ..Self::default() };
        let threads: Vec<_> = SCHEDULERS.into_iter().enumerate().collect();
        std::thread::scope(|scope| {
            for (client, name) in threads {
                let enter = world.net.enter(name);
                let writers = &writers;
                scope.spawn(move || {
                    enter();
                    block(writers.run(client));
                });
            }
            // Also when it fails: the clients end, so that the failure is seen.
            let ending = Ending(&writers);
            faults(world, &writers);
            drop(ending);
        });
        writers.ops.into_inner().unwrap()
    }

    async fn run(&self, client: usize) {
        let mut api = api();
        let mut turn = 0;
        while !self.end.load(Ordering::SeqCst) {
            turn += 1;
            let begin = Instant::now();
            let what = if turn % 3 == 0 { read(&mut api).await } else { self.write(&mut api).await };
            if let Some(what) = what {
                self.ops.lock().unwrap().push(Op { client, begin, end: Instant::now(), what });
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn write(&self, api: &mut Api) -> Option<What> {
        let value = self.next.fetch_add(1, Ordering::SeqCst);
        let request = pb::ScaleRequest {
            app: "register".into(),
            actor: "hello".into(),
            replicas: value,
            request_id: format!("chaos-{value}"),
            if_version: 0,
        };
        let begin = Instant::now();
        while begin.elapsed() < GIVEN_UP {
            match attempt(api.scale(request.clone())).await {
                Ok(answer) => return Some(What::Wrote { value, revision: Some(answer.revision) }),
                Err(status) => pause_after(&status).await,
            }
        }
        Some(What::Wrote { value, revision: None })
    }

    /// So many operations until now.
    pub(super) fn count(&self) -> usize {
        self.ops.lock().unwrap().len()
    }

    /// From `since` to the end of the first write that began after it and was acknowledged to one who does not ask `not`.
    pub(super) fn until_written(&self, since: Instant, not: &str) -> Duration {
        let not = SCHEDULERS.into_iter().position(|name| name == not);
        crate::harness::until("a write is accepted", GIVEN_UP, || {
            let ops = self.ops.lock().unwrap();
            let mine = ops.iter().rev().take_while(|op| op.end > since);
            let theirs = mine.filter(|op| op.begin >= since && Some(op.client) != not && op.is_acknowledged_write());
            theirs.map(|op| op.end.duration_since(since)).min()
        })
    }
}

struct Ending<'a>(&'a Writers);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.end.store(true, Ordering::SeqCst);
    }
}

async fn attempt<T>(call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Status> {
    let answer = tokio::time::timeout(ATTEMPT, call).await;
    Ok(answer.map_err(|_| Status::deadline_exceeded("no answer in time"))??.into_inner())
}

/// What may be tried again is; anything else must not happen here.
async fn pause_after(status: &Status) {
    let may_pass = [Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled, Code::Unknown, Code::ResourceExhausted];
    assert!(may_pass.contains(&status.code()), "{status:?}");
    tokio::time::sleep(Duration::from_millis(50)).await;
}

/// The register as the app shows it; a read that fails says nothing.
async fn read(api: &mut Api) -> Option<What> {
    let request = pb::ListRequest { app: "register".into(), ..Default::default() };
    match attempt(api.list_apps(request)).await {
        Ok(list) => {
            let app = list.items.into_iter().next().expect("the app is there");
            Some(What::Read { value: app.desired, revision: app.revision })
        }
        Err(status) => {
            pause_after(&status).await;
            None
        }
    }
}

/// The register's revision now, by a scheduler that answers.
pub(super) fn revision(world: &World) -> u64 {
    let request = || pb::ListRequest { app: "register".into(), ..Default::default() };
    let read = |name| {
        let list = world.ask(name, |mut api| async move { Ok(api.list_apps(request()).await?.into_inner()) });
        Some(list.ok()?.items.first()?.revision)
    };
    crate::harness::until("the register is read", Duration::from_secs(20), || SCHEDULERS.into_iter().find_map(read))
}
