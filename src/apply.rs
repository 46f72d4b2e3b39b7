//! `apply` and `validate`: local checks first, then the components the server lacks, then the manifests, then follow.

use crate::args::Connect;
use crate::client::{Client, ask, request_id};
use crate::failure::Failure;
use crate::follow::{self, Progress};
use crate::local::{self, Component, File, Local};
use crate::print::shape::{Applied, List};
use crate::{context, duration, print};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use proto::manifest::Problem;
use proto::v1::{AppChange, ApplyRequest, ArtifactChunk, MissingArtifactsRequest, ValidateRequest};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Bytes in one piece of an upload; the server takes at most 1 MiB.
const CHUNK_BYTES: usize = 512 * 1024;
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(600);
/// Digests asked for at once.
const DIGESTS_MAX: usize = 1_000;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lattice apply app.yaml                   make it so, and follow until it runs
  lattice apply a.yaml b.yaml --detach     make both so, and come back at once
  lattice apply app.yaml --dry-run         say what would change
  cat app.yaml | lattice apply -           paths in it are relative to this folder
  lattice apply app.yaml -o json           what scripts read

All files are checked before anything is changed. Applying what is there already
changes nothing. A dry run uploads components, so that the server can check
them, and does nothing else.
JSON is {\"items\": [...]}: name, change, revision, version, dry_run, state,
desired, running, message, urls.
Exit codes: 0 it runs, 1 refused or failed, 2 wrong use, 3 accepted but not
running in time, 130 interrupted.")]
pub(crate) struct ApplyArgs {
    #[command(flatten)]
    manifests: Manifests,
    /// Come back as soon as it is accepted
    #[arg(long)]
    detach: bool,
    /// How long to follow: 500ms, 30s, 2m, 1h
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration::parse)]
    timeout: Duration,
    /// Say what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Apply only if the app is still at this version, as `get apps -o wide` shows it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    if_version: Option<u64>,
    /// What to print instead of text
    #[arg(short, long, value_name = "FORM", value_enum)]
    output: Option<Output>,
    #[command(flatten)]
    pub(crate) connect: Connect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Json,
    Yaml,
    Name,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lattice validate app.yaml
  lattice validate manifests/*/app.yaml
  cat app.yaml | lattice validate -

Reads the manifests and the components they name, as `lattice apply` does, and
reports every problem at once. Needs no server.
Exit codes: 0 all is well, 1 there are problems, 2 wrong use.")]
pub(crate) struct ValidateArgs {
    #[command(flatten)]
    manifests: Manifests,
}

/// Manifests, with or without -f.
#[derive(Debug, Args)]
pub(crate) struct Manifests {
    /// Manifest; - is stdin
    #[arg(value_name = "FILE", required_unless_present = "filename")]
    files: Vec<PathBuf>,
    /// Manifest, as with kubectl
    #[arg(short, long, value_name = "FILE")]
    filename: Vec<PathBuf>,
}

impl Manifests {
    fn paths(&self) -> Vec<PathBuf> {
        self.files.iter().chain(&self.filename).cloned().collect()
    }
}

/// How `submit` sends a set of manifests.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Submit {
    pub(crate) dry_run: bool,
    /// 0: whatever is there.
    pub(crate) if_version: u64,
}

pub(crate) async fn apply(args: &ApplyArgs, connect: &Connect) -> Result<(), Failure> {
    let paths = args.manifests.paths();
    if args.if_version.is_some() && paths.len() > 1 {
        return Err(Failure::Usage("--if-version is about one app: give one FILE".into()));
    }
    let local = local::load(&paths).await?;
    let client = Client::connect(context::endpoint(connect)?).await?;
    let submit = Submit { dry_run: args.dry_run, if_version: args.if_version.unwrap_or(0) };
    let mut changes: Vec<AppChange> = Vec::new();
    check_with_server(&client, &local).await?;
    let sent = send_files(&client, &local, submit, |change| {
        changes.push(change.clone());
        match args.output {
            None => print::out(change_line(change, args.dry_run)),
            Some(Output::Name) => print::out(format!("app/{}", change.app)),
            Some(_) => Ok(()),
        }
    })
    .await;
    let structured = matches!(args.output, Some(Output::Json | Output::Yaml));
    if sent.is_err() || args.dry_run || args.detach {
        if structured {
            structure(args, &changes, None)?;
        }
        return sent;
    }
    let (progress, outcome) = follow::until_running(&client, &changes, args.timeout).await;
    if structured {
        structure(args, &changes, Some(&progress))?;
    } else if args.output.is_none() {
        say_running(&changes, &progress)?;
    }
    outcome
}

pub(crate) async fn validate(args: &ValidateArgs) -> Result<(), Failure> {
    let local = local::load(&args.manifests.paths()).await?;
    for file in &local.files {
        for app in &file.apps {
            print::out(format!("app/{} valid ({})", app.name, file.name))?;
        }
    }
    Ok(())
}

/// Checks with the server, uploads what it lacks, and makes the apps desired. Used by `up` too.
#[cfg(all(feature = "host", feature = "scheduler"))]
pub(crate) async fn submit(client: &Client, local: &Local) -> Result<Vec<AppChange>, Failure> {
    let mut changes = Vec::new();
    check_with_server(client, local).await?;
    send_files(client, local, Submit::default(), |change| {
        changes.push(change.clone());
        print::out(change_line(change, false))
    })
    .await?;
    Ok(changes)
}

/// One line for each app that runs, with where it answers.
pub(crate) fn say_running(changes: &[AppChange], progress: &Progress) -> Result<(), Failure> {
    for change in changes {
        let Some(status) = progress.last(&change.app).filter(|status| status.state == "running") else { continue };
        let urls: String = status.urls.iter().map(|url| format!("  {}", print::clean(url))).collect();
        print::out(format!("app/{} running {}/{}{urls}", status.name, status.running, status.desired))?;
    }
    Ok(())
}

fn change_line(change: &AppChange, dry_run: bool) -> String {
    format!("app/{} {}{}", change.app, change.change, if dry_run { " (dry run)" } else { "" })
}

fn structure(args: &ApplyArgs, changes: &[AppChange], progress: Option<&Progress>) -> Result<(), Failure> {
    let items = changes.iter().map(|change| applied(change, args.dry_run, progress)).collect();
    let list = List { items };
    match args.output {
        Some(Output::Yaml) => print::yaml(&list, false),
        _ => print::json(&list),
    }
}

fn applied(change: &AppChange, dry_run: bool, progress: Option<&Progress>) -> Applied {
    let last = progress.and_then(|progress| progress.last(&change.app));
    Applied {
        name: change.app.clone(),
        change: change.change.clone(),
        revision: change.revision,
        version: change.version,
        dry_run,
        state: last.map(|status| status.state.clone()),
        desired: last.map(|status| status.desired),
        running: last.map(|status| status.running),
        message: last.map(|status| status.message.clone()).unwrap_or_default(),
        urls: last.map(|status| status.urls.clone()).unwrap_or_default(),
    }
}

/// Uploads what is missing, then lets the server check every file before the first is applied: what one file's fault
/// is must not leave the others half done.
async fn check_with_server(client: &Client, local: &Local) -> Result<(), Failure> {
    upload_missing(client, local).await?;
    let mut problems = Vec::new();
    for file in &local.files {
        let request = ValidateRequest { manifest: file.text.clone(), file: file.name.clone(), images: images(file) };
        let answer = ask!(client, validate, request)?;
        problems.extend(answer.problems.into_iter().map(problem));
    }
    local::refuse(&problems, &local.sources)
}

fn problem(found: proto::v1::Problem) -> Problem {
    let number = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
    Problem {
        file: found.file,
        line: number(found.line),
        column: number(found.column),
        path: found.path,
        message: found.message,
        help: found.help,
    }
}

async fn send_files(
    client: &Client,
    local: &Local,
    how: Submit,
    mut each: impl FnMut(&AppChange) -> Result<(), Failure>,
) -> Result<(), Failure> {
    for file in &local.files {
        let request = ApplyRequest {
            manifest: file.text.clone(),
            file: file.name.clone(),
            images: images(file),
            request_id: request_id(),
            if_version: how.if_version,
            dry_run: how.dry_run,
        };
        let answer = ask!(client, apply, request)?;
        for change in &answer.apps {
            each(change)?;
        }
    }
    Ok(())
}

fn images(file: &File) -> BTreeMap<String, String> {
    file.images.iter().map(|(image, component)| (image.clone(), component.digest.to_string())).collect()
}

async fn upload_missing(client: &Client, local: &Local) -> Result<(), Failure> {
    let components: BTreeMap<String, &Arc<Component>> =
        local.files.iter().flat_map(|file| file.images.values()).map(|c| (c.digest.to_string(), c)).collect();
    let digests: Vec<String> = components.keys().cloned().collect();
    let mut missing = BTreeSet::new();
    for some in digests.chunks(DIGESTS_MAX) {
        let request = MissingArtifactsRequest { digests: some.to_vec() };
        missing.extend(ask!(client, missing_artifacts, request)?.digests);
    }
    for digest in missing {
        if let Some(component) = components.get(&digest) {
            upload(client, component).await?;
        }
    }
    Ok(())
}

async fn upload(client: &Client, component: &Arc<Component>) -> Result<(), Failure> {
    let size = u64::try_from(component.bytes.len()).unwrap_or(u64::MAX);
    let bar = upload_bar(component, size);
    let sent = client
        .retry(UPLOAD_TIMEOUT, |mut api| {
            bar.set_position(0);
            let pieces = chunks(Arc::clone(component), bar.clone());
            async move { api.put_artifact(futures::stream::iter(pieces)).await }
        })
        .await;
    bar.finish_and_clear();
    let stored = sent?;
    if stored.digest != component.digest.to_string() {
        return Err(Failure::Refused(format!(
            "{}: the server stored {}, not {}; type the command again",
            component.path.display(),
            print::clean(&stored.digest),
            component.digest
        )));
    }
    Ok(())
}

/// The pieces of an upload, made as they are sent. Digest and size stand in the first.
fn chunks(component: Arc<Component>, bar: ProgressBar) -> impl Iterator<Item = ArtifactChunk> + Send + 'static {
    let count = component.bytes.len().div_ceil(CHUNK_BYTES).max(1);
    (0..count).map(move |n| {
        let rest = component.bytes.get(n * CHUNK_BYTES..).unwrap_or_default();
        let data = rest[..rest.len().min(CHUNK_BYTES)].to_vec();
        bar.inc(u64::try_from(data.len()).unwrap_or_default());
        let (digest, size) = match n {
            0 => (component.digest.to_string(), u64::try_from(component.bytes.len()).unwrap_or(u64::MAX)),
            _ => (String::new(), 0),
        };
        ArtifactChunk { digest, size, data }
    })
}

fn upload_bar(component: &Component, size: u64) -> ProgressBar {
    if !print::watched() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(size);
    let template = "uploading {msg}  {wide_bar} {bytes}/{total_bytes}  {bytes_per_sec}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(component.path.display().to_string());
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change() -> AppChange {
        AppChange { app: "hello".into(), change: "created".into(), revision: 1, version: 7 }
    }

    #[test]
    fn what_apply_says_of_an_app() {
        assert_eq!(change_line(&change(), false), "app/hello created");
        assert_eq!(change_line(&change(), true), "app/hello created (dry run)");
    }

    #[test]
    fn an_applied_app_keeps_its_shape() {
        assert_eq!(
            serde_json::to_value(List { items: vec![applied(&change(), false, None)] }).unwrap(),
            serde_json::json!({"items": [{"name": "hello", "change": "created", "revision": 1, "version": 7,
                "dry_run": false, "state": null, "desired": null, "running": null, "message": "", "urls": []}]})
        );
    }
}
