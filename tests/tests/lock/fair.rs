//! Locks of mode FairQueue: their order, those who share them, and what becomes of a line whose members are lost.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use concordat_protocol::{
    Key,
    lock::{Settings, Sharing},
};
use concordat_store::keys;
use concordat_tests::{
    etcd::{self, Etcd},
    history::lock::RENEWAL,
    process::eventually,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::world::{NAMESPACE, Options, Sidecar, World, fair};

fn pool(permits: u32) -> Settings {
    Settings { sharing: Sharing::Semaphore, permits, ..fair() }
}

/// A sidecar that will come to harm.
async fn victim(world: &World, pod: &str) -> Result<Sidecar> {
    world.sidecar_with(pod, Options { victim: true, ..Options::default() }).await
}

/// A grant that lasts for as long as its sidecar lives, and is soon over then.
fn for_life() -> Value {
    json!({"ttl": "4s", "renew": true, "maxHold": "10m"})
}

/// The keys of a kind that stand under a lock's key.
async fn standing(world: &World, of: impl Fn(&Key) -> bool) -> Result<Vec<Key>> {
    Ok(world.state().await?.into_keys().filter(of).collect())
}

fn is_waiter(key: &Key) -> bool {
    matches!(key, Key::Waiter { .. })
}

fn is_shadow(key: &Key) -> bool {
    matches!(key, Key::Shadow { .. })
}

#[tokio::test]
async fn callers_of_two_sidecars_are_served_in_the_order_in_which_they_came() -> Result<()> {
    let world = World::one().await?;
    world.define("fair", fair()).await?;
    let (a, b) = (world.sidecar("a").await?, world.sidecar("b").await?);
    let mut holder = world.acquire(&a, "fair/k", json!({"ttl": "2m"})).await?;
    let mut of = &a;
    let mut waiting = Vec::new();
    for place in 0..12 {
        // Both alone and side by side with others of the same sidecar.
        let sidecar = if place % 4 < 2 { &b } else { &a };
        waiting.push((sidecar, sidecar.wait("fair/k", json!({"ttl": "2m"}))));
        a.waiters_of("fair/k", place + 1).await?;
    }
    // Pitfall 8: compacting under the watch must lose nobody.
    world.etcd.compact().await?;
    for (sidecar, next) in waiting {
        assert!(!next.is_finished(), "nobody is served out of turn");
        assert_eq!(world.let_go(of, "fair/k", &holder).await?.status, StatusCode::NO_CONTENT);
        holder = next.await??;
        assert_eq!(holder.status, StatusCode::OK, "{holder:?}");
        assert!(world.write(holder.fence()));
        of = sidecar;
    }
    assert_eq!(world.let_go(of, "fair/k", &holder).await?.status, StatusCode::NO_CONTENT);
    assert_eq!(standing(&world, is_waiter).await?, []);
    assert_eq!(world.judge_line("fair", "k").await?.grants.len(), 13);
    Ok(())
}

#[tokio::test]
async fn twenty_callers_of_two_sidecars_hold_it_one_at_a_time() -> Result<()> {
    let world = Arc::new(World::one().await?);
    world.define("fair", fair()).await?;
    let sidecars = Arc::new([world.sidecar("a").await?, world.sidecar("b").await?]);
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..20 {
        let (world, sidecars) = (world.clone(), sidecars.clone());
        callers.spawn(async move {
            for _ in 0..10 {
                let sidecar = &sidecars[caller % 2];
                let grant = world.acquire(sidecar, "fair/hot?wait=1m", json!({})).await?;
                assert_eq!(grant.status, StatusCode::OK, "{grant:?}");
                assert!(world.write(grant.fence()), "the holder's own write is taken");
                assert_eq!(world.let_go(sidecar, "fair/hot", &grant).await?.status, StatusCode::NO_CONTENT);
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = callers.join_next().await {
        done??;
    }
    let history = world.judge_line("fair", "hot").await?;
    assert_eq!((history.grants.len(), history.accepted.len()), (200, 200));
    assert_eq!(standing(&world, is_waiter).await?, []);
    Ok(())
}

/// Pitfall 9: however many wait, a release wakes one and writes once.
#[tokio::test]
async fn a_release_wakes_one_of_a_thousand() -> Result<()> {
    let world = World::one().await?;
    world.define("fair", Settings { max_waiters: 2_000, ..fair() }).await?;
    let sidecar = world.sidecar("a").await?;
    let mut holder = world.acquire(&sidecar, "fair/k", json!({"ttl": "5m"})).await?;
    let client = reqwest::Client::builder().build()?;
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..1_000 {
        let request = sidecar.request_of(&client, Method::POST, "/v1/locks/fair/k?wait=110s");
        let request = request.json(&json!({"ttl": "5m"}));
        waiting.spawn(async move { Sidecar::read(request.send().await?).await });
    }
    sidecar.waiters_of("fair/k", 1_000).await?;
    let before = (wakeups(&sidecar).await?, world.etcd.revision().await?);
    for _ in 0..20 {
        assert_eq!(world.let_go(&sidecar, "fair/k", &holder).await?.status, StatusCode::NO_CONTENT);
        holder = waiting.join_next().await.context("somebody waits")???;
        assert_eq!(holder.status, StatusCode::OK, "{holder:?}");
    }
    assert_eq!(wakeups(&sidecar).await? - before.0, 20, "one a release");
    let of_line = |change: &&concordat_tests::history::Change| {
        change.revision > before.1 && matches!(change.key, Key::Waiter { .. })
    };
    assert_eq!(world.changes().await?.iter().filter(of_line).count(), 20, "and one change");
    // Pitfall 20: those who hang up leave nothing behind.
    waiting.abort_all();
    sidecar.waiters_of("fair/k", 0).await?;
    assert_eq!(world.let_go(&sidecar, "fair/k", &holder).await?.status, StatusCode::NO_CONTENT);
    eventually("no key is left", async || {
        let left = standing(&world, is_waiter).await?.len();
        ensure!(left == 0, "{left} are");
        Ok(())
    })
    .await
}

/// How many calls for a lock a sidecar has woken.
async fn wakeups(sidecar: &Sidecar) -> Result<u64> {
    let metrics = reqwest::get(format!("{}/metrics", sidecar.admin)).await?.text().await?;
    let line = metrics.lines().find_map(|line| line.strip_prefix("concordat_sidecar_lock_wakeups_total "));
    Ok(line.with_context(|| format!("no such counter in\n{metrics}"))?.parse()?)
}

/// Pitfall 17: readers that never end keep no writer waiting, and none becomes one.
#[tokio::test]
async fn endless_readers_let_a_writer_in() -> Result<()> {
    let world = Arc::new(World::one().await?);
    world.define("rw", Settings { sharing: Sharing::ReadWrite, ..fair() }).await?;
    let sidecars = Arc::new([world.sidecar("a").await?, world.sidecar("b").await?]);
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut readers = tokio::task::JoinSet::new();
    for reader in 0..6 {
        let (world, sidecars, done) = (world.clone(), sidecars.clone(), done.clone());
        readers.spawn(async move {
            let mut reads = 0;
            while !done.load(std::sync::atomic::Ordering::SeqCst) {
                let sidecar = &sidecars[reader % 2];
                let read = world.acquire(sidecar, "rw/k?wait=1m", json!({"mode": "shared"})).await?;
                assert_eq!(read.status, StatusCode::OK, "{read:?}");
                assert_eq!(world.let_go(sidecar, "rw/k", &read).await?.status, StatusCode::NO_CONTENT);
                reads += 1;
            }
            anyhow::Ok(reads)
        });
    }
    for sidecar in sidecars.iter() {
        let write = world.acquire(sidecar, "rw/k?wait=1m", json!({"mode": "exclusive"})).await?;
        assert_eq!(write.status, StatusCode::OK, "{write:?}");
        assert!(world.write(write.fence()));
        assert_eq!(world.let_go(sidecar, "rw/k", &write).await?.status, StatusCode::NO_CONTENT);
    }
    done.store(true, std::sync::atomic::Ordering::SeqCst);
    while let Some(reads) = readers.join_next().await {
        assert!(reads?? > 0);
    }
    world.judge_line("rw", "k").await?;

    let [a, b] = &*sidecars;
    let (one, two) = (
        world.acquire(a, "rw/k", json!({"mode": "shared"})).await?,
        world.acquire(b, "rw/k", json!({"mode": "shared"})).await?,
    );
    assert_eq!((one.status, two.status), (StatusCode::OK, StatusCode::OK), "readers share it");
    assert_eq!(a.get("/v1/locks/rw/k").await?.body["holders"].as_array().map(Vec::len), Some(2));
    let writer = world.acquire(b, "rw/k", json!({})).await?;
    assert_eq!((writer.status, writer.code()), (StatusCode::CONFLICT, "lock-held"));
    let upgrade = a.ask(Method::POST, "/v1/locks/rw/k?wait=1m", Some(&one.token()), Some(json!({}))).await?;
    assert_eq!((upgrade.status, upgrade.code()), (StatusCode::BAD_REQUEST, "invalid-request"));
    Ok(())
}

/// Pitfall 18: permits come back when their holder dies, and there are never more than there are.
#[tokio::test]
async fn permits_come_back_from_a_sidecar_that_is_killed() -> Result<()> {
    let world = World::one().await?;
    world.define("pool", pool(3)).await?;
    let (mut a, b) = (victim(&world, "a").await?, world.sidecar("b").await?);
    for (asked, status) in [(4, 400), (0, 400), (2, 200)] {
        let mut body = for_life();
        body["permits"] = json!(asked);
        let answer = world.acquire(&a, "pool/k", body).await?;
        assert_eq!(answer.status.as_u16(), status, "{asked}: {answer:?}");
    }
    let one = world.acquire(&b, "pool/k", json!({"ttl": "2m"})).await?;
    assert_eq!(one.status, StatusCode::OK, "one is left");
    let refused = world.acquire(&b, "pool/k", json!({})).await?;
    assert_eq!((refused.status, refused.code()), (StatusCode::CONFLICT, "lock-held"));
    let two = b.wait("pool/k", json!({"permits": 2, "ttl": "2m"}));
    b.waiters_of("pool/k", 1).await?;
    let last = b.wait("pool/k", json!({"ttl": "2m"}));
    b.waiters_of("pool/k", 2).await?;
    a.process.kill()?;
    let two = two.await??;
    assert_eq!(two.status, StatusCode::OK, "{two:?}");
    assert!(!last.is_finished(), "all three are out");
    assert_eq!(world.let_go(&b, "pool/k", &one).await?.status, StatusCode::NO_CONTENT);
    assert_eq!(last.await??.status, StatusCode::OK);
    for (path, body) in [("pool/k", json!({"mode": "shared"})), ("orders/k", json!({"permits": 2}))] {
        assert_eq!(world.acquire(&b, path, body).await?.code(), "invalid-request");
    }
    Ok(())
}

/// Pitfall 7: the head of the line is dead.
#[tokio::test]
async fn the_dead_are_skipped_and_the_order_of_the_others_is_kept() -> Result<()> {
    let world = World::one().await?;
    world.define("fair", fair()).await?;
    let (a, b) = (world.sidecar("a").await?, world.sidecar("b").await?);
    let mut dead = victim(&world, "dead").await?;
    let mut holder = world.acquire(&a, "fair/k", json!({"ttl": "2m"})).await?;
    let first = dead.wait("fair/k", json!({"ttl": "4s"}));
    a.waiters_of("fair/k", 1).await?;
    let mut waiting = Vec::new();
    for place in 0..20 {
        waiting.push(if place % 2 == 0 { &b } else { &a }.wait("fair/k", json!({"ttl": "2m"})));
        a.waiters_of("fair/k", place + 2).await?;
    }
    dead.process.kill()?;
    assert!(first.await?.is_err());
    assert_eq!(world.let_go(&a, "fair/k", &holder).await?.status, StatusCode::NO_CONTENT);
    for (place, next) in waiting.into_iter().enumerate() {
        holder = next.await??;
        assert_eq!(holder.status, StatusCode::OK, "{holder:?}");
        let of = if place % 2 == 0 { &b } else { &a };
        assert_eq!(world.let_go(of, "fair/k", &holder).await?.status, StatusCode::NO_CONTENT);
    }
    world.judge_line("fair", "k").await?;
    Ok(())
}

/// Pitfalls 1 and 2: a waiter's lease is revoked under it.
#[tokio::test]
async fn a_waiter_whose_lease_is_revoked_is_told_and_not_granted() -> Result<()> {
    let world = World::one().await?;
    world.define("fair", fair()).await?;
    let (a, b) = (world.sidecar("a").await?, world.sidecar("b").await?);
    let holder = world.acquire(&a, "fair/k", json!({"ttl": "2m"})).await?;
    let doomed = b.wait("fair/k", json!({"ttl": "50s"}));
    a.waiters_of("fair/k", 1).await?;
    let next = b.wait("fair/k", json!({"ttl": "2m"}));
    a.waiters_of("fair/k", 2).await?;

    let stood = world.judge_line("fair", "k").await?.stood;
    let (session, number) = stood[1].who.clone();
    let key = Key::Waiter { lock: "fair".into(), key: "k".into(), session, number };
    let mut client = world.etcd.client().await?;
    let found = client.get(keys::encode(NAMESPACE, &key), None).await?;
    client.lease_revoke(found.kvs()[0].lease()).await?;
    let told = doomed.await??;
    assert_eq!((told.status, told.code()), (StatusCode::GONE, "lock-lost"), "{told:?}");
    assert_eq!(a.with_token(RENEWAL, "fair/k", &holder.token()).await?.status, StatusCode::OK);
    assert!(!next.is_finished());
    assert_eq!(world.let_go(&a, "fair/k", &holder).await?.status, StatusCode::NO_CONTENT);
    assert_eq!(next.await??.status, StatusCode::OK);
    Ok(())
}

/// Pitfalls 2 and 12: a sidecar frozen past its session holds nothing, waits for nothing, and its writes are refused.
#[tokio::test]
async fn a_sidecar_frozen_past_its_session_is_told_and_fenced_off() -> Result<()> {
    let world = World::one().await?;
    world.define("fair", fair()).await?;
    let (a, b) = (victim(&world, "a").await?, world.sidecar("b").await?);
    let stale = world.acquire(&a, "fair/k", for_life()).await?;
    let other = world.acquire(&b, "fair/other", json!({"ttl": "2m"})).await?;
    let waiter = a.wait("fair/other", json!({"ttl": "4s"}));
    a.waiters_of("fair/other", 1).await?;
    a.process.pause()?;
    let next = world.acquire(&b, "fair/k?wait=1m", json!({})).await?;
    assert_eq!(next.status, StatusCode::OK, "{next:?}");
    assert!(world.write(next.fence()));
    a.process.resume()?;
    let told = waiter.await??;
    assert_eq!((told.status, told.code()), (StatusCode::GONE, "lock-lost"), "{told:?}");
    assert!(!world.write(stale.fence()), "the stale write is refused");
    let renewed = a.with_token(RENEWAL, "fair/k", &stale.token()).await?;
    assert_eq!((renewed.status, renewed.code()), (StatusCode::GONE, "lock-lost"));
    assert_eq!(world.let_go(&b, "fair/other", &other).await?.status, StatusCode::NO_CONTENT);
    world.judge_line("fair", "k").await?;
    Ok(())
}

/// Pitfall 13: others wait for the lock-delay after a loss, and never after a release.
#[tokio::test]
async fn a_lock_delay_follows_a_crash_and_no_release() -> Result<()> {
    let world = World::one().await?;
    world.define("short", Settings { lock_delay: 3_000, ..fair() }).await?;
    // Were this one kept, the wait would be over first.
    world.define("long", Settings { lock_delay: 60_000, ..fair() }).await?;
    let (mut a, b) = (victim(&world, "a").await?, world.sidecar("b").await?);
    let held = world.acquire(&a, "long/k", for_life()).await?;
    let next = b.request(Method::POST, "/v1/locks/long/k?wait=30s").send();
    let next = tokio::spawn(next);
    b.waiters_of("long/k", 1).await?;
    assert_eq!(world.let_go(&a, "long/k", &held).await?.status, StatusCode::NO_CONTENT);
    let next = Sidecar::read(next.await??).await?;
    assert_eq!(next.status, StatusCode::OK, "{next:?}");
    assert_eq!(world.let_go(&b, "long/k", &next).await?.status, StatusCode::NO_CONTENT);
    assert_eq!(standing(&world, is_shadow).await?, []);

    assert_eq!(world.acquire(&a, "short/k", for_life()).await?.status, StatusCode::OK);
    let next = b.wait("short/k", json!({"ttl": "2m"}));
    b.waiters_of("short/k", 1).await?;
    let killed = world.now();
    a.process.kill()?;
    let next = next.await??;
    assert_eq!(next.status, StatusCode::OK, "{next:?}");
    assert!(world.now() - killed >= 3_000, "not before it is over");
    eventually("the shadow of the lost one is cleared away", async || {
        let shadows = standing(&world, is_shadow).await?.len();
        ensure!(shadows == 1, "{shadows} stand");
        Ok(())
    })
    .await?;
    assert_eq!(world.let_go(&b, "short/k", &next).await?.status, StatusCode::NO_CONTENT);
    assert_eq!(standing(&world, is_shadow).await?, []);
    Ok(())
}

/// Pitfall 20 (atlasdb#2455): a wait as long as the client's time-out leaves no ghost in the line.
#[tokio::test]
async fn a_wait_that_ends_leaves_no_key() -> Result<()> {
    let world = World::one().await?;
    world.define("fair", Settings { max_waiters: 2, ..fair() }).await?;
    let (a, b) = (world.sidecar("a").await?, world.sidecar("b").await?);
    let grant = world.acquire(&a, "fair/k", json!({"ttl": "2m", "owner": "first"})).await?;
    for sidecar in [&a, &b] {
        // On a machine so busy that the answer comes too late all the same, it is asked again.
        let answer = eventually("an answer in the time that was given", async || {
            let request = sidecar.request(Method::POST, "/v1/locks/fair/k?wait=2s");
            Sidecar::read(request.timeout(std::time::Duration::from_secs(2)).send().await?).await
        })
        .await?;
        assert_eq!((answer.status, answer.code()), (StatusCode::CONFLICT, "lock-wait-timeout"));
        assert_eq!(answer.body["owner"], "first");
        sidecar.waiters_of("fair/k", 0).await?;
    }
    let waiting = [a.wait("fair/k", json!({})), b.wait("fair/k", json!({}))];
    a.waiters_of("fair/k", 2).await?;
    for sidecar in [&a, &b] {
        let full = world.acquire(sidecar, "fair/k?wait=1m", json!({})).await?;
        assert_eq!((full.status, full.code()), (StatusCode::TOO_MANY_REQUESTS, "lock-queue-full"));
    }
    waiting.iter().for_each(JoinHandle::abort);
    a.waiters_of("fair/k", 0).await?;
    assert_eq!(standing(&world, is_waiter).await?.len(), 1, "the holder's own");
    assert_eq!(world.let_go(&a, "fair/k", &grant).await?.status, StatusCode::NO_CONTENT);
    assert_eq!(standing(&world, is_waiter).await?, []);
    Ok(())
}

#[tokio::test]
async fn without_space_what_is_held_is_let_go_and_handed_over() -> Result<()> {
    let world = World::with(Etcd::with(etcd::Settings::default().quota(16 << 20)).await?).await?;
    world.define("fair", Settings { lock_delay: 60_000, ..fair() }).await?;
    let sidecar = world.sidecar("a").await?;
    let holder = world.acquire(&sidecar, "fair/k", json!({"ttl": "5m"})).await?;
    let next = sidecar.wait("fair/k", json!({"ttl": "5m"}));
    sidecar.waiters_of("fair/k", 1).await?;
    let mut client = world.etcd.client().await?;
    let mut filled = 0;
    while client.put(format!("fill/{filled}"), vec![b'x'; 1 << 20], None).await.is_ok() {
        filled += 1;
    }
    ensure!(world.etcd.no_space_alarms().await? > 0, "etcd is not full after {filled} MiB");
    assert_eq!(world.let_go(&sidecar, "fair/k", &holder).await?.status, StatusCode::NO_CONTENT);
    let next = next.await??;
    assert_eq!(next.status, StatusCode::OK, "{next:?}");
    assert_eq!(world.let_go(&sidecar, "fair/k", &next).await?.status, StatusCode::NO_CONTENT);
    assert_eq!(standing(&world, |key| is_waiter(key) || is_shadow(key)).await?, []);
    Ok(())
}
