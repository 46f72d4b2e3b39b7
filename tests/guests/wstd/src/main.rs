//! A server as the Bytecode Alliance's `wstd` has it.

use wstd::http::{Body, Request, Response, Result};

#[wstd::http_server]
async fn main(mut request: Request<Body>) -> Result<Response<Body>> {
    let body = request.body_mut().str_contents().await?.to_uppercase();
    let target = request.uri().path_and_query().map_or("", |target| target.as_str());
    let text = format!("wstd: {} {target} {body}\n", request.method());
    Ok(Response::builder().header("x-language", "wstd").body(text.into())?)
}
