//! Calls whose types are known only from the component: imports that a link serves, and exports that others call.
//! Values cross in the encoding of `value`; a function whose types hold resources, streams or futures is refused when
//! the actor is prepared, not when it is called.

use super::among;
use super::failed::no_room;
use super::module::without_version;
use super::state::State;
use crate::call::CallError;
use crate::value::{decode_vals, encode_vals};
use proto::app::LINK_NAME_DEFAULT;
use std::sync::Arc;
use wasmtime::component::types::{ComponentFunc, ComponentInstance, ComponentItem};
use wasmtime::component::wasm_wave::untyped::UntypedFuncCall;
use wasmtime::component::{Linker, Type, Val};
use wasmtime::{Engine, Result, StoreContextMut};

/// Bytes of the text of one call's arguments, and of its results.
const WAVE_BYTES_MAX: usize = 1024 * 1024;

/// Whether values of this type can cross a link.
pub(super) fn is_plain(ty: &Type) -> bool {
    match ty {
        Type::Own(_) | Type::Borrow(_) | Type::Future(_) | Type::Stream(_) | Type::ErrorContext => false,
        Type::List(list) => is_plain(&list.ty()),
        Type::FixedLengthList(list) => is_plain(&list.ty()),
        Type::Map(map) => is_plain(&map.key()) && is_plain(&map.value()),
        Type::Record(record) => record.fields().all(|f| is_plain(&f.ty)),
        Type::Tuple(tuple) => tuple.types().all(|ty| is_plain(&ty)),
        Type::Variant(variant) => variant.cases().all(|c| c.ty.is_none_or(|ty| is_plain(&ty))),
        Type::Option(option) => is_plain(&option.ty()),
        Type::Result(result) => {
            result.ok().is_none_or(|ty| is_plain(&ty)) && result.err().is_none_or(|ty| is_plain(&ty))
        }
        _ => true,
    }
}

/// Memory that these values take, in bytes.
pub(super) fn weight(vals: &[Val]) -> usize {
    let behind = |val: &Val| match val {
        Val::String(text) | Val::Enum(text) => text.len(),
        Val::List(vals) | Val::FixedLengthList(vals) | Val::Tuple(vals) => weight(vals),
        Val::Record(fields) => fields.iter().map(|(name, val)| name.len() + weight(std::slice::from_ref(val))).sum(),
        Val::Variant(name, val) => name.len() + val.as_deref().map_or(0, |val| weight(std::slice::from_ref(val))),
        Val::Option(val) | Val::Result(Ok(val) | Err(val)) => {
            val.as_deref().map_or(0, |val| weight(std::slice::from_ref(val)))
        }
        Val::Flags(names) => names.iter().map(|name| name.len() + size_of::<String>()).sum(),
        Val::Map(pairs) => {
            pairs.iter().map(|(key, val)| weight(std::slice::from_ref(key)) + weight(std::slice::from_ref(val))).sum()
        }
        _ => 0,
    };
    size_of_val(vals) + vals.iter().map(behind).sum::<usize>()
}

/// A function of an imported interface.
struct Import {
    interface: String,
    function: String,
    params: Vec<Type>,
    results: Vec<Type>,
}

/// Links each function of the interface `name` to whatever the actor's link for it reaches when it is called.
pub(super) fn link(
    engine: &Engine,
    linker: &mut Linker<State>,
    name: &str,
    instance: &ComponentInstance,
) -> Result<(), String> {
    let mut to = linker.instance(name).map_err(|e| format!("{name}: {e:#}"))?;
    for (function, item) in instance.exports(engine) {
        match item.ty {
            ComponentItem::ComponentFunc(func) => {
                let import = Arc::new(Import::new(name, function, &func)?);
                to.func_new_async(function, move |store, _, params, results| {
                    let import = import.clone();
                    Box::new(async move { import.call(store, params, results).await })
                })
                .map_err(|e| format!("{name}: {e:#}"))?;
            }
            ComponentItem::Type(_) => {}
            ComponentItem::Resource(_) => {
                return Err(format!("{name}: its resource {function} can not cross a link; only values can"));
            }
            _ => return Err(format!("{name}: {function} is neither a function nor a type")),
        }
    }
    Ok(())
}

impl Import {
    fn new(interface: &str, function: &str, func: &ComponentFunc) -> Result<Self, String> {
        let params: Vec<_> = func.params().map(|(_, ty)| ty).collect();
        let results: Vec<_> = func.results().collect();
        if func.async_() || params.iter().chain(&results).any(|ty| !is_plain(ty)) {
            return Err(format!("{interface}: the types of {function} can not cross a link; only values can"));
        }
        let interface = without_version(interface).to_owned();
        Ok(Self { interface, function: function.to_owned(), params, results })
    }

    async fn call(&self, mut store: StoreContextMut<'_, State>, params: &[Val], results: &mut [Val]) -> Result<()> {
        among::tie(&mut store)?;
        let state = store.data_mut();
        let link = state.link_context(LINK_NAME_DEFAULT);
        let imports = state.env().imports.clone();
        among::untie(state);
        let failed = |e| Failed { call: format!("{}.{}", self.interface, self.function), e };
        let held = store.data_mut().limiter.hold(weight(params));
        let _held = held.map_err(|refused| failed(no_room(store.data().env(), refused)))?;
        let answer = async {
            let params = encode_vals(params, &self.params)?;
            let to = imports.dynamic(&self.interface, LINK_NAME_DEFAULT)?;
            let answer = to.serve(&link, &self.interface, &self.function, params).await?;
            decode_vals(&answer, &self.results)
        };
        let vals = answer.await.map_err(failed)?;
        for (to, val) in results.iter_mut().zip(vals) {
            *to = val;
        }
        Ok(())
    }
}

/// A call over a link that gave no result. The guest has no way to see it: its invocation ends with it.
#[derive(Debug, thiserror::Error)]
#[error("calling {call}: {e}")]
pub(super) struct Failed {
    call: String,
    e: CallError,
}

impl Failed {
    /// What it is for the guest's own caller: the same, save that bad arguments and a trap further on are this
    /// actor's failure, not its caller's.
    pub(super) fn for_caller(&self, label: &str) -> CallError {
        let text = format!("actor {label}: {self}");
        match &self.e {
            CallError::Invalid(_) | CallError::Trapped(_) => CallError::Trapped(text),
            e => CallError::from_code(e.code(), text),
        }
    }
}

/// Parses arguments in WAVE: `"k", 3`, with or without parentheses around them.
pub(super) fn parse_wave(function: &str, args: &str, types: &[Type]) -> Result<Vec<Val>, CallError> {
    if args.len() > WAVE_BYTES_MAX {
        return Err(CallError::TooLarge(format!("arguments of more than {WAVE_BYTES_MAX} bytes")));
    }
    let args = args.trim();
    let parse = |args: &str| {
        let text = format!("f{args}");
        UntypedFuncCall::parse(&text)?.to_wasm_params::<Val>(types)
    };
    // A single tuple looks the same as arguments in parentheses: what fits the types is meant.
    let with = format!("({args})");
    let attempt =
        if args.starts_with('(') { parse(args).or_else(|e| parse(&with).map_err(|_| e)) } else { parse(&with) };
    attempt.map_err(|e| {
        CallError::Invalid(format!("the arguments of {function} do not fit its {} parameters: {e}", types.len()))
    })
}

/// Results as WAVE text; "()" when there are none.
pub(super) fn wave_text(vals: &[Val]) -> Result<String, CallError> {
    let mut texts = Vec::with_capacity(vals.len());
    for val in vals {
        texts.push(val.to_wave().map_err(|e| CallError::Invalid(format!("the result can not be written: {e:#}")))?);
    }
    let text = if texts.is_empty() { "()".to_owned() } else { texts.join(", ") };
    if text.len() > WAVE_BYTES_MAX {
        return Err(CallError::TooLarge(format!("the result is more than {WAVE_BYTES_MAX} bytes of text")));
    }
    Ok(text)
}
