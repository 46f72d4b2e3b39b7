//! wasi:config: the pairs that the manifest gave to this component, in both versions that toolchains import.

use super::super::state::State;
use wasmtime::Result;

mod current {
    wasmtime::component::bindgen!({
        path: "../proto/wit/deps/config",
        world: "wasi:config/imports",
        imports: { default: async | trappable },
    });
}
mod draft {
    wasmtime::component::bindgen!({
        path: "../proto/wit/deps/config-draft",
        world: "wasi:config/imports",
        imports: { default: async | trappable },
    });
}

pub(super) use current::wasi::config::store;
pub(super) use draft::wasi::config::runtime;

impl store::Host for State {
    async fn get(&mut self, key: String) -> Result<Result<Option<String>, store::Error>> {
        Ok(Ok(self.env().config.get(&key).cloned()))
    }
    async fn get_all(&mut self) -> Result<Result<Vec<(String, String)>, store::Error>> {
        Ok(Ok(self.env().config.clone().into_iter().collect()))
    }
}

impl runtime::Host for State {
    async fn get(&mut self, key: String) -> Result<Result<Option<String>, runtime::ConfigError>> {
        Ok(Ok(self.env().config.get(&key).cloned()))
    }
    async fn get_all(&mut self) -> Result<Result<Vec<(String, String)>, runtime::ConfigError>> {
        Ok(Ok(self.env().config.clone().into_iter().collect()))
    }
}
