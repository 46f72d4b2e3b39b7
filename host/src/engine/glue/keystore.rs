//! lattice:keystore/store: as an import it goes to the linked provider; as an export it is called with typed
//! functions, since values of up to 1 MiB are too many for `Val`s.

use super::super::state::State;
use crate::call::CallError;
use crate::capability::keystore::{Error, KeyStore};
use crate::value::{Reader, Writer};
use bytes::Bytes;
use std::sync::Arc;
use wasmtime::component::Func;
use wasmtime::{Result, Store};

mod generated {
    wasmtime::component::bindgen!({
        path: "../proto/wit/keystore.wit",
        world: "lattice:keystore/imports",
        imports: { default: async | trappable },
    });
}

pub(super) use generated::lattice::keystore::store;

const LINK: &str = proto::app::LINK_NAME_DEFAULT;

impl From<Error> for store::Error {
    fn from(e: Error) -> Self {
        match e {
            Error::Denied(m) => Self::Denied(m),
            Error::TooLarge(m) => Self::TooLarge(m),
            Error::Unavailable(m) => Self::Unavailable(m),
        }
    }
}

impl State {
    fn keystore(&self) -> Result<Arc<dyn KeyStore>, Error> {
        Ok(self.env().imports.keystore(LINK, self.origin())?)
    }
}

impl store::Host for State {
    async fn set(&mut self, key: String, value: Vec<u8>, ttl: Option<u32>) -> Result<Result<(), store::Error>> {
        let keystore = match self.keystore() {
            Ok(keystore) => keystore,
            Err(e) => return Ok(Err(e.into())),
        };
        Ok(keystore.set(&key, value.into(), ttl).await.map_err(Into::into))
    }
    async fn get(&mut self, key: String) -> Result<Result<Option<Vec<u8>>, store::Error>> {
        let keystore = match self.keystore() {
            Ok(keystore) => keystore,
            Err(e) => return Ok(Err(e.into())),
        };
        Ok(keystore.get(&key).await.map(|v| v.map(Vec::from)).map_err(Into::into))
    }
    async fn delete(&mut self, key: String) -> Result<Result<(), store::Error>> {
        let keystore = match self.keystore() {
            Ok(keystore) => keystore,
            Err(e) => return Ok(Err(e.into())),
        };
        Ok(keystore.delete(&key).await.map_err(Into::into))
    }
}

/// A function of the interface, as an actor exports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Function {
    Set,
    Get,
    Delete,
}

/// The function, if `interface` (without version) is this one.
pub(in super::super) fn function(interface: &str, function: &str) -> Option<Function> {
    match (interface, function) {
        ("lattice:keystore/store", "set") => Some(Function::Set),
        ("lattice:keystore/store", "get") => Some(Function::Get),
        ("lattice:keystore/store", "delete") => Some(Function::Delete),
        _ => None,
    }
}

/// The parameters of one call, read before an instance is made for it.
pub(in super::super) enum Call {
    Set(String, Bytes, Option<u32>),
    Get(String),
    Delete(String),
}

impl Function {
    pub(in super::super) fn read(self, params: Bytes) -> Result<Call, CallError> {
        let mut r = Reader::new(params);
        let call = match self {
            Self::Set => Call::Set(r.string()?, r.bytes()?, r.option(Reader::u32)?),
            Self::Get => Call::Get(r.string()?),
            Self::Delete => Call::Delete(r.string()?),
        };
        r.finish()?;
        Ok(call)
    }
}

impl Call {
    pub(in super::super) async fn run(self, store: &mut Store<State>, func: Func) -> Result<Bytes> {
        type Done = (Result<(), store::Error>,);
        type Found = (Result<Option<Vec<u8>>, store::Error>,);
        let mut w = Writer::new();
        match self {
            Self::Set(key, value, ttl) => {
                let func = func.typed::<(&str, &[u8], Option<u32>), Done>(&mut *store)?;
                let (done,) = func.call_async(&mut *store, (&key, &value, ttl)).await?;
                w.put_result(done, |_, ()| (), put_error);
            }
            Self::Get(key) => {
                let func = func.typed::<(&str,), Found>(&mut *store)?;
                let (found,) = func.call_async(&mut *store, (&key,)).await?;
                let put_value = |w: &mut Writer, v: Vec<u8>| {
                    w.put_bytes(&v);
                };
                w.put_result(
                    found,
                    |w, v| {
                        w.put_option(v, put_value);
                    },
                    put_error,
                );
            }
            Self::Delete(key) => {
                let func = func.typed::<(&str,), Done>(&mut *store)?;
                let (done,) = func.call_async(&mut *store, (&key,)).await?;
                w.put_result(done, |_, ()| (), put_error);
            }
        }
        Ok(w.finish())
    }
}

fn put_error(w: &mut Writer, e: store::Error) {
    let (case, text) = match e {
        store::Error::Denied(m) => (0, m),
        store::Error::TooLarge(m) => (1, m),
        store::Error::Unavailable(m) => (2, m),
    };
    w.put_case(case).put_str(&text);
}
