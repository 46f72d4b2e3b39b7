//! The time that an HTTP/1 connection has for each head. hyper begins one before each head and drops it after, and one
//! of the runtime's costs its lock both times. Here a connection keeps one of them: it is set when a head is waited for
//! and none is set, and set again, to what is waited for by then, when it fires. Must never fire late; it may look once
//! too often.

use hyper::rt::{Sleep, Timer};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::time::sleep_until;

/// Of one connection.
#[derive(Default)]
pub(super) struct HeadTimer {
    kept: Arc<Mutex<Option<Pin<Box<tokio::time::Sleep>>>>>,
}

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(Instant::now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(Wait { deadline, kept: self.kept.clone() })
    }
}

/// Until `deadline`, by the timer that is kept.
struct Wait {
    deadline: Instant,
    kept: Arc<Mutex<Option<Pin<Box<tokio::time::Sleep>>>>>,
}

impl Sleep for Wait {}

impl Future for Wait {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = self.deadline.into();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = kept.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if kept.deadline() > deadline {
            kept.as_mut().reset(deadline);
        }
        loop {
            ready!(kept.as_mut().poll(cx));
            if kept.deadline() >= deadline {
                return Poll::Ready(());
            }
            // It was set for a head that has come since.
            kept.as_mut().reset(deadline);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    const STEP: Duration = Duration::from_millis(50);

    async fn polled(wait: &mut Pin<Box<dyn Sleep>>) -> bool {
        poll_fn(|cx| Poll::Ready(wait.as_mut().poll(cx).is_ready())).await
    }

    #[tokio::test]
    async fn each_wait_ends_at_its_own_time_though_one_timer_is_kept() {
        let (timer, began) = (HeadTimer::default(), Instant::now());
        let mut first = timer.sleep_until(began + STEP);
        assert!(!polled(&mut first).await || began.elapsed() >= STEP);
        drop(first);
        // The kept one fires sooner, and is set again.
        timer.sleep_until(began + STEP * 4).await;
        assert!(began.elapsed() >= STEP * 4);
        // It is set for later, and has to fire sooner.
        let (later, now) = (Duration::from_secs(600), Instant::now());
        assert!(!polled(&mut timer.sleep(later)).await);
        timer.sleep_until(now + STEP).await;
        assert!(now.elapsed() >= STEP && now.elapsed() < later / 2);
        // What has passed is over at once.
        timer.sleep_until(began).await;
    }
}
