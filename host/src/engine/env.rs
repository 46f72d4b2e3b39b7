//! What all instances of an actor share, made once from what it is to run as.

use super::actor::Spec;
use super::granted::Granted;
use super::limiter::Share;
use super::outgoing::forbidden_headers;
use super::output::Rate;
use super::state::{Env, HEADER_BYTES_MAX};
use super::{Engine, Error};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Semaphore;
use wasmtime_wasi_http::WasiHttpCtx;

pub(super) fn env(engine: &Engine, spec: Spec) -> Result<Env, Error> {
    let label = format!("{}/{}", spec.app, spec.actor);
    let inner = &engine.inner;
    let granted = Granted::new(&label, spec.grants, (&spec.limits, spec.replicas), &inner.policy, inner.bus.clone())?;
    let outgoing_len_max = usize::try_from(spec.limits.outgoing_len_max).unwrap_or(usize::MAX);
    let mut http = WasiHttpCtx::new();
    http.set_field_size_limit(HEADER_BYTES_MAX);
    Ok(Env {
        app: spec.app.to_string(),
        actor: spec.actor.to_string(),
        label,
        config: spec.config,
        granted,
        outgoing: Arc::new(Semaphore::new(outgoing_len_max.min(Semaphore::MAX_PERMITS))),
        log_rate: Rate::new(spec.limits.log_bytes_per_s, Instant::now()),
        limits: spec.limits,
        imports: spec.imports,
        logs: spec.logs,
        memory: Share::of(&engine.inner.budget),
        holding: spec.holding,
        idle: Arc::downgrade(&engine.inner.idle),
        forbidden: forbidden_headers(),
        http,
    })
}
