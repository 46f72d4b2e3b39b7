//! Where the bus is, as addresses: so that no actor reaches it who was not granted just that. Names are looked up again
//! and again; an address that was the bus's once stays barred.

use bus::Bus;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

const LOOK_EVERY: Duration = Duration::from_secs(30);
/// For all names together, when the host starts; those that are addresses need none.
const FIRST_WAIT: Duration = Duration::from_secs(2);
const ADDRESSES_MAX: usize = 256;

/// The addresses known now, kept up to date as long as anybody listens.
pub(super) async fn addresses(bus: &Bus) -> watch::Receiver<Arc<[SocketAddr]>> {
    let mut known = Vec::new();
    let _ = timeout(FIRST_WAIT, look(bus, &mut known)).await;
    let (tx, rx) = watch::channel(Arc::from(known.as_slice()));
    let bus = bus.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = tx.closed() => return,
                () = sleep(LOOK_EVERY) => {}
            }
            let before = known.len();
            look(&bus, &mut known).await;
            if known.len() != before {
                tx.send_replace(Arc::from(known.as_slice()));
            }
        }
    });
    rx
}

async fn look(bus: &Bus, known: &mut Vec<SocketAddr>) {
    for (host, port) in bus.servers() {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let Ok(found) = tokio::net::lookup_host((bare, port)).await else { continue };
        for addr in found {
            if !known.contains(&addr) && known.len() < ADDRESSES_MAX {
                known.push(addr);
            }
        }
    }
}
