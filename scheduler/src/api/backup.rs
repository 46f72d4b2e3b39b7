//! A backup as a stream: the state as of one log index, then the components, read from the disk as the client takes them.

use super::Service;
use crate::backup::{About, Made};
use crate::events::unix_ms;
use crate::gather;
use proto::v1 as pb;
use std::collections::BTreeSet;
use std::io;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

pub(crate) type BackupStream = ReceiverStream<Result<pb::BackupPiece, Status>>;

/// Pieces that wait for a reader.
const QUEUE_MAX: usize = 4;

impl Service {
    pub(super) async fn backup_of(&self, request: pb::BackupRequest) -> Result<BackupStream, Status> {
        self.fresh(false).await?;
        let state = self.shared.replica.read().clone();
        let named = if request.bare { BTreeSet::new() } else { gather::named(&state) };
        for digest in named {
            gather::fetch(&self.shared.bus, &self.artifacts, &digest).await.map_err(|error| {
                Status::failed_precondition(format!(
                    "component {digest} is not held here, and nobody gave it: {error}; leave the components out with --bare"
                ))
            })?;
        }
        let term = self.shared.raft.status().borrow().term;
        let lattice = Self::lattice_name(&self.shared.lattice)?;
        let about = About { lattice, made_ms: unix_ms(), term, uncertain: 0, bare: request.bare };
        let artifacts = self.artifacts.clone();
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        tokio::task::spawn_blocking(move || {
            let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
            let written = Made::of(&state, about, artifacts.dir()).and_then(|made| {
                made.write(&mut |piece| {
                    let piece = pb::BackupPiece { data: piece.to_vec() };
                    sender.blocking_send(Ok(piece)).map_err(|_| gone())
                })
            });
            if let Err(error) = written {
                let _ = sender.blocking_send(Err(Status::internal(error.to_string())));
            }
        });
        Ok(ReceiverStream::new(receiver))
    }

    fn lattice_name(text: &str) -> Result<proto::app::LatticeName, Status> {
        text.parse().map_err(|error| Status::internal(format!("name of the lattice: {error}")))
    }
}
