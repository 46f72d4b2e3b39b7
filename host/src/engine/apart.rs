//! Who drops the instances that end in the back. Giving memory back to the operating system takes locks that all of the process
//! shares, and a thread that runs only when no other wants the processor would keep them for as long as others want it. So it
//! leaves its instances to a thread that has no such low priority.

use std::cell::RefCell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use tokio::sync::oneshot;

/// Threads in the back to one of these.
const BACK_TO_ONE: usize = 8;

/// To a thread that drops what it is sent, in that order.
type Left = mpsc::Sender<Box<dyn Send>>;

thread_local! {
    static LEFT: RefCell<Option<Left>> = const { RefCell::new(None) };
}

/// The threads; each ends with the last of those that it serves.
pub(super) struct Apart {
    threads: Vec<Left>,
    served: AtomicUsize,
}

impl Apart {
    /// As many as so many threads in the back want.
    pub(super) fn start(back: usize) -> io::Result<Self> {
        let threads = (0..back.div_ceil(BACK_TO_ONE)).map(|_| start_one()).collect::<io::Result<_>>()?;
        Ok(Self { threads, served: AtomicUsize::new(0) })
    }

    /// From now on what ends on this thread is left to one of them.
    pub(super) fn serve_this_thread(&self) {
        let number = self.served.fetch_add(1, Ordering::Relaxed);
        LEFT.set(Some(self.threads[number % self.threads.len()].clone()));
    }
}

fn start_one() -> io::Result<Left> {
    let (left, takes) = mpsc::channel::<Box<dyn Send>>();
    let run = move || {
        for thing in takes {
            if catch_unwind(AssertUnwindSafe(|| drop(thing))).is_err() {
                tracing::error!("an instance broke as it was dropped; please report it");
            }
        }
    };
    std::thread::Builder::new().name("apart".into()).spawn(run)?;
    Ok(left)
}

/// `None` on all threads but those in the back.
fn left() -> Option<Left> {
    LEFT.try_with(|left| left.borrow().clone()).ok().flatten()
}

/// Drops an instance, with its rights to run: here, or on a thread in the back by leaving it to another.
pub(super) fn leave(instance: impl Send + 'static) {
    if let Some(left) = left() {
        // Never more than there are slots, which they hold. When nobody takes them any more this drops it.
        let _ = left.send(Box::new(instance));
    }
}

/// Ends when all has been dropped that this thread has left; `None` if it leaves nothing.
pub(super) fn all_dropped() -> Option<oneshot::Receiver<()>> {
    let (last, dropped) = oneshot::channel();
    left()?.send(Box::new(last)).ok()?;
    Some(dropped)
}
