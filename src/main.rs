//! `lattice`, the one program: runs WebAssembly actors across machines that share only a NATS bus.
//!
//! Reading order: `args` (what can be typed), `context`, `authority` and `client` (which API, why it is trusted,
//! and how it is asked), then a file for
//! each family of verbs: `apply` (with `local`, `follow` and `starting`), `get`, `describe`, `inspect`, `registry`, `change`, `stream`,
//! `top`, `schedulers`, `access`, `backup`, `call`; `print` (what all of them write) and `failure` (how they end). `run` has
//! the server sides, compiled in by feature.
//!
//! What is absent: decisions. What is desired, placed or run is decided in `scheduler` and `host`.

mod access;
#[cfg(feature = "adapt")]
mod adapt;
mod apply;
mod args;
mod authority;
mod backup;
mod call;
mod change;
mod client;
mod context;
mod describe;
mod duration;
mod failure;
mod follow;
mod get;
mod inspect;
mod job;
mod local;
mod log;
mod print;
mod reach;
#[cfg(feature = "registry")]
mod registry;
#[cfg(any(feature = "host", feature = "scheduler"))]
mod run;
mod schedulers;
mod starting;
mod stream;
mod top;

use args::{Cli, Connect, Verb};
use change::Cordon;
use failure::Failure;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Not a verb for people: a host starts this program again to compile.
    #[cfg(feature = "host")]
    if std::env::args_os().nth(1).is_some_and(|arg| arg == host::engine::COMPILE_ARGUMENT) {
        return host::engine::compile_child(std::env::args_os().skip(2));
    }
    let cli = match args::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(e) => {
            // Help or the error of a wrong use; a reader that has gone is no reason for another.
            let _ = e.print();
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2));
        }
    };
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!(%panic, "this is a bug in lattice: please report it");
    }));
    match start(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(line) = failure.line() {
                print::note(line);
            }
            ExitCode::from(failure.code())
        }
    }
}

fn start(cli: &Cli) -> Result<(), Failure> {
    let role = role(&cli.verb);
    log::init(&cli.log, log_role(&cli.verb, role))?;
    // A command that answers and ends needs no second thread.
    let mut builder = match role {
        log::Role::Client => tokio::runtime::Builder::new_current_thread(),
        log::Role::Server => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime =
        builder.enable_all().build().map_err(|e| Failure::Refused(format!("can not start the async runtime: {e}")))?;
    let outcome = runtime.block_on(dispatch(cli));
    // What still blocks, such as a read of stdin, must not keep the process.
    runtime.shutdown_background();
    outcome
}

/// `up` talks to a person at a terminal: it says itself what is worth knowing.
fn log_role(verb: &Verb, role: log::Role) -> log::Role {
    match verb {
        #[cfg(all(feature = "host", feature = "scheduler"))]
        Verb::Up(_) => log::Role::Client,
        _ => role,
    }
}

fn role(verb: &Verb) -> log::Role {
    match verb {
        #[cfg(all(feature = "host", feature = "scheduler"))]
        Verb::Up(_) => log::Role::Server,
        #[cfg(feature = "scheduler")]
        Verb::Scheduler(_) => log::Role::Server,
        #[cfg(feature = "host")]
        Verb::Host(_) => log::Role::Server,
        _ => log::Role::Client,
    }
}

async fn dispatch(cli: &Cli) -> Result<(), Failure> {
    let at = |connect: &Connect| connect.or(&cli.connect);
    match &cli.verb {
        #[cfg(all(feature = "host", feature = "scheduler"))]
        Verb::Up(args) => Box::pin(server(cli, run::up::run(args))).await,
        #[cfg(feature = "scheduler")]
        Verb::Scheduler(args) => Box::pin(server(cli, run::scheduler::run(args))).await,
        #[cfg(feature = "host")]
        Verb::Host(args) => Box::pin(server(cli, run::host::run(args))).await,
        Verb::Apply(args) => apply::apply(args, &at(&args.connect)).await,
        Verb::Validate(args) => apply::validate(args).await,
        #[cfg(feature = "registry")]
        Verb::Push(args) => registry::push(args).await,
        #[cfg(feature = "registry")]
        Verb::Pull(args) => registry::pull(args).await,
        Verb::Inspect(args) => inspect::inspect(args).await,
        Verb::Delete(args) => change::delete(args, &at(&args.connect)).await,
        Verb::Scale(args) => change::scale(args, &at(&args.connect)).await,
        Verb::Rollback(args) => change::rollback(args, &at(&args.connect)).await,
        Verb::Cordon(args) => change::cordon(args, &at(&args.connect), Cordon::On).await,
        Verb::Uncordon(args) => change::cordon(args, &at(&args.connect), Cordon::Off).await,
        Verb::Drain(args) => change::cordon(args, &at(&args.connect), Cordon::Drain).await,
        Verb::Get(args) => get::get(args, &at(&args.connect)).await,
        Verb::Describe(args) => describe::describe(args, &at(&args.connect)).await,
        Verb::Logs(args) => stream::logs(args, &at(&args.connect)).await,
        Verb::Top(args) => top::top(args, &at(&args.connect)).await,
        Verb::Events(args) => stream::events(args, &at(&args.connect)).await,
        Verb::Status(args) => describe::status(args, &at(&args.connect)).await,
        Verb::Schedulers(args) => schedulers::schedulers(args, &at(args.connect())).await,
        Verb::Access(args) => access::access(args, &at(args.connect())).await,
        Verb::Backup(args) => backup::backup(args, &at(&args.connect)).await,
        #[cfg(feature = "scheduler")]
        Verb::Restore(args) => backup::restore(args),
        Verb::Call(args) => call::call(args, &at(&args.connect)).await,
        Verb::Run(args) => job::run(args, &at(&args.connect)).await,
        Verb::Completion(args) => completion(args),
    }
}

/// A verb that serves; what says where to reach a server does not belong before it.
#[cfg(any(feature = "host", feature = "scheduler"))]
async fn server(cli: &Cli, run: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    if cli.connect.is_given() {
        return Err(Failure::Usage(
            "before this verb, --api, --context and --ca mean nothing: put its own behind it".into(),
        ));
    }
    run.await
}

fn completion(args: &args::CompletionArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut args::command(), "lattice", &mut script);
    print::raw(&script)
}
