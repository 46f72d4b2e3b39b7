//! Reaches for what lies outside the sandbox, and says what it got: "denied: ..." where it was refused.

use std::fmt::Write as _;
use std::io::Read as _;
use std::net::{TcpStream, ToSocketAddrs, UdpSocket};
use wasip2::http::outgoing_handler;
use wasip2::http::types::{Fields, FutureIncomingResponse, OutgoingRequest, Scheme};

#[cfg(feature = "drafts")]
mod drafts {
    wit_bindgen::generate!({
        path: ["../../../proto/wit/deps/logging", "../../../proto/wit/deps/config-draft"],
        inline: "
            package lattice:hostile;
            world hostile {
                import wasi:logging/logging;
                import wasi:config/runtime@0.2.0-draft;
            }
        ",
        world: "lattice:hostile/hostile",
        generate_all,
    });
}

/// Variables and arguments, one a line, then the number of arguments.
pub fn env() -> String {
    let mut text = String::new();
    for (name, value) in std::env::vars() {
        let _ = writeln!(text, "{name}={value}");
    }
    if text.is_empty() {
        text.push_str("denied: no variables\n");
    }
    for argument in std::env::args() {
        let _ = writeln!(text, "argument {argument}");
    }
    let _ = writeln!(text, "{} arguments", std::env::args().count());
    text
}

/// The monotonic clock alone: what it says, and how exact it is.
pub fn ticks() -> String {
    use wasip2::clocks::monotonic_clock::{now, resolution};
    format!("now {}\nresolution {}\n", now(), resolution())
}

/// What hash maps are seeded with.
pub fn seed() -> String {
    let (a, b) = wasip2::random::insecure_seed::insecure_seed();
    format!("seed {a:016x}{b:016x}\n")
}

pub fn stdin() -> String {
    let mut text = String::new();
    match std::io::stdin().read_to_string(&mut text) {
        Ok(0) => "denied: nothing on stdin\n".into(),
        Ok(_) => format!("read {text:?}\n"),
        Err(e) => format!("denied: stdin: {e}\n"),
    }
}

/// Both clocks, in nanoseconds.
pub fn time() -> String {
    let wall = wasip2::clocks::wall_clock::now();
    let monotonic = wasip2::clocks::monotonic_clock::now();
    format!("wall {}.{:09}\nmonotonic {monotonic}\n", wall.seconds, wall.nanoseconds)
}

pub fn random() -> String {
    let (secure, insecure) = (
        wasip2::random::random::get_random_u64(),
        wasip2::random::insecure::get_insecure_random_u64(),
    );
    format!("secure {secure:016x}\ninsecure {insecure:016x}\n")
}

/// Reads `path`, lists the root and counts the folders that the host opened for it.
pub fn file(path: &str) -> String {
    let mut text = match std::fs::read(path) {
        Ok(bytes) => format!("read {} bytes of {path}\n", bytes.len()),
        Err(e) => format!("denied: read {path}: {e}\n"),
    };
    match std::fs::read_dir("/") {
        Ok(entries) => {
            let _ = writeln!(text, "listed / with {} entries", entries.count());
        }
        Err(e) => {
            let _ = writeln!(text, "denied: list /: {e}");
        }
    }
    let _ = match std::fs::write("/hostile", b"was here") {
        Ok(()) => writeln!(text, "wrote /hostile"),
        Err(e) => writeln!(text, "denied: write /hostile: {e}"),
    };
    let _ = writeln!(
        text,
        "{} folders",
        wasip2::filesystem::preopens::get_directories().len()
    );
    text
}

pub fn socket(to: &str) -> String {
    match TcpStream::connect(to) {
        Ok(_) => format!("connected to {to}\n"),
        Err(e) => format!("denied: connect to {to}: {:?}: {e}\n", e.kind()),
    }
}

/// Sends one datagram.
pub fn udp(to: &str) -> String {
    let sent = UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.send_to(b"hostile", to));
    match sent {
        Ok(bytes) => format!("sent {bytes} bytes to {to}\n"),
        Err(e) => format!("denied: send to {to}: {:?}: {e}\n", e.kind()),
    }
}

pub fn lookup(host: &str) -> String {
    match (host, 80).to_socket_addrs() {
        Ok(found) => format!("found {} addresses of {host}\n", found.count()),
        Err(e) => format!("denied: look up {host}: {e}\n"),
    }
}

/// Begins `count` requests before it looks at the first answer; says how many were answered.
pub fn outs(count: u64, url: &str) -> String {
    let begun: Vec<_> = (0..count).map(|_| begin(url)).collect();
    let mut text = String::new();
    for begun in begun {
        let _ = match begun.and_then(finish) {
            Ok(status) => writeln!(text, "status {status}"),
            Err(e) => writeln!(text, "denied: {e}"),
        };
    }
    text
}

/// Calls the host for ever.
pub fn flood(of: &str) -> ! {
    let line = "x".repeat(1_000);
    loop {
        match of {
            "log" => println!("{line}"),
            "poll" => wasip2::clocks::monotonic_clock::subscribe_duration(0).block(),
            _ => {
                std::hint::black_box(wasip2::clocks::monotonic_clock::now());
            }
        }
    }
}

/// GETs an http:// or https:// address and gives the status.
pub fn out(url: &str) -> String {
    match request(url) {
        Ok(status) => format!("status {status} from {url}\n"),
        Err(e) => format!("denied: {url}: {e}\n"),
    }
}

fn request(url: &str) -> Result<u16, String> {
    finish(begin(url)?)
}

fn begin(url: &str) -> Result<FutureIncomingResponse, String> {
    let (scheme, rest) = match url.split_once("://") {
        Some(("http", rest)) => (Scheme::Http, rest),
        Some(("https", rest)) => (Scheme::Https, rest),
        _ => return Err("not an http:// or https:// address".into()),
    };
    let (authority, path) = rest.find('/').map_or((rest, "/"), |slash| rest.split_at(slash));
    let request = OutgoingRequest::new(Fields::new());
    let built = request.set_scheme(Some(&scheme)).is_ok()
        && request.set_authority(Some(authority)).is_ok()
        && request.set_path_with_query(Some(path)).is_ok();
    if !built {
        return Err("not a valid address".into());
    }
    outgoing_handler::handle(request, None).map_err(|e| format!("{e:?}"))
}

fn finish(response: FutureIncomingResponse) -> Result<u16, String> {
    response.subscribe().block();
    match response.get() {
        Some(Ok(Ok(response))) => Ok(response.status()),
        Some(Ok(Err(e))) => Err(format!("{e:?}")),
        Some(Err(())) | None => Err("the host gave no answer".into()),
    }
}

/// One line on stdout, one on stderr, and one to wasi:logging.
pub fn log(text: &str) -> String {
    println!("stdout {text}");
    eprintln!("stderr {text}");
    #[cfg(feature = "drafts")]
    drafts::wasi::logging::logging::log(drafts::wasi::logging::logging::Level::Warn, "hostile", text);
    "logged\n".into()
}

#[cfg(feature = "drafts")]
pub fn config(key: &str) -> String {
    match drafts::wasi::config::runtime::get(key) {
        Ok(Some(value)) => format!("{key}={value}\n"),
        Ok(None) => format!("denied: no {key:?}\n"),
        Err(e) => format!("denied: {key:?}: {e:?}\n"),
    }
}

#[cfg(not(feature = "drafts"))]
pub fn config(_: &str) -> String {
    "denied: built without wasi:config\n".into()
}
