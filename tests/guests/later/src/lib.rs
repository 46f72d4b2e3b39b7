//! An HTTP handler of WASI 0.3. Its path says what it does: it answers, waits, gives a body back as it comes, or tries
//! what it may not have been granted and tells what came of it. What it can not be told ends it. It is a program, too.

use std::hint::black_box;
use std::sync::atomic::{AtomicU32, Ordering};
use wasip3::cli::{environment, exit, stdin};
use wasip3::clocks::{monotonic_clock, system_clock};
use wasip3::exports::http::handler::Guest;
use wasip3::filesystem::preopens;
use wasip3::filesystem::types::{DescriptorFlags, OpenFlags, PathFlags};
use wasip3::http::client;
use wasip3::http::types::{ErrorCode, Fields, Request, Response, Scheme};
use wasip3::random::{insecure, random};
use wasip3::sockets::ip_name_lookup;
use wasip3::sockets::types::{IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, TcpSocket, UdpSocket};
use wasip3::{wit_bindgen, wit_future, wit_stream};

wasip3::http::service::export!(Later);
wasip3::cli::command::export!(Later);

struct Later;

impl Guest for Later {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let target = request.get_path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        match path {
            "/echo" => Ok(echo(request)),
            "/error" => Err(ErrorCode::ConfigurationError),
            _ => Ok(text(tried(path, query).await)),
        }
    }
}

impl wasip3::exports::cli::run::Guest for Later {
    /// As a program it waits for as many milliseconds as it has arguments, names them, and fails if there are three.
    async fn run() -> Result<(), ()> {
        let arguments = environment::get_arguments();
        for argument in &arguments {
            monotonic_clock::wait_for(1_000_000).await;
            println!("{argument}");
        }
        if arguments.len() == 3 { Err(()) } else { Ok(()) }
    }
}

async fn tried(path: &str, query: &str) -> String {
    match path {
        "/wait" => {
            let began = monotonic_clock::now();
            monotonic_clock::wait_for(number(query) * 1_000_000).await;
            format!("waited {} ms", (monotonic_clock::now() - began) / 1_000_000)
        }
        "/tick" => format!("{}", (0..1_000).any(|_| monotonic_clock::now() % 1_000_000 != 0)),
        "/time" => format!("{} s", system_clock::now().seconds),
        "/resolution" => format!("{}", system_clock::get_resolution()),
        "/random" => format!("{:?}", random::get_random_bytes(8)),
        "/number" => format!("{}", random::get_random_u64()),
        "/insecure" => format!("{:?}", insecure::get_insecure_random_bytes(8)),
        "/insecure-number" => format!("{}", insecure::get_insecure_random_u64()),
        "/env" => format!("{:?} {:?}", environment::get_environment(), environment::get_arguments()),
        "/folders" => format!("{}", preopens::get_directories().len()),
        "/ask" => ask(query).await,
        "/tcp" => tcp(number(query)).await,
        "/udp" => match UdpSocket::create(IpAddressFamily::Ipv4) {
            Ok(_) => "made".to_owned(),
            Err(e) => format!("{e:?}"),
        },
        "/lookup" => format!("{:?}", ip_name_lookup::resolve_addresses(query.to_owned()).await),
        "/count" => {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            format!("{}", COUNT.fetch_add(1, Ordering::Relaxed) + 1)
        }
        "/print" => {
            println!("printed {query}");
            "printed".to_owned()
        }
        "/read" => read(query).await,
        "/write" => match query.split_once('=') {
            Some((name, text)) => write(name, text).await,
            None => "a name, = and a text".to_owned(),
        },
        "/stdin" => {
            let (from, _) = stdin::read_via_stream();
            format!("read {:?}", all(from).await)
        }
        "/exit" => {
            exit::exit_with_code(u8::try_from(number(query)).unwrap_or(u8::MAX));
            "still here".to_owned()
        }
        "/trap" => panic!("asked to"),
        "/loop" => loop {
            black_box(());
        },
        "/memory" => {
            let mut held = Vec::new();
            loop {
                held.push(black_box(vec![1_u8; 1 << 20]));
            }
        }
        "/streams" => loop {
            std::mem::forget(black_box(wit_stream::new::<u8>()));
        },
        _ => "Hello from WASI 0.3!".to_owned(),
    }
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_default()
}

/// A GET of http://`query`/.
async fn ask(authority: &str) -> String {
    let (_, trailers) = wit_future::new(|| Ok(None));
    let (request, _) = Request::new(Fields::new(), None, trailers, None);
    if request.set_scheme(Some(&Scheme::Http)).is_err() || request.set_authority(Some(authority)).is_err() {
        return "no such address".to_owned();
    }
    let _ = request.set_path_with_query(Some("/"));
    match client::send(request).await {
        Ok(response) => format!("status {}", response.get_status_code()),
        Err(e) => format!("{e:?}"),
    }
}

/// What the file of that name in the first folder holds.
async fn read(name: &str) -> String {
    let Some((folder, _)) = preopens::get_directories().into_iter().next() else { return "no folder".to_owned() };
    match folder.open_at(PathFlags::empty(), name.to_owned(), OpenFlags::empty(), DescriptorFlags::READ).await {
        Ok(file) => all(file.read_via_stream(0).0).await,
        Err(e) => format!("{e:?}"),
    }
}

/// Makes that file, with this text in it.
async fn write(name: &str, text: &str) -> String {
    let Some((folder, _)) = preopens::get_directories().into_iter().next() else { return "no folder".to_owned() };
    let file = match folder
        .open_at(PathFlags::empty(), name.to_owned(), OpenFlags::CREATE, DescriptorFlags::WRITE)
        .await
    {
        Ok(file) => file,
        Err(e) => return format!("{e:?}"),
    };
    let (mut to, from) = wit_stream::new();
    let written = file.write_via_stream(from, 0);
    to.write_all(text.as_bytes().to_vec()).await;
    drop(to);
    match written.await {
        Ok(()) => "written".to_owned(),
        Err(e) => format!("{e:?}"),
    }
}

/// All that comes until the end, as text.
async fn all(mut from: wit_bindgen::StreamReader<u8>) -> String {
    let mut found = Vec::new();
    loop {
        let (result, piece) = from.read(Vec::with_capacity(64 * 1024)).await;
        found.extend_from_slice(&piece);
        if !matches!(result, wit_bindgen::StreamResult::Complete(_)) {
            return String::from_utf8_lossy(&found).into_owned();
        }
    }
}

/// A connection to that port of this machine.
async fn tcp(port: u64) -> String {
    let socket = match TcpSocket::create(IpAddressFamily::Ipv4) {
        Ok(socket) => socket,
        Err(e) => return format!("{e:?}"),
    };
    let port = u16::try_from(port).unwrap_or_default();
    let to = IpSocketAddress::Ipv4(Ipv4SocketAddress { port, address: (127, 0, 0, 1) });
    match socket.connect(to).await {
        Ok(()) => "connected".to_owned(),
        Err(e) => format!("{e:?}"),
    }
}

fn text(text: String) -> Response {
    let (mut body, reader) = wit_stream::new();
    let (_, trailers) = wit_future::new(|| Ok(None));
    let (response, _) = Response::new(Fields::new(), Some(reader), trailers);
    wit_bindgen::spawn_local(async move {
        // A caller that has gone away is no reason to trap.
        body.write_all((text + "\n").into_bytes()).await;
    });
    response
}

/// Piece by piece: it holds no more than one.
fn echo(request: Request) -> Response {
    let (_, taken) = wit_future::new(|| Ok(()));
    let (mut from, _) = Request::consume_body(request, taken);
    let (mut body, reader) = wit_stream::new();
    let (_, trailers) = wit_future::new(|| Ok(None));
    let (response, _) = Response::new(Fields::new(), Some(reader), trailers);
    wit_bindgen::spawn_local(async move {
        loop {
            let (result, piece) = from.read(Vec::with_capacity(64 * 1024)).await;
            let ended = !matches!(result, wit_bindgen::StreamResult::Complete(_));
            if !piece.is_empty() && !body.write_all(piece).await.is_empty() || ended {
                return;
            }
        }
    });
    response
}
