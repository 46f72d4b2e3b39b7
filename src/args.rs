//! The argument surface: what can be typed and what `--help` says. Each verb's own arguments stand in its file.

use clap::{ArgAction, Args, Command, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

#[derive(Debug, Parser)]
#[command(
    name = "lattice",
    version,
    about = "Run WebAssembly actors across machines that share nothing but a NATS bus",
    max_term_width = 100,
    disable_help_subcommand = true,
    infer_long_args = false
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,
    #[command(flatten)]
    pub(crate) log: LogArgs,
    #[command(flatten)]
    pub(crate) connect: Connect,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    #[cfg(all(feature = "host", feature = "scheduler"))]
    /// Start a whole lattice in one process: broker, scheduler, host, API
    Up(crate::run::up::UpArgs),
    #[cfg(feature = "scheduler")]
    /// Start a scheduler, joined to a bus
    Scheduler(crate::run::scheduler::SchedulerArgs),
    #[cfg(feature = "host")]
    /// Start a host, joined to a bus; it runs actors
    Host(crate::run::host::HostArgs),

    /// Make what a manifest says so, and follow until it runs
    Apply(crate::apply::ApplyArgs),
    /// Check manifests and their components without a server
    Validate(crate::apply::ValidateArgs),
    /// Store a component in a registry
    #[cfg(feature = "registry")]
    Push(crate::registry::PushArgs),
    /// Fetch a component from a registry
    #[cfg(feature = "registry")]
    Pull(crate::registry::PullArgs),
    /// Show what a component imports and exports, and what it needs granted
    Inspect(crate::inspect::InspectArgs),
    /// Remove apps
    Delete(crate::change::DeleteArgs),
    /// Change how many replicas an actor has
    Scale(crate::change::ScaleArgs),
    /// Go back to an earlier revision of an app
    Rollback(crate::change::RollbackArgs),
    /// Place nothing new on a host
    Cordon(crate::change::HostArgs),
    /// Let a cordoned or drained host have actors again
    Uncordon(crate::change::HostArgs),
    /// Place nothing new on a host, and move away what it runs
    Drain(crate::change::HostArgs),

    /// List apps, actors, hosts, links or revisions
    Get(crate::get::GetArgs),
    /// Show all about one app or host
    Describe(crate::describe::DescribeArgs),
    /// Show what actors print
    Logs(crate::stream::LogsArgs),
    /// Show what hosts and actors do now: rates, what is under way, times
    Top(crate::top::TopArgs),
    /// Show what happened
    Events(crate::stream::EventsArgs),
    /// Show the lattice itself: leader, log index, bus
    Status(crate::describe::StatusArgs),

    /// List, add and remove schedulers; choose who leads
    Schedulers(crate::schedulers::SchedulersArgs),

    /// Make, list and remove tokens of the API
    Access(crate::access::AccessArgs),
    /// Write the state of the lattice and its components to a file
    Backup(crate::backup::BackupArgs),
    /// Make a new scheduler of a backup
    #[cfg(feature = "scheduler")]
    Restore(crate::backup::RestoreArgs),

    /// Call a function that an actor exports
    Call(crate::call::CallArgs),
    /// Run a program, an actor that exports wasi:cli/run, to its end
    Run(crate::job::RunArgs),
    /// Print a completion script for a shell
    Completion(CompletionArgs),
}

/// How the list of verbs is grouped in `lattice --help`.
const GROUPS: &[(&str, &[&str])] = &[
    ("Run a lattice", &["up", "scheduler", "host"]),
    ("Change what runs", &["apply", "validate", "delete", "scale", "rollback", "cordon", "uncordon", "drain"]),
    ("Components", &["inspect", "push", "pull"]),
    ("Look", &["get", "describe", "top", "logs", "events", "status"]),
    ("The control plane", &["schedulers", "access", "backup", "restore"]),
    ("More", &["run", "call", "completion"]),
];

const EXAMPLES: &str = "\
Examples:
  lattice up manifests/hello/app.yaml      a whole lattice in this terminal, with one app in it
  lattice apply app.yaml                   make it so, and follow until it runs
  lattice get actors                       what runs where
  lattice logs hello -f                    what it prints

`lattice VERB --help` shows a verb's own examples.
The API address comes from --api, else LATTICE_API, else the context file,
else it is 127.0.0.1:7400.
Exit codes: 0 done, 1 refused or failed, 2 wrong use, 3 accepted but not so in
time, 130 interrupted.";

/// Where the control API is. The environment and the context file are looked at in `context`.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct Connect {
    /// Control API, HOST:PORT or https://HOST:PORT; several with commas: the next one where one does not answer [env:
    /// LATTICE_API] [default: 127.0.0.1:7400]
    #[arg(long, value_name = "ADDR")]
    pub(crate) api: Option<String>,
    /// Context of the context file instead of its current one [env: LATTICE_CONFIG names the file]
    #[arg(long, value_name = "NAME", conflicts_with = "api")]
    pub(crate) context: Option<String>,
    /// PEM certificate of the CA that signed the API's certificate; means https
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// SHA-256 of the authority that signed the API's certificate, in hex; means https
    #[arg(long, value_name = "HEX", conflicts_with = "ca", value_parser = fingerprint)]
    pub(crate) fingerprint: Option<[u8; 32]>,
    /// File with the token that the API demands [env: LATTICE_TOKEN is the token itself]
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

impl Connect {
    /// These, and what was typed before the verb where these say nothing.
    pub(crate) fn or(&self, before: &Self) -> Self {
        let (api, context) = match (&self.api, &self.context) {
            (None, None) => (before.api.clone(), before.context.clone()),
            (api, context) => (api.clone(), context.clone()),
        };
        let token_file = self.token_file.clone().or_else(|| before.token_file.clone());
        let ca = self.ca.clone().or_else(|| before.ca.clone());
        Self { api, context, ca, fingerprint: self.fingerprint.or(before.fingerprint), token_file }
    }

    #[cfg(any(feature = "host", feature = "scheduler"))]
    pub(crate) fn is_given(&self) -> bool {
        self.api.is_some()
            || self.context.is_some()
            || self.ca.is_some()
            || self.fingerprint.is_some()
            || self.token_file.is_some()
    }
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Logging")]
pub(crate) struct LogArgs {
    /// Say more on stderr; -vv says yet more [env: LATTICE_LOG is a filter, as host=debug]
    #[arg(short, long, action = ArgAction::Count, global = true)]
    pub(crate) verbose: u8,
    /// Form of the log on stderr
    #[arg(long = "log", value_name = "FORM", value_enum, default_value_t = LogForm::Text, global = true)]
    pub(crate) form: LogForm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogForm {
    Text,
    Json,
}

/// What a list looks like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    #[default]
    Table,
    Wide,
    Json,
    Yaml,
    Name,
}

/// What one thing looks like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum TextFormat {
    #[default]
    Text,
    Json,
    Yaml,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lattice completion bash > ~/.local/share/bash-completion/completions/lattice
  lattice completion fish > ~/.config/fish/completions/lattice.fish
  source <(lattice completion zsh)")]
pub(crate) struct CompletionArgs {
    /// Shell to print it for
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

/// The command with its grouped help.
pub(crate) fn command() -> Command {
    let command = Cli::command();
    let width = command.get_subcommands().map(|verb| verb.get_name().len()).max().unwrap_or_default();
    let mut verbs = String::new();
    for (title, names) in GROUPS {
        let known: Vec<&Command> = names.iter().filter_map(|name| command.find_subcommand(name)).collect();
        if known.is_empty() {
            continue;
        }
        verbs.push_str(&format!("{title}:\n"));
        for verb in known {
            let about = verb.get_about().map(ToString::to_string).unwrap_or_default();
            verbs.push_str(&format!("  {:<width$}   {about}\n", verb.get_name()));
        }
        verbs.push('\n');
    }
    command
        .override_usage("lattice <VERB> [ARGS]")
        .help_template("{about}\n\n{usage-heading} {usage}\n\n{before-help}Options:\n{options}{after-help}\n")
        .before_help(verbs.trim_end().to_owned())
        .after_help(EXAMPLES)
}

/// A SHA-256 as 64 hex digits, colons between them or not.
pub(crate) fn fingerprint(text: &str) -> Result<[u8; 32], String> {
    let digits: String = text.chars().filter(|c| *c != ':').collect();
    let wrong = || "write the 64 hex digits that the scheduler prints as its fingerprint".to_owned();
    if digits.len() != 64 || !digits.is_ascii() {
        return Err(wrong());
    }
    let mut out = [0; 32];
    for (byte, at) in out.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&digits[at..at + 2], 16).map_err(|_| wrong())?;
    }
    Ok(out)
}

/// What was typed, or clap's own error (exit code 2) or help (exit code 0).
pub(crate) fn parse(typed: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Cli, clap::Error> {
    let matches = command().try_get_matches_from(typed)?;
    Cli::from_arg_matches(&matches)
}

/// `APP/ACTOR`, also as `get actors -o name` prints it.
pub(crate) fn app_and_actor(text: &str) -> Result<(String, String), String> {
    let parts: Vec<&str> = text.split('/').collect();
    let (app, actor) = match parts.as_slice() {
        [app, actor] | ["actor", app, actor] => (*app, *actor),
        _ => return Err("write APP/ACTOR; `lattice get actors -o name` lists them".into()),
    };
    Ok((name(app)?, name(actor)?))
}

/// `APP` or `app/APP`.
pub(crate) fn app(text: &str) -> Result<String, String> {
    name(text.strip_prefix("app/").unwrap_or(text))
}

/// A host's name or id, or `host/ID`.
pub(crate) fn host(text: &str) -> Result<String, String> {
    match text.strip_prefix("host/").unwrap_or(text) {
        "" => Err("write a host's name or id; `lattice get hosts` lists them".into()),
        host => Ok(host.to_owned()),
    }
}

/// A name as manifests have it.
pub(crate) fn name(text: &str) -> Result<String, String> {
    text.parse::<proto::app::Name>().map(String::from).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn every_verb_is_in_the_grouped_help() {
        for verb in Cli::command().get_subcommands() {
            assert!(GROUPS.iter().any(|(_, names)| names.contains(&verb.get_name())), "{}", verb.get_name());
        }
    }

    #[test]
    fn every_verb_says_what_it_does_and_most_show_examples() {
        for verb in command().get_subcommands() {
            assert!(verb.get_about().is_some(), "{}", verb.get_name());
            assert!(verb.get_after_help().is_some(), "{}", verb.get_name());
        }
    }

    #[test]
    fn fingerprints_are_sixty_four_digits() {
        let digits = "0a".repeat(32);
        assert_eq!(fingerprint(&digits), Ok([10; 32]));
        assert_eq!(fingerprint(&"0A:".repeat(32)), Ok([10; 32]));
        for wrong in ["", "0a", &"0x".repeat(32), &"+1".repeat(31), &"é".repeat(32)] {
            assert!(fingerprint(wrong).unwrap_err().contains("64 hex digits"), "{wrong}");
        }
    }

    #[test]
    fn names_are_taken_as_get_prints_them() {
        assert_eq!(app_and_actor("hello/web"), Ok(("hello".into(), "web".into())));
        assert_eq!(app_and_actor("actor/hello/web"), Ok(("hello".into(), "web".into())));
        assert_eq!(app("app/hello"), Ok("hello".into()));
        assert_eq!(host("host/01J"), Ok("01J".into()));
        for wrong in ["hello", "a/b/c", "/", "Hello/web", "hello/"] {
            assert!(app_and_actor(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_address_may_stand_before_or_behind_the_verb() {
        let typed = |words: &[&str]| parse(words.iter().map(Into::into)).unwrap();
        let connect = |cli: &Cli| match &cli.verb {
            Verb::Get(args) => args.connect.or(&cli.connect).api,
            _ => None,
        };
        assert_eq!(connect(&typed(&["lattice", "--api", "a:1", "get", "apps"])).as_deref(), Some("a:1"));
        assert_eq!(connect(&typed(&["lattice", "get", "apps", "--api", "b:2"])).as_deref(), Some("b:2"));
        assert_eq!(
            connect(&typed(&["lattice", "--api", "a:1", "get", "apps", "--api", "b:2"])).as_deref(),
            Some("b:2")
        );
    }

    #[test]
    fn wrong_use_is_exit_code_2_and_help_is_0() {
        let code = |words: &[&str]| parse(words.iter().map(Into::into)).expect_err("must not parse").exit_code();
        assert_eq!(code(&["lattice"]), 2);
        assert_eq!(code(&["lattice", "frobnicate"]), 2);
        assert_eq!(code(&["lattice", "scale", "hello/web", "1.5"]), 2);
        assert_eq!(code(&["lattice", "scale", "hello/web", "-1"]), 2);
        assert_eq!(code(&["lattice", "apply"]), 2);
        assert_eq!(code(&["lattice", "delete", "app"]), 2);
        assert_eq!(code(&["lattice", "--help"]), 0);
        assert_eq!(code(&["lattice", "get", "--help"]), 0);
    }
}
