//! Who a call of an instance works for, when many requests are in it at once: each is a task of the guest's, and the
//! host functions that print and call ask which task called them. So lines and calls bear the id and the trace of their
//! own request. What can not be told bears none: never another's.
//!
//! Only the instances of `many` pay for it.

use super::glue;
use super::state::State;
use crate::origin::Origin;
use std::collections::BTreeMap;
use wasmtime::component::{Accessor, GuestTaskId, Linker, Resource};
use wasmtime::{AsContextMut as _, Result, StoreContextMut};
use wasmtime_wasi::p2::{DynOutputStream, StreamError};
use wasmtime_wasi_http::p2::bindings::http::{outgoing_handler, types};
use wasmtime_wasi_http::p2::types::{HostFutureIncomingResponse, HostOutgoingRequest};
use wasmtime_wasi_http::p3::bindings::http::client;
use wasmtime_wasi_http::{WasiHttp, WasiHttpView as _, p3};
use wasmtime_wasi_io::bindings::wasi::io::streams;

/// What caused each task of one instance. Their numbers are used again: a new one takes the place of one that ended.
#[derive(Default)]
pub(super) struct Among {
    tasks: BTreeMap<GuestTaskId, Origin>,
    /// Of a caller that is not asked for its task: that of the only request there is.
    only: Origin,
}

impl State {
    /// A request joins those in this instance; `is_alone` if nothing of another is left there.
    pub(super) fn caused_among(&mut self, origin: &Origin, is_alone: bool) {
        let among = self.among.get_or_insert_default();
        if is_alone {
            among.tasks.clear();
        }
        among.only = if is_alone { origin.clone() } else { Origin::default() };
        untie(self);
    }

    /// The request runs as this task.
    pub(super) fn began(&mut self, task: GuestTaskId, origin: Origin) {
        if let Some(among) = &mut self.among {
            among.tasks.insert(task, origin);
        }
    }
}

/// Until `untie`, what is printed and called is on behalf of the task that calls now.
pub(super) fn tie(store: &mut StoreContextMut<'_, State>) -> Result<()> {
    if store.data().among.is_none() {
        return Ok(());
    }
    // The last of the stack is the call from outside that all else came of.
    let task = store.async_call_stack()?.last();
    let state = store.data_mut();
    let of = |task: GuestTaskId| state.among.as_ref()?.tasks.get(&task).cloned();
    let origin = task.and_then(of).unwrap_or_default();
    state.caused_by(origin);
    Ok(())
}

pub(super) fn untie(state: &mut State) {
    if let Some(among) = &state.among {
        let only = among.only.clone();
        state.caused_by(only);
    }
}

/// Puts functions that ask for their caller in place of those that print and that lead out. The store is theirs alone
/// from `tie` to `untie`.
pub(super) fn shadow(linker: &mut Linker<State>) -> Result<()> {
    linker.allow_shadowing(true);
    glue::tied(linker)?;
    prints(linker)?;
    asks(linker)?;
    linker.allow_shadowing(false);
    Ok(())
}

fn prints(linker: &mut Linker<State>) -> Result<()> {
    type Stream = Resource<DynOutputStream>;
    use streams::{Host as _, HostOutputStream as _};
    let mut to = linker.instance(&format!("wasi:io/streams@{}", super::guard::VERSION))?;
    let answer = |state: &mut State, written: std::result::Result<(), StreamError>| match written {
        Ok(()) => Ok((Ok(()),)),
        Err(error) => state.table.convert_stream_error(error).map(|error| (Err(error),)),
    };
    to.func_wrap(
        "[method]output-stream.write",
        move |mut store: StoreContextMut<'_, State>, (stream, bytes): (Stream, Vec<u8>)| {
            tie(&mut store)?;
            let state = store.data_mut();
            let written = state.table.write(stream, bytes);
            untie(state);
            answer(state, written)
        },
    )?;
    to.func_wrap_async(
        "[method]output-stream.blocking-write-and-flush",
        move |mut store: StoreContextMut<'_, State>, (stream, bytes): (Stream, Vec<u8>)| {
            Box::new(async move {
                tie(&mut store)?;
                let state = store.data_mut();
                let written = state.table.blocking_write_and_flush(stream, bytes).await;
                untie(state);
                answer(state, written)
            })
        },
    )
}

fn asks(linker: &mut Linker<State>) -> Result<()> {
    use outgoing_handler::Host as _;
    use types::Host as _;
    type Asked = (Resource<HostOutgoingRequest>, Option<Resource<types::RequestOptions>>);
    type Answer = std::result::Result<Resource<HostFutureIncomingResponse>, types::ErrorCode>;
    linker.instance(&format!("wasi:http/outgoing-handler@{}", super::guard::VERSION))?.func_wrap(
        "handle",
        |mut store: StoreContextMut<'_, State>, (request, options): Asked| {
            tie(&mut store)?;
            let state = store.data_mut();
            let asked = state.http().handle(request, options);
            untie(state);
            let answer: Answer = match asked {
                Ok(response) => Ok(response),
                Err(error) => Err(state.http().convert_error_code(error)?),
            };
            Ok((answer,))
        },
    )?;
    linker.instance(&format!("wasi:http/client@{}", super::later::VERSION))?.func_wrap_concurrent(
        "send",
        |by: &Accessor<State>, (request,): (Resource<p3::Request>,)| {
            Box::pin(async move {
                let http = by.with_getter::<WasiHttp>(State::http);
                // It leaves in the first poll, in which no other task has a turn.
                by.with(|mut access| tie(&mut access.as_context_mut()))?;
                let mut sent = Box::pin(client::HostWithStore::send(&http, request));
                let first = std::future::poll_fn(|cx| std::task::Poll::Ready(sent.as_mut().poll(cx))).await;
                by.with(|mut access| untie(access.data_mut()));
                let sent = match first {
                    std::task::Poll::Ready(sent) => sent,
                    std::task::Poll::Pending => sent.await,
                };
                let answer = match sent {
                    Ok(response) => Ok(response),
                    Err(error) => Err(error.downcast()?),
                };
                Ok((answer,))
            })
        },
    )
}
