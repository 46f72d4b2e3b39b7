//! What other schedulers say to this one. Must never hand on what a certificate does not vouch for, nor let a member
//! speak that was removed or lost its log.

use super::roster::{self, Stranger};
use super::{Fetch, Listener, Peers, authority, carry, hold, pieces};
use crate::{raft, tls};
use proto::v1 as pb;
use proto::v1::peer_frame::What;
use proto::v1::peer_server::{Peer, PeerServer};
use rustls::ServerConfig;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tonic::transport::{CertificateDer, Server};
use tonic::{Request, Response, Status, Streaming};

/// For the greeting to come.
const GREETING: Duration = Duration::from_secs(5);
const CONCURRENT_MAX: usize = 256;
/// For connections to be told that this scheduler ends.
const GOODBYE: Duration = Duration::from_millis(200);
/// How often it is looked whether who speaks still is a member; one that was removed hears so then.
const LOOK: Duration = Duration::from_secs(1);

/// Serves the other schedulers until `stop` fires; at once over when there is no listener.
pub(crate) async fn serve(peers: Peers, listener: Listener, fetch: Fetch, mut stop: watch::Receiver<bool>) {
    let (Some(listener), Some(_)) = (listener, &peers.0.own) else { return };
    let current = match tls_of(&peers) {
        Ok(config) => watch::Sender::new(config),
        Err(error) => {
            tracing::error!(error, "schedulers can not reach this one");
            return;
        }
    };
    let incoming = tls::incoming(listener, current.subscribe());
    let renewing = tokio::spawn(renew(peers.clone(), current));
    let service = PeerServer::new(Served { peers: peers.clone(), fetch })
        .max_decoding_message_size(carry::ANSWER_BYTES_MAX)
        .max_encoding_message_size(carry::ANSWER_BYTES_MAX);
    let mut over = stop.clone();
    let stopped = async move {
        let _ = stop.wait_for(|s| *s).await;
    };
    let mut server = Server::builder()
        .concurrency_limit_per_connection(CONCURRENT_MAX)
        .http2_keepalive_interval(Some(Duration::from_secs(5)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20);
    let serving = server.add_service(service).serve_with_incoming_shutdown(incoming, stopped);
    tokio::select! {
        served = serving => if let Err(error) = served {
            tracing::error!(%error, "the peer listener ended");
        },
        // The others' streams never end by themselves.
        () = async { let _ = over.wait_for(|s| *s).await; tokio::time::sleep(GOODBYE).await } => {}
    }
    renewing.abort();
}

/// What is shown to who connects now. Who joins has no certificate yet; all others must have one.
fn tls_of(peers: &Peers) -> Result<Arc<ServerConfig>, String> {
    let Some((_, identity)) = &peers.0.own else { return Err("it listens for no others".into()) };
    let chain = format!("{}{}", peers.leaf(), identity.authority);
    tls::config(&chain, &identity.key, Some(&identity.authority))
}

/// Signs the certificate anew, long before it ends.
async fn renew(peers: Peers, current: watch::Sender<Arc<ServerConfig>>) {
    loop {
        tokio::time::sleep(peers.0.leaf_life / 3).await;
        let renewed = peers.renew_leaf().map_err(|error| error.to_string()).and_then(|()| tls_of(&peers));
        match renewed {
            Ok(config) => drop(current.send_replace(config)),
            Err(error) => tracing::error!(error, "the certificate of this scheduler is not renewed"),
        }
    }
}

struct Served {
    peers: Peers,
    fetch: Fetch,
}

impl Served {
    /// Whether this is a member, by certificate and by what the log knows of it.
    fn admit(&self, shown: Option<&CertificateDer<'_>>, greeting: Option<&pb::PeerGreeting>) -> Result<(), Status> {
        let greeting = greeting.ok_or_else(|| Status::invalid_argument("no greeting: say who asks"))?;
        let from = greeting.from;
        let Some(shown) = shown else {
            return Err(Status::permission_denied(format!("scheduler {from} shows no certificate; let it join first")));
        };
        if !authority::is_of(shown, from) {
            return Err(Status::permission_denied(format!("the certificate shown is not that of scheduler {from}")));
        }
        let peers = &self.peers.0;
        let status = peers.raft.status().borrow().clone();
        let admitted = roster::admit(&peers.replica.read(), &status.members, status.id, &peers.lattice, greeting);
        admitted.map_err(|stranger| {
            let (Stranger::Removed(text) | Stranger::Refused(text)) = &stranger;
            tracing::warn!(scheduler = from, "refused: {text}");
            match &stranger {
                Stranger::Removed(text) => Status::failed_precondition(text),
                Stranger::Refused(text) => Status::permission_denied(text),
            }
        })?;
        if !greeting.peer.is_empty() && greeting.peer.len() <= 260 {
            let mut heard = peers.heard.lock().unwrap_or_else(PoisonError::into_inner);
            // Only members are remembered, and those are few.
            heard.retain(|id, _| !peers.replica.read().was_removed(*id));
            heard.insert(from, greeting.peer.clone());
        }
        Ok(())
    }

    async fn listen(&self, mut frames: Streaming<pb::PeerFrame>, greeting: &pb::PeerGreeting) -> Result<(), Status> {
        let mut assembly = pieces::Assembly::default();
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let frame = tokio::select! {
                frame = frames.message() => frame?,
                _ = look.tick() => {
                    if self.peers.tells_out(greeting.from) {
                        return Err(Status::failed_precondition(crate::state::removed(greeting.from)));
                    }
                    continue;
                }
            };
            let Some(frame) = frame else { return Ok(()) };
            let message = match frame.what {
                Some(What::Message(message)) => Some(message),
                Some(What::Piece(piece)) => assembly.take(piece).map_err(Status::invalid_argument)?,
                Some(What::Greeting(_)) | None => return Err(Status::invalid_argument("a frame that says nothing")),
            };
            if let Some(message) = message
                && matches!(self.peers.0.raft.step(message), Err(raft::Error::Stopped))
            {
                return Err(Status::unavailable("this scheduler ends"));
            }
            // What the log has no room for now is lost, as on a network.
        }
    }
}

fn shown<T>(request: &Request<T>) -> Option<CertificateDer<'static>> {
    request.peer_certs().and_then(|chain| chain.first().cloned())
}

#[tonic::async_trait]
impl Peer for Served {
    async fn carry(&self, request: Request<Streaming<pb::PeerFrame>>) -> Result<Response<pb::PeerEnd>, Status> {
        let shown = shown(&request);
        let mut frames = request.into_inner();
        let first = tokio::time::timeout(GREETING, frames.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no greeting came"))??;
        let Some(pb::PeerFrame { what: Some(What::Greeting(greeting)) }) = first else {
            return Err(Status::invalid_argument("no greeting came"));
        };
        self.admit(shown.as_ref(), Some(&greeting))?;
        self.peers.0.outbox.heard_of(greeting.from);
        self.listen(frames, &greeting).await?;
        Ok(Response::new(pb::PeerEnd {}))
    }

    async fn ask(&self, request: Request<pb::PeerAsk>) -> Result<Response<pb::PeerAnswer>, Status> {
        let shown = shown(&request);
        let pb::PeerAsk { greeting, what } = request.into_inner();
        self.admit(shown.as_ref(), greeting.as_ref())?;
        // Nothing asked: somebody wants to know whether it is heard.
        let Some(what) = what else { return Ok(Response::new(pb::PeerAnswer::default())) };
        if !self.peers.leads() {
            return Ok(Response::new(pb::PeerAnswer { not_leader: true, what: None }));
        }
        let answer = self.peers.answer(what).await?;
        Ok(Response::new(pb::PeerAnswer { not_leader: answer.is_none(), what: answer }))
    }

    async fn hold(&self, request: Request<pb::PeerHold>) -> Result<Response<pb::PeerEnd>, Status> {
        let shown = shown(&request);
        let pb::PeerHold { greeting, digests } = request.into_inner();
        self.admit(shown.as_ref(), greeting.as_ref())?;
        hold::hold(&self.fetch, digests).await?;
        Ok(Response::new(pb::PeerEnd {}))
    }

    async fn join(&self, request: Request<pb::JoinRequest>) -> Result<Response<pb::JoinAnswer>, Status> {
        self.peers.take_in(request.into_inner()).await.map(Response::new)
    }
}
