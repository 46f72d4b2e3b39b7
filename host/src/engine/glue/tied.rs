//! The functions over links, each on behalf of the task that calls it. For instances that many requests are in.

use super::super::among::{tie, untie};
use super::super::state::State;
use super::{keystore, keyvalue, keyvalue_draft2, logging};
use wasmtime::component::Linker;
use wasmtime::{Result, StoreContextMut};

/// One after the other: the name in WIT, and the method with its parameters.
macro_rules! tied {
    ($linker:ident, $interface:literal, $($name:literal => $host:path, $method:ident($($arg:ident),*);)*) => {{
        let mut to = $linker.instance($interface)?;
        $(to.func_wrap_async($name, |mut store: StoreContextMut<'_, State>, ($($arg,)*)| {
            Box::new(async move {
                tie(&mut store)?;
                let answer = <State as $host>::$method(store.data_mut(), $($arg),*).await;
                untie(store.data_mut());
                Ok((answer?,))
            })
        })?;)*
    }};
}

/// Those that both drafts have alike.
macro_rules! keyvalue {
    ($linker:ident, $draft:ident, $store:literal, $atomics:literal, $batch:literal) => {
        tied!($linker, $store,
            "open" => $draft::store::Host, open(name);
            "[method]bucket.get" => $draft::store::HostBucket, get(bucket, key);
            "[method]bucket.set" => $draft::store::HostBucket, set(bucket, key, value);
            "[method]bucket.delete" => $draft::store::HostBucket, delete(bucket, key);
            "[method]bucket.exists" => $draft::store::HostBucket, exists(bucket, key);
            "[method]bucket.list-keys" => $draft::store::HostBucket, list_keys(bucket, cursor);
        );
        tied!($linker, $atomics, "increment" => $draft::atomics::Host, increment(bucket, key, delta););
        tied!($linker, $batch,
            "get-many" => $draft::batch::Host, get_many(bucket, keys);
            "set-many" => $draft::batch::Host, set_many(bucket, pairs);
            "delete-many" => $draft::batch::Host, delete_many(bucket, keys);
        );
    };
}

macro_rules! log {
    ($linker:ident, $interface:literal, $draft:ident) => {{
        let mut to = $linker.instance($interface)?;
        to.func_wrap_async("log", |mut store: StoreContextMut<'_, State>, (level, context, message)| {
            Box::new(async move {
                tie(&mut store)?;
                let told = <State as logging::$draft::Host>::log(store.data_mut(), level, context, message).await;
                untie(store.data_mut());
                told
            })
        })?;
    }};
}

pub(in super::super) fn tied(linker: &mut Linker<State>) -> Result<()> {
    keyvalue!(
        linker,
        keyvalue,
        "wasi:keyvalue/store@0.2.0-draft",
        "wasi:keyvalue/atomics@0.2.0-draft",
        "wasi:keyvalue/batch@0.2.0-draft"
    );
    keyvalue!(
        linker,
        keyvalue_draft2,
        "wasi:keyvalue/store@0.2.0-draft2",
        "wasi:keyvalue/atomics@0.2.0-draft2",
        "wasi:keyvalue/batch@0.2.0-draft2"
    );
    tied!(linker, "wasi:keyvalue/atomics@0.2.0-draft2",
        "[static]cas.new" => keyvalue_draft2::atomics::HostCas, new(bucket, key);
        "swap" => keyvalue_draft2::atomics::Host, swap(cas, value);
    );
    tied!(linker, "lattice:keystore/store@0.1.0",
        "set" => keystore::store::Host, set(key, value, ttl);
        "get" => keystore::store::Host, get(key);
        "delete" => keystore::store::Host, delete(key);
    );
    log!(linker, "wasi:logging/logging", plain);
    log!(linker, "wasi:logging/logging@0.1.0-draft", draft);
    Ok(())
}
