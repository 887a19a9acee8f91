//! Locks.

use anyhow::{Result, ensure};
use concordat_crds::Lock;
use concordat_operator::lock;
use concordat_protocol::{Key, Kind, Settings};
use reqwest::{RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::world::{Sidecar, World, ask, refused};

pub(crate) async fn rows() -> Result<String> {
    let lock = Lock::new("swap", serde_json::from_value(json!({"mode": "CompareAndSwap", "ttl": "1m"}))?);
    let swap = ("swap", Kind::Lock, Settings::Lock(lock::compile(&lock)?));
    let spec = json!({"mode": "Lease", "ttl": "1m", "lockDelay": "1s"});
    let lock = Lock::new("lease", serde_json::from_value(spec)?);
    let lease = ("lease", Kind::Lock, Settings::Lock(lock::compile(&lock)?));
    let lock = Lock::new("fair", serde_json::from_value(json!({"mode": "FairQueue", "ttl": "1m"}))?);
    let fair = ("fair", Kind::Lock, Settings::Lock(lock::compile(&lock)?));
    let world = World::start([swap, lease, fair], &["here", "there"], "locks/swap/warm").await?;
    let [here, there] = &*world.sidecars else { unreachable!("two were started") };
    let release = |key: &str, grant: &Value| -> RequestBuilder {
        let token = grant["token"].as_str().unwrap_or_default().to_owned();
        world.client.delete(here.url(&format!("locks/swap/{key}"))).header("lock-token", token)
    };
    let acquire = |key: &str| world.client.post(here.url(&format!("locks/swap/{key}")));
    let get = |path: &str| ask(world.client.get(here.url(&format!("locks/swap/{path}"))));
    let elsewhere = || world.client.post(there.url("locks/swap/a?wait=2m"));

    // What is done the first time only, as making leases and connections, is done before.
    let grant = ask(acquire("warm")).await?;
    ask(release("warm", &grant)).await?;
    let grant = ask(world.client.post(there.url("locks/swap/warm"))).await?;
    let token = grant["token"].as_str().unwrap_or_default();
    ask(world.client.delete(there.url("locks/swap/warm")).header("lock-token", token)).await?;
    world.gone(&Key::Holder { lock: "swap".into(), key: "warm".into() }).await?;

    let grant = world.count("lock: acquire, free, and hold for longer than 2 s", ask(acquire("a"))).await?;
    let token = grant["token"].as_str().unwrap_or_default();
    let renew = world.client.put(here.url("locks/swap/a")).header("lock-token", token);
    world.count("lock: renew", ask(renew)).await?;
    world.count("lock: inspect", get("a")).await?;
    world.count("lock: verify", get(&format!("a/verify?fence={}", grant["fence"]))).await?;
    world.count("lock: acquire, held", refused(acquire("a"), StatusCode::CONFLICT)).await?;

    let waits = async |waiter: RequestBuilder| {
        let waiter = tokio::spawn(waiter.send());
        world.counted("waiters", 1).await?;
        anyhow::Ok(waiter)
    };
    let waiter = world.count("lock: wait for what is held elsewhere", waits(elsewhere())).await?;
    let gives_up = async {
        waiter.abort();
        world.counted("waiters", 0).await
    };
    world.count("lock: give up waiting", gives_up).await?;
    let waiter = waits(elsewhere()).await?;
    let hand_over = async {
        ask(release("a", &grant)).await?;
        let granted = waiter.await??;
        ensure!(granted.status().is_success(), "{granted:?}");
        Ok(granted.json::<Value>().await?)
    };
    let grant = world.count("lock: release, and acquire by who waits elsewhere", hand_over).await?;
    let token = grant["token"].as_str().unwrap_or_default();
    let last = world.client.delete(there.url("locks/swap/a")).header("lock-token", token);
    world.count("lock: release what was held for longer", ask(last)).await?;
    staying(&world).await?;
    leases(&world).await?;
    lines(&world).await?;
    Ok(world.rows())
}

/// What is let go soon, and stays.
async fn staying(world: &World) -> Result<()> {
    let [here, there] = &*world.sidecars else { unreachable!("two were started") };
    let used = async |of: &Sidecar| {
        let grant = ask(world.client.post(of.url("locks/swap/b"))).await?;
        let token = grant["token"].as_str().unwrap_or_default();
        ask(world.client.delete(of.url("locks/swap/b")).header("lock-token", token)).await
    };
    let key = Key::Holder { lock: "swap".into(), key: "b".into() };
    let once = async {
        used(here).await?;
        world.gone(&key).await
    };
    world.count("lock: acquire, free, and release; it stays for 10 s", once).await?;
    used(here).await?;
    world.count("lock: acquire and release what stays here", used(here)).await?;
    world.count("lock: acquire and release what stays elsewhere", used(there)).await?;
    world.gone(&key).await
}

/// What mode Lease costs more, and after a loss.
async fn leases(world: &World) -> Result<()> {
    let [here, there] = &*world.sidecars else { unreachable!("two were started") };
    let release = |of: &Sidecar, grant: &Value| -> RequestBuilder {
        let token = grant["token"].as_str().unwrap_or_default().to_owned();
        world.client.delete(of.url("locks/lease/a")).header("lock-token", token)
    };
    let acquire = || world.client.post(here.url("locks/lease/a"));
    let grant = ask(acquire().json(&json!({"ttl": "2s"}))).await?;
    ask(release(here, &grant)).await?;
    let grant = world.count("lock with lockDelay: acquire, free", ask(acquire())).await?;
    world.count("lock with lockDelay: release", ask(release(here, &grant))).await?;
    let lost = async {
        ask(acquire().json(&json!({"ttl": "2s"}))).await?;
        ask(world.client.post(there.url("locks/lease/a?wait=1m"))).await
    };
    let what = "lock with lockDelay: acquire, lose, and acquire by who waits elsewhere";
    let grant = world.count(what, lost).await?;
    ask(release(there, &grant)).await?;
    Ok(())
}

/// What a place in the line of mode FairQueue costs.
async fn lines(world: &World) -> Result<()> {
    let [here, there] = &*world.sidecars else { unreachable!("two were started") };
    let acquire = |of: &Sidecar| world.client.post(of.url("locks/fair/a?wait=1m"));
    let release = |of: &Sidecar, grant: &Value| -> RequestBuilder {
        let token = grant["token"].as_str().unwrap_or_default().to_owned();
        world.client.delete(of.url("locks/fair/a")).header("lock-token", token)
    };
    let waits = async |of: &Sidecar| {
        let waiter = tokio::spawn(acquire(of).send());
        world.counted("waiters", 1).await?;
        anyhow::Ok(waiter)
    };
    let granted = async |waiter: tokio::task::JoinHandle<reqwest::Result<reqwest::Response>>| {
        anyhow::Ok(waiter.await??.error_for_status()?.json::<Value>().await?)
    };
    let grant = world.count("fair lock: acquire, free", ask(acquire(here))).await?;
    let waiter = world.count("fair lock: wait behind its own", waits(here)).await?;
    let hand_on = async {
        ask(release(here, &grant)).await?;
        granted(waiter).await
    };
    let grant = world.count("fair lock: release, and acquire by who waits here", hand_on).await?;
    world.counted("waiters", 0).await?;
    let waiter = world.count("fair lock: wait for what is held elsewhere", waits(there)).await?;
    let hand_over = async {
        ask(release(here, &grant)).await?;
        granted(waiter).await
    };
    let grant = world.count("fair lock: release, and acquire by who waits elsewhere", hand_over).await?;
    world.count("fair lock: release", ask(release(there, &grant))).await?;
    Ok(())
}
