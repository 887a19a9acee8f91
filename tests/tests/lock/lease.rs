//! Locks of mode Lease: nobody is granted one for a while after its holder was lost, and at once after a release.

use anyhow::{Result, ensure};
use concordat_protocol::{
    Key, Record,
    lock::{Mode, Settings, plans},
};
use concordat_tests::{history::Change, process::eventually};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::world::{Answer, Options, Sidecar, World, settings};

/// Where the lock-delay is so long that a call which waits for it would fail, `orders` is such a lock.
const LONG: u64 = 60_000;

async fn leases(delay: u64) -> Result<World> {
    let world = World::one().await?;
    world.define("orders", Settings { mode: Mode::Lease, lock_delay: delay, ..settings() }).await?;
    Ok(world)
}

/// A sidecar that will come to harm.
async fn victim(world: &World, pod: &str) -> Result<Sidecar> {
    world.sidecar_with(pod, Options { victim: true, ..Options::default() }).await
}

/// A grant that lasts for as long as its sidecar lives, and is soon over then.
fn for_life(owner: &str) -> Value {
    json!({"ttl": "4s", "renew": true, "maxHold": "10m", "owner": owner})
}

/// A call that waits: begun now, read later.
fn wait(sidecar: &Sidecar, time: &str) -> JoinHandle<Result<Answer>> {
    tokio::spawn(sidecar.call(&format!("orders/k?wait={time}"), json!({"ttl": "2m"}), false))
}

fn holder() -> Key {
    plans::holder(&"orders".into(), &"k".into())
}

fn shadow() -> Key {
    plans::shadow(&"orders".into(), &"k".into())
}

/// What happened to one of the key's records: the revisions, negative where it was deleted.
async fn changes(world: &World, of: &Key) -> Result<Vec<i64>> {
    let change = |Change { revision, entry, .. }: Change| if entry.is_some() { revision } else { -revision };
    Ok(world.changes().await?.into_iter().filter(|change| change.key == *of).map(change).collect())
}

async fn stands(world: &World, key: &Key) -> Result<bool> {
    Ok(world.state().await?.contains_key(key))
}

#[tokio::test]
async fn after_a_release_nobody_waits_for_the_lock_delay() -> Result<()> {
    let world = leases(LONG).await?;
    let (mut a, b) = (world.sidecar("a").await?, world.sidecar("b").await?);
    let held = world.acquire(&a, "orders/k", json!({})).await?;
    assert!(stands(&world, &shadow()).await?);
    // Were the delay kept, the wait would be over first.
    let next = wait(&b, "30s");
    b.waiters("k", 1).await?;
    assert_eq!(world.release(&a, "k", &held).await?.status, StatusCode::NO_CONTENT);
    let next = next.await??;
    assert_eq!(next.status, StatusCode::OK, "{next:?}");
    assert_eq!(world.release(&b, "k", &next).await?.status, StatusCode::NO_CONTENT);
    let again = world.acquire(&a, "orders/k", json!({})).await?;
    assert_eq!(again.status, StatusCode::OK, "{again:?}");
    assert_eq!(world.release(&a, "k", &again).await?.status, StatusCode::NO_CONTENT);
    assert_eq!(changes(&world, &holder()).await?, changes(&world, &shadow()).await?, "always together");
    // What a sidecar that stops lets go of leaves nothing to wait for either.
    let held = world.acquire(&a, "orders/k", json!({})).await?;
    assert_eq!(held.status, StatusCode::OK, "{held:?}");
    world.stop_believing(&held);
    assert!(a.process.terminate().await?.success());
    let next = world.acquire(&b, "orders/k", json!({})).await?;
    assert_eq!(next.status, StatusCode::OK, "{next:?}");
    world.judge("k").await?;
    Ok(())
}

#[tokio::test]
async fn after_a_crash_another_is_granted_when_the_lock_delay_is_over() -> Result<()> {
    let world = leases(3_000).await?;
    let (mut a, b) = (victim(&world, "a").await?, world.sidecar("b").await?);
    let lost = world.acquire(&a, "orders/k", for_life("a")).await?;
    assert_eq!(lost.status, StatusCode::OK, "{lost:?}");
    let next = wait(&b, "110s");
    b.waiters("k", 1).await?;
    let killed = world.now();
    a.process.kill()?;
    let next = next.await??;
    assert_eq!(next.status, StatusCode::OK, "{next:?}");
    assert!(world.now() - killed >= 3_000, "not before it is over");
    let [put, deleted, again] = *changes(&world, &holder()).await? else { panic!("two grants and a loss") };
    ensure!(put < -deleted && -deleted < again, "{put} {deleted} {again}");
    assert_eq!(changes(&world, &shadow()).await?, [put, again], "the next one's takes its place");
    assert_eq!(world.release(&b, "k", &next).await?.status, StatusCode::NO_CONTENT);
    assert!(!stands(&world, &shadow()).await?);
    world.judge("k").await?;
    Ok(())
}

#[tokio::test]
async fn who_does_not_wait_is_told_who_was_lost() -> Result<()> {
    let world = leases(LONG).await?;
    let (mut a, b) = (victim(&world, "a").await?, world.sidecar("b").await?);
    let lost = world.acquire(&a, "orders/k", for_life("a")).await?;
    a.process.kill()?;
    world.is_free("k").await?;
    for _ in 0..2 {
        let refused = world.acquire(&b, "orders/k", json!({})).await?;
        assert_eq!((refused.status, refused.code()), (StatusCode::CONFLICT, "lock-held"), "{refused:?}");
        assert_eq!((&refused.body["owner"], &refused.body["pod"]), (&json!("a"), &json!("a")));
        let left: u64 = refused.retry_after.unwrap_or_default().parse()?;
        assert!(left > 1 && left <= LONG / 1_000, "{left} s");
    }
    let inspected = b.get("/v1/locks/orders/k").await?;
    assert_eq!(inspected.body["holders"], json!([]), "it is no holder");
    let verified = b.get(&format!("/v1/locks/orders/k/verify?fence={}", lost.fence())).await?;
    assert_eq!(verified.status, StatusCode::GONE);
    // A sidecar that starts meanwhile knows of no more than the shadow, and waits as well.
    let c = world.sidecar("c").await?;
    let refused = world.acquire(&c, "orders/k?wait=1s", json!({})).await?;
    assert_eq!((refused.status, refused.code()), (StatusCode::CONFLICT, "lock-wait-timeout"), "{refused:?}");
    assert_eq!(refused.body["owner"], "a");
    let Some(Record::Shadow(left)) = world.state().await?.remove(&shadow()).map(|entry| entry.record) else {
        panic!("its shadow stays")
    };
    assert_eq!((left.holder.owner.as_str(), left.delay), ("a", LONG));
    assert_eq!(changes(&world, &holder()).await?.len(), 2, "nobody was granted it");
    Ok(())
}

/// It was not asked, and may still write.
#[tokio::test]
async fn a_grant_that_ends_against_its_holders_will_leaves_its_shadow() -> Result<()> {
    let world = leases(LONG).await?;
    let (a, b) = (world.sidecar("a").await?, world.sidecar("b").await?);
    let taken = world.acquire(&a, "orders/k", json!({"owner": "taken"})).await?;
    world.take_by_force("k").await?;
    eventually("it is told", async || {
        let renewed = a.renew("k", &taken.token()).await?;
        ensure!((renewed.status, renewed.code()) == (StatusCode::GONE, "lock-lost"), "{renewed:?}");
        Ok(())
    })
    .await?;
    world.acquire(&a, "orders/short", json!({"ttl": "2s", "owner": "short"})).await?;
    world.is_free("short").await?;
    world
        .acquire(&a, "orders/long", json!({"ttl": "1m", "renew": true, "maxHold": "2s", "owner": "long"}))
        .await?;
    world.is_free("long").await?;
    for (key, owner) in [("k", "taken"), ("short", "short"), ("long", "long")] {
        for sidecar in [&a, &b] {
            let refused = world.acquire(sidecar, &format!("orders/{key}"), json!({})).await?;
            assert_eq!((refused.status, refused.code()), (StatusCode::CONFLICT, "lock-held"), "{refused:?}");
            assert_eq!(refused.body["owner"], owner);
        }
    }
    Ok(())
}
