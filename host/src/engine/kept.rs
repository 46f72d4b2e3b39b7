//! What the host keeps for an instance outside of the guest's own memory: headers, bodies that nobody takes, values read
//! in order to be replaced. It counts as the instance's memory, against its actor's limit and what this host has for all.
//!
//! Nothing is counted while little can be there: each call that may leave something with the host is taken for the most
//! that it can leave, and only when these come to more than a bound is it seen what there really is.

use super::glue::Cas;
use super::outgoing::BODY_CHUNK_BYTES_MAX;
use super::state::{HEADER_BYTES_MAX, State};
use http::HeaderMap;
use std::any::Any;
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi_http::p2::bindings::http::types;
use wasmtime_wasi_http::p2::types::{HostIncomingResponse, HostOutgoingRequest, HostOutgoingResponse};
use wasmtime_wasi_http::p3;
use wasmtime_wasi_http::p3::bindings::http::types as later;
use wasmtime_wasi_http::{FieldMap, WasiHttpView as _};

/// What calls may have left with the host before it is seen what is there.
pub(super) const UNCOUNTED_BYTES_MAX: usize = 1024 * 1024;
/// The most that one call of `wasi:http` leaves: a full set of headers, with what their table needs.
pub(super) const CALL_BYTES: usize = 2 * HEADER_BYTES_MAX;
/// Of any handle.
const HANDLE_BYTES: usize = 256;
/// Of one entry in a table of headers, beside its text.
const HEADER_BYTES: usize = 160;
/// Pieces of a body that wait for whoever takes it.
const CHUNKS_MAX: usize = 2;

/// The versions under which the library links `wasi:http`; a test sees that this is so.
const VERSION: &str = "0.2.12";

/// Memory behind one handle, at most.
pub(super) fn weight(handle: &(dyn Any + Send)) -> usize {
    let body = |is_there: bool| if is_there { CHUNKS_MAX * BODY_CHUNK_BYTES_MAX } else { 0 };
    let behind = if let Some(fields) = handle.downcast_ref::<FieldMap>() {
        headers(fields)
    } else if let Some(request) = handle.downcast_ref::<HostOutgoingRequest>() {
        let method = if let types::Method::Other(name) = &request.method { name.len() } else { 0 };
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let target = text(&request.authority) + text(&request.path_with_query);
        headers(&request.headers) + method + target + body(request.body.is_some())
    } else if let Some(response) = handle.downcast_ref::<HostOutgoingResponse>() {
        headers(&response.headers) + body(response.body.is_some())
    } else if let Some(response) = handle.downcast_ref::<HostIncomingResponse>() {
        headers(&response.headers)
    } else if let Some(request) = handle.downcast_ref::<p3::Request>() {
        let authority = request.authority.as_ref().map_or(0, |a| a.as_str().len());
        let path = request.path_with_query.as_ref().map_or(0, |p| p.as_str().len());
        headers(&request.headers) + request.method.as_str().len() + authority + path
    } else if let Some(response) = handle.downcast_ref::<p3::Response>() {
        headers(&response.headers)
    } else if let Some(cas) = handle.downcast_ref::<Cas>() {
        cas.bytes()
    } else {
        0
    };
    HANDLE_BYTES + behind
}

fn headers(map: &HeaderMap) -> usize {
    let text = map.iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>();
    text + map.capacity().max(map.len()) * HEADER_BYTES
}

/// Two functions of an outgoing request, of either version, whose texts the library takes however long they are.
macro_rules! bound {
    ($linker:expr, $version:expr, $prefix:literal, $request:ty, $method:ty) => {{
        type Method = $method;
        let linker = $linker;
        linker.allow_shadowing(true);
        let mut to = linker.instance(&format!("wasi:http/types@{}", $version))?;
        to.func_wrap(
            concat!("[method]", $prefix, ".set-authority"),
            |mut store: StoreContextMut<'_, State>, (request, text): (Resource<$request>, Option<String>)| {
                if text.as_ref().is_some_and(|text| text.len() > HEADER_BYTES_MAX) {
                    return Ok((Err(()),));
                }
                Ok((store.data_mut().http().set_authority(request, text)?,))
            },
        )?;
        to.func_wrap(
            concat!("[method]", $prefix, ".set-method"),
            |mut store: StoreContextMut<'_, State>, (request, method): (Resource<$request>, Method)| {
                if matches!(&method, Method::Other(name) if name.len() > HEADER_BYTES_MAX) {
                    return Ok((Err(()),));
                }
                Ok((store.data_mut().http().set_method(request, method)?,))
            },
        )?;
        linker.allow_shadowing(false);
        Ok(())
    }};
}

pub(super) fn bound(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    use types::HostOutgoingRequest as _;
    bound!(linker, VERSION, "outgoing-request", HostOutgoingRequest, types::Method)
}

/// The same in WASI 0.3.
pub(super) fn bound_later(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    use later::HostRequest as _;
    bound!(linker, super::later::VERSION, "request", p3::Request, later::Method)
}
