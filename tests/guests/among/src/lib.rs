//! An HTTP handler of WASI 0.3 that many requests are in at once. Each waits as long as its path says (`/200`) and then
//! does everything that bears the id or the trace of who caused it: it prints, logs, asks the store that is linked, and
//! the address that its query names.

use wasip3::clocks::monotonic_clock;
use wasip3::exports::http::handler::Guest;
use wasip3::http::client;
use wasip3::http::types::{ErrorCode, Fields, Request, Response, Scheme};
use wasip3::{wit_future, wit_stream};

mod bindings {
    wit_bindgen::generate!({
        path: ["../../../proto/wit/deps/keyvalue", "../../../proto/wit/deps/logging"],
        inline: "
            package lattice:among;
            world among {
                import wasi:keyvalue/store@0.2.0-draft;
                import wasi:logging/logging;
            }
        ",
        world: "lattice:among/among",
        generate_all,
    });
}
use bindings::wasi::keyvalue::store;
use bindings::wasi::logging::logging;

wasip3::http::service::export!(Among);

struct Among;

impl Guest for Among {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let target = request.get_path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let ms: u64 = path.trim_start_matches('/').parse().unwrap_or_default();
        monotonic_clock::wait_for(ms * 1_000_000).await;
        println!("printed {ms}");
        logging::log(logging::Level::Info, "", &format!("logged {ms}"));
        let found = store::open("").and_then(|bucket| bucket.get(&ms.to_string()));
        let asked = ask(query).await;
        Ok(text(format!("{found:?} {asked}\n")))
    }
}

/// A GET of http://`authority`/.
async fn ask(authority: &str) -> String {
    let (_, trailers) = wit_future::new(|| Ok(None));
    let (request, _) = Request::new(Fields::new(), None, trailers, None);
    let path = request.set_path_with_query(Some("/"));
    if path.is_err()
        || request.set_scheme(Some(&Scheme::Http)).is_err()
        || request.set_authority(Some(authority)).is_err()
    {
        return "no such address".to_owned();
    }
    match client::send(request).await {
        Ok(response) => format!("status {}", response.get_status_code()),
        Err(e) => format!("{e:?}"),
    }
}

fn text(text: String) -> Response {
    let (mut body, reader) = wit_stream::new();
    let (_, trailers) = wit_future::new(|| Ok(None));
    let (response, _) = Response::new(Fields::new(), Some(reader), trailers);
    wasip3::wit_bindgen::spawn_local(async move {
        body.write_all(text.into_bytes()).await;
        // It is still the same request's.
        println!("sent");
    });
    response
}
