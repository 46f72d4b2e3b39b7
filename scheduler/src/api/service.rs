//! The requests that have one answer.

use super::Service;
use super::apply::{Source, to_wire};
use crate::raft;
use proto::app::{Digest, Name};
use proto::v1 as pb;
use proto::v1::command::What;
use proto::v1::control_server::Control;
use tokio_stream::StreamExt;
use tonic::{Request, Response, Status, Streaming};

type Answer<T> = Result<Response<T>, Status>;

/// Pieces of one artifact.
const PIECE_BYTES_MAX: usize = 1024 * 1024 + 1024;

impl Service {
    pub(super) async fn commit(&self, commands: Vec<pb::Command>) -> Result<Vec<pb::Outcome>, Status> {
        let outcomes = self.peers.write(commands).await?;
        match outcomes.iter().find(|o| !o.error.is_empty()) {
            Some(outcome) => Err(status_of(outcome)),
            None => Ok(outcomes),
        }
    }

    pub(super) async fn change(&self, request_id: String, what: What) -> Answer<pb::ChangeResponse> {
        Self::expect_request_id(&request_id)?;
        let outcomes = self.commit(vec![pb::Command { request_id, what: Some(what) }]).await?;
        let outcome = outcomes.into_iter().next().ok_or_else(|| Status::internal("the log gave no outcome"))?;
        let pb::Outcome { change, revision, version, .. } = outcome;
        Ok(Response::new(pb::ChangeResponse { change, revision, version }))
    }

    /// A linearizable read, unless the client asked for a stale one.
    pub(super) async fn fresh(&self, stale: bool) -> Result<(), Status> {
        if !stale {
            self.shared.raft.read_index().await.map_err(status_of_raft)?;
        }
        Ok(())
    }

    pub(super) fn expect_request_id(request_id: &str) -> Result<(), Status> {
        if request_id.len() > 64 {
            return Err(Status::invalid_argument("request_id has more than 64 bytes; use a ULID or a UUID"));
        }
        Ok(())
    }

    pub(super) fn name(text: &str, what: &str) -> Result<Name, Status> {
        text.parse().map_err(|e| Status::invalid_argument(format!("{what}: {e}")))
    }
}

#[tonic::async_trait]
impl Control for Service {
    async fn apply(&self, request: Request<pb::ApplyRequest>) -> Answer<pb::ApplyResponse> {
        let request = self.admin(request)?;
        Self::expect_request_id(&request.request_id)?;
        self.apply_manifest(request).await.map(Response::new)
    }

    async fn validate(&self, request: Request<pb::ValidateRequest>) -> Answer<pb::ValidateResponse> {
        let request = self.viewer(request)?;
        let source = Source { manifest: &request.manifest, file: &request.file, images: &request.images };
        let problems = self.resolve(&source).await?.err().unwrap_or_default();
        Ok(Response::new(pb::ValidateResponse { problems: problems.iter().map(to_wire).collect() }))
    }

    async fn missing_artifacts(
        &self,
        request: Request<pb::MissingArtifactsRequest>,
    ) -> Answer<pb::MissingArtifactsResponse> {
        let mut digests = self.admin(request)?.digests;
        for digest in &digests {
            digest.parse::<Digest>().map_err(|e| Status::invalid_argument(format!("{digest:?}: {e}")))?;
        }
        digests.retain(|d| d.parse().is_ok_and(|d| !self.artifacts.has(&d)));
        Ok(Response::new(pb::MissingArtifactsResponse { digests }))
    }

    async fn put_artifact(&self, request: Request<Streaming<pb::ArtifactChunk>>) -> Answer<pb::PutArtifactResponse> {
        let mut pieces = self.admin(request)?;
        let first =
            pieces.next().await.ok_or_else(|| Status::invalid_argument("no piece: send the digest first"))??;
        let digest: Digest =
            first.digest.parse().map_err(|e| Status::invalid_argument(format!("{:?}: {e}", first.digest)))?;
        let failed = |e: crate::artifact::Error| match e {
            crate::artifact::Error::Io { .. } => Status::internal(e.to_string()),
            crate::artifact::Error::Full(_) => Status::resource_exhausted(e.to_string()),
            _ => Status::invalid_argument(e.to_string()),
        };
        let mut upload = self.artifacts.begin(digest.clone(), first.size).map_err(failed)?;
        let mut piece = Some(Ok(first));
        while let Some(next) = piece {
            let written = match next {
                Ok(piece) if piece.data.len() > PIECE_BYTES_MAX => {
                    Err(Status::invalid_argument("a piece has more than 1 MiB; send smaller ones"))
                }
                Ok(piece) => upload.write(&piece.data).map_err(failed),
                Err(status) => Err(status),
            };
            if let Err(status) = written {
                upload.abandon();
                return Err(status);
            }
            piece = pieces.next().await;
        }
        let size = self.artifacts.finish(upload).await.map_err(failed)?;
        Ok(Response::new(pb::PutArtifactResponse { digest: digest.to_string(), size }))
    }

    async fn delete(&self, request: Request<pb::DeleteRequest>) -> Answer<pb::ChangeResponse> {
        let pb::DeleteRequest { app, request_id, if_version } = self.admin(request)?;
        self.change(request_id, What::DeleteApp(pb::DeleteApp { app, if_version })).await
    }

    async fn scale(&self, request: Request<pb::ScaleRequest>) -> Answer<pb::ChangeResponse> {
        let pb::ScaleRequest { app, actor, replicas, request_id, if_version } = self.admin(request)?;
        self.change(request_id, What::ScaleActor(pb::ScaleActor { app, actor, replicas, if_version })).await
    }

    async fn rollback(&self, request: Request<pb::RollbackRequest>) -> Answer<pb::ChangeResponse> {
        let pb::RollbackRequest { app, to, request_id, if_version } = self.admin(request)?;
        self.change(request_id, What::RollbackApp(pb::RollbackApp { app, to, if_version })).await
    }

    async fn set_cordon(&self, request: Request<pb::SetCordonRequest>) -> Answer<pb::ChangeResponse> {
        let pb::SetCordonRequest { host, cordoned, draining, request_id } = self.admin(request)?;
        self.change(request_id, What::SetCordon(pb::SetCordon { host, cordoned, draining })).await
    }

    async fn list_apps(&self, request: Request<pb::ListRequest>) -> Answer<pb::AppList> {
        let request = self.viewer(request)?;
        self.fresh(request.stale).await?;
        let list = self.shared.view(|v| pb::AppList { items: v.apps(&request.app), index: v.state.applied });
        Ok(Response::new(list))
    }

    async fn list_actors(&self, request: Request<pb::ListRequest>) -> Answer<pb::ActorList> {
        let request = self.viewer(request)?;
        self.fresh(request.stale).await?;
        let list = self.shared.view(|v| pb::ActorList { items: v.actors(&request.app), index: v.state.applied });
        Ok(Response::new(list))
    }

    async fn list_hosts(&self, request: Request<pb::ListRequest>) -> Answer<pb::HostList> {
        self.fresh(self.viewer(request)?.stale).await?;
        let list = self.shared.view(|v| pb::HostList { items: v.hosts(), index: v.state.applied });
        Ok(Response::new(list))
    }

    async fn list_links(&self, request: Request<pb::ListRequest>) -> Answer<pb::LinkList> {
        let request = self.viewer(request)?;
        self.fresh(request.stale).await?;
        let list = self.shared.view(|v| pb::LinkList { items: v.links(&request.app), index: v.state.applied });
        Ok(Response::new(list))
    }

    async fn list_revisions(&self, request: Request<pb::ListRequest>) -> Answer<pb::RevisionList> {
        let request = self.viewer(request)?;
        self.fresh(request.stale).await?;
        let list = self.shared.view(|v| pb::RevisionList { items: v.revisions(&request.app), index: v.state.applied });
        Ok(Response::new(list))
    }

    async fn describe_app(&self, request: Request<pb::DescribeAppRequest>) -> Answer<pb::AppDetail> {
        let app = self.viewer(request)?.app;
        self.fresh(false).await?;
        let name = Self::name(&app, "app")?;
        let detail = self.shared.view(|v| {
            Some(pb::AppDetail {
                app: Some(v.app_named(&name)?),
                actors: v.actors(&app),
                links: v.links(&app),
                revisions: v.revisions(&app),
                events: Vec::new(),
                spec: String::from_utf8_lossy(&v.state.apps.get(&name)?.spec().to_json()).into_owned(),
            })
        });
        let mut detail = detail.ok_or_else(|| {
            Status::not_found(format!("there is no app {app:?}; `lattice get apps` shows what there is"))
        })?;
        let mut events = self.shared.events.latest(&app);
        detail.events = events.split_off(events.len().saturating_sub(20));
        Ok(Response::new(detail))
    }

    type WatchStream = super::watch::WatchStream;
    async fn watch(&self, request: Request<pb::WatchRequest>) -> Answer<Self::WatchStream> {
        let request = self.viewer(request)?;
        // A watch that goes on here was perhaps told of what this scheduler does not know yet.
        self.fresh(false).await?;
        super::watch::watch(self.shared.clone(), request).map(Response::new)
    }

    type LogsStream = super::stream::LogsStream;
    async fn logs(&self, request: Request<pb::LogsRequest>) -> Answer<Self::LogsStream> {
        self.logs_of(self.viewer(request)?).await.map(Response::new)
    }

    type EventsStream = super::stream::EventsStream;
    async fn events(&self, request: Request<pb::EventsRequest>) -> Answer<Self::EventsStream> {
        Ok(Response::new(self.events_of(self.viewer(request)?)))
    }

    async fn call(&self, request: Request<pb::CallRequest>) -> Answer<pb::CallResponse> {
        self.call_actor(self.admin(request)?).await.map(Response::new)
    }

    type RunStream = super::run::RunStream;
    async fn run(&self, request: Request<pb::RunRequest>) -> Answer<Self::RunStream> {
        self.run_program(self.admin(request)?).await.map(Response::new)
    }

    async fn status(&self, request: Request<pb::StatusRequest>) -> Answer<pb::StatusResponse> {
        self.viewer(request)?;
        Ok(Response::new(self.status_now().await))
    }

    async fn list_schedulers(&self, request: Request<pb::ListSchedulersRequest>) -> Answer<pb::SchedulerList> {
        self.viewer(request)?;
        self.peers.list().await.map(Response::new)
    }

    async fn create_join_token(&self, request: Request<pb::CreateJoinTokenRequest>) -> Answer<pb::JoinToken> {
        self.peers.token(self.admin(request)?.life_ms).await.map(Response::new)
    }

    async fn promote_scheduler(&self, request: Request<pb::PromoteSchedulerRequest>) -> Answer<pb::ChangeResponse> {
        let pb::PromoteSchedulerRequest { id, request_id } = self.admin(request)?;
        self.change(request_id, What::PromoteMember(pb::PromoteMember { id })).await
    }

    async fn remove_scheduler(&self, request: Request<pb::RemoveSchedulerRequest>) -> Answer<pb::ChangeResponse> {
        let request = self.admin(request)?;
        Self::expect_request_id(&request.request_id)?;
        self.peers.remove(request).await.map(Response::new)
    }

    async fn add_access(&self, request: Request<pb::AddAccessRequest>) -> Answer<pb::ChangeResponse> {
        self.add_access_of(self.admin(request)?).await.map(Response::new)
    }

    async fn remove_access(&self, request: Request<pb::RemoveAccessRequest>) -> Answer<pb::ChangeResponse> {
        let pb::RemoveAccessRequest { name, request_id } = self.admin(request)?;
        self.change(request_id, What::RemoveAccess(pb::RemoveAccess { name })).await
    }

    async fn list_access(&self, request: Request<pb::ListAccessRequest>) -> Answer<pb::AccessList> {
        self.viewer(request)?;
        self.fresh(false).await?;
        Ok(Response::new(self.access_list()))
    }

    type BackupStream = super::backup::BackupStream;
    async fn backup(&self, request: Request<pb::BackupRequest>) -> Answer<Self::BackupStream> {
        self.backup_of(self.admin(request)?).await.map(Response::new)
    }

    async fn transfer_leader(&self, request: Request<pb::TransferLeaderRequest>) -> Answer<pb::TransferLeaderResponse> {
        self.peers.transfer(self.admin(request)?.to).await.map(Response::new)
    }
}

/// The status that a refused command becomes.
pub(crate) fn status_of(outcome: &pb::Outcome) -> Status {
    let message = outcome.error.clone();
    match outcome.code.as_str() {
        "not_found" => Status::not_found(message),
        "conflict" => Status::aborted(message),
        "denied" => Status::permission_denied(message),
        "stale" => Status::unavailable(message),
        "precondition" => Status::failed_precondition(message),
        _ => Status::invalid_argument(message),
    }
}

pub(crate) fn status_of_raft(error: raft::Error) -> Status {
    match error {
        raft::Error::Outdated(why) => Status::failed_precondition(why),
        error if error.is_retryable() => Status::unavailable(error.to_string()),
        error => Status::internal(error.to_string()),
    }
}
