//! Calls of functions. The subject names what is called, headers name the function and the caller.

use super::{CONCURRENT_MAX, Caller, DEADLINE_DEFAULT, Permit, call_error, refusal};
use crate::call::{CallError, LinkContext, Serve};
use crate::origin::Origin;
use crate::spans::{self, Kind};
use crate::value::ENCODED_BYTES_MAX;
use bus::{Bus, Headers, Reason, Refusal, Reply, Request, Serving, Share};
use bytes::Bytes;
use proto::app::Name;
use std::sync::Arc;
use std::time::Instant;

/// The function, the consumer's app, the consumer, the link, with spaces between; only the last may have spaces in it.
const CALL: &str = "Lattice-Call";
/// What caused the call, where that is known.
const REQUEST: &str = "Lattice-Request";
const TRACE: &str = "traceparent";
/// Bytes of the name of a function or a link.
const NAME_BYTES_MAX: usize = 256;

/// The component `component` of `app` on whichever host runs it.
pub struct RemoteServe {
    bus: Bus,
    app: Name,
    component: Name,
}

impl RemoteServe {
    pub fn new(bus: Bus, app: Name, component: Name) -> Self {
        Self { bus, app, component }
    }
}

#[async_trait::async_trait]
impl Serve for RemoteServe {
    async fn serve(
        &self,
        link: &LinkContext,
        interface: &str,
        function: &str,
        params: Bytes,
    ) -> Result<Bytes, CallError> {
        check_bytes(&params, interface)?;
        let subject = self.bus.subjects().rpc(&self.app, &self.component, interface);
        let call = format!("{function} {} {} {}", link.app, link.consumer, link.name);
        let whom = || format!("{}/{}", self.app, self.component);
        let mut span =
            spans::begin(Kind::Client, || link.origin.clone(), || format!("{interface}.{function} of {}", whom()));
        let mut headers = Headers::from([(CALL.to_owned(), call)]);
        put_origin(&mut headers, &spans::caused_by(&span, &link.origin));
        let reply = self.bus.call(subject, headers, params, link.deadline.unwrap_or(DEADLINE_DEFAULT)).await;
        let answer = reply.map(|r| r.payload).map_err(|e| {
            let who = format!("link {:?} of actor {:?}", link.name, link.consumer);
            call_error(e, &who, interface, &whom())
        });
        spans::ended(&mut span, &answer);
        answer
    }
}

/// Answers calls of `interfaces` of the component `component` of `app` from the bus, sharing them with the other hosts
/// that run it, for as long as the result is kept. Only callers that `permit` knows are answered.
pub async fn serve_component(
    bus: &Bus,
    app: &Name,
    component: &Name,
    interfaces: &[String],
    serve: Arc<dyn Serve>,
    permit: Permit,
) -> Result<Vec<Serving>, bus::Error> {
    let mut servings = Vec::with_capacity(interfaces.len());
    for interface in interfaces {
        let end = Arc::new(End {
            bus: bus.clone(),
            app: app.clone(),
            component: component.clone(),
            interface: interface.split('@').next().unwrap_or(interface).to_owned(),
            serve: serve.clone(),
            permit: permit.clone(),
        });
        let subject = bus.subjects().rpc(app, component, interface);
        let queue = Some("rpc".to_owned());
        let is_quick = end.serve.is_quick();
        let answer = move |request| {
            let end = end.clone();
            async move { end.answer(request).await }
        };
        let share = if is_quick { Share::in_place(CONCURRENT_MAX) } else { CONCURRENT_MAX.into() };
        servings.push(bus.serve(subject, queue, share, answer).await?);
    }
    Ok(servings)
}

/// The serving end of one interface.
struct End {
    bus: Bus,
    app: Name,
    component: Name,
    interface: String,
    serve: Arc<dyn Serve>,
    permit: Permit,
}

impl End {
    async fn answer(&self, request: Request) -> Result<Reply, Refusal> {
        let Some((function, caller)) = self.read(&request.headers) else {
            self.bus.drops().count(Reason::Malformed);
            return Err(refusal(CallError::Invalid(format!(
                "a call of {} of {}/{} does not say which function or on whose behalf: see that both hosts run the \
                 same version",
                self.interface, self.app, self.component
            ))));
        };
        let Some(config) = (self.permit)(&caller) else {
            self.bus.drops().count(Reason::Foreign);
            return Err(refusal(CallError::Denied(format!(
                "link {:?} of actor \"{}/{}\": app {:?} as this host knows it has no such link to {} of {:?}; add a \
                 link trait, or try again when the new revision is here",
                caller.link,
                caller.app,
                caller.consumer,
                self.app.as_str(),
                self.interface,
                self.component.as_str()
            ))));
        };
        check_bytes(&request.payload, &self.interface).map_err(refusal)?;
        let origin = Origin::from_texts(request.headers.get(REQUEST), request.headers.get(TRACE));
        let mut span = spans::begin(
            Kind::Server,
            || origin.clone(),
            || format!("{}.{function} of {}/{}", self.interface, self.app, self.component),
        );
        let link = LinkContext {
            app: caller.app.into(),
            consumer: caller.consumer.into(),
            name: caller.link,
            config,
            deadline: Some(request.deadline.saturating_duration_since(Instant::now())),
            origin: spans::caused_by(&span, &origin),
        };
        let result = self.serve.serve(&link, &self.interface, &function, request.payload).await;
        spans::ended(&mut span, &result);
        match result {
            Ok(payload) => Ok(Reply { headers: Headers::new(), payload }),
            Err(error) => {
                if matches!(error, CallError::Invalid(_)) {
                    self.bus.drops().count(Reason::Malformed);
                }
                Err(refusal(error))
            }
        }
    }

    /// The function and the caller, if the headers are what `RemoteServe` writes.
    fn read(&self, headers: &Headers) -> Option<(String, Caller)> {
        let mut parts = headers.get(CALL)?.splitn(4, ' ');
        let mut part = || parts.next().filter(|part| !part.is_empty() && part.len() <= NAME_BYTES_MAX);
        let function = part()?.to_owned();
        let caller = Caller {
            app: part()?.parse().ok()?,
            consumer: part()?.parse().ok()?,
            provider_app: self.app.clone(),
            provider: self.component.clone(),
            interface: self.interface.clone(),
            link: part()?.to_owned(),
        };
        Some((function, caller))
    }
}

fn put_origin(headers: &mut Headers, origin: &Origin) {
    for (name, value) in [(REQUEST, &origin.request_id), (TRACE, &origin.traceparent)] {
        if let Some(text) = value.as_ref().and_then(|value| value.to_str().ok()) {
            headers.insert(name.to_owned(), text.to_owned());
        }
    }
}

/// The bus takes more than a call may carry: what is decoded takes more memory than it has bytes.
fn check_bytes(params: &Bytes, interface: &str) -> Result<(), CallError> {
    if params.len() > ENCODED_BYTES_MAX {
        return Err(CallError::TooLarge(format!(
            "a call of {interface} with {} bytes: at most {ENCODED_BYTES_MAX} are carried; send less in one call",
            params.len()
        )));
    }
    Ok(())
}
