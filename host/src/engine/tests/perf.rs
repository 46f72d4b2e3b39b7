
use super::*;
fn cpu() -> u64 { std::fs::read_to_string("/proc/thread-self/schedstat").unwrap().split(' ').next().unwrap().parse().unwrap() }
#[tokio::test]
async fn perf() {
    let world = World::new();
    let actor = world.actor(hello(), world.spec()).await;
    for round in 0..4 {
        let n = 20_000u32;
        let t = std::time::Instant::now();
        let c = cpu();
        for _ in 0..n {
            let r = actor.http(get("/"), None).await.unwrap();
            let b = r.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(b.len(), 20);
        }
        let c = cpu() - c;
        println!("PERF http round {round}: {:.2} us cpu {:.2} us wall", c as f64 / f64::from(n) / 1e3, t.elapsed().as_secs_f64() * 1e6 / f64::from(n));
    }
    let calc = world.actor(wat::parse_str(super::calls::CALC).unwrap(), world.spec()).await;
    for round in 0..3 {
        let n = 20_000u32;
        let c = cpu();
        let mut w = crate::value::Writer::new();
        w.put_u32(1).put_u32(2);
        let params = w.finish();
        for _ in 0..n {
            calc.serve(&Default::default(), "acme:test/calc", "add", params.clone()).await.unwrap();
        }
        let c = cpu() - c;
        println!("PERF serve round {round}: {:.2} us cpu", c as f64 / f64::from(n) / 1e3);
    }
    // what the test itself costs
    let c = cpu();
    for _ in 0..20_000 { std::hint::black_box(get("/")); }
    println!("PERF request building {:.2} us", (cpu() - c) as f64 / 20_000.0 / 1e3);
    println!("PERF pagemap {}", wasmtime::PoolingAllocationConfig::is_pagemap_scan_available());
}
