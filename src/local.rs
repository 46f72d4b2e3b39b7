//! Manifests and components: read, parsed, inspected, checked. Every problem of every file is collected before any is
//! reported. Core modules become components
//! here. Talks to no lattice; images in registries are fetched first.

use crate::failure::Failure;
use crate::print;
use futures::StreamExt;
use proto::app::{ARTIFACT_BYTES_MAX, App, Digest, Kind, MANIFEST_BYTES_MAX, Name};
use proto::component::{self, Inspection};
use proto::manifest::{self, ImageRef, Parsed, Problem};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Manifests of one command.
const FILES_MAX: usize = 1_000;
/// Components fetched at once.
const FETCHES_MAX: usize = 4;
/// Warnings printed at most.
const WARNINGS_MAX: usize = 50;

/// Manifests and components that have passed every check which needs no server.
#[derive(Debug, Default)]
pub(crate) struct Local {
    pub(crate) files: Vec<File>,
    /// The text of each file, for showing problems that the server finds.
    pub(crate) sources: BTreeMap<String, String>,
}

#[derive(Debug)]
pub(crate) struct File {
    /// As it was typed; "-" is stdin.
    pub(crate) name: String,
    pub(crate) text: String,
    pub(crate) apps: Vec<App>,
    /// Image as the manifest writes it -> the component behind it.
    pub(crate) images: BTreeMap<String, Arc<Component>>,
}

#[derive(Debug)]
pub(crate) struct Component {
    pub(crate) path: PathBuf,
    pub(crate) digest: Digest,
    pub(crate) bytes: Vec<u8>,
    pub(crate) inspection: Inspection,
    /// What it was made of, when the bytes were no component.
    pub(crate) adapted: Option<&'static str>,
}

/// Reads and checks them all, or prints every problem.
pub(crate) async fn load(paths: &[PathBuf]) -> Result<Local, Failure> {
    if paths.len() > FILES_MAX {
        return Err(Failure::Usage(format!("{} files; at most {FILES_MAX} in one command", paths.len())));
    }
    if paths.iter().filter(|path| is_stdin(path)).count() > 1 {
        return Err(Failure::Usage("\"-\" is stdin, which can be read only once".into()));
    }
    let mut local = Local::default();
    let (mut problems, mut warnings) = (Vec::new(), Vec::new());
    let mut components = Components::default();
    for path in paths {
        let name = path.display().to_string();
        if local.sources.contains_key(&name) {
            return Err(Failure::Usage(format!("{name} is named twice")));
        }
        match read(path) {
            Ok(bytes) => {
                local.sources.insert(name.clone(), String::from_utf8_lossy(&bytes).into_owned());
                match manifest::parse_bytes(&bytes, &name) {
                    Ok(parsed) => {
                        components.fetch(&parsed).await;
                        let file = resolve(path, name, &bytes, parsed, &mut components, &mut problems, &mut warnings);
                        local.files.push(file);
                    }
                    Err(found) => problems.extend(found),
                }
            }
            Err((why, help)) => problems.push(whole_file(&name, &why, help)),
        }
    }
    report_twins(&local.files, &mut problems);
    refuse(&problems, &local.sources)?;
    for warning in warnings.iter().take(WARNINGS_MAX) {
        print::note(format!("warning: {}", print::clean(&warning.to_string())));
    }
    if warnings.len() > WARNINGS_MAX {
        print::note(format!("warning: and {} more like these", warnings.len() - WARNINGS_MAX));
    }
    Ok(local)
}

/// The apps that manifests name, for `delete -f`: their components need not be there.
pub(crate) fn app_names(paths: &[PathBuf]) -> Result<Vec<String>, Failure> {
    let (mut names, mut problems, mut sources) = (Vec::new(), Vec::new(), BTreeMap::new());
    for path in paths {
        let name = path.display().to_string();
        match read(path) {
            Ok(bytes) => {
                sources.insert(name.clone(), String::from_utf8_lossy(&bytes).into_owned());
                match manifest::parse_bytes(&bytes, &name) {
                    Ok(parsed) => names.extend(parsed.into_iter().map(|one| String::from(one.app.name))),
                    Err(found) => problems.extend(found),
                }
            }
            Err((why, help)) => problems.push(whole_file(&name, &why, help)),
        }
    }
    refuse(&problems, &sources)?;
    Ok(names)
}

/// Prints problems and ends the command, if there are any.
pub(crate) fn refuse(problems: &[Problem], sources: &BTreeMap<String, String>) -> Result<(), Failure> {
    if problems.is_empty() {
        return Ok(());
    }
    print::problems::print(problems, sources);
    let files: std::collections::BTreeSet<&str> = problems.iter().map(|p| p.file.as_str()).collect();
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    Err(Failure::Refused(format!(
        "{} in {}; nothing was changed",
        count(problems.len(), "problem"),
        count(files.len(), "file")
    )))
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// A whole manifest, or why not and the next step. No more is read than it may have.
fn read(path: &Path) -> Result<Vec<u8>, (String, &'static str)> {
    const NAME_ONE: &str = "name a readable manifest, or - for stdin";
    let limit = u64::try_from(MANIFEST_BYTES_MAX).unwrap_or(u64::MAX) + 1;
    let mut bytes = Vec::new();
    let done = if is_stdin(path) {
        std::io::stdin().lock().take(limit).read_to_end(&mut bytes)
    } else {
        open(path).map_err(|why| (why, NAME_ONE))?.take(limit).read_to_end(&mut bytes)
    };
    done.map_err(|e| (e.to_string(), NAME_ONE))?;
    if bytes.len() > MANIFEST_BYTES_MAX {
        let why = format!("has more than {MANIFEST_BYTES_MAX} bytes, the most for a manifest");
        return Err((why, "split it into several files, one app each"));
    }
    Ok(bytes)
}

/// Failures of the kinds that are common, in plain words.
fn open(path: &Path) -> Result<std::fs::File, String> {
    let words = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => "no such file".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => e.to_string(),
    };
    if std::fs::metadata(path).map_err(words)?.is_dir() {
        return Err("is a folder".into());
    }
    std::fs::File::open(path).map_err(words)
}

/// Finds the components that a file's apps name, and checks the apps against them.
fn resolve(
    path: &Path,
    name: String,
    bytes: &[u8],
    parsed: Vec<Parsed>,
    components: &mut Components,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<Problem>,
) -> File {
    let folder = if is_stdin(path) { Path::new("") } else { path.parent().unwrap_or(Path::new("")) };
    let mut images = BTreeMap::new();
    let mut apps = Vec::new();
    for Parsed { mut app, positions } in parsed {
        let mut inspections: BTreeMap<Name, Inspection> = BTreeMap::new();
        for (component_name, component) in &mut app.components {
            let Kind::Actor(actor) = &mut component.kind else { continue };
            let place = positions.image(component_name.as_str());
            match find(&actor.image, folder, components) {
                Ok(Some(found)) => {
                    actor.digest = Some(found.digest.clone());
                    inspections.insert(component_name.clone(), found.inspection.clone());
                    images.insert(actor.image.clone(), found);
                }
                Ok(None) => {}
                Err((why, help)) => {
                    problems.push(positions.problem(place, format!("image {:?}: {why}", actor.image), help));
                }
            }
        }
        problems.extend(proto::check::check(&mut app, &inspections, &positions));
        warnings.extend(proto::check::warnings(&app, &inspections, &positions));
        apps.push(app);
    }
    File { name, text: String::from_utf8_lossy(bytes).into_owned(), apps, images }
}

/// The component behind an image; `None` for a digest, which the server has or has not.
fn find(image: &str, folder: &Path, components: &mut Components) -> Found {
    match image.parse::<ImageRef>() {
        Ok(ImageRef::Local(path)) => components.get(&folder.join(path.strip_prefix("./").unwrap_or(&path))).map(Some),
        Ok(ImageRef::Digest(_)) => Ok(None),
        Ok(ImageRef::Registry(reference)) => components
            .by_reference
            .get(&reference)
            .cloned()
            .map_or_else(|| Err((format!("{reference} was not fetched"), "apply it again")), |found| found.map(Some)),
        Ok(ImageRef::Builtin(_)) => Err(("a built-in provider is no actor".into(), "give it `type: capability`")),
        Err(e) => Err((e.to_string(), "")),
    }
}

/// Or why not, and the next step.
type Found = Result<Option<Arc<Component>>, (String, &'static str)>;

/// Components read so far: one that many actors share is read once.
#[derive(Debug, Default)]
struct Components {
    by_path: BTreeMap<PathBuf, Result<Arc<Component>, (String, &'static str)>>,
    by_reference: BTreeMap<String, Result<Arc<Component>, (String, &'static str)>>,
}

impl Components {
    /// Fetches the images in registries that these apps name.
    async fn fetch(&mut self, parsed: &[Parsed]) {
        let images = parsed.iter().flat_map(|one| manifest::images(&one.app));
        let wanted: BTreeSet<String> = images
            .filter_map(|(_, image)| if let ImageRef::Registry(reference) = image { Some(reference) } else { None })
            .filter(|reference| !self.by_reference.contains_key(reference))
            .collect();
        let mut fetched = futures::stream::iter(wanted.into_iter().map(fetch_component)).buffer_unordered(FETCHES_MAX);
        while let Some((reference, component)) = fetched.next().await {
            self.by_reference.insert(reference, component);
        }
    }

    fn get(&mut self, path: &Path) -> Result<Arc<Component>, (String, &'static str)> {
        self.by_path.entry(path.to_owned()).or_insert_with(|| read_component(path).map(Arc::new)).clone()
    }
}

#[cfg(feature = "registry")]
async fn fetch_component(reference: String) -> (String, Result<Arc<Component>, (String, &'static str)>) {
    let fetched = crate::registry::component(&reference).await;
    let path = PathBuf::from(&reference);
    (reference, fetched.and_then(|bytes| inspected(path, bytes)).map(Arc::new))
}

#[cfg(not(feature = "registry"))]
async fn fetch_component(reference: String) -> (String, Result<Arc<Component>, (String, &'static str)>) {
    let why = "this build does not fetch from registries".to_owned();
    (reference, Err((why, "download the component and name its file, as ./hello.wasm")))
}

/// A component by itself: a file, or what a registry has where no file is of that name.
pub(crate) async fn component(named: &Path) -> Result<Arc<Component>, (String, &'static str)> {
    let image = named.to_str().and_then(|text| text.parse().ok());
    match image {
        Some(ImageRef::Registry(reference)) if !named.exists() => fetch_component(reference).await.1,
        _ => read_component(named).map(Arc::new),
    }
}

fn inspected(path: PathBuf, bytes: Vec<u8>) -> Result<Component, (String, &'static str)> {
    // The reason says what to do already.
    #[cfg(feature = "adapt")]
    let (bytes, adapted) = match crate::adapt::adapt(&bytes).map_err(|why| (why, ""))? {
        Some((made, from)) => (made, Some(from.text())),
        None => (bytes, None),
    };
    #[cfg(not(feature = "adapt"))]
    let adapted = None;
    let inspection = component::inspect(&bytes).map_err(|e| (e.to_string(), ""))?;
    Ok(Component { path, digest: Digest::of(&bytes), bytes, inspection, adapted })
}

/// A component in a file.
pub(crate) fn read_component(path: &Path) -> Result<Component, (String, &'static str)> {
    const BUILD: &str = "build the component there first, or correct the path (it is relative to the manifest)";
    let file = open(path).map_err(|why| (format!("{why} at {}", path.display()), BUILD))?;
    let mut bytes = Vec::new();
    file.take(ARTIFACT_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| (format!("{}: {e}", path.display()), BUILD))?;
    inspected(path.to_owned(), bytes)
}

/// Two files that declare the same app: the second would undo the first.
fn report_twins(files: &[File], problems: &mut Vec<Problem>) {
    let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
    for file in files {
        for app in &file.apps {
            match seen.insert(app.name.as_str(), &file.name) {
                Some(first) if first != file.name => problems.push(whole_file(
                    &file.name,
                    &format!("app {:?} is declared in {first} too", app.name.as_str()),
                    "apply one of the two files",
                )),
                _ => {}
            }
        }
    }
}

fn whole_file(file: &str, message: &str, help: &str) -> Problem {
    Problem {
        file: file.to_owned(),
        line: 0,
        column: 0,
        path: String::new(),
        message: message.to_owned(),
        help: help.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_that_is_not_there_says_what_to_do() {
        let mut components = Components::default();
        let (why, help) = find("./no.wasm", Path::new("/nowhere"), &mut components).expect_err("not there");
        assert_eq!(why, "no such file at /nowhere/no.wasm");
        assert!(help.contains("relative to the manifest"), "{help}");
        let digest = Digest::of(b"x").to_string();
        assert!(matches!(find(&digest, Path::new(""), &mut components), Ok(None)));
        assert!(find("ghcr.io/org/hello:1", Path::new(""), &mut components).is_err());
    }

    #[test]
    fn a_missing_file_and_a_folder_are_told_apart() {
        assert_eq!(open(Path::new("/nowhere/app.yaml")).expect_err("not there"), "no such file");
        assert_eq!(open(Path::new("/")).expect_err("a folder"), "is a folder");
    }
}
