//! The way of a manifest: parse, resolve its images, inspect them, check, propose. Every problem at once; no state
//! changes unless all of it is right.

use super::Service;
use super::service::status_of;
use proto::app::{App, Digest, Kind, MANIFEST_BYTES_MAX, Name};
use proto::component::{Inspection, inspect};
use proto::manifest::{ImageRef, Parsed, Problem};
use proto::{check, manifest, v1 as pb};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use tonic::Status;

/// Inspections remembered by digest.
const INSPECTIONS_MAX: usize = 1_000;

#[derive(Clone, Default)]
pub(crate) struct Inspections(Arc<Mutex<BTreeMap<Digest, Arc<Inspection>>>>);

impl Inspections {
    fn get(&self, digest: &Digest) -> Option<Arc<Inspection>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned()
    }
    fn put(&self, digest: Digest, inspection: Arc<Inspection>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= INSPECTIONS_MAX {
            all.pop_first();
        }
        all.insert(digest, inspection);
    }
}

/// A manifest in a request.
pub(super) struct Source<'a> {
    pub(super) manifest: &'a str,
    pub(super) file: &'a str,
    pub(super) images: &'a BTreeMap<String, String>,
}

/// Why a manifest is not applied.
pub(super) struct Unresolved {
    pub(super) problems: Vec<Problem>,
    /// Another scheduler may have what is missing here: there, a copy of the same request is taken.
    elsewhere: bool,
}

impl Service {
    pub(super) async fn apply_manifest(&self, request: pb::ApplyRequest) -> Result<pb::ApplyResponse, Status> {
        let source = Source { manifest: &request.manifest, file: &request.file, images: &request.images };
        let parsed = match parse(&source)? {
            Ok(parsed) => parsed,
            Err(problems) => return Err(refused(&problems)),
        };
        let names: Vec<Name> = parsed.iter().map(|one| one.app.name.clone()).collect();
        let ids = request_ids(&request.request_id, names.len());
        // A member that is behind must not refuse what the newest state would take, nor what it took already.
        self.fresh(false).await?;
        let first = self.shared.replica.read().answered_all(ids.iter().map(String::as_str));
        if let Some(outcomes) = first.filter(|_| !request.dry_run) {
            return response(&names, outcomes);
        }
        let apps = match self.resolve_all(parsed, &source).await? {
            Ok(apps) => apps,
            Err(unresolved) if unresolved.elsewhere && !request.dry_run => {
                let why = refused(&unresolved.problems);
                return response(&names, self.peers.refuse(ids, "invalid", why.message()).await?);
            }
            Err(unresolved) => return Err(refused(&unresolved.problems)),
        };
        let commands: Vec<pb::Command> = apps
            .iter()
            .zip(&ids)
            .map(|(app, id)| pb::Command {
                request_id: id.clone(),
                what: Some(pb::command::What::ApplyApp(pb::ApplyApp {
                    spec: app.to_json(),
                    if_version: request.if_version,
                })),
            })
            .collect();
        // One app is taken or refused by the log. Of several none is taken when one would be refused.
        if request.dry_run || apps.len() > 1 {
            let trial = self.try_out(&commands);
            match trial.iter().find(|outcome| !outcome.error.is_empty()) {
                None if request.dry_run => return response(&names, trial),
                None => {}
                Some(outcome) if request.dry_run => return Err(status_of(outcome)),
                Some(pb::Outcome { code, error, .. }) => {
                    return response(&names, self.peers.refuse(ids, code, error).await?);
                }
            }
        }
        self.peers.spread(&digests(&apps)).await?;
        response(&names, self.peers.write(commands).await?)
    }

    /// What the commands would give now.
    fn try_out(&self, commands: &[pb::Command]) -> Vec<pb::Outcome> {
        let mut state = self.shared.replica.read().clone();
        let entry = pb::Entry { version: crate::state::VERSION, time_ms: 0, commands: commands.to_vec() };
        let index = state.applied + 1;
        state.apply(index, &entry, &mut BTreeSet::new())
    }

    /// Parses and checks a manifest against the artifacts that are here.
    pub(super) async fn resolve(&self, source: &Source<'_>) -> Result<Result<Vec<App>, Vec<Problem>>, Status> {
        match parse(source)? {
            Ok(parsed) => Ok(self.resolve_all(parsed, source).await?.map_err(|unresolved| unresolved.problems)),
            Err(problems) => Ok(Err(problems)),
        }
    }

    async fn resolve_all(
        &self,
        parsed: Vec<Parsed>,
        source: &Source<'_>,
    ) -> Result<Result<Vec<App>, Unresolved>, Status> {
        let mut all = Unresolved { problems: Vec::new(), elsewhere: false };
        let mut apps = Vec::new();
        for one in parsed {
            match self.resolve_app(one, source).await? {
                Ok(app) => apps.push(app),
                Err(more) => {
                    all.problems.extend(more.problems);
                    all.elsewhere |= more.elsewhere;
                }
            }
        }
        all.problems.sort_by_key(|p| (p.line, p.column));
        Ok(if all.problems.is_empty() { Ok(apps) } else { Err(all) })
    }

    async fn resolve_app(&self, parsed: Parsed, source: &Source<'_>) -> Result<Result<App, Unresolved>, Status> {
        let Parsed { mut app, positions } = parsed;
        let (mut problems, mut elsewhere) = (Vec::new(), false);
        let mut inspections: BTreeMap<Name, Inspection> = BTreeMap::new();
        for (name, component) in &mut app.components {
            let Kind::Actor(actor) = &mut component.kind else { continue };
            let place = positions.image(name.as_str());
            match self.digest_of(&actor.image, source.images) {
                Err((message, help)) => {
                    elsewhere = true;
                    problems.push(positions.problem(place, message, help));
                }
                Ok(digest) => match self.inspection(&digest).await? {
                    Err(message) => problems.push(positions.problem(
                        place,
                        format!("image {:?}: {message}", actor.image),
                        String::new(),
                    )),
                    Ok(inspection) => {
                        actor.digest = Some(digest);
                        inspections.insert(name.clone(), Inspection::clone(&inspection));
                    }
                },
            }
        }
        if problems.is_empty() {
            problems = check::check(&mut app, &inspections, &positions);
        }
        Ok(if problems.is_empty() { Ok(app) } else { Err(Unresolved { problems, elsewhere }) })
    }

    fn digest_of(&self, image: &str, images: &BTreeMap<String, String>) -> Result<Digest, (String, String)> {
        let named = images.get(image).map(String::as_str).or_else(|| {
            let is_digest = matches!(image.parse::<ImageRef>(), Ok(ImageRef::Digest(_)));
            is_digest.then_some(image)
        });
        let Some(named) = named else {
            let message = format!("image {image:?} was not uploaded");
            let help =
                "upload it with PutArtifact and name its digest in `images`; `lattice apply` does both for local files";
            return Err((message, help.to_owned()));
        };
        let digest: Digest = named.parse().map_err(|e| (format!("image {image:?}: {e}"), String::new()))?;
        if self.artifacts.has(&digest) {
            Ok(digest)
        } else {
            let message = format!("image {image:?}: the scheduler does not have {digest}");
            Err((message, "upload it with PutArtifact, then apply again".to_owned()))
        }
    }

    async fn inspection(&self, digest: &Digest) -> Result<Result<Arc<Inspection>, String>, Status> {
        if let Some(known) = self.inspections.get(digest) {
            return Ok(Ok(known));
        }
        let (artifacts, wanted) = (self.artifacts.clone(), digest.clone());
        let inspected = tokio::task::spawn_blocking(move || {
            let bytes = artifacts.read(&wanted).map_err(|e| e.to_string())?;
            inspect(&bytes).map_err(|e| e.to_string())
        });
        let inspected = inspected.await.map_err(|e| Status::internal(format!("inspecting {digest}: {e}")))?;
        Ok(inspected.map(|inspection| {
            let inspection = Arc::new(inspection);
            self.inspections.put(digest.clone(), inspection.clone());
            inspection
        }))
    }
}

fn parse(source: &Source<'_>) -> Result<Result<Vec<Parsed>, Vec<Problem>>, Status> {
    if source.manifest.len() > MANIFEST_BYTES_MAX {
        let max = MANIFEST_BYTES_MAX;
        return Err(Status::invalid_argument(format!(
            "{}: {} bytes; a manifest has at most {max}: split it",
            source.file,
            source.manifest.len()
        )));
    }
    Ok(manifest::parse(source.manifest, source.file))
}

/// One id a command: the second app of a manifest is not a retry of the first.
fn request_ids(id: &str, apps: usize) -> Vec<String> {
    let one = |number| match id {
        "" => String::new(),
        id if apps > 1 => format!("{id}/{number}"),
        id => id.to_owned(),
    };
    (0..apps).map(one).collect()
}

/// What became of each app; the first refusal, if there is one.
fn response(names: &[Name], outcomes: Vec<pb::Outcome>) -> Result<pb::ApplyResponse, Status> {
    if let Some(refused) = outcomes.iter().find(|outcome| !outcome.error.is_empty()) {
        return Err(status_of(refused));
    }
    let change = |(name, outcome): (&Name, pb::Outcome)| pb::AppChange {
        app: name.to_string(),
        change: outcome.change,
        revision: outcome.revision,
        version: outcome.version,
    };
    Ok(pb::ApplyResponse { apps: names.iter().zip(outcomes).map(change).collect() })
}

/// The components that apps name.
fn digests(apps: &[App]) -> BTreeSet<Digest> {
    apps.iter().flat_map(App::digests).cloned().collect()
}

/// One status for all problems, a line each.
fn refused(problems: &[Problem]) -> Status {
    let lines: Vec<String> = problems.iter().take(50).map(Problem::to_string).collect();
    Status::invalid_argument(lines.join("\n"))
}

pub(super) fn to_wire(problem: &Problem) -> pb::Problem {
    pb::Problem {
        file: problem.file.clone(),
        line: u32::try_from(problem.line).unwrap_or(u32::MAX),
        column: u32::try_from(problem.column).unwrap_or(u32::MAX),
        path: problem.path.clone(),
        message: problem.message.clone(),
        help: problem.help.clone(),
    }
}
