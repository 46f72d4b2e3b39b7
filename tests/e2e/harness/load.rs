//! Requests without a pause, for as long as something else happens.

use super::http::Request;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Two clients, one request after the other, each on a new connection.
const CLIENTS: usize = 2;

pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Seen>>,
}

/// What came back.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) answered: usize,
    /// What was not 200, each with the time since the start.
    pub(crate) failed: Vec<(Duration, String)>,
    pub(crate) slowest: Duration,
}

impl Load {
    /// GETs `/` at `at` for the app with this host name.
    pub(crate) fn start(at: SocketAddr, host: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let begun = Instant::now();
        let client = |stop: Arc<AtomicBool>| {
            std::thread::spawn(move || {
                let mut seen = Seen::default();
                while !stop.load(Ordering::Relaxed) {
                    let asked = Instant::now();
                    let wrong = match (Request { host, ..Request::get(at, "/") }).send() {
                        Ok(response) if response.status == 200 => None,
                        Ok(response) => Some(format!("{} {}", response.status, response.text())),
                        Err(e) => Some(e.to_string()),
                    };
                    seen.slowest = seen.slowest.max(asked.elapsed());
                    match wrong {
                        None => seen.answered += 1,
                        Some(why) => seen.failed.push((begun.elapsed(), why)),
                    }
                }
                seen
            })
        };
        let clients = (0..CLIENTS).map(|_| client(stop.clone())).collect();
        Self { stop, clients }
    }

    pub(crate) fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Seen::default();
        for client in self.clients {
            let seen = client.join().unwrap();
            all.answered += seen.answered;
            all.failed.extend(seen.failed);
            all.slowest = all.slowest.max(seen.slowest);
        }
        all
    }
}
