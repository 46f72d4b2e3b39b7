//! From bytes to a prepared actor: the cache, what is refused, and what a refusal says.

use super::*;
use crate::engine::Error;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicU32, Ordering};

async fn load(engine: &Engine, bytes: &[u8], reads: &Arc<AtomicU32>) -> Result<Arc<crate::engine::Module>, Error> {
    let (digest, bytes, reads) = (Digest::of(bytes), bytes.to_vec(), reads.clone());
    let read = move || {
        reads.fetch_add(1, Ordering::SeqCst);
        Ok(bytes)
    };
    engine.load(&digest, read).await
}

fn cached(dir: &tempfile::TempDir, extension: &str) -> PathBuf {
    let mut files = fs::read_dir(dir.path().join("cache")).unwrap().map(|e| e.unwrap().path());
    files.find(|p| p.extension().is_some_and(|e| e == extension)).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compiled_once_then_mapped_and_healed_when_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let reads = Arc::new(AtomicU32::new(0));
    let count = || reads.load(Ordering::SeqCst);
    let engine = Engine::new(config(&dir)).unwrap();
    let bytes = hello();
    let (a, b) = tokio::join!(load(&engine, &bytes, &reads), load(&engine, &bytes, &reads));
    assert!(Arc::ptr_eq(&a.unwrap(), &b.unwrap()));
    assert_eq!(count(), 1);
    // Let go and loaded again, and in another engine: from disk.
    load(&engine, &bytes, &reads).await.unwrap();
    drop(engine);
    let engine = Engine::new(config(&dir)).unwrap();
    load(&engine, &bytes, &reads).await.unwrap();
    assert_eq!(count(), 1);
    for name in ["key", ""] {
        let mode = fs::metadata(dir.path().join("cache").join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{name:?}");
    }

    // One flipped byte, a lost end, a lost checksum, another host's key: compiled again each time.
    let code = cached(&dir, "cwasm");
    let whole = fs::read(&code).unwrap();
    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    for (n, damaged) in [(2, &flipped[..]), (3, &whole[..whole.len() / 3]), (4, b"")] {
        fs::remove_file(&code).unwrap();
        fs::write(&code, damaged).unwrap();
        load(&engine, &bytes, &reads).await.unwrap();
        assert_eq!(count(), n);
    }
    fs::remove_file(cached(&dir, "mac")).unwrap();
    load(&engine, &bytes, &reads).await.unwrap();
    assert_eq!(count(), 5);
    // What this very host compiled is no component when it comes as one.
    let native = fs::read(cached(&dir, "cwasm")).unwrap();
    let refused = load(&engine, &native, &Arc::default()).await.map(drop).unwrap_err();
    assert!(matches!(refused, Error::NotComponent { .. }), "{refused}");
    assert!(refused.to_string().contains("compiled code, which a host takes from its own cache alone"), "{refused}");
    // Sound code of another component, with its own checksum, is not this one's.
    let (ours, mac) = (fs::read(cached(&dir, "cwasm")).unwrap(), fs::read(cached(&dir, "mac")).unwrap());
    let other = committed("manifests/counter/counter.wasm");
    load(&engine, &other, &Arc::default()).await.unwrap();
    let of_other = |ending: &str| {
        let name = format!("{}-", Digest::of(&other).hex());
        let all = fs::read_dir(dir.path().join("cache")).unwrap().map(|entry| entry.unwrap().path());
        let is_it = |path: &PathBuf| {
            path.extension().is_some_and(|e| e == ending)
                && path.file_name().unwrap().to_str().unwrap().starts_with(&name)
        };
        all.into_iter().find(is_it).unwrap()
    };
    let (code, sum) = (of_other("cwasm"), of_other("mac"));
    fs::remove_file(&code).unwrap();
    fs::write(&code, ours).unwrap();
    fs::write(&sum, mac).unwrap();
    let reads_of_other = Arc::new(AtomicU32::new(0));
    let module = load(&engine, &other, &reads_of_other).await.unwrap();
    assert_eq!(reads_of_other.load(Ordering::SeqCst), 1);
    assert_eq!(module.exports(), ["wasi:http/incoming-handler"]);
    engine.forget(&Digest::of(&other));
    fs::write(dir.path().join("cache/key"), [7; 32]).unwrap();
    let engine = Engine::new(config(&dir)).unwrap();
    let module = load(&engine, &bytes, &reads).await.unwrap();
    assert_eq!(count(), 6);
    assert_eq!(module.exports(), ["wasi:http/incoming-handler"]);
}

#[test]
fn a_cache_that_others_can_write_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("cache")).unwrap();
    fs::set_permissions(dir.path().join("cache"), fs::Permissions::from_mode(0o777)).unwrap();
    let error = Engine::new(config(&dir)).err().unwrap().to_string();
    assert!(error.contains("chmod go-w"), "{error}");
}

#[tokio::test]
async fn what_is_no_component_is_refused_by_name() {
    let world = World::new();
    let core = wat::parse_str("(module)").unwrap();
    let truncated = hello()[..2000].to_vec();
    for (bytes, expect) in [
        (b"hello".to_vec(), "no WebAssembly at all"),
        (Vec::new(), "no WebAssembly at all"),
        (core, "wasm-tools component new"),
        (truncated, "is not a component"),
    ] {
        let error = load(&world.engine, &bytes, &Arc::default()).await.err().unwrap();
        assert!(matches!(error, Error::NotComponent { .. }), "{error}");
        assert!(error.to_string().contains(expect), "{error}");
    }
    let error = world.engine.load(&Digest::of(b"x"), || Ok(hello())).await.err().unwrap();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    let error = world.engine.load(&Digest::of(b"x"), || Err(std::io::Error::other("gone"))).await.err().unwrap();
    assert!(matches!(error, Error::Read { .. }), "{error}");
}

#[tokio::test]
async fn every_import_that_nobody_serves_is_named_at_once() {
    let world = World::new();
    let bytes = from_wit(
        "package acme:test;
         interface plain { f: func(a: list<string>) -> result<u32, string>; }
         interface held { resource thing; make: func() -> thing; }
         world w { import plain; import held; import lone: func(); export plain; }",
    );
    let module = world.engine.load(&Digest::of(&bytes), || Ok(bytes)).await.unwrap();
    let error = world.engine.prepare(&module, world.spec()).err().unwrap().to_string();
    assert!(error.starts_with("actor shop/cart imports what nothing here can serve: "), "{error}");
    assert!(error.contains("acme:test/held: its resource thing can not cross a link"), "{error}");
    assert!(error.contains("lone: it is not part of an interface"), "{error}");
    assert!(!error.contains("acme:test/plain"), "{error}");

    let bytes = wat::parse_str(
        r#"(component
            (import "wasi:keyvalue/store@0.1.0" (instance (export "f" (func))))
            (import "wasi:cli/environment@0.4.0" (instance (export "f" (func))))
            (import "wasi:messaging/x@0.1.0" (instance (export "f" (func)))))"#,
    )
    .unwrap();
    let module = world.engine.load(&Digest::of(&bytes), || Ok(bytes)).await.unwrap();
    let error = world.engine.prepare(&module, world.spec()).err().unwrap().to_string();
    assert!(error.contains("wasi:keyvalue/store@0.1.0: this host serves wasi:keyvalue/store@0.2.0-draft"), "{error}");
    assert!(error.contains("wasi:cli/environment@0.4.0: this host serves wasi:cli/environment@0.2 and "), "{error}");
    assert!(!error.contains("messaging"), "{error}");
}

/// The list of what is served says what the linker has.
#[tokio::test]
async fn all_of_wasi_is_linked() {
    let world = World::new();
    for interface in Engine::interfaces() {
        let is_short = interface.ends_with("@0.2") || interface.ends_with("@0.3");
        let name = if is_short { format!("{interface}.0") } else { interface };
        let text = format!(r#"(component (import "{name}" (instance)))"#);
        let bytes = wat::parse_str(text).unwrap();
        let module = world.engine.load(&Digest::of(&bytes), || Ok(bytes)).await.unwrap();
        world.engine.prepare(&module, world.spec()).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

#[test]
fn the_version_told_is_the_one_in_the_lock_file() {
    let lock = String::from_utf8(committed("Cargo.lock")).unwrap();
    let version = lock.split("name = \"wasmtime\"\nversion = \"").nth(1).unwrap().split('"').next().unwrap();
    assert_eq!(Engine::version(), format!("wasmtime {version}"));
}

/// Hello with a section of its own, so that its digest is new.
fn distinct(number: u8) -> Vec<u8> {
    let mut bytes = hello();
    // A custom section: id 0, its size, its name's size, the name, anything.
    bytes.extend([0, 3, 1, b'n', number]);
    bytes
}

#[tokio::test]
async fn what_nobody_calls_is_unmapped_and_answers_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::new(Config { memory_bytes: 16 << 20, ..config(&dir) }).unwrap();
    let world = World { engine, dir, lines: Arc::default() };
    let slow = world.actor(hostile(), world.spec()).await;
    let under_way = tokio::spawn(async move { text(slow.http(get("/sleep?ms=3000"), None).await).await });
    let mut actors = Vec::new();
    for number in 0..20 {
        actors.push(world.actor(distinct(number), world.spec()).await);
    }
    let bound = world.engine.inner.mapped.len();
    assert!(bound <= 16, "{bound} are mapped");
    // Each comes back from the cache of compiled code: nobody has its bytes any more.
    for actor in actors.iter().chain(&actors) {
        assert_eq!(text(actor.http(get("/"), None).await).await, "Hello from lattice!\n");
        assert!(world.engine.inner.mapped.len() <= 16);
    }
    under_way.await.unwrap();
}

/// A compiler that does what the script says; `said` is what it answers with.
fn compiler(dir: &tempfile::TempDir, script: &str, said: &[u8]) -> crate::engine::Compiler {
    let (program, answer) = (dir.path().join("compiler"), dir.path().join("said"));
    fs::write(&answer, said).unwrap();
    let here = dir.path().display();
    let text = format!("#!/bin/sh\n/bin/cat > /dev/null\necho ran >> {here}/runs\n{script}\n/bin/cat {here}/said\n");
    fs::write(&program, text).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    crate::engine::Compiler::at(program)
}

fn runs(dir: &tempfile::TempDir) -> usize {
    fs::read_to_string(dir.path().join("runs")).unwrap_or_default().lines().count()
}

#[tokio::test]
async fn where_no_child_can_be_started_nothing_is_compiled() {
    let dir = tempfile::tempdir().unwrap();
    let none = crate::engine::Compiler::at(dir.path().join("none"));
    let engine = Engine::new(Config { compiler: Some(none), ..config(&dir) }).unwrap();
    for _ in 0..2 {
        let error = load(&engine, &hello(), &Arc::default()).await.err().unwrap();
        assert!(matches!(error, Error::NoCompiler { .. }), "{error}");
        assert!(error.to_string().contains("no process can be started for it"), "{error}");
    }
}

#[tokio::test]
async fn code_that_can_not_be_kept_runs_from_memory() {
    let world = World::new();
    let mut said = vec![b'C'];
    said.extend(world.engine.inner.engines.usual.engine.precompile_component(&hello()).unwrap());
    let dir = tempfile::tempdir().unwrap();
    let compiler = compiler(&dir, "", &said);
    let engine = Engine::new(Config { compiler: Some(compiler), ..config(&dir) }).unwrap();
    // As on a disk that is full, nothing can be written.
    fs::remove_dir_all(dir.path().join("cache")).unwrap();
    let world = World { engine, dir, lines: Arc::default() };
    let actor = world.actor(hello(), world.spec()).await;
    assert_eq!(text(actor.http(get("/"), None).await).await, "Hello from lattice!\n");
    assert_eq!(runs(&world.dir), 1);
}

#[tokio::test]
async fn what_was_refused_is_not_compiled_again_and_what_was_killed_is() {
    let dir = tempfile::tempdir().unwrap();
    let refuses = compiler(&dir, "", b"Rit is broken");
    let engine = Engine::new(Config { compiler: Some(refuses), ..config(&dir) }).unwrap();
    for _ in 0..3 {
        let error = load(&engine, &hello(), &Arc::default()).await.err().unwrap();
        assert!(matches!(&error, Error::NotComponent { reason, .. } if reason == "it is broken"), "{error}");
    }
    assert_eq!(runs(&dir), 1);
    compiler(&dir, "kill -9 $$", b"");
    for _ in 0..2 {
        let error = load(&engine, &hostile(), &Arc::default()).await.err().unwrap();
        assert!(error.to_string().contains("its compiler was killed"), "{error}");
    }
    assert_eq!(runs(&dir), 3);
}

#[tokio::test]
async fn what_is_cached_waits_for_no_compilation() {
    let dir = tempfile::tempdir().unwrap();
    load(&Engine::new(config(&dir)).unwrap(), &hello(), &Arc::default()).await.unwrap();
    let slow = format!("while [ ! -e {}/go ]; do /bin/sleep 0.05; done", dir.path().display());
    let slow = compiler(&dir, &slow, b"Rafter all");
    let engine = Engine::new(Config { compiler: Some(slow), ..config(&dir) }).unwrap();
    let compiled = engine.clone();
    let compiled = tokio::spawn(async move { load(&compiled, &hostile(), &Arc::default()).await.err() });
    while runs(&dir) == 0 {
        tokio::task::yield_now().await;
    }
    load(&engine, &hello(), &Arc::default()).await.unwrap();
    assert!(!compiled.is_finished());
    fs::write(dir.path().join("go"), "").unwrap();
    assert!(matches!(compiled.await.unwrap(), Some(Error::NotComponent { .. })));
}

#[tokio::test]
async fn a_memory_of_64_bits_is_refused_by_its_name() {
    let world = World::new();
    let bytes = wat::parse_str("(component (core module (memory i64 1)))").unwrap();
    let error = load(&world.engine, &bytes, &Arc::default()).await.err().unwrap().to_string();
    assert!(error.contains("memory64"), "{error}");
}
