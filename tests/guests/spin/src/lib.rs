//! What `spin new -t http-rust` begins with: a handler that asks for nothing but HTTP.

use spin_sdk::http::{IntoResponse, Request, Response};
use spin_sdk::http_component;

#[http_component]
fn handle(request: Request) -> anyhow::Result<impl IntoResponse> {
    let body = String::from_utf8_lossy(request.body()).to_uppercase();
    let text = format!("Spin: {} {} {body}\n", request.method(), request.path_and_query().unwrap_or_default());
    Ok(Response::builder().status(200).header("x-language", "spin").body(text).build())
}
