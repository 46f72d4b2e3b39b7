//! WASI 0.3: components whose functions wait by themselves, on engines of their own. Everything that is denied until it
//! is granted in WASI 0.2 is here as well, by the same context, the same hooks and the same guards.
//!
//! An HTTP request to its `wasi:http/handler` runs in a fresh instance, which goes on until the body is out; in `many`
//! it runs beside others.

use super::invocation::{Run, Shared};
use super::state::State;
use crate::call::{Body, CallError};
use crate::origin::Origin;
use http::Request;
use std::sync::{Arc, OnceLock};
use tokio::sync::oneshot;
use wasmtime::component::Accessor;
use wasmtime_wasi::I32Exit;
use wasmtime_wasi_http::p2::bindings::http::types::ErrorCode;
use wasmtime_wasi_http::p3;
use wasmtime_wasi_http::p3::bindings::{Service, ServicePre};
use wasmtime_wasi_http::{FieldMap, WasiHttpView as _};

/// The interface through which HTTP comes in.
pub(super) const HANDLER: &str = "wasi:http/handler";
/// The version under which the library links WASI 0.3; a test sees that this is so.
pub(super) const VERSION: &str = "0.3.0";

/// One request to an instance; it has ended when the head of its answer is there. Of several at once, `origin` tells
/// theirs apart.
pub(super) async fn one(
    service: &Service,
    accessor: &Accessor<State>,
    request: Request<Body>,
    origin: Origin,
    tx: oneshot::Sender<super::http::Head>,
) -> wasmtime::Result<()> {
    let (parts, body) = request.into_parts();
    let to = parts.uri.into_parts();
    let headers = accessor.with(|mut access| FieldMap::new_immutable(access.data_mut().http().hooks, parts.headers));
    let (method, path) = (parts.method, to.path_and_query);
    let (request, received) = p3::Request::new(method, to.scheme, to.authority, path, headers, None, body);
    let handle = service.wasi_http_handler().func_handle();
    let call = accessor.with(|mut access| {
        let request = access.data_mut().table.push(request)?;
        let call = handle.start_call_concurrent(&mut access, (request,))?;
        access.data_mut().began(call.task(), origin);
        wasmtime::error::Ok(call)
    })?;
    let (answer,) = handle.finish_call_concurrent(accessor, call).await?;
    let head = match answer {
        Ok(response) => Ok(accessor.with(|mut access| {
            let response = access.data_mut().table.delete(response)?;
            response.into_http(access, received)
        })?),
        Err(code) => Err(ErrorCode::InternalError(Some(format!("{code:?}")))),
    };
    // Who asked may have gone.
    let _ = tx.send(head);
    Ok(())
}

/// The whole invocation, as `http::guest` has it for WASI 0.2.
pub(super) async fn guest(
    shared: Arc<Shared>,
    service: ServicePre<State>,
    mut run: Run,
    request: Request<Body>,
    tx: oneshot::Sender<super::http::Head>,
    broken: Arc<OnceLock<CallError>>,
) -> Result<(), CallError> {
    let store = &mut run.store;
    let call = async {
        let service = service.instantiate_async(&mut *store).await?;
        let ended = store.run_concurrent(async move |accessor| {
            one(&service, accessor, request, Origin::default(), tx).await?;
            // The body is written by what the guest left running.
            std::future::poll_fn(|cx| accessor.poll_no_interesting_tasks(cx)).await;
            wasmtime::error::Ok(())
        });
        ended.await?
    };
    let ended = match call.await {
        // It may end itself when it has nothing more to say.
        Err(e) if shared.env.granted.grants.exit && matches!(e.downcast_ref(), Some(I32Exit(0))) => Ok(()),
        ended => ended.map_err(|e| shared.failed(&run.store, &e)),
    };
    if let Err(e) = &ended {
        let _ = broken.set(e.clone());
    }
    ended
}
