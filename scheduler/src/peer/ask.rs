//! What only the leader can do, done by whoever is asked: here when this scheduler leads, else by the one that does.
//! Every command carries an id, so that asking again after an answer was lost changes nothing twice.

use super::{Peers, authority, roster, token};
use crate::api::{status_of, status_of_raft};
use crate::events::unix_ms;
use crate::raft;
use crate::replica::outcomes;
use crate::state::{REFUSAL_BYTES_MAX, TOKEN_LIFE_MS_MAX};
use prost::Message;
use proto::v1 as pb;
use proto::v1::command::What as Command;
use proto::v1::peer_answer::What as Answer;
use proto::v1::peer_ask::What as Ask;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;
use tonic::Status;

/// How long a leader is looked for before the client is told that there is none. Elections take a second or two.
const PATIENCE: Duration = Duration::from_secs(8);
/// After a try that failed: the next one, unless somebody else leads before.
const AGAIN: Duration = Duration::from_millis(100);
/// For who is asked as the leader to be one: others hear of it before the disk here has its first entry.
const TAKE_OFFICE: Duration = Duration::from_millis(500);
/// For one try; a write that waits longer is asked for again, under the same id.
const TRY: Duration = Duration::from_secs(4);
/// For a change of members, and for leadership, to have come about.
const CHANGE: Duration = Duration::from_secs(3);
const TOKEN_LIFE_MS: u64 = 3_600_000;
pub(super) const NOBODY: &str =
    "no scheduler leads now: most of them must run and reach each other; see `lattice schedulers list`";

impl Peers {
    /// Commits commands in one entry, wherever the leader is; gives an outcome for each.
    pub(crate) async fn write(&self, mut commands: Vec<pb::Command>) -> Result<Vec<pb::Outcome>, Status> {
        for command in commands.iter_mut().filter(|command| command.request_id.is_empty()) {
            command.request_id = ulid::Ulid::generate().to_string();
        }
        match self.ask(Ask::Write(pb::Commands { items: commands })).await? {
            Answer::Write(outcomes) => Ok(outcomes.items),
            _ => Err(odd()),
        }
    }

    /// A command whose refusal is an error.
    pub(crate) async fn write_one(&self, request_id: String, what: Command) -> Result<pb::Outcome, Status> {
        let outcomes = self.write(vec![pb::Command { request_id, what: Some(what) }]).await?;
        let outcome = outcomes.into_iter().next().ok_or_else(odd)?;
        if outcome.error.is_empty() { Ok(outcome) } else { Err(status_of(&outcome)) }
    }

    /// Refuses requests for good: from then on no copy of them that is still under way is carried out. Gives the answers
    /// that stand, which are not these if a copy was carried out already. A request without an id has no copies.
    pub(crate) async fn refuse(&self, ids: Vec<String>, code: &str, error: &str) -> Result<Vec<pb::Outcome>, Status> {
        let outcome = pb::Outcome { code: code.to_owned(), error: error.to_owned(), ..pb::Outcome::default() };
        if ids.iter().all(String::is_empty) {
            return Ok(vec![outcome; ids.len()]);
        }
        let command = |request_id| pb::Command { request_id, what: Some(refusal(code, error)) };
        match self.write(ids.into_iter().map(command).collect()).await {
            Ok(outcomes) => Ok(outcomes),
            Err(status) if status.code() == tonic::Code::FailedPrecondition => Err(uncertain(&outcome)),
            Err(status) => Err(status),
        }
    }

    pub(crate) async fn list(&self) -> Result<pb::SchedulerList, Status> {
        match self.ask(Ask::List(pb::ListSchedulersRequest {})).await {
            Ok(Answer::List(list)) => Ok(list),
            Ok(_) => Err(odd()),
            // Without a leader it is needed most: what is known here, and who is reached from here.
            Err(error) => Ok(self.view(Some(error.message()))),
        }
    }

    pub(crate) async fn remove(&self, mut request: pb::RemoveSchedulerRequest) -> Result<pb::ChangeResponse, Status> {
        if request.request_id.is_empty() {
            request.request_id = ulid::Ulid::generate().to_string();
        }
        match self.ask(Ask::Remove(request)).await? {
            Answer::Remove(change) => Ok(change),
            _ => Err(odd()),
        }
    }

    pub(crate) async fn transfer(&self, to: u64) -> Result<pb::TransferLeaderResponse, Status> {
        match self.ask(Ask::Transfer(pb::TransferLeaderRequest { to })).await? {
            Answer::Transfer(done) => Ok(done),
            _ => Err(odd()),
        }
    }

    /// A join token; only a hash of its secret is kept.
    pub(crate) async fn token(&self, life_ms: u64) -> Result<pb::JoinToken, Status> {
        let Some((_, identity)) = &self.0.own else {
            return Err(Status::failed_precondition(
                "this scheduler listens for no others; start it as `lattice scheduler` with --peer-listen IP:PORT",
            ));
        };
        let life_ms = if life_ms == 0 { TOKEN_LIFE_MS } else { life_ms };
        if life_ms > TOKEN_LIFE_MS_MAX {
            return Err(Status::invalid_argument("a join token lives at most a week; give a shorter --life"));
        }
        let mut secret = [0; token::SECRET_BYTES];
        getrandom::fill(&mut secret).map_err(|e| Status::internal(format!("no randomness for a secret: {e}")))?;
        let fingerprint =
            authority::fingerprint_of_pem(&identity.authority).map_err(|e| Status::internal(e.to_string()))?;
        let expires_ms = unix_ms() + life_ms;
        let hash = token::hash(&secret);
        self.write_one(String::new(), Command::IssueToken(pb::IssueToken { hash, expires_ms })).await?;
        Ok(pb::JoinToken { token: token::Token { fingerprint, secret }.to_string(), expires_ms })
    }

    /// Takes a newcomer in.
    pub(super) async fn take_in(&self, request: pb::JoinRequest) -> Result<pb::JoinAnswer, Status> {
        if request.lattice != self.0.lattice {
            return Err(Status::invalid_argument(format!(
                "this is lattice {:?}, not {:?}; give --lattice {}",
                self.0.lattice, request.lattice, self.0.lattice
            )));
        }
        match self.ask(Ask::Join(request)).await? {
            Answer::Join(answer) => Ok(answer),
            _ => Err(odd()),
        }
    }

    pub(super) async fn ask(&self, what: Ask) -> Result<Answer, Status> {
        let end = Instant::now() + PATIENCE;
        let mut status = self.0.raft.status();
        loop {
            let tried = in_office(&status.borrow_and_update());
            let error = match self.try_ask(what.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if error.code() != tonic::Code::Unavailable || Instant::now() + AGAIN > end {
                return Err(error);
            }
            let another = status.wait_for(|status| in_office(status) != tried);
            if let Ok(Err(_ended)) = tokio::time::timeout(AGAIN, another).await {
                return Err(error);
            }
        }
    }

    /// One try; UNAVAILABLE when another one may succeed.
    async fn try_ask(&self, what: Ask) -> Result<Answer, Status> {
        let (me, leader) = {
            let status = self.0.raft.status();
            let status = status.borrow();
            (status.id, status.leader)
        };
        match leader {
            None => Err(nobody()),
            Some(leader) if leader != me => self.ask_other(me, leader, what).await,
            Some(_) => match tokio::time::timeout(TRY, self.answer(what)).await {
                Ok(answer) => answer?.ok_or_else(nobody),
                Err(_) => {
                    Err(Status::unavailable("not enough schedulers confirmed it in time; it may yet take effect"))
                }
            },
        }
    }

    async fn ask_other(&self, me: u64, leader: u64, what: Ask) -> Result<Answer, Status> {
        let Some(mut client) = self.0.outbox.link(leader).and_then(|link| link.client()) else {
            let why = self.0.outbox.problem(leader).unwrap_or_default();
            return Err(Status::unavailable(format!("scheduler {leader} leads, and is not reached from {me}: {why}")));
        };
        let ask = pb::PeerAsk { greeting: Some(self.greeting(leader)), what: Some(what) };
        // A leader that stopped without a word is not waited for once there is another: asked twice is done once.
        let mut status = self.0.raft.status();
        let asked = tokio::select! {
            asked = tokio::time::timeout(TRY, client.ask(ask)) => asked,
            _ = status.wait_for(|status| status.leader != Some(leader)) => {
                return Err(Status::unavailable(format!("scheduler {leader} leads no more")));
            }
        };
        match asked {
            Ok(Ok(answer)) => answer.into_inner().what.ok_or_else(nobody),
            Ok(Err(status)) if std::error::Error::source(&status).is_some() => Err(Status::unavailable(format!(
                "scheduler {leader} leads, and was lost: {}",
                super::root_cause(&status)
            ))),
            Ok(Err(status)) => Err(status),
            Err(_) => Err(Status::unavailable(format!("scheduler {leader} leads, and gave no answer in time"))),
        }
    }

    /// What the leader does; `None` when this scheduler leads no more, and nothing was done.
    pub(super) async fn answer(&self, what: Ask) -> Result<Option<Answer>, Status> {
        // What an older leader wrote may not be applied here yet: nothing is decided on less.
        if !self.governs_soon().await {
            return Ok(None);
        }
        let done = match what {
            Ask::Write(commands) => self.commit(commands.items).await.map(Answer::Write),
            Ask::Join(request) => self.admit_newcomer(request).await.map(Answer::Join),
            Ask::List(_) => return Ok(Some(Answer::List(self.view(None)))),
            Ask::Status(_) => return Ok(Some(Answer::Status(self.own_account()))),
            Ask::Remove(request) => self.remove_here(request).await.map(Answer::Remove),
            Ask::Transfer(request) => self.transfer_here(request.to).await.map(Answer::Transfer),
        };
        match done {
            Ok(answer) => Ok(Some(answer)),
            Err(Failed::NotLeader) => Ok(None),
            Err(Failed::Outdated(why)) => Err(Status::failed_precondition(why)),
            Err(Failed::Status(status)) => Err(status),
        }
    }

    /// Whether this scheduler governs, or does in a moment.
    async fn governs_soon(&self) -> bool {
        let mut status = self.0.raft.status();
        let settled = status.wait_for(|status| status.governs || status.leader.is_some_and(|id| id != status.id));
        let settled = tokio::time::timeout(TAKE_OFFICE, settled).await;
        settled.is_ok_and(|status| status.is_ok_and(|status| status.governs))
    }

    async fn commit(&self, commands: Vec<pb::Command>) -> Result<pb::Outcomes, Failed> {
        // What was answered stands, whatever would be said to it now. Who governs has applied all that was committed
        // before it led.
        if let Some(items) = self.0.replica.read().answered_all(commands.iter().map(|c| c.request_id.as_str())) {
            return Ok(pb::Outcomes { items });
        }
        let entry = self.0.replica.entry(self.id(), commands)?;
        let applied = self.0.raft.propose(entry.encode_to_vec()).await?;
        Ok(pb::Outcomes { items: outcomes(&applied) })
    }

    async fn commit_one(&self, request_id: String, what: Command) -> Result<pb::Outcome, Failed> {
        let outcomes = self.commit(vec![pb::Command { request_id, what: Some(what) }]).await?;
        let outcome = outcomes.items.into_iter().next().ok_or_else(|| Failed::Status(odd()))?;
        if outcome.error.is_empty() { Ok(outcome) } else { Err(Failed::Status(status_of(&outcome))) }
    }

    /// As `refuse`, of one request and by the leader itself.
    async fn refuse_here(&self, request_id: String, code: &str, error: &str) -> Result<pb::Outcome, Failed> {
        match self.commit_one(request_id, refusal(code, error)).await {
            Err(Failed::Outdated(_)) => {
                let (code, error) = (code.to_owned(), error.to_owned());
                Err(Failed::Status(uncertain(&pb::Outcome { code, error, ..pb::Outcome::default() })))
            }
            done => done,
        }
    }

    async fn admit_newcomer(&self, request: pb::JoinRequest) -> Result<pb::JoinAnswer, Failed> {
        let Some((own, identity)) = &self.0.own else { return Err(Failed::Status(odd())) };
        if !authority::is_public_key(&request.public_key) {
            return Err(Failed::Status(Status::invalid_argument("a newcomer sends the public key of ECDSA P-256")));
        }
        // Who has no token must not even make the log longer.
        let hash = token::hash(&request.secret);
        let good = self.0.replica.read().check_token(&hash, unix_ms());
        good.map_err(|why| Failed::Status(Status::permission_denied(why)))?;
        let (log_id, knows) = (request.log_id.clone(), request.vocabulary.max(1));
        let needed = self.0.replica.read().vocabulary;
        if knows < needed {
            return Err(Failed::Status(Status::failed_precondition(format!(
                "this lattice has commands of version {needed} in its log, and who asks to join knows those up to version \
                 {knows}; start it with a newer lattice"
            ))));
        }
        let add = pb::AddMember {
            token_hash: hash,
            peer: request.peer,
            api: request.api,
            log_id: request.log_id,
            standby: request.standby,
            vocabulary: request.vocabulary,
        };
        self.commit_one(String::new(), Command::AddMember(add)).await?;
        let (id, mut peers) = {
            let state = self.0.replica.read();
            let id = state.member_with(&log_id).ok_or_else(|| Failed::Status(odd()))?;
            let peers: BTreeMap<u64, String> = state.members.iter().map(|(id, m)| (*id, m.peer.clone())).collect();
            (id, peers)
        };
        peers.remove(&id);
        // What the others said last; at least one way in.
        peers.insert(self.id(), own.clone());
        let until = authority::Until::after(super::LEAF_LIFE);
        let certificate = authority::sign(&identity.authority_key, id, &request.public_key, until)
            .map_err(|error| Failed::Status(Status::internal(error.to_string())))?;
        tracing::info!(scheduler = id, "a scheduler joins");
        let (authority, authority_key) = (identity.authority.clone(), identity.authority_key.clone());
        Ok(pb::JoinAnswer { id, certificate, authority, authority_key, peers })
    }

    async fn remove_here(&self, request: pb::RemoveSchedulerRequest) -> Result<pb::ChangeResponse, Failed> {
        let status = self.0.raft.status().borrow().clone();
        if status.role != raft::Role::Leader {
            return Err(Failed::NotLeader);
        }
        let id = request.id;
        let checked = {
            let state = self.0.replica.read();
            roster::check_removal(id, &state.members, &status.members, &self.reached(&status))
        };
        let outcome = match checked {
            // Unless it was carried out before.
            Err(why) => self.refuse_here(request.request_id, "precondition", &why).await?,
            Ok(()) if id == status.id => {
                // A leader that removed itself would lead on without being a member.
                self.transfer_here(0).await?;
                return Err(Failed::NotLeader);
            }
            Ok(()) => self.commit_one(request.request_id, Command::RemoveMember(pb::RemoveMember { id })).await?,
        };
        let mut raft = self.0.raft.status();
        let gone = raft.wait_for(|status| !status.members.contains(id) || status.role != raft::Role::Leader);
        if tokio::time::timeout(CHANGE, gone).await.is_err() {
            return Err(Failed::Status(Status::deadline_exceeded(format!(
                "scheduler {id} is not wanted any more, but not enough of the others confirmed it yet; it goes on: see \
                 `lattice schedulers list`"
            ))));
        }
        Ok(pb::ChangeResponse { change: outcome.change, revision: 0, version: 0 })
    }

    /// Before this one ends.
    pub(crate) async fn transfer_away(&self) {
        let alone = self.0.raft.status().borrow().members.voters.len() < 2;
        if !alone && self.leads() {
            self.hand_over(0).await;
        }
    }

    /// To scheduler `to`; 0: to whoever is fit.
    pub(super) async fn hand_over(&self, to: u64) {
        match self.transfer_here(to).await {
            Ok(done) => tracing::info!(leader = done.leader, "leadership handed over"),
            Err(Failed::NotLeader | Failed::Outdated(_)) => {}
            // Nobody is fit: the others elect one when they can.
            Err(Failed::Status(status)) => tracing::info!(why = status.message(), "leadership not handed over"),
        }
    }

    async fn transfer_here(&self, to: u64) -> Result<pb::TransferLeaderResponse, Failed> {
        let mut status = self.0.raft.status();
        let now = status.borrow().clone();
        if now.role != raft::Role::Leader {
            return Err(Failed::NotLeader);
        }
        let me = now.id;
        if to == me {
            return Ok(pb::TransferLeaderResponse { leader: me });
        }
        let reached = self.reached(&now);
        let heir = roster::heir(me, &self.0.replica.read().members, &now.members, &reached, &now.progress);
        let to = match (to, heir) {
            (0, Some(heir)) => heir,
            (0, None) => {
                return Err(Failed::Status(Status::failed_precondition(format!(
                    "no other voter is reached that could lead in place of scheduler {me}; see `lattice schedulers list`"
                ))));
            }
            (to, _) => to,
        };
        self.0.raft.transfer(to).await?;
        let moved = status.wait_for(|status| status.leader.is_some_and(|leader| leader != me));
        match tokio::time::timeout(CHANGE, moved).await {
            Ok(Ok(status)) => Ok(pb::TransferLeaderResponse { leader: status.leader.unwrap_or(to) }),
            _ => Err(Failed::Status(Status::deadline_exceeded(format!(
                "scheduler {to} did not take over in time; see that it runs, and try again"
            )))),
        }
    }

    /// Members that are reached from here, this one included.
    pub(super) fn reached(&self, status: &raft::Status) -> BTreeSet<u64> {
        let members = &status.members;
        let all = members.voters.iter().chain(&members.learners);
        all.copied().filter(|id| *id == status.id || self.0.outbox.problem(*id).is_none()).collect()
    }

    /// The schedulers as they are seen from here; `problem`: why not from the leader.
    pub(super) fn view(&self, problem: Option<&str>) -> pb::SchedulerList {
        let status = self.0.raft.status().borrow().clone();
        let wanted = self.0.replica.read().members.clone();
        let mut ids: BTreeSet<u64> = wanted.keys().copied().collect();
        let members = &status.members;
        ids.extend(members.voters.iter().chain(&members.learners).chain(&members.outgoing));
        let items = ids.into_iter().map(|id| {
            let member = wanted.get(&id);
            let own = (id == status.id).then(|| (self.peer().unwrap_or_default(), self.0.api.as_str()));
            let (peer, api) = own.or_else(|| member.map(|m| (m.peer.as_str(), m.api.as_str()))).unwrap_or_default();
            let index = match status.progress.iter().find(|(other, _)| *other == id) {
                Some((_, index)) => *index,
                None if id == status.id => status.applied,
                None => 0,
            };
            let lost = if id == status.id { None } else { self.0.outbox.problem(id) };
            let role = match () {
                () if problem.is_none() && status.leader == Some(id) => "leader",
                () if members.is_voter(id) => "voter",
                () => "learner",
            };
            let behind = index + roster::BEHIND_MAX < status.committed;
            let too_large = self.0.outbox.too_large(id);
            let (state, message) = roster::state(id, &wanted, members, lost, behind, too_large);
            let message = match problem {
                Some(problem) if id == status.id => format!("as seen from here: {problem}"),
                _ => message,
            };
            pb::SchedulerStatus {
                id,
                peer: peer.to_owned(),
                api: api.to_owned(),
                role: role.to_owned(),
                state: state.to_owned(),
                index,
                message,
                vocabulary: member.map_or_else(|| self.0.replica.knows(), |m| m.vocabulary),
            }
        });
        pb::SchedulerList { items: items.collect(), index: status.committed }
    }
}

/// Who can be asked, and whether it can answer.
fn in_office(status: &raft::Status) -> (Option<u64>, bool) {
    (status.leader, status.governs)
}

/// Why the leader did not do it.
enum Failed {
    /// It leads no more, or not yet: nothing was done that asking again would do twice.
    NotLeader,
    /// Another scheduler could not apply it.
    Outdated(String),
    Status(Status),
}

impl From<raft::Error> for Failed {
    fn from(error: raft::Error) -> Self {
        match error {
            raft::Error::NotLeader { .. } | raft::Error::Superseded { .. } => Self::NotLeader,
            raft::Error::Outdated(why) => Self::Outdated(why),
            other => Self::Status(status_of_raft(other)),
        }
    }
}

fn refusal(code: &str, error: &str) -> Command {
    let end = error.floor_char_boundary(REFUSAL_BYTES_MAX);
    Command::Refuse(pb::Refuse { code: code.to_owned(), error: error[..end].to_owned() })
}

/// Refused, and nothing keeps a copy that is still under way from being carried out.
fn uncertain(outcome: &pb::Outcome) -> Status {
    let status = status_of(outcome);
    let text = "a copy of this request that is still under way may yet take effect: look before you ask again";
    Status::new(status.code(), format!("{}; {text}", status.message()))
}

fn nobody() -> Status {
    Status::unavailable(NOBODY)
}

fn odd() -> Status {
    Status::internal("the leader answered with something else; update both schedulers to one version")
}
