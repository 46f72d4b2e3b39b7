//! The client library's connection, and what keeps it. The library reconnects by itself, but the task that runs it
//! ends for good on some input (a header value with a bare carriage return, which any peer may send through a server
//! that does not look): then a new connection takes its place and everything that listened listens again.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, Event, Message, Subscriber};
use futures::StreamExt;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{Config, Drops, Error, Reason, config};

/// Whether the server can be reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Connection {
    pub up: bool,
    /// How often it came up so far.
    pub count: u64,
}

pub(crate) struct Wire {
    config: Config,
    client: RwLock<Arc<Client>>,
    /// Counts the clients up.
    generation: watch::Sender<u64>,
    observer: Arc<Observer>,
    /// Connects of clients before this one.
    connects_before: AtomicU64,
    /// No new client takes the place of one that ends.
    pub(crate) closing: CancellationToken,
    /// Everything ends now.
    pub(crate) stop: CancellationToken,
}

/// Messages of one subscription, over all connections.
pub(crate) struct Feed {
    wire: Arc<Wire>,
    subject: String,
    queue: Option<String>,
    subscriber: Subscriber,
    generation: u64,
    is_draining: bool,
}

const CHECK_INTERVAL: Duration = Duration::from_millis(500);
const REVIVE_PAUSE: Duration = Duration::from_millis(100);
/// The client library tries to connect for ever; once closed it may as well sleep.
const AFTER_CLOSE: Duration = Duration::from_secs(24 * 3_600);

impl Wire {
    /// An error is always a mistake in the configuration.
    pub(crate) async fn start(config: &Config, drops: Arc<Drops>) -> Result<Arc<Self>, Error> {
        let stop = CancellationToken::new();
        let observer = Arc::new(Observer { sender: watch::Sender::default(), problem: Mutex::default(), drops });
        let client = connect(config, &observer, &stop, false).await?;
        let wire = Arc::new(Self {
            config: config.clone(),
            client: RwLock::new(Arc::new(client)),
            generation: watch::Sender::default(),
            observer,
            connects_before: AtomicU64::new(0),
            closing: stop.child_token(),
            stop,
        });
        tokio::spawn(check(Arc::clone(&wire)));
        Ok(wire)
    }

    pub(crate) fn client(&self) -> Arc<Client> {
        Arc::clone(&self.client.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn connection(&self) -> watch::Receiver<Connection> {
        self.observer.sender.subscribe()
    }

    pub(crate) fn is_up(&self) -> bool {
        self.observer.sender.borrow().up && !self.closing.is_cancelled()
    }

    pub(crate) fn problem(&self) -> Option<String> {
        self.observer.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn urls(&self) -> &[String] {
        &self.config.urls
    }

    pub(crate) fn servers(&self) -> Vec<(String, u16)> {
        let named = self.config.servers().unwrap_or_default();
        let heard = self.client().server_info().connect_urls;
        let heard = heard.iter().filter_map(|url| url.parse::<async_nats::ServerAddr>().ok());
        named.into_iter().chain(heard).map(|at| (at.host().to_owned(), at.port())).collect()
    }

    /// What nothing can be sent on means.
    pub(crate) fn down(&self) -> Error {
        if self.closing.is_cancelled() { Error::Closed } else { Error::Disconnected }
    }

    pub(crate) async fn listen(self: &Arc<Self>, subject: String, queue: Option<String>) -> Result<Feed, Error> {
        if self.closing.is_cancelled() {
            return Err(Error::Closed);
        }
        // Read first: if a new client comes meanwhile, the feed notices and moves to it.
        let generation = *self.generation.borrow();
        let subscriber = subscribe(&self.client(), &subject, queue.as_deref()).await.ok_or_else(|| self.down())?;
        Ok(Feed { wire: Arc::clone(self), subject, queue, subscriber, generation, is_draining: false })
    }

    /// Puts a new client in the place of one that ended. For one caller: the inbox.
    pub(crate) async fn revive(&self) {
        self.observer.drops.count(Reason::Malformed);
        self.observer.set_down();
        warn!("the connection to the bus broke on what it was sent: a new one is made");
        loop {
            tokio::select! {
                () = self.closing.cancelled() => return,
                () = sleep(REVIVE_PAUSE) => {}
            }
            match connect(&self.config, &self.observer, &self.stop, true).await {
                Ok(client) => {
                    let before = self.client().statistics().connects.load(Ordering::Relaxed);
                    self.connects_before.fetch_add(before, Ordering::Relaxed);
                    *self.client.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(client);
                    self.generation.send_modify(|generation| *generation += 1);
                    return;
                }
                Err(error) => {
                    self.observer.complain(Some(error.to_string()));
                    sleep(config::BACKOFF_MAX).await;
                }
            }
        }
    }
}

impl Feed {
    /// `None` when the connection is closed, or when this has been drained.
    pub(crate) async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = self.subscriber.next().await {
                return Some(message);
            }
            if self.is_draining || self.wire.closing.is_cancelled() {
                return None;
            }
            // Boxed: it is large, and rare.
            Box::pin(self.move_on()).await?;
        }
    }

    /// The inbox's own: it makes the new client that the others wait for.
    pub(crate) async fn next_or_revive(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = self.subscriber.next().await {
                return Some(message);
            }
            if self.wire.closing.is_cancelled() {
                return None;
            }
            self.wire.revive().await;
            self.move_on().await?;
        }
    }

    /// Unsubscribes; what the server sent before still comes.
    pub(crate) async fn drain(&mut self) {
        self.is_draining = true;
        let _ = self.subscriber.drain().await;
    }

    /// Subscribes with the next client.
    async fn move_on(&mut self) -> Option<()> {
        let mut generations = self.wire.generation.subscribe();
        loop {
            let before = self.generation;
            tokio::select! {
                () = self.wire.closing.cancelled() => return None,
                next = generations.wait_for(|generation| *generation > before) => self.generation = *next.ok()?,
            }
            if let Some(subscriber) = subscribe(&self.wire.client(), &self.subject, self.queue.as_deref()).await {
                self.subscriber = subscriber;
                return Some(());
            }
        }
    }
}

async fn subscribe(client: &Client, subject: &str, queue: Option<&str>) -> Option<Subscriber> {
    let subscribed = match queue {
        Some(queue) => client.queue_subscribe(subject.to_owned(), queue.to_owned()).await,
        None => client.subscribe(subject.to_owned()).await,
    };
    subscribed.ok()
}

/// `again`: there was a connection before, and others may have lost theirs with it.
async fn connect(
    config: &Config,
    observer: &Arc<Observer>,
    stop: &CancellationToken,
    again: bool,
) -> Result<Client, Error> {
    let dice = RandomState::new();
    let has_tried = AtomicBool::new(again);
    let stop = stop.clone();
    let observer = Arc::clone(observer);
    config
        .options()?
        .reconnect_delay_callback(move |attempts| {
            match has_tried.swap(true, Ordering::Relaxed) {
                _ if stop.is_cancelled() => AFTER_CLOSE,
                // There is nobody yet to come back in step with.
                false => Duration::ZERO,
                true => config::backoff(attempts, dice.hash_one(attempts)),
            }
        })
        .event_callback(move |event| {
            observer.event(&event);
            std::future::ready(())
        })
        .connect(config.servers()?)
        .await
        .map_err(|e| Error::Config(format!("NATS connection {:?}: {e}: check its options", config.name)))
}

/// Takes what the client library says about the connection.
struct Observer {
    sender: watch::Sender<Connection>,
    problem: Mutex<Option<String>>,
    drops: Arc<Drops>,
}

impl Observer {
    fn event(&self, event: &Event) {
        match event {
            Event::Connected => {
                self.complain(None);
                self.sender.send_modify(|connection| {
                    connection.up = true;
                    connection.count += 1;
                });
                info!("bus connected");
            }
            Event::Disconnected | Event::Closed => {
                self.set_down();
                warn!("bus disconnected");
            }
            Event::SlowConsumer(_) => self.drops.count(Reason::Overflow),
            Event::ServerError(error) => self.complain(Some(error.to_string())),
            Event::ClientError(error) => self.complain(Some(error.to_string())),
            Event::LameDuckMode | Event::Draining => {}
        }
    }

    fn complain(&self, problem: Option<String>) {
        let mut last = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != problem {
            if let Some(problem) = &problem {
                warn!(problem, "bus");
            }
            *last = problem;
        }
    }

    fn set_down(&self) {
        self.sender.send_if_modified(|connection| std::mem::replace(&mut connection.up, false));
    }
}

/// The library drops events when too many come at once: what it says when asked wins, once it has said so twice.
async fn check(wire: Arc<Wire>) {
    let mut before = None;
    loop {
        tokio::select! {
            () = wire.stop.cancelled() => break,
            () = sleep(CHECK_INTERVAL) => {}
        }
        let client = wire.client();
        let connects = client.statistics().connects.load(Ordering::Relaxed);
        let said = Connection {
            up: client.connection_state() == State::Connected,
            count: wire.connects_before.load(Ordering::Relaxed) + connects,
        };
        if before == Some(said) {
            wire.observer.sender.send_if_modified(|connection| {
                let changed = *connection != said;
                *connection = said;
                changed
            });
        }
        before = Some(said);
    }
    wire.observer.set_down();
}
