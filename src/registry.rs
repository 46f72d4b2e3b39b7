//! Components in OCI registries: fetched and stored by the machine where the command is typed, with the credentials that
//! its user has for Docker. What is fetched is checked against its digest and never larger than a component may be.
//! Hosts need no registry: they get the bytes over the bus.

use crate::failure::Failure;
use crate::print;
use clap::Args;
use docker_credential::{CredentialRetrievalError, DockerCredential};
use futures::TryStreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use oci_client::client::{ClientConfig, ClientProtocol, Config, ImageLayer};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::{ImageIndexEntry, OciDescriptor, OciImageManifest};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use proto::app::{ARTIFACT_BYTES_MAX, Digest};
use proto::manifest::ImageRef;
use std::path::PathBuf;
use std::time::Duration;

/// Or why not, and the next step.
pub(crate) type Pulled = Result<Vec<u8>, (String, &'static str)>;

/// What a component is stored as, by the CNCF's guidance for Wasm in OCI registries.
const LAYER: &str = "application/wasm";
const CONFIG: &str = "application/vnd.wasm.config.v0+json";
/// What it was stored as before there was that guidance.
const OLDER_LAYERS: [&str; 3] = [
    "application/vnd.wasm.content.layer.v1+wasm",
    "application/vnd.module.wasm.content.layer.v1+wasm",
    "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
];
/// Bytes that are sent to a registry at once.
const PIECE_BYTES: usize = 1024 * 1024;
const CONNECT_WAIT: Duration = Duration::from_secs(10);
/// Silence of a registry in the middle of an answer.
const READ_WAIT: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lattice push hello.wasm ghcr.io/acme/hello:1.0
  lattice push hello.wasm 127.0.0.1:5000/hello:1.0      a registry on this machine, without TLS

Prints the reference with the digest that it has now: an image that is named so
can not change. Credentials are those of `docker login`, from
$DOCKER_CONFIG/config.json or ~/.docker/config.json.")]
pub(crate) struct PushArgs {
    /// Component to store
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Where: [HOST[:PORT]/]NAME[:TAG]
    #[arg(value_name = "REF", value_parser = reference)]
    reference: Reference,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lattice pull ghcr.io/acme/hello:1.0                   writes hello.wasm
  lattice pull ghcr.io/acme/hello:1.0 -o /tmp/h.wasm

`lattice apply` fetches the images of a manifest by itself. Credentials are those
of `docker login`, from $DOCKER_CONFIG/config.json or ~/.docker/config.json.")]
pub(crate) struct PullArgs {
    /// What: [HOST[:PORT]/]NAME[:TAG][@sha256:DIGEST]
    #[arg(value_name = "REF", value_parser = reference)]
    reference: Reference,
    /// Where to write it, over what is there [default: NAME.wasm, if there is none]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

fn reference(text: &str) -> Result<Reference, String> {
    match text.parse::<ImageRef>() {
        Ok(ImageRef::Registry(text)) => text.parse().map_err(|e| format!("{e}: write [HOST[:PORT]/]NAME[:TAG]")),
        Ok(_) => Err("is no registry reference: write [HOST[:PORT]/]NAME[:TAG], as ghcr.io/acme/hello:1.0".into()),
        Err(e) => Err(e.to_string()),
    }
}

pub(crate) async fn push(args: &PushArgs) -> Result<(), Failure> {
    let file = args.file.display();
    let refused = |why: String, help: &str| Failure::Refused(format!("{file}: {why}{}", then(help)));
    let component = crate::local::read_component(&args.file).map_err(|(why, help)| refused(why, help))?;
    if let Some(from) = component.adapted {
        print::note(format!("{file}: adapted from {from}"));
    }
    let reference = &args.reference;
    let digests = [component.digest.to_string()];
    let config = serde_json::json!({"architecture": "wasm", "os": "wasip2", "layerDigests": digests});
    let config = Config::new(config.to_string().into_bytes(), CONFIG.to_owned(), None);
    let size = component.bytes.len();
    let layers = [ImageLayer::new(component.bytes, LAYER.to_owned(), None)];
    let (client, auth) = connect(reference).map_err(|(why, help)| refused(why, help))?;
    let bar = bar(reference, u64::try_from(size).unwrap_or(u64::MAX), "storing");
    let failed = |e| explain(reference, &e);
    let pushed = store(&client, reference, &auth, &layers, config, &bar).await;
    bar.finish_and_clear();
    let manifest = pushed.map_err(failed).map_err(|(why, help)| refused(why, help))?;
    print::out(format!("pushed {}@{manifest} ({size} bytes)", reference.whole().split('@').next().unwrap_or_default()))
}

/// Stores the one layer piece by piece, so that `bar` shows how far it is. Gives the digest that the manifest has.
async fn store(
    client: &Client,
    reference: &Reference,
    auth: &RegistryAuth,
    layers: &[ImageLayer],
    config: Config,
    bar: &ProgressBar,
) -> Result<String, OciDistributionError> {
    let image = OciImageManifest::build(layers, &config, None);
    client.auth(reference, auth, RegistryOperation::Push).await?;
    for (layer, descriptor) in layers.iter().zip(&image.layers) {
        let (data, digest, bar) = (layer.data.clone(), descriptor.digest.as_str(), bar.clone());
        let pieces = (0..data.len()).step_by(PIECE_BYTES).map({
            let data = data.clone();
            move |at| {
                bar.set_position(u64::try_from(at).unwrap_or_default());
                Ok(data.slice(at..data.len().min(at + PIECE_BYTES)))
            }
        });
        match client.push_blob_stream(reference, futures::stream::iter(pieces), digest, None).await {
            // Some registries take it whole only.
            Err(OciDistributionError::SpecViolationError(_)) => client.push_blob(reference, data, digest).await?,
            stored => stored?,
        };
    }
    client.push_blob(reference, config.data, &image.config.digest).await?;
    client.push_manifest(reference, &image.into()).await?;
    client.fetch_manifest_digest(reference, auth).await
}

pub(crate) async fn pull(args: &PullArgs) -> Result<(), Failure> {
    let refused =
        |why: String, help: &str| Failure::Refused(format!("{}: {why}{}", args.reference.whole(), then(help)));
    let last = args.reference.repository().rsplit('/').next().unwrap_or_default();
    let path = args.output.clone().unwrap_or_else(|| PathBuf::from(format!("{last}.wasm")));
    if args.output.is_none() && path.exists() {
        return Err(refused(format!("{} is there already", path.display()), "name another file with -o"));
    }
    let bytes = fetch(&args.reference).await.map_err(|(why, help)| refused(why, help))?;
    let digest = Digest::of(&bytes);
    std::fs::write(&path, &bytes)
        .map_err(|e| refused(format!("{}: {e}", path.display()), "name another file with -o"))?;
    print::out(format!("{}: {digest} ({} bytes)", path.display(), bytes.len()))
}

fn then(help: &str) -> String {
    if help.is_empty() { String::new() } else { format!("; {help}") }
}

/// The component behind an image of a manifest.
pub(crate) async fn component(image: &str) -> Pulled {
    let reference = reference(image).map_err(|why| (why, ""))?;
    fetch(&reference).await
}

async fn fetch(reference: &Reference) -> Pulled {
    let (client, auth) = connect(reference)?;
    let failed = |e| explain(reference, &e);
    let (manifest, _) = client.pull_image_manifest(reference, &auth).await.map_err(failed)?;
    let layer = the_component(&manifest.layers).map_err(|why| (why, "push it with `lattice push`"))?;
    let size = u64::try_from(layer.size).unwrap_or(0);
    let bar = bar(reference, size, "fetching");
    let mut stream = client.pull_blob_stream(reference, layer).await.map_err(failed)?.stream;
    let mut bytes = Vec::new();
    let broken = |e: std::io::Error| (format!("broke off after {} bytes: {e}", bar.position()), "try again");
    while let Some(more) = stream.try_next().await.map_err(broken)? {
        bytes.extend_from_slice(&more);
        bar.inc(u64::try_from(more.len()).unwrap_or_default());
        if bar.position() > size {
            return Err((format!("the registry sends more than the {size} bytes it announced"), "push it again"));
        }
    }
    bar.finish_and_clear();
    let found = Digest::of(&bytes).to_string();
    if found != layer.digest {
        return Err((format!("the registry sent {found} for {}", layer.digest), "push it again: it is damaged there"));
    }
    Ok(bytes)
}

/// The one layer that is WebAssembly, if it is no larger than a component may be.
fn the_component(layers: &[OciDescriptor]) -> Result<&OciDescriptor, String> {
    let is_wasm =
        |layer: &&OciDescriptor| layer.media_type == LAYER || OLDER_LAYERS.contains(&layer.media_type.as_str());
    let mut found = layers.iter().filter(is_wasm);
    match (found.next(), found.next()) {
        (Some(one), None) => match u64::try_from(one.size) {
            Ok(size) if size <= ARTIFACT_BYTES_MAX => Ok(one),
            _ => Err(format!("is {} bytes; a component has {ARTIFACT_BYTES_MAX} at most", one.size)),
        },
        (None, _) => {
            let types: Vec<&str> = layers.iter().map(|layer| layer.media_type.as_str()).take(4).collect();
            Err(format!("is no WebAssembly component: its layers are [{}]", print::clean(&types.join(", "))))
        }
        _ => Err("has more than one WebAssembly layer".into()),
    }
}

/// A registry on this machine is asked without TLS, as Docker does.
fn connect(reference: &Reference) -> Result<(Client, RegistryAuth), (String, &'static str)> {
    let registry = reference.resolve_registry();
    let name = registry.rsplit_once(':').map_or(registry, |(name, _)| name);
    let is_here = name == "localhost" || name.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
    let except = if is_here { vec![registry.to_owned()] } else { Vec::new() };
    // The crate makes TLS clients of whatever provider the process has.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::new(ClientConfig {
        protocol: ClientProtocol::HttpsExcept(except),
        platform_resolver: Some(Box::new(for_wasm)),
        connect_timeout: Some(CONNECT_WAIT),
        read_timeout: Some(READ_WAIT),
        user_agent: concat!("lattice/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    });
    Ok((client, credentials(registry)?))
}

/// Of an image for several platforms the one for WebAssembly, or the only one.
fn for_wasm(entries: &[ImageIndexEntry]) -> Option<String> {
    let is_wasm =
        |entry: &&ImageIndexEntry| entry.platform.as_ref().is_some_and(|p| p.architecture.to_string() == "wasm");
    let only = || if let [one] = entries { Some(one) } else { None };
    entries.iter().find(is_wasm).or_else(only).map(|entry| entry.digest.clone())
}

fn credentials(registry: &str) -> Result<RegistryAuth, (String, &'static str)> {
    // Docker keeps those for its own hub under an old name.
    let server = if registry == "index.docker.io" { "https://index.docker.io/v1/" } else { registry };
    let folder = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let folder = folder.or_else(|| directories::BaseDirs::new().map(|dirs| dirs.home_dir().join(".docker")));
    let Some(config) = folder.and_then(|folder| std::fs::File::open(folder.join("config.json")).ok()) else {
        return Ok(RegistryAuth::Anonymous);
    };
    match docker_credential::get_credential_from_reader(std::io::BufReader::new(config), server) {
        Ok(DockerCredential::UsernamePassword(name, password)) => Ok(RegistryAuth::Basic(name, password)),
        Ok(DockerCredential::IdentityToken(token)) => Ok(RegistryAuth::Bearer(token)),
        Err(CredentialRetrievalError::NoCredentialConfigured) => Ok(RegistryAuth::Anonymous),
        Err(e) => Err((
            format!("credentials for {registry}: {}", print::clean(&e.to_string())),
            "see config.json in $DOCKER_CONFIG or ~/.docker, or use `docker login` again",
        )),
    }
}

fn explain(reference: &Reference, error: &OciDistributionError) -> (String, &'static str) {
    let registry = reference.resolve_registry();
    let missing = || {
        let tag = reference.digest().or(reference.tag()).unwrap_or("latest");
        let why = format!("registry {registry} has no {} of {}", print::clean(tag), reference.repository());
        (why, "check name and tag, or put it there with `lattice push`")
    };
    let unauthorized = || {
        let why = format!("registry {registry} does not let these credentials near {}", reference.repository());
        (why, "use `docker login`, or ask its owner for access")
    };
    match error {
        OciDistributionError::ImageManifestNotFoundError(_) => missing(),
        OciDistributionError::ServerError { code: 404, .. } => missing(),
        OciDistributionError::UnauthorizedError { .. }
        | OciDistributionError::ServerError { code: 401 | 403, .. }
        | OciDistributionError::AuthenticationFailure(_) => unauthorized(),
        OciDistributionError::RegistryError { envelope, .. } => {
            let has = |codes: &[OciErrorCode]| envelope.errors.iter().any(|e| codes.contains(&e.code));
            if has(&[OciErrorCode::ManifestUnknown, OciErrorCode::NameUnknown, OciErrorCode::NotFound]) {
                missing()
            } else if has(&[OciErrorCode::Unauthorized, OciErrorCode::Denied]) {
                unauthorized()
            } else {
                (format!("registry {registry}: {}", print::clean(&envelope.to_string())), "")
            }
        }
        OciDistributionError::RequestError(e) if e.is_connect() || e.is_timeout() => {
            let mut cause: &dyn std::error::Error = e;
            while let Some(deeper) = cause.source() {
                cause = deeper;
            }
            let why = format!("registry {registry} can not be reached: {}", print::clean(&cause.to_string()));
            (why, "check its host and port, and the way there")
        }
        OciDistributionError::DigestError(e) => (
            format!("registry {registry} sent something else than was asked for: {e}"),
            "push it again: it is damaged there",
        ),
        other => (format!("registry {registry}: {}", print::clean(&other.to_string())), ""),
    }
}

fn bar(reference: &Reference, size: u64, what: &str) -> ProgressBar {
    if !print::watched() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(size);
    let template = format!("{what} {{msg}}  {{wide_bar}} {{bytes}}/{{total_bytes}}  {{bytes_per_sec}}");
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style);
    }
    bar.set_message(reference.whole());
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(media_type: &str, size: i64) -> OciDescriptor {
        OciDescriptor { media_type: media_type.into(), size, ..Default::default() }
    }

    #[test]
    fn the_one_wasm_layer_is_the_component() {
        let json = layer("application/json", 5);
        for media_type in [LAYER, OLDER_LAYERS[0], OLDER_LAYERS[1], OLDER_LAYERS[2]] {
            assert_eq!(the_component(&[json.clone(), layer(media_type, 9)]).unwrap().size, 9, "{media_type}");
        }
        let why = the_component(std::slice::from_ref(&json)).unwrap_err();
        assert_eq!(why, "is no WebAssembly component: its layers are [application/json]");
        assert!(the_component(&[]).is_err());
        assert!(the_component(&[layer(LAYER, 1), layer(LAYER, 1)]).unwrap_err().contains("more than one"));
        for size in [-1, i64::try_from(ARTIFACT_BYTES_MAX).unwrap() + 1] {
            assert!(the_component(&[layer(LAYER, size)]).unwrap_err().contains("at most"), "{size}");
        }
    }

    #[test]
    fn references_are_told_from_files_and_digests() {
        let good = reference("oci://ghcr.io/acme/hello:1.0").unwrap();
        assert_eq!((good.registry(), good.repository(), good.tag()), ("ghcr.io", "acme/hello", Some("1.0")));
        assert_eq!(reference("127.0.0.1:5000/a/b").unwrap().tag(), Some("latest"));
        let digest = Digest::of(b"x").to_string();
        for wrong in ["./hello.wasm", "hello.wasm", digest.as_str(), "builtin:keyvalue", "ghcr.io/A:1", ""] {
            assert!(reference(wrong).is_err(), "{wrong}");
        }
    }
}
