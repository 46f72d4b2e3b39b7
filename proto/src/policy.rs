//! What a host takes away: the bounds within which it lets manifests grant. Pure. A policy never adds: an actor gets
//! what its manifest grants or does not start here, with every reason named.

use crate::address::Pattern;
use crate::app::{Folder, Grants, Invalid, Limits};
use crate::manifest::grants::{full_path, patterns};
use crate::manifest::limits::{
    CONCURRENCY, INSTANCES, OUTGOING_LEN, QUEUE_LEN, REUSE, TABLE_ELEMENTS, body, cpu, deadline, log, memory, stack,
    within_range,
};
use crate::manifest::reader::{Cursor, Fields, Reader};
use crate::manifest::{Problem, yaml};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Bytes of a policy file.
pub const POLICY_BYTES_MAX: usize = 1024 * 1024;
/// Replicas of one actor on a host.
const REPLICAS: RangeInclusive<u64> = 1..=1_000_000;

/// `None` and `true` restrict nothing: what a file does not mention is left to the manifests.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    http: Option<Vec<Pattern>>,
    tcp: Option<Vec<Pattern>>,
    udp: Option<Vec<Pattern>>,
    lookups: bool,
    folders: Option<Vec<Allowed>>,
    env: bool,
    args: bool,
    stdin: bool,
    exit: bool,
    random: bool,
    wall_clock: bool,
    fine_clock: bool,
    /// The most that a limit may be, by its name.
    limits_max: BTreeMap<&'static str, u64>,
    replicas_max: Option<u64>,
}

/// What a text says, or why not and what to write.
type Read = fn(&str) -> Result<u64, (String, &'static str)>;

/// A limit that can be held down.
struct Held {
    name: &'static str,
    /// For messages.
    unit: &'static str,
    asked: fn(&Limits) -> u64,
    written: Written,
}

enum Written {
    /// As a text with a unit of its own.
    Amount(Read),
    Count(RangeInclusive<u64>),
}

const fn amount(name: &'static str, unit: &'static str, read: Read, asked: fn(&Limits) -> u64) -> Held {
    Held { name, unit, asked, written: Written::Amount(read) }
}
const fn count(name: &'static str, unit: &'static str, range: RangeInclusive<u64>, asked: fn(&Limits) -> u64) -> Held {
    Held { name, unit, asked, written: Written::Count(range) }
}

const HELD: [Held; 13] = [
    amount("memory", "bytes", memory, |limits| limits.memory_bytes),
    count("table", "elements", TABLE_ELEMENTS, |limits| limits.table_elements_max as u64),
    count("instances", "core instances", INSTANCES, |limits| limits.instances_max as u64),
    amount("stack", "bytes", stack, |limits| limits.stack_bytes),
    amount("deadline", "ms", deadline, |limits| limits.deadline_ms),
    amount("cpu", "ms", cpu, |limits| limits.cpu_ms),
    count("queue", "invocations", QUEUE_LEN, |limits| limits.queue_len_max as u64),
    amount("request", "bytes", body, |limits| limits.request_bytes_max),
    amount("response", "bytes", body, |limits| limits.response_bytes_max),
    amount("log", "bytes", log, |limits| limits.log_bytes_per_s),
    count("outgoing", "requests", OUTGOING_LEN, |limits| limits.outgoing_len_max as u64),
    count("reuse", "requests", REUSE, |limits| limits.reuse as u64),
    count("concurrency", "requests", CONCURRENCY, |limits| limits.concurrency as u64),
];

/// A folder and all beneath it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Allowed {
    host: String,
    write: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            http: None,
            tcp: None,
            udp: None,
            lookups: true,
            folders: None,
            env: true,
            args: true,
            stdin: true,
            exit: true,
            random: true,
            wall_clock: true,
            fine_clock: true,
            limits_max: BTreeMap::new(),
            replicas_max: None,
        }
    }
}

impl Policy {
    /// The policy in `bytes`, or everything that is wrong with it, by line. `file` is for the messages.
    pub fn parse(bytes: &[u8], file: &str) -> Result<Self, Vec<Problem>> {
        let mut reader = Reader::new(file);
        if bytes.len() > POLICY_BYTES_MAX {
            let message = format!("is {} bytes; a policy has at most {POLICY_BYTES_MAX}", bytes.len());
            reader.whole_file(message, "write ranges instead of single addresses");
            return Err(reader.finish());
        }
        let Ok(text) = std::str::from_utf8(bytes) else {
            reader.whole_file("is not UTF-8 text", "give a policy in YAML");
            return Err(reader.finish());
        };
        let documents = yaml::documents(text, &mut reader);
        let policy = match documents.as_slice() {
            [document] => policy(&Cursor { node: document, path: String::new() }, &mut reader),
            [] if !reader.is_clean() => None,
            found => {
                let message = format!("holds {} documents, not one", found.len());
                reader.whole_file(
                    message,
                    "write one policy, such as `grants: {http: []}`; no --policy restricts nothing",
                );
                None
            }
        };
        match policy {
            Some(policy) if reader.is_clean() => Ok(policy),
            _ => Err(reader.finish()),
        }
    }

    /// Why an actor with these grants and limits does not start here; nothing if it may.
    pub fn refusals(&self, grants: &Grants, limits: &Limits) -> Vec<String> {
        let mut why = Vec::new();
        let http = within(&self.http, &grants.http, Pattern::http);
        why.extend(
            http.map(|address| format!("grants.http names {address:?}, which the policy of this host does not allow")),
        );
        for (name, allowed, granted) in [("tcp", &self.tcp, &grants.tcp), ("udp", &self.udp, &grants.udp)] {
            let address = within(allowed, granted, Pattern::socket);
            why.extend(
                address.map(|a| {
                    format!("grants.sockets.{name} names {a:?}, which the policy of this host does not allow")
                }),
            );
        }
        if grants.sockets && (self.tcp.is_some() || self.udp.is_some() || !self.lookups) {
            why.push("grants.sockets is all of them, and the policy of this host does not allow all".to_owned());
        }
        let flags = [
            (grants.lookups && !self.lookups, "sockets.lookups"),
            (!grants.env.is_empty() && !self.env, "env"),
            (!grants.args.is_empty() && !self.args, "args"),
            (grants.stdin.is_some() && !self.stdin, "stdin"),
            (grants.exit && !self.exit, "exit"),
            (grants.random.is_some() && !self.random, "random"),
            (grants.wall_clock && !self.wall_clock, "clocks.wall"),
            (grants.fine_clock && !self.fine_clock, "clocks.monotonic, finer than coarse,"),
        ];
        let refused = flags.iter().filter(|(refused, _)| *refused);
        why.extend(refused.map(|(_, name)| format!("grants.{name} is not allowed by the policy of this host")));
        for folder in &grants.folders {
            why.extend(self.folder_refusal(folder, &folder.host));
        }
        for held in HELD {
            let max = self.limits_max.get(held.name).copied();
            why.extend(over(held.name, (held.asked)(limits), max, held.unit));
        }
        why
    }

    /// Why an actor with so many replicas on this host does not start here, if that is so.
    pub fn replicas_refusal(&self, replicas: u32) -> Option<String> {
        let max = self.replicas_max.filter(|max| u64::from(replicas) > *max)?;
        Some(format!(
            "{replicas} of its replicas are placed here, and the policy of this host allows {max}: spread them over more \
             hosts"
        ))
    }

    /// Of so many replicas, those that may run here at once.
    pub fn replicas_allowed(&self, replicas: u32) -> u32 {
        self.replicas_max.and_then(|max| u32::try_from(max).ok()).map_or(replicas, |max| replicas.min(max))
    }

    /// Why a program may not have what its caller gives it, if that is so.
    pub fn job_refusal(&self, args: bool, stdin: bool) -> Option<String> {
        let name = match (args && !self.args, stdin && !self.stdin) {
            (true, _) => "arguments",
            (_, true) => "stdin",
            _ => return None,
        };
        Some(format!("the policy of this host allows no {name}; choose other hosts by requirements, or run it without"))
    }

    /// Whether a folder may be granted, by where it really is: `path` is without links.
    pub fn folder_refusal(&self, folder: &Folder, path: &str) -> Option<String> {
        let allowed = self.folders.as_ref()?;
        let holds: Vec<_> = allowed.iter().filter(|a| is_beneath(path, &a.host)).collect();
        let shown = if path == folder.host { path.to_owned() } else { format!("{} (which is {path})", folder.host) };
        match (holds.is_empty(), holds.iter().any(|a| a.write)) {
            (true, _) => Some(format!("grants.folders names {shown}, which the policy of this host does not allow")),
            (false, false) if folder.write => {
                Some(format!("grants.folders asks to write {shown}, which the policy of this host only lets read"))
            }
            _ => None,
        }
    }
}

/// The first address that no allowed one covers. What does not parse covers nothing and is covered by nothing.
fn within<'g>(
    allowed: &Option<Vec<Pattern>>,
    granted: &'g [String],
    read: fn(&str) -> Result<Pattern, Invalid>,
) -> Option<&'g String> {
    let allowed = allowed.as_ref()?;
    granted.iter().find(|text| !read(text).is_ok_and(|pattern| allowed.iter().any(|a| a.covers(&pattern))))
}

fn is_beneath(path: &str, folder: &str) -> bool {
    let folder = folder.trim_end_matches('/');
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn over(name: &str, asked: u64, max: Option<u64>, unit: &str) -> Option<String> {
    let max = max.filter(|max| asked > *max)?;
    Some(format!("limits.{name} is {asked} {unit}, and the policy of this host allows {max}: set limits.{name} lower"))
}

fn policy(at: &Cursor<'_>, reader: &mut Reader) -> Option<Policy> {
    let mut fields = reader.fields(at, &["grants", "limits"])?;
    reader.refuse_empty(&fields);
    let mut policy = Policy::default();
    if let Some(at) = fields.optional("grants") {
        grants(&at, &mut policy, reader);
    }
    if let Some(at) = fields.optional("limits") {
        limits(&at, &mut policy, reader);
    }
    Some(policy)
}

fn grants(at: &Cursor<'_>, policy: &mut Policy, reader: &mut Reader) {
    const KNOWN: &[&str] = &["env", "args", "http", "folders", "sockets", "clocks", "random", "stdin", "exit"];
    let Some(mut fields) = reader.fields(at, KNOWN) else { return };
    reader.refuse_empty(&fields);
    policy.http = list(&mut fields, "http", Pattern::http, reader);
    if let Some(at) = fields.optional("folders") {
        policy.folders = Some(reader.list(&at, "folders").iter().filter_map(|item| allowed(item, reader)).collect());
    }
    if let Some(at) = fields.optional("sockets") {
        sockets(&at, policy, reader);
    }
    if let Some(at) = fields.optional("clocks")
        && let Some((wall, fine)) = crate::manifest::grants::clocks(&at, reader)
    {
        (policy.wall_clock, policy.fine_clock) = (wall, fine);
    }
    for (name, flag) in [
        ("env", &mut policy.env),
        ("args", &mut policy.args),
        ("random", &mut policy.random),
        ("stdin", &mut policy.stdin),
        ("exit", &mut policy.exit),
    ] {
        if let Some(at) = fields.optional(name) {
            *flag = reader.flag(&at).unwrap_or(false);
        }
    }
}

/// What is not mentioned in a map of sockets is none of them.
fn sockets(at: &Cursor<'_>, policy: &mut Policy, reader: &mut Reader) {
    if !at.is_map() {
        if reader.flag(at) == Some(false) {
            (policy.tcp, policy.udp, policy.lookups) = (Some(Vec::new()), Some(Vec::new()), false);
        }
        return;
    }
    let Some(mut fields) = reader.fields(at, &["tcp", "udp", "lookups"]) else { return };
    reader.refuse_empty(&fields);
    policy.tcp = Some(list(&mut fields, "tcp", Pattern::socket, reader).unwrap_or_default());
    policy.udp = Some(list(&mut fields, "udp", Pattern::socket, reader).unwrap_or_default());
    policy.lookups = fields.optional("lookups").is_some_and(|at| reader.flag(&at) == Some(true));
}

fn list(
    fields: &mut Fields<'_>,
    name: &str,
    read: fn(&str) -> Result<Pattern, Invalid>,
    reader: &mut Reader,
) -> Option<Vec<Pattern>> {
    let at = fields.optional(name)?;
    Some(patterns(&at, read, reader).iter().filter_map(|text| read(text).ok()).collect())
}

/// A path, or a map of it and whether it may be written.
fn allowed(at: &Cursor<'_>, reader: &mut Reader) -> Option<Allowed> {
    if !at.is_map() {
        return Some(Allowed { host: full_path(at, reader)?, write: true });
    }
    let mut fields = reader.fields(at, &["host", "write"])?;
    let host = reader.required(&mut fields, "host", "/srv/data").and_then(|at| full_path(&at, reader));
    let write = fields.optional("write").map_or(Some(false), |at| reader.flag(&at));
    Some(Allowed { host: host?, write: write? })
}

fn limits(at: &Cursor<'_>, policy: &mut Policy, reader: &mut Reader) {
    let known: Vec<&str> = ["replicas"].into_iter().chain(HELD.iter().map(|held| held.name)).collect();
    let Some(mut fields) = reader.fields(at, &known) else { return };
    reader.refuse_empty(&fields);
    for held in HELD {
        let Some(at) = fields.optional(held.name) else { continue };
        let max = match held.written {
            Written::Amount(read) => read_amount(&at, read, reader),
            Written::Count(range) => within_range(&at, held.name, range, reader),
        };
        if let Some(max) = max {
            policy.limits_max.insert(held.name, max);
        }
    }
    if let Some(at) = fields.optional("replicas") {
        policy.replicas_max = within_range(&at, "replicas", REPLICAS, reader);
    }
}

fn read_amount(at: &Cursor<'_>, read: Read, reader: &mut Reader) -> Option<u64> {
    match read(&reader.text(at)?) {
        Ok(amount) => Some(amount),
        Err((message, help)) => {
            reader.report(&at.place(), message, help);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::Random;

    fn parse(text: &str) -> Policy {
        Policy::parse(text.as_bytes(), "policy.yaml").unwrap_or_else(|problems| panic!("{problems:?}"))
    }
    fn problems(text: &str) -> Vec<String> {
        Policy::parse(text.as_bytes(), "policy.yaml").unwrap_err().iter().map(ToString::to_string).collect()
    }

    /// Everything that can be granted.
    fn all() -> Grants {
        let folder = Folder { host: "/srv/data/web".into(), guest: "/".into(), write: true };
        Grants {
            env: [("A".to_owned(), "1".to_owned())].into(),
            args: vec!["web".into()],
            http: vec!["api.example.org".into()],
            folders: vec![folder],
            sockets: true,
            tcp: vec!["10.0.0.5:5432".into()],
            udp: vec!["*:53".into()],
            lookups: true,
            wall_clock: true,
            fine_clock: true,
            random: Some(Random::System),
            stdin: Some(String::new()),
            exit: true,
        }
    }

    #[test]
    fn what_a_policy_does_not_mention_it_does_not_restrict() {
        assert_eq!(Policy::default().refusals(&all(), &Limits::default()), Vec::<String>::new());
        assert_eq!(parse("grants: {}\nlimits: {}\n"), Policy::default());
    }

    #[test]
    fn each_thing_that_is_taken_away_is_named() {
        let policy = parse(
            "grants: {env: false, args: false, http: [], folders: [], sockets: false, random: false, stdin: false, \
             exit: false, clocks: {}}\nlimits: {memory: 32MiB, deadline: 10s, cpu: 1s}\n",
        );
        assert_eq!(
            policy.refusals(&all(), &Limits::default()),
            [
                "grants.http names \"api.example.org\", which the policy of this host does not allow",
                "grants.sockets.tcp names \"10.0.0.5:5432\", which the policy of this host does not allow",
                "grants.sockets.udp names \"*:53\", which the policy of this host does not allow",
                "grants.sockets is all of them, and the policy of this host does not allow all",
                "grants.sockets.lookups is not allowed by the policy of this host",
                "grants.env is not allowed by the policy of this host",
                "grants.args is not allowed by the policy of this host",
                "grants.stdin is not allowed by the policy of this host",
                "grants.exit is not allowed by the policy of this host",
                "grants.random is not allowed by the policy of this host",
                "grants.clocks.wall is not allowed by the policy of this host",
                "grants.clocks.monotonic, finer than coarse, is not allowed by the policy of this host",
                "grants.folders names /srv/data/web, which the policy of this host does not allow",
                "limits.memory is 67108864 bytes, and the policy of this host allows 33554432: set limits.memory lower",
                "limits.deadline is 30000 ms, and the policy of this host allows 10000: set limits.deadline lower",
                "limits.cpu is 10000 ms, and the policy of this host allows 1000: set limits.cpu lower",
            ]
        );
        assert_eq!(
            policy.refusals(
                &Grants::default(),
                &Limits { memory_bytes: 1 << 20, deadline_ms: 1, cpu_ms: 1, ..Limits::default() }
            ),
            Vec::<String>::new()
        );
    }

    #[test]
    fn each_limit_can_be_held_down() {
        let policy = parse(
            "limits: {replicas: 10, queue: 9, request: 1MiB, response: 2MiB, log: 1KiB, outgoing: 3, reuse: 4, \
             concurrency: 5, table: 1000, instances: 20, stack: 1MiB}\n",
        );
        let limits = Limits { reuse: 5, concurrency: 6, stack_bytes: 2 << 20, ..Limits::default() };
        assert_eq!(
            policy.refusals(&Grants::default(), &limits),
            [
                "limits.table is 100000 elements, and the policy of this host allows 1000: set limits.table lower",
                "limits.instances is 64 core instances, and the policy of this host allows 20: set limits.instances lower",
                "limits.stack is 2097152 bytes, and the policy of this host allows 1048576: set limits.stack lower",
                "limits.queue is 1000 invocations, and the policy of this host allows 9: set limits.queue lower",
                "limits.request is 67108864 bytes, and the policy of this host allows 1048576: set limits.request lower",
                "limits.response is 1073741824 bytes, and the policy of this host allows 2097152: set limits.response lower",
                "limits.log is 65536 bytes, and the policy of this host allows 1024: set limits.log lower",
                "limits.outgoing is 64 requests, and the policy of this host allows 3: set limits.outgoing lower",
                "limits.reuse is 5 requests, and the policy of this host allows 4: set limits.reuse lower",
                "limits.concurrency is 6 requests, and the policy of this host allows 5: set limits.concurrency lower",
            ]
        );
        let low = Limits {
            table_elements_max: 1_000,
            instances_max: 20,
            stack_bytes: 1 << 20,
            queue_len_max: 9,
            request_bytes_max: 1,
            response_bytes_max: 1,
            log_bytes_per_s: 1,
            outgoing_len_max: 3,
            reuse: 4,
            concurrency: 5,
            ..Limits::default()
        };
        assert_eq!(policy.refusals(&Grants::default(), &low), Vec::<String>::new());
        assert_eq!((policy.replicas_refusal(10), policy.replicas_allowed(11)), (None, 10));
        let why = policy.replicas_refusal(11).unwrap();
        assert!(why.starts_with("11 of its replicas are placed here, and the policy of this host allows 10"), "{why}");
        assert_eq!(Policy::default().replicas_allowed(11), 11);
        let wrong = problems("limits: {replicas: 0, queue: 2000000}\n");
        assert!(wrong.iter().any(|p| p.contains("limits.replicas: replicas of 0 is out of range")), "{wrong:?}");
        assert!(wrong.iter().any(|p| p.contains("limits.queue")), "{wrong:?}");
    }

    #[test]
    fn folders_are_allowed_with_all_beneath_them() {
        let policy = parse("grants: {folders: [/srv/data, {host: /etc/app}]}\n");
        let ask = |host: &str, write| {
            let folder = Folder { host: host.into(), guest: "/".into(), write };
            policy.refusals(&Grants { folders: vec![folder], ..Grants::default() }, &Limits::default())
        };
        for (host, write) in [("/srv/data", true), ("/srv/data/", true), ("/srv/data/a/b", true), ("/etc/app", false)] {
            assert_eq!(ask(host, write), Vec::<String>::new(), "{host}");
        }
        for (host, write) in [("/srv/database", false), ("/srv", false), ("/", false), ("/etc/app", true)] {
            assert_eq!(ask(host, write).len(), 1, "{host}");
        }
        // A link out of it: where it leads counts.
        let folder = Folder { host: "/srv/data/link".into(), guest: "/".into(), write: false };
        let why = policy.folder_refusal(&folder, "/etc").unwrap();
        assert_eq!(
            why,
            "grants.folders names /srv/data/link (which is /etc), which the policy of this host does not allow"
        );
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        assert_eq!(
            problems(
                "grant: {}\nlimits: {memory: lots, deadline: 0s}\ngrants:\n  http: [a/b]\n  exit: maybe\n  folders: [srv]\n"
            ),
            [
                "policy.yaml:1:1: grant: unknown field \"grant\"; did you mean \"grants\"?",
                "policy.yaml:2:18: limits.memory: \"lots\" is not an amount of memory; write it as 64MiB",
                "policy.yaml:2:34: limits.deadline: a deadline of \"0s\" is out of range; give 1ms to 24h",
                "policy.yaml:4:10: grants.http[0]: \"a/b\" is not an address; write https://api.example.org, \
                 *.example.org, 127.0.0.1:8080, 10.0.0.0/8 or *, without a path",
                "policy.yaml:5:9: grants.exit: expected true or false, found `maybe`",
                "policy.yaml:6:13: grants.folders[0]: \"srv\" is not a full path; start it with / and use no ..",
            ]
        );
        assert!(problems("")[0].contains("holds 0 documents"));
        assert!(Policy::parse(&vec![b' '; POLICY_BYTES_MAX + 1], "p").unwrap_err()[0].to_string().contains("at most"));
        assert!(Policy::parse(b"\xff", "p").unwrap_err()[0].to_string().contains("UTF-8"));
        assert!(!problems("[1, 2").is_empty());
        // An empty field is no leave to do everything.
        assert_eq!(
            problems("grants:\n  http:\n")[0],
            "policy.yaml:2:7: grants.http: has no value; give it one, as [] or false, or remove it"
        );
    }
}
