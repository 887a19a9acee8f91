//! Locks that stay with their sidecar when they are let go: what that saves, and that nobody else ever notices.

use std::collections::HashSet;

use anyhow::{Result, ensure};
use concordat_protocol::{Key, Record};
use concordat_tests::{etcd::Etcd, history::Change, process::eventually, proxy::Proxy};
use futures::{StreamExt as _, TryStreamExt as _};
use reqwest::StatusCode;
use serde_json::json;

use crate::world::{Answer, Options, Sidecar, World};

/// How often what stays is taken again.
const OFTEN: usize = 100;
/// So many locks stay with a sidecar at most (decision 19).
const MOST: usize = 1_024;

fn verified(fence: u64) -> String {
    format!("/v1/locks/orders/k/verify?fence={fence}")
}

/// What was written for a key, but for what the sidecar tells of itself.
async fn written(world: &World, of: &str) -> Result<Vec<Change>> {
    let concerns = |change: &Change| match &change.key {
        Key::Holder { key, .. } | Key::Want { key, .. } => key.as_str() == of,
        _ => false,
    };
    Ok(world.changes().await?.into_iter().filter(concerns).collect())
}

async fn granted(world: &World, sidecar: &Sidecar, path: &str) -> Result<Answer> {
    let grant = world.acquire(sidecar, path, json!({})).await?;
    ensure!(grant.status == StatusCode::OK, "{grant:?}");
    Ok(grant)
}

/// Takes a key and lets go of it.
async fn used(world: &World, sidecar: &Sidecar, key: &str) -> Result<Answer> {
    let grant = granted(world, sidecar, &format!("orders/{key}")).await?;
    let released = world.release(sidecar, key, &grant).await?;
    ensure!(released.status == StatusCode::NO_CONTENT, "{released:?}");
    Ok(grant)
}

/// Whether a key stays with a sidecar.
async fn stays(world: &World, key: &str) -> Result<bool> {
    Ok(world.holder(key).await?.is_some_and(|holder| holder.stays))
}

#[tokio::test]
async fn what_stays_is_taken_again_without_a_commit() -> Result<()> {
    let world = World::one().await?;
    let a = world.sidecar("a").await?;
    let mut attempt = 0;
    // On a machine so busy that the watch is silent for two seconds it does not stay.
    let key = eventually("a key stays as long as it is used", async || {
        attempt += 1;
        let key = format!("k{attempt}");
        let mut last = 0;
        for _ in 0..OFTEN {
            let fence = used(&world, &a, &key).await?.fence();
            assert!(fence > last);
            last = fence;
        }
        let written = written(&world, &key).await?;
        ensure!(written.len() == 1, "{written:?}");
        Ok(key)
    })
    .await?;
    assert_eq!(world.judge(&key).await?.grants.len(), OFTEN);
    world.is_free(&key).await?;
    Ok(())
}

#[tokio::test]
async fn another_sidecar_gets_at_once_what_only_stays_and_nobody_is_told_that_it_is_held() -> Result<()> {
    let world = World::one().await?;
    let (a, b) = (world.sidecar("a").await?, world.sidecar("b").await?);
    let mut of_a = 0;
    for wait in ["", "?wait=5s"] {
        let last = eventually("it stays with a", async || {
            let grant = used(&world, &a, "k").await?;
            ensure!(stays(&world, "k").await?, "it was let go");
            Ok(grant)
        })
        .await?;
        assert!(last.fence() > of_a);
        let taken = world.acquire(&b, &format!("orders/k{wait}"), json!({"owner": "b"})).await?;
        assert_eq!(taken.status, StatusCode::OK, "{taken:?}");
        assert!(taken.fence() > last.fence());
        for sidecar in [&a, &b] {
            let refused = world.acquire(sidecar, "orders/k", json!({})).await?;
            assert_eq!((refused.status, refused.code()), (StatusCode::CONFLICT, "lock-held"), "{refused:?}");
            assert_eq!(refused.body["owner"], "b");
        }
        of_a = taken.fence();
        assert_eq!(world.release(&b, "k", &taken).await?.status, StatusCode::NO_CONTENT);
    }
    world.judge("k").await?;
    Ok(())
}

#[tokio::test]
async fn who_asks_about_what_stays_learns_that_nobody_holds_it() -> Result<()> {
    let world = World::one().await?;
    let (a, b) = (world.sidecar("a").await?, world.sidecar("b").await?);
    for sidecar in [&a, &b] {
        let last = used(&world, &a, "k").await?;
        let inspected = sidecar.get("/v1/locks/orders/k").await?;
        assert_eq!(inspected.body["holders"], json!([]), "{inspected:?}");
        assert_eq!(sidecar.get(&verified(last.fence())).await?.status, StatusCode::GONE);
    }
    // Of a grant that etcd was not told of.
    used(&world, &a, "k").await?;
    let second = world.acquire(&a, "orders/k", json!({"owner": "second"})).await?;
    for sidecar in [&a, &b] {
        let inspected = sidecar.get("/v1/locks/orders/k").await?;
        assert_eq!(inspected.body["holders"][0]["owner"], "second", "{inspected:?}");
        assert_eq!(inspected.body["fence"], json!(second.fence()));
        assert_eq!(sidecar.get(&verified(second.fence())).await?.status, StatusCode::OK);
        assert_eq!(sidecar.get(&verified(second.fence() - 1)).await?.status, StatusCode::GONE);
    }
    Ok(())
}

#[tokio::test]
async fn what_is_held_is_said_to_be_by_whom_and_comes_free_when_it_is_let_go() -> Result<()> {
    let world = World::one().await?;
    let (a, b) = (world.sidecar("a").await?, world.sidecar("b").await?);
    used(&world, &a, "k").await?;
    let held = world.acquire(&a, "orders/k", json!({"owner": "second"})).await?;
    let refused = world.acquire(&b, "orders/k", json!({})).await?;
    assert_eq!((refused.status, refused.code()), (StatusCode::CONFLICT, "lock-held"), "{refused:?}");
    assert_eq!(refused.body["owner"], "second");
    let next = b.wait("orders/k", json!({}));
    b.waiters("k", 1).await?;
    assert_eq!(world.release(&a, "k", &held).await?.status, StatusCode::NO_CONTENT);
    let next = next.await??;
    assert!(next.status == StatusCode::OK && next.fence() > held.fence(), "{next:?}");
    assert_eq!(world.release(&b, "k", &next).await?.status, StatusCode::NO_CONTENT);
    let left = world.state().await?.into_keys().find(|key| matches!(key, Key::Want { .. }));
    assert_eq!(left, None, "what was asked is answered");
    world.judge("k").await?;
    Ok(())
}

#[tokio::test]
async fn what_stayed_with_a_sidecar_that_is_killed_comes_free_with_its_lease() -> Result<()> {
    let world = World::one().await?;
    let options = Options { victim: true, ..Options::default() };
    let (mut dead, other) = (world.sidecar_with("dead", options).await?, world.sidecar("other").await?);
    let last = world.acquire(&dead, "orders/k", json!({"ttl": "4s"})).await?;
    assert_eq!(world.release(&dead, "k", &last).await?.status, StatusCode::NO_CONTENT);
    dead.process.kill()?;
    let next = other.wait("orders/k", json!({})).await??;
    assert!(next.status == StatusCode::OK && next.fence() > last.fence(), "{next:?}");
    assert_eq!(world.release(&other, "k", &next).await?.status, StatusCode::NO_CONTENT);
    let left = world.state().await?.into_keys().find(|key| matches!(key, Key::Want { .. }));
    assert_eq!(left, None, "nobody is there to answer, so who asked takes it back");
    world.judge("k").await?;
    Ok(())
}

/// A sidecar that cannot hear of others lets go while it still can.
#[tokio::test]
async fn away_from_etcd_nothing_that_stayed_is_granted_twice() -> Result<()> {
    let world = World::one().await?;
    let proxy = Proxy::start(world.etcd.address(0)).await?;
    let options = Options { etcd: Some(proxy.endpoint()), victim: true, ..Options::default() };
    let (cut_off, other) = (world.sidecar_with("cut-off", options).await?, world.sidecar("other").await?);
    let last = world.acquire(&cut_off, "orders/k", json!({"ttl": "4s"})).await?;
    world.release(&cut_off, "k", &last).await?;
    proxy.swallow();
    let next = other.wait("orders/k", json!({"ttl": "1m"})).await??;
    assert_eq!(next.status, StatusCode::OK, "{next:?}");
    let refused = world.acquire(&cut_off, "orders/k", json!({})).await?;
    assert_ne!(refused.status, StatusCode::OK, "{refused:?}");
    proxy.heal();
    eventually("it learns who has it", async || {
        let refused = world.acquire(&cut_off, "orders/k", json!({})).await?;
        ensure!(refused.code() == "lock-held", "{refused:?}");
        Ok(())
    })
    .await?;
    assert_eq!(world.release(&other, "k", &next).await?.status, StatusCode::NO_CONTENT);
    world.judge("k").await?;
    Ok(())
}

#[tokio::test]
async fn what_stays_goes_with_its_lock_by_force_and_when_the_sidecar_ends() -> Result<()> {
    let world = World::one().await?;
    let mut a = world.sidecar("a").await?;
    let last = used(&world, &a, "k").await?;
    world.take_by_force("k").await?;
    eventually("it is known to be gone", async || {
        let next = used(&world, &a, "k").await?;
        ensure!(next.fence() >> 10 > last.fence() >> 10, "{next:?} is of what was taken");
        Ok(())
    })
    .await?;
    world.undefine("orders").await?;
    world.is_free("k").await?;
    assert_eq!(world.acquire(&a, "orders/k", json!({})).await?.code(), "no-such-lock");

    world.define("orders", crate::world::settings()).await?;
    eventually("the lock is there again", async || used(&world, &a, "k").await).await?;
    assert!(a.process.terminate().await?.success());
    assert_eq!(world.holder("k").await?, None, "nothing is left to run out");
    Ok(())
}

/// The record of etcd tells how many keys the sidecar had at any time. Beside what stays these are the keys that are in
/// use, and those that are let go by one of the four batches under way.
#[tokio::test]
async fn no_more_than_so_many_stay_and_the_oldest_goes_first() -> Result<()> {
    const TOGETHER: usize = 32;
    let world = World::one().await?;
    let a = &world.sidecar("a").await?;
    let (keys, world) = (futures::stream::iter(0..MOST + 16 * TOGETHER), &world);
    keys.map(|number| async move { used(world, a, &number.to_string()).await })
        .buffered(TOGETHER)
        .try_collect::<Vec<_>>()
        .await?;
    let (mut had, mut most) = (HashSet::new(), 0);
    for change in world.changes().await?.into_iter().filter(|change| matches!(change.key, Key::Holder { .. }))
    {
        match change.entry {
            Some(_) => had.insert(change.key),
            None => had.remove(&change.key),
        };
        most = most.max(had.len());
    }
    assert!(most <= MOST + 6 * TOGETHER, "{most} at a time");
    eventually("the oldest goes", async || {
        ensure!(world.holder("0").await?.is_none());
        Ok(())
    })
    .await
}

/// Callers of two sidecars that all want one key: local hand-over, and the bound of it, are judged.
#[tokio::test]
async fn callers_of_two_sidecars_take_turns() -> Result<()> {
    let world = World::of_both_modes(Etcd::start().await?).await?;
    let sidecars = [world.sidecar("a").await?, world.sidecar("b").await?];
    let callers = sidecars.iter().flat_map(|sidecar| (0..20).map(move |_| sidecar)).map(|sidecar| {
        let world = &world;
        async move {
            for _ in 0..3 {
                let grant = sidecar.wait("orders/k", json!({})).await??;
                ensure!(grant.status == StatusCode::OK, "{grant:?}");
                assert!(world.write(grant.fence()));
                world.release(sidecar, "k", &grant).await?;
            }
            Ok(())
        }
    });
    futures::future::try_join_all(callers).await?;
    let history = world.judge("k").await?;
    assert_eq!(history.grants.len(), 120);
    let taken = history.changes.iter().filter(|change| change.holder.is_none()).count();
    ensure!(taken < 120, "it went from caller to caller without a commit, most of the time");
    Ok(())
}

/// What lasts is shown to people, under the name of who holds it now.
#[tokio::test]
async fn etcd_is_told_of_a_grant_that_lasts() -> Result<()> {
    let world = World::one().await?;
    let a = world.sidecar("a").await?;
    used(&world, &a, "k").await?;
    let lasting = world.acquire(&a, "orders/k", json!({"owner": "lasting"})).await?;
    eventually("it is told", async || {
        let holder = world.holder("k").await?;
        ensure!(holder.as_ref().is_some_and(|holder| !holder.stays), "{holder:?}");
        Ok(())
    })
    .await?;
    let entry = world.state().await?.into_values().find(|entry| matches!(entry.record, Record::Holder(_)));
    let Some((Record::Holder(holder), created)) = entry.map(|entry| (entry.record, entry.create_revision))
    else {
        panic!("it is held")
    };
    assert_eq!(holder.owner, "lasting");
    assert_eq!((created as u64) << 10 | u64::from(holder.regrants), lasting.fence());
    assert_eq!(world.release(&a, "k", &lasting).await?.status, StatusCode::NO_CONTENT);
    assert_eq!(world.holder("k").await?, None, "who saw that it is held counts on its end");
    world.judge("k").await?;
    Ok(())
}
