//! Keeps the house in order: the pure modules pure, the layers apart, the files readable, the examples whole. Reads
//! the source text only; each message names file, line and what to do.

use std::fs;
use std::path::{Path, PathBuf};

const LINES_MAX: usize = 700;
const COMPONENT_BYTES_MAX: u64 = 200 * 1024;
const SOURCE_FOLDERS: &[&str] = &["bus", "host", "manifests", "proto", "scheduler", "src", "tests"];

/// Files and folders whose result may depend on their input alone, beneath the root, without ".rs".
const PURE: &[&str] = &[
    "proto/src",
    "scheduler/src/state",
    "scheduler/src/leader",
    "scheduler/src/lease",
    "scheduler/src/plan",
    "scheduler/src/watched",
    "scheduler/src/raft/node",
    "scheduler/src/raft/members",
    "scheduler/src/raft/timeout",
    "scheduler/src/peer/roster",
    "scheduler/src/peer/pieces",
    "scheduler/src/peer/token",
    "host/src/assignment",
    "host/src/beats",
    "host/src/keeper",
    "host/src/engine/cgroup",
    "host/src/lease",
    "host/src/ingress/websocket/events",
    "host/src/ingress/websocket/ended",
];
/// What would let something else in: words, or paths of words.
const IMPURE: &[&str] = &[
    "tokio",
    "tonic",
    "sled",
    "async_nats",
    "rand",
    "getrandom",
    "thread_rng",
    "Instant",
    "SystemTime",
    "HashMap",
    "HashSet",
    // Not all of std::net: its addresses are only values.
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "ToSocketAddrs",
    "std::fs",
    "std::env",
    "std::thread",
    "std::process",
    "Ulid::new",
];
/// The one file that may name tonic: it includes the generated wire types.
const PROTO_GENERATED: &str = "proto/src/lib.rs";

/// Package, and those of ours that it may depend on.
const LAYERS: &[(&str, &[&str])] =
    &[("proto", &[]), ("bus", &["proto"]), ("host", &["bus", "proto"]), ("scheduler", &["bus", "proto"])];
const PACKAGES: &[&str] = &["bus", "host", "lattice", "proto", "scheduler"];

/// One file of Rust. `code` is its text without comments and without what strings hold, `strings` without comments;
/// both keep the lines where they are and end where the file's tests begin.
struct Source {
    path: String,
    text: String,
    code: String,
    strings: String,
}

#[test]
fn pure_modules_have_no_io_clock_or_chance() {
    let sources = sources();
    let mut problems = Vec::new();
    for pure in PURE {
        let beneath = format!("{pure}/");
        let file = format!("{pure}.rs");
        let mut found = false;
        for source in sources.iter().filter(|s| s.path == file || s.path.starts_with(&beneath)) {
            found = true;
            if is_test_file(&source.path) {
                continue;
            }
            for word in IMPURE {
                if source.path == PROTO_GENERATED && *word == "tonic" {
                    continue;
                }
                let mut lines = lines_with(&source.code, word);
                lines.extend(word.strip_prefix("std::").map(|m| std_groups_with(&source.code, m)).unwrap_or_default());
                problems.extend(lines.into_iter().map(|line| {
                    format!("{}:{line}: {word} in a pure module: take its result as an argument instead", source.path)
                }));
            }
        }
        if !found {
            problems.push(format!("{pure}: no such file or folder: put its new path into PURE in tests/tidy.rs"));
        }
    }
    report(&problems);
}

#[test]
fn packages_depend_downwards_only() {
    let mut problems = Vec::new();
    for (package, allowed) in LAYERS {
        let path = format!("{package}/Cargo.toml");
        let manifest = read(&root().join(&path));
        let mut in_dependencies = false;
        for (number, line) in manifest.lines().enumerate() {
            if line.starts_with('[') {
                in_dependencies = line.contains("dependencies");
                continue;
            }
            let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
            if in_dependencies && PACKAGES.contains(&name) && !allowed.contains(&name) {
                problems.push(format!(
                    "{path}:{}: {package} must not depend on {name}: move what both need into proto",
                    number + 1
                ));
            }
        }
    }
    report(&problems);
}

#[test]
fn raft_types_stay_in_the_raft_module() {
    let mut problems = Vec::new();
    for source in sources().iter().filter(|s| !s.path.starts_with("scheduler/src/raft")) {
        for word in ["use raft::", "use ::raft", "eraftpb", "raft_proto", "RawNode"] {
            problems.extend(lines_with(&source.code, word).into_iter().map(|line| {
                format!("{}:{line}: {word:?} outside scheduler/src/raft: go through its handle", source.path)
            }));
        }
    }
    report(&problems);
}

#[test]
fn files_say_what_they_are_for_and_stay_readable() {
    let mut problems = Vec::new();
    for source in sources() {
        if !source.text.starts_with("//! ") {
            problems.push(format!(
                "{}:1: no \"//!\" header: open the file with what it is for and what it must never do",
                source.path
            ));
        }
        let lines = source.text.lines().count();
        if lines > LINES_MAX {
            problems.push(format!("{}:{lines}: more than {LINES_MAX} lines: split it", source.path));
        }
    }
    report(&problems);
}

/// One compiler is enough to trust: of the other that the engine has, code escaped in 2026.
#[test]
fn cranelift_compiles_alone() {
    let lock = read(&root().join("Cargo.lock"));
    let names = lock.lines().filter_map(|line| line.strip_prefix("name = "));
    let found: Vec<_> = names.filter(|name| name.contains("winch")).collect();
    assert!(found.is_empty(), "Cargo.lock has {found:?}: leave out the engine's feature that wants it");
    assert!(lock.contains("name = \"cranelift-codegen\""), "Cargo.lock is read");
}

#[test]
fn nothing_is_left_for_later() {
    let in_code = ["todo!", "unimplemented!", "dbg!", "#[ignore"];
    // Written apart, so that this file does not find itself.
    let in_text = [concat!("FIX", "ME"), concat!("TO", "DO"), concat!("XX", "X:")];
    let mut problems = Vec::new();
    for source in sources() {
        let whole = blank(&source.text, true);
        let found = in_code.iter().flat_map(|w| lines_with(&whole, w).into_iter().map(move |line| (line, *w)));
        let found = found.chain(in_text.iter().flat_map(|w| {
            let lines = source.text.lines().enumerate().filter(move |(_, l)| l.contains(w));
            lines.map(move |(number, _)| (number + 1, *w))
        }));
        problems.extend(found.map(|(line, word)| format!("{}:{line}: {word}: do it now or leave it out", source.path)));
    }
    report(&problems);
}

#[test]
fn nothing_listens_beyond_loopback_unasked() {
    let mut problems = Vec::new();
    for source in sources().iter().filter(|s| !is_test_file(&s.path)) {
        for word in ["\"0.0.0.0", "\"[::]", "Ipv4Addr::UNSPECIFIED", "Ipv6Addr::UNSPECIFIED"] {
            let lines = source.strings.lines().enumerate().filter(|(_, l)| l.contains(word));
            problems.extend(lines.map(|(number, _)| {
                format!(
                    "{}:{}: {word}: defaults listen on 127.0.0.1; others come from the user",
                    source.path,
                    number + 1
                )
            }));
        }
    }
    report(&problems);
}

#[test]
fn each_example_has_a_manifest_source_and_a_small_component() {
    let build = read(&root().join("manifests/build"));
    let mut problems = Vec::new();
    for example in folders(&root().join("manifests")) {
        let files = files_beneath(&example);
        let name = relative(&example);
        let apps: Vec<_> = files.iter().filter(|f| f.extension().is_some_and(|e| e == "yaml")).collect();
        if apps.is_empty() {
            problems.push(format!("{name}: no manifest: add app.yaml"));
        }
        if !files.iter().any(|f| f.ends_with("src/lib.rs") || f.extension().is_some_and(|e| e == "c")) {
            problems.push(format!("{name}: no source: add a crate or a C file that manifests/build knows"));
        }
        for app in apps {
            problems.extend(check_images(app));
        }
    }
    let guests = [root().join("manifests"), root().join("tests/guests")];
    let components: Vec<_> = guests.iter().flat_map(|g| files_beneath(g)).collect();
    for component in components.iter().filter(|f| f.extension().is_some_and(|e| e == "wasm")) {
        let name = relative(component);
        let bytes = fs::metadata(component).expect("just listed").len();
        if bytes >= COMPONENT_BYTES_MAX {
            problems.push(format!("{name}: {bytes} bytes: keep components below {COMPONENT_BYTES_MAX}"));
        }
        if !build.contains(&name) {
            problems.push(format!("{name}: no way to rebuild it: add it to the table in manifests/build"));
        }
    }
    report(&problems);
}

#[test]
fn blank_keeps_lines_and_drops_comments_and_strings() {
    let text = "let a = \"to//kio\"; // tokio\n/* tokio\n/* x */ tokio */ let b = 'c'; let c = r#\"tok\"io\"#;\nfn f<'a>() {}\n";
    assert_eq!(blank(text, true), "let a = \"\"; \n\n let b = ''; let c = r#\"\"#;\nfn f<'a>() {}\n");
    assert_eq!(blank(text, false), "let a = \"to//kio\"; \n\n let b = 'c'; let c = r#\"tok\"io\"#;\nfn f<'a>() {}\n");
    assert_eq!(lines_with("a\nuse tokio::x;\nmytokio::y;", "tokio"), [2]);
    assert_eq!(std_groups_with("use a;\nuse std::{\n    fmt, fs,\n};", "fs"), [2]);
}

/// Each `image: ./file.wasm` of a manifest is there and is a component, or a core module made of the C file beside it.
fn check_images(app: &Path) -> Vec<String> {
    let mut problems = Vec::new();
    for (number, line) in read(app).lines().enumerate() {
        let Some(image) = line.trim().strip_prefix("image: ./") else {
            continue;
        };
        let at = format!("{}:{}", relative(app), number + 1);
        match fs::read(app.with_file_name(image)) {
            Ok(bytes) if bytes.starts_with(b"\0asm\x0d\0\x01\0") => {}
            Ok(bytes)
                if bytes.starts_with(b"\0asm\x01\0\0\0") && app.with_file_name(image).with_extension("c").is_file() => {
            }
            Ok(_) => problems.push(format!("{at}: {image} is not a component: rebuild it with manifests/build")),
            Err(e) => problems.push(format!("{at}: {image}: {e}: build it with manifests/build")),
        }
    }
    problems
}

fn report(problems: &[String]) {
    assert!(problems.is_empty(), "{} to put right:\n{}\n", problems.len(), problems.join("\n"));
}

fn is_test_file(path: &str) -> bool {
    path.starts_with("tests/") || path.ends_with("/tests.rs") || path.contains("/tests/")
}

/// Lines, from 1, that hold `word` as words of their own.
fn lines_with(code: &str, word: &str) -> Vec<usize> {
    let joins = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let holds = |line: &str| {
        line.match_indices(word).any(|(at, _)| {
            let ends_open = joins(word.chars().next_back()) && joins(line[at + word.len()..].chars().next());
            let starts_open = joins(word.chars().next()) && joins(line[..at].chars().next_back());
            !ends_open && !starts_open
        })
    };
    code.lines().enumerate().filter(|(_, line)| holds(line)).map(|(number, _)| number + 1).collect()
}

/// First lines of the `use std::{...}` that bring in `module`.
fn std_groups_with(code: &str, module: &str) -> Vec<usize> {
    let groups = code.match_indices("use std::{").filter(|(at, _)| {
        let group = code[*at..].split(';').next().unwrap_or_default();
        !lines_with(group, module).is_empty()
    });
    groups.map(|(at, _)| code[..at].lines().count() + usize::from(at == 0 || code[..at].ends_with('\n'))).collect()
}

/// All Rust files of the project, in order.
fn sources() -> Vec<Source> {
    let mut sources = Vec::new();
    for folder in SOURCE_FOLDERS {
        for file in files_beneath(&root().join(folder)) {
            if file.extension().is_some_and(|e| e == "rs") {
                let text = read(&file);
                let strings = without_tests(blank(&text, false));
                let code = without_tests(blank(&text, true));
                sources.push(Source { path: relative(&file), code, strings, text });
            }
        }
    }
    assert!(sources.len() > 10, "no sources beneath {}", root().display());
    sources
}

/// Unit tests stand at the end of a file, behind `#[cfg(test)]`.
fn without_tests(mut code: String) -> String {
    let tests = code.match_indices("#[cfg(test)]").find(|(at, _)| {
        let rest = code[at + "#[cfg(test)]".len()..].trim_start();
        let rest = rest.split_once("mod ").map_or("", |(before, rest)| if before.contains(';') { "" } else { rest });
        rest.find(['{', ';']).is_some_and(|end| rest[end..].starts_with('{'))
    });
    if let Some((at, _)) = tests {
        code.truncate(at);
    }
    code
}

/// `text` without its comments and, if asked, without what its strings and characters hold.
fn blank(text: &str, strings_too: bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (length, kept) = if rest.starts_with("//") {
            (rest.find('\n').unwrap_or(rest.len()), (0, 0))
        } else if rest.starts_with("/*") {
            (block_comment(rest), (0, 0))
        } else if let Some((length, quotes)) = string(rest, out.chars().next_back()) {
            (length, if strings_too { quotes } else { (length, 0) })
        } else {
            (first.len_utf8(), (first.len_utf8(), 0))
        };
        let (piece, after) = rest.split_at(length);
        out.push_str(&piece[..kept.0]);
        out.extend(piece[kept.0..length - kept.1].chars().filter(|c| *c == '\n'));
        out.push_str(&piece[length - kept.1..]);
        rest = after;
    }
    out
}

/// Bytes of the comment that `rest` begins with; such comments nest.
fn block_comment(rest: &str) -> usize {
    let mut depth = 0usize;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

/// Bytes of the string or character that `rest` begins with, and how many of them open and close it.
fn string(rest: &str, before: Option<char>) -> Option<(usize, (usize, usize))> {
    let escaped = |quote: char| {
        let mut skip = false;
        let end = rest[1..].find(|c| {
            let found = c == quote && !skip;
            skip = c == '\\' && !skip;
            found
        });
        end.map_or(rest.len(), |end| end + 2)
    };
    if rest.starts_with('"') {
        return Some((escaped('"'), (1, 1)));
    }
    if let Some(inner) = rest.strip_prefix('\'') {
        // 'a' and '\n' are characters; 'a alone is a lifetime.
        let is_char = inner.starts_with('\\') || inner.chars().nth(1) == Some('\'');
        return is_char.then(|| (escaped('\''), (1, 1)));
    }
    let word_before = before.is_some_and(|c| c.is_alphanumeric() && c != 'b' || c == '_');
    let hashes = rest.strip_prefix('r')?.bytes().take_while(|b| *b == b'#').count();
    if word_before || !rest[1 + hashes..].starts_with('"') {
        return None;
    }
    let open = hashes + 2;
    let close = format!("\"{}", "#".repeat(hashes));
    let length = rest[open..].find(&close).map_or(rest.len(), |end| open + end + close.len());
    Some((length, (open, close.len())))
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).to_string_lossy().into_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn folders(path: &Path) -> Vec<PathBuf> {
    entries(path).into_iter().filter(|p| p.is_dir()).collect()
}

fn files_beneath(path: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in entries(path) {
        if entry.is_dir() {
            // What cargo built is not ours to judge.
            if !entry.ends_with("target") {
                files.extend(files_beneath(&entry));
            }
        } else {
            files.push(entry);
        }
    }
    files
}

fn entries(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}
