//! `call`: one function that an actor exports, with its values as WAVE text.

use crate::args::{self, Connect};
use crate::client::Client;
use crate::failure::Failure;
use crate::{context, duration, print};
use clap::Args;
use proto::v1::CallRequest;
use std::time::Duration;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lattice call keystore/vault lattice:keystore/store.set '\"k\"' '[104, 105]' none
  lattice call keystore/vault lattice:keystore/store.get '\"k\"'
  lattice call hello/web greet '{name: \"ada\", times: 2}'

Values are WAVE, the component model's text: 1, \"text\", 'c', true, [1, 2],
(1, \"two\"), {name: \"x\"}, some(1), none, ok(1), err(\"why\").
One ARG for each parameter; a single ARG that begins with ( is all of them.
FUNC alone is a function of the component itself, outside of any interface.
The call runs once and is not tried again.")]
pub(crate) struct CallArgs {
    /// Actor to call
    #[arg(value_name = "APP/ACTOR", value_parser = args::app_and_actor)]
    actor: (String, String),
    /// Function, behind its interface and a dot; alone when the component exports it by itself
    #[arg(value_name = "[IFACE.]FUNC", value_parser = function)]
    function: Function,
    /// Arguments, WAVE text each
    #[arg(value_name = "ARGS", allow_hyphen_values = true)]
    args: Vec<String>,
    /// How long to wait for its answer: 500ms, 30s, 2m, 1h
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration::parse)]
    timeout: Duration,
    #[command(flatten)]
    pub(crate) connect: Connect,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Function {
    /// Empty for a function of the component itself.
    interface: String,
    name: String,
}

pub(crate) async fn call(args: &CallArgs, connect: &Connect) -> Result<(), Failure> {
    let client = Client::connect(context::endpoint(connect)?).await?;
    let (app, actor) = args.actor.clone();
    let request = CallRequest {
        app,
        actor,
        interface: args.function.interface.clone(),
        function: args.function.name.clone(),
        args: wave(&args.args),
    };
    let answer = client
        .once(args.timeout, |mut api| {
            let mut request = tonic::Request::new(request);
            request.set_timeout(args.timeout);
            async move { api.call(request).await }
        })
        .await?;
    // WAVE text escapes control characters itself; what does not come from WAVE is cleaned all the same.
    print::out(print::clean(&answer.wave))
}

/// `lattice:keystore/store@0.1.0.get` -> interface and function: the version has dots of its own.
fn function(text: &str) -> Result<Function, String> {
    let wrong =
        || format!("{text:?} is not a function: write IFACE.FUNC, as lattice:keystore/store.get, or FUNC alone");
    let (interface, name) = text.rsplit_once('.').unwrap_or(("", text));
    let is_word = |word: &str| word.starts_with(|c: char| c.is_ascii_alphabetic());
    let name_ok =
        !name.is_empty() && name.split('-').all(is_word) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    let interface_ok = match interface.split_once('/') {
        Some((package, rest)) => package.contains(':') && !rest.is_empty() && !rest.contains('/'),
        None => interface.is_empty() && !text.contains('.'),
    };
    if name_ok && interface_ok {
        Ok(Function { interface: interface.to_owned(), name: name.to_owned() })
    } else {
        Err(wrong())
    }
}

/// The list of arguments as WAVE has it: `(a, b)`.
fn wave(args: &[String]) -> String {
    match args {
        [one] if one.trim_start().starts_with('(') => one.trim().to_owned(),
        _ => format!("({})", args.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_have_an_interface_or_stand_alone() {
        for (text, interface, name) in [
            ("lattice:keystore/store.get", "lattice:keystore/store", "get"),
            ("wasi:keyvalue/store@0.2.0-draft.open", "wasi:keyvalue/store@0.2.0-draft", "open"),
            ("say-hi", "", "say-hi"),
        ] {
            assert_eq!(function(text), Ok(Function { interface: interface.into(), name: name.into() }), "{text}");
        }
        for text in ["", ".", "store.get", "a:b/c", "a:b/c@0.1.0", "a:b/.f", "a/b.f", "x y", "-a", "a--b", "a:b/c/d.f"]
        {
            assert!(function(text).is_err(), "{text}");
        }
    }

    #[test]
    fn arguments_become_one_list() {
        let wave = |args: &[&str]| wave(&args.iter().map(|&arg| arg.to_owned()).collect::<Vec<_>>());
        assert_eq!(wave(&[]), "()");
        assert_eq!(wave(&["\"k\""]), "(\"k\")");
        assert_eq!(wave(&["\"k\"", "none"]), "(\"k\", none)");
        assert_eq!(wave(&["\"k\", none"]), "(\"k\", none)");
        assert_eq!(wave(&["(\"k\", none)"]), "(\"k\", none)");
        assert_eq!(wave(&["(1, 2)", "3"]), "((1, 2), 3)");
    }
}
