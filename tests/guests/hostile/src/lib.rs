//! A guest that tries everything, for the tests of what a host must survive and what it must deny. The path says what
//! to try; whatever can be said in words comes back as text ("denied: ..."), the rest traps, loops or grows. Must never
//! be part of an example.

use std::hint::black_box;
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{IncomingRequest, ResponseOutparam};

mod answer;
mod hoard;
mod reach;

/// One page of WebAssembly memory.
const PAGE_BYTES: usize = 65_536;
/// 1 MiB a step.
const GROW_PAGES: usize = 16;

const PATHS: &str = "\
/trap /panic /loop /recurse /silent /cut
/memory[?then=abort|loop] /sleep?ms=N /body?bytes=N /echo /headers
/env /time /ticks /random /seed /stdin /exit[?code=N] /file[?path=P] /socket[?to=IP:PORT] /udp[?to=IP:PORT]
/lookup?host=H /out?url=URL /outs?n=N&url=URL /log[?text=T] /flood?of=log|clock|poll /config?key=K
/hoard?of=headers|bodies|handles|targets|bytes
";

struct Hostile;

impl Guest for Hostile {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let text = match path {
            "/trap" => core::arch::wasm32::unreachable(),
            "/panic" => panic!("asked to panic"),
            "/loop" => spin(),
            "/recurse" => format!("came back from {} calls\n", recurse(0)),
            "/silent" => return drop(out),
            "/cut" => return answer::cut(out),
            "/memory" => grow(value(query, "then")),
            "/sleep" => sleep(number(query, "ms")),
            "/body" => return answer::fill(out, number(query, "bytes")),
            "/echo" => return answer::echo(&request, out),
            "/headers" => headers(&request),
            "/env" => reach::env(),
            "/time" => reach::time(),
            "/ticks" => reach::ticks(),
            "/random" => reach::random(),
            "/seed" => reach::seed(),
            "/stdin" => reach::stdin(),
            "/exit" => {
                answer::text(out, 200, "said before it ended\n");
                std::process::exit(i32::try_from(number(query, "code")).unwrap_or(1))
            }
            "/file" => reach::file(value(query, "path").unwrap_or("/etc/passwd")),
            "/socket" => reach::socket(value(query, "to").unwrap_or("127.0.0.1:1")),
            "/udp" => reach::udp(value(query, "to").unwrap_or("127.0.0.1:1")),
            "/lookup" => reach::lookup(value(query, "host").unwrap_or("localhost")),
            "/outs" => {
                let (count, url) = query.split_once('&').unwrap_or((query, ""));
                reach::outs(number(count, "n"), rest(url, "url").unwrap_or("http://127.0.0.1:1/"))
            }
            "/flood" => reach::flood(value(query, "of").unwrap_or("clock")),
            "/hoard" => hoard::hoard(value(query, "of").unwrap_or("handles")),
            "/out" => reach::out(rest(query, "url").unwrap_or("http://127.0.0.1:1/")),
            "/log" => reach::log(rest(query, "text").unwrap_or("hello")),
            "/config" => reach::config(value(query, "key").unwrap_or_default()),
            _ => return answer::text(out, if path == "/" { 200 } else { 404 }, PATHS),
        };
        answer::text(out, 200, &text);
    }
}

/// The value of one `name=value` of a query, as it stands.
fn value<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

/// As `value`, but everything behind the first `name=`: for values that hold "&" themselves.
fn rest<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.strip_prefix(name)?.strip_prefix('=')
}

fn number(query: &str, name: &str) -> u64 {
    value(query, name).and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn spin() -> ! {
    let mut turn = 0u64;
    loop {
        turn = black_box(turn.wrapping_add(1));
    }
}

#[allow(unconditional_recursion, reason = "that is the attack")]
fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 16]);
    recurse(depth + 1) + frame[15]
}

/// Takes and touches memory until it is refused; then says so, gives up, or asks for ever.
fn grow(then: Option<&str>) -> String {
    let mut taken = 0usize;
    loop {
        let before = core::arch::wasm32::memory_grow(0, GROW_PAGES);
        if before != usize::MAX {
            // Its own new memory, which nothing else knows of: a Vec of that size would be asked of the allocator.
            touch(before * PAGE_BYTES);
            taken += GROW_PAGES * PAGE_BYTES;
            continue;
        }
        match then {
            Some("abort") => std::process::abort(),
            Some("loop") => {}
            _ => return format!("denied: memory, after {} MiB more\n", taken / (1024 * 1024)),
        }
    }
}

fn touch(start: usize) {
    for page in 0..GROW_PAGES {
        let byte = core::ptr::with_exposed_provenance_mut::<u8>(start + page * PAGE_BYTES);
        // SAFETY: memory_grow has just made these pages, and nothing else refers to them.
        unsafe { byte.write_volatile(1) };
    }
}

fn sleep(ms: u64) -> String {
    let start = wasip2::clocks::monotonic_clock::now();
    wasip2::clocks::monotonic_clock::subscribe_duration(ms.saturating_mul(1_000_000)).block();
    let slept = wasip2::clocks::monotonic_clock::now().saturating_sub(start);
    format!("slept {} ms\n", slept / 1_000_000)
}

/// One line each: name, ": ", value; the authority first.
fn headers(request: &IncomingRequest) -> String {
    let mut text = format!("authority: {}\n", request.authority().unwrap_or_default());
    for (name, value) in request.headers().entries() {
        text.push_str(&name);
        text.push_str(": ");
        text.push_str(&String::from_utf8_lossy(&value));
        text.push('\n');
    }
    text
}

wasip2::http::proxy::export!(Hostile);
