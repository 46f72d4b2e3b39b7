//! wasi:logging: lines for the operator, with the guest's level as their stream.

use super::super::state::State;
use wasmtime::Result;

mod bare {
    wasmtime::component::bindgen!({
        path: "../proto/wit/deps/logging",
        world: "wasi:logging/imports",
        imports: { default: async | trappable },
    });
}
mod versioned {
    wasmtime::component::bindgen!({
        path: "../proto/wit/deps/logging-draft",
        world: "wasi:logging/imports",
        imports: { default: async | trappable },
    });
}

pub(super) use bare::wasi::logging::logging as plain;
pub(super) use versioned::wasi::logging::logging as draft;

macro_rules! serve {
    ($version:ident) => {
        impl $version::Host for State {
            async fn log(&mut self, level: $version::Level, context: String, message: String) -> Result<()> {
                let stream = match level {
                    $version::Level::Trace => "trace",
                    $version::Level::Debug => "debug",
                    $version::Level::Info => "info",
                    $version::Level::Warn => "warn",
                    $version::Level::Error => "error",
                    $version::Level::Critical => "critical",
                };
                write(self, stream, &context, &message);
                Ok(())
            }
        }
    };
}
serve!(plain);
serve!(draft);

/// A message may hold several lines; each is one in the log.
fn write(state: &State, stream: &str, context: &str, message: &str) {
    for line in message.lines() {
        match context {
            "" => state.log().line(stream, line),
            _ => state.log().line(stream, &format!("{context}: {line}")),
        }
    }
}
