//! Calls of exported functions, by text and over links.

use super::*;
use crate::call::LinkContext;
use crate::value::{Reader, Writer};
use proto::app::Limits;

const CALC: &str = r#"(component
    (core module $m
        (memory (export "memory") 2)
        (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
        (func $boom (export "boom") unreachable)
        (func (export "spin") (loop $l (br $l)))
        (func $deep (export "deep") (param i32) (result i32)
            (i32.add (call $deep (i32.add (local.get 0) (i32.const 1))) (i32.const 1)))
        (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
        (func (export "echo") (param i32 i32) (result i32)
            (i32.store (i32.const 16) (local.get 0))
            (i32.store (i32.const 20) (local.get 1))
            (i32.const 16)))
    (core instance $i (instantiate $m))
    (func $add (param "a" u32) (param "b" u32) (result u32) (canon lift (core func $i "add")))
    (func $boom (canon lift (core func $i "boom")))
    (func $spin (canon lift (core func $i "spin")))
    (func $deep (param "n" u32) (result u32) (canon lift (core func $i "deep")))
    (func $echo (param "text" string) (result string)
        (canon lift (core func $i "echo") (memory (core memory $i "memory")) (realloc (core func $i "realloc"))))
    (instance $calc
        (export "add" (func $add)) (export "boom" (func $boom))
        (export "spin" (func $spin)) (export "deep" (func $deep)) (export "echo" (func $echo)))
    (export "acme:test/calc@1.0.0" (instance $calc)))"#;

/// Calls `add(n, n)` of whatever it is linked to.
const DOUBLE: &str = r#"(component
    (import "acme:test/calc@1.0.0" (instance $calc
        (export "add" (func (param "a" u32) (param "b" u32) (result u32)))))
    (core func $add (canon lower (func $calc "add")))
    (core module $m
        (import "calc" "add" (func $add (param i32 i32) (result i32)))
        (func (export "double") (param i32) (result i32) (call $add (local.get 0) (local.get 0))))
    (core instance $i (instantiate $m (with "calc" (instance (export "add" (func $add))))))
    (func $double (param "n" u32) (result u32) (canon lift (core func $i "double")))
    (instance $e (export "double" (func $double)))
    (export "acme:test/double" (instance $e)))"#;

#[tokio::test]
async fn calls_by_wave_text() {
    let world = World::new();
    let limits = Limits { deadline_ms: 200, ..Limits::default() };
    let actor = world.actor(wat::parse_str(CALC).unwrap(), Spec { limits, ..world.spec() }).await;
    assert_eq!(actor.exports(), ["acme:test/calc"]);
    let call = async |function: &str, args: &str| actor.call_wave("acme:test/calc", function, args).await;
    assert_eq!(call("add", "1, 2").await.unwrap(), "3");
    assert_eq!(call("add", " (40, 2) ").await.unwrap(), "42");
    assert_eq!(call("echo", r#""(hi)""#).await.unwrap(), r#""(hi)""#);
    assert_eq!(actor.call_wave("acme:test/calc@1.0.0", "echo", r#"("hi")"#).await.unwrap(), r#""hi""#);
    for bad in ["", "1", "1, -2", "1, \"x\"", "((((", "1, 2) f(", &"[".repeat(100_000)] {
        assert!(matches!(call("add", bad).await, Err(CallError::Invalid(_))), "{bad:.20}");
    }
    let error = call("boom", "").await.unwrap_err();
    assert!(error.to_string().contains("in function boom"), "{error}");
    let error = call("deep", "0").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "actor shop/cart used up its 512 KiB of call stack in function deep; raise limits.stack"
    );
    assert!(matches!(call("spin", "").await, Err(CallError::Deadline(_))));
    let error = call("sub", "1, 2").await.unwrap_err();
    assert!(error.to_string().contains("it has add, boom, deep, echo, spin"), "{error}");
    let error = actor.call_wave("acme:test/other", "f", "").await.unwrap_err();
    assert!(error.to_string().contains("it has acme:test/calc"), "{error}");
    assert_eq!(actor.http(get("/"), None).await.unwrap_err().code(), "invalid");
}

#[tokio::test]
async fn served_calls_carry_encoded_values() {
    let world = World::new();
    let actor = world.actor(wat::parse_str(CALC).unwrap(), world.spec()).await;
    let link = LinkContext::default();
    let mut w = Writer::new();
    w.put_str("text");
    let answer = actor.serve(&link, "acme:test/calc", "echo", w.finish()).await.unwrap();
    assert_eq!(Reader::new(answer).string().unwrap(), "text");
    for garbage in [&b""[..], b"\xff\xff\xff\xff", b"\x01\0\0\0\xff", b"\0\0\0\0\0"] {
        let answer = actor.serve(&link, "acme:test/calc", "echo", Bytes::from_static(garbage)).await;
        assert!(matches!(answer, Err(CallError::Invalid(_))), "{garbage:?}");
    }
}

#[tokio::test]
async fn an_import_is_served_by_the_actor_it_is_linked_to() {
    let world = World::new();
    let calc =
        world.actor(wat::parse_str(CALC).unwrap(), Spec { actor: "calc".parse().unwrap(), ..world.spec() }).await;
    let serve: Arc<dyn Serve> = calc.clone();
    let links = Links(BTreeMap::from([("acme:test/calc".to_owned(), serve)]));
    let double = world.actor(wat::parse_str(DOUBLE).unwrap(), Spec { imports: Arc::new(links), ..world.spec() }).await;
    assert_eq!(double.call_wave("acme:test/double", "double", "21").await.unwrap(), "42");
    assert_eq!(calc.stats().requests, 1);

    // A callee that refuses is told as what it is; it has no other way into the guest.
    calc.drain(std::time::Duration::from_secs(1)).await;
    let error = double.call_wave("acme:test/double", "double", "21").await.unwrap_err();
    let CallError::Unavailable(message) = error else { panic!("{error:?}") };
    assert_eq!(
        message,
        "actor shop/cart: calling acme:test/calc.add: actor shop/calc is being stopped on this host: try again"
    );
    let alone = world.actor(wat::parse_str(DOUBLE).unwrap(), world.spec()).await;
    let error = alone.call_wave("acme:test/double", "double", "21").await.unwrap_err();
    assert!(matches!(error, CallError::Denied(_)), "{error:?}");
}

/// The committed key store, an actor that exports the interface: typed both ways, values of any length that fits.
#[tokio::test]
async fn an_exported_keystore_is_called_typed() {
    let world = World::new();
    let wit = "package lattice:keystore@0.1.0;
        interface store {
            variant error { denied(string), too-large(string), unavailable(string) }
            set: func(key: string, value: list<u8>, ttl: option<u32>) -> result<_, error>;
            get: func(key: string) -> result<option<list<u8>>, error>;
            delete: func(key: string) -> result<_, error>;
        }
        world w { export store; }";
    let actor = world.actor(from_wit(wit), world.spec()).await;
    assert_eq!(actor.exports(), ["lattice:keystore/store"]);
    let mut w = Writer::new();
    w.put_str("k");
    let error = actor.serve(&LinkContext::default(), "lattice:keystore/store", "get", w.finish()).await.unwrap_err();
    assert!(matches!(error, CallError::Trapped(_)), "{error:?}");
    let garbage = actor.serve(&LinkContext::default(), "lattice:keystore/store", "set", Bytes::new()).await;
    assert!(matches!(garbage, Err(CallError::Invalid(_))));
}
