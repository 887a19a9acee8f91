//! Those who wait: their turn, their end, and what they leave behind.

use std::sync::Arc;

use anyhow::{Context, Result};
use concordat_tests::{etcd::Etcd, process::eventually, proxy::Proxy};
use futures::{StreamExt, stream::FuturesUnordered};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::world::{LOCKS, Options, Sidecar, World, settings};

/// Pitfall 8 (redisson#3829): a release that nobody hears of.
#[tokio::test]
async fn whoever_waits_is_served_in_turn_from_any_sidecar() -> Result<()> {
    let world = World::one().await?;
    let (a, b) = (world.sidecar("a").await?, world.sidecar("b").await?);
    let mut holder = world.acquire(&a, "orders/k", json!({"ttl": "1m"})).await?;
    let mut waiting = Vec::new();
    for place in 1..=4 {
        waiting.push(b.wait("orders/k", json!({"ttl": "1m"})));
        b.waiters("k", place).await?;
    }
    // Compacting under the watch must lose nobody; the record of it is not to begin with a gap.
    world.changes().await?;
    world.etcd.compact().await?;
    let mut of = &a;
    for next in waiting {
        assert_eq!(world.release(of, "k", &holder).await?.status, StatusCode::NO_CONTENT);
        holder = next.await??;
        assert_eq!(holder.status, StatusCode::OK, "the first in line comes first: {holder:?}");
        of = &b;
    }
    assert_eq!(world.judge("k").await?.grants.len(), 5);
    Ok(())
}

/// Pitfall 8: the watch is cut, and what it would have told is compacted before it is back.
#[tokio::test]
async fn a_watch_that_missed_what_is_compacted_loses_no_waiter() -> Result<()> {
    let world = World::of_both_modes(Etcd::start().await?).await?;
    let proxy = Proxy::start(world.etcd.address(0)).await?;
    let options = Options { etcd: Some(proxy.endpoint()), ..Options::default() };
    let (a, b) = (world.sidecar("a").await?, world.sidecar_with("b", options).await?);
    for lock in LOCKS {
        let path = format!("{lock}/k");
        let held_and_awaited = async || {
            let held = world.acquire(&a, &path, json!({"ttl": "2m"})).await?;
            let next = b.wait(&path, json!({"ttl": "2m"}));
            b.waiters_of(&path, 1).await?;
            anyhow::Ok((held, next))
        };
        // Whoever was granted it has seen the lock, and the watch goes on for a while.
        let (held, next) = held_and_awaited().await?;
        world.let_go(&a, &path, &held).await?;
        world.let_go(&b, &path, &next.await??).await?;
        let (held, next) = held_and_awaited().await?;
        world.changes().await?;
        proxy.refuse();
        assert_eq!(world.let_go(&a, &path, &held).await?.status, StatusCode::NO_CONTENT);
        // More than the release must have happened: the revision that is compacted itself can still be told.
        let other = world.acquire(&a, &format!("{lock}/other"), json!({})).await?;
        assert_eq!(other.status, StatusCode::OK, "{other:?}");
        world.etcd.compact().await?;
        proxy.heal();
        let next = next.await??;
        assert_eq!(next.status, StatusCode::OK, "{next:?}");
        assert_eq!(world.let_go(&b, &path, &next).await?.status, StatusCode::NO_CONTENT);
        world.judge_path(&path).await?;
    }
    Ok(())
}

/// Pitfall 20 (atlasdb#2455): a wait as long as the client's time-out.
#[tokio::test]
async fn a_wait_ends_before_the_time_it_was_given_and_leaves_nothing_behind() -> Result<()> {
    let world = World::one().await?;
    let (a, b) = (world.sidecar("a").await?, world.sidecar("b").await?);
    let grant = world.acquire(&a, "orders/k", json!({"ttl": "1m", "owner": "first"})).await?;
    for sidecar in [&a, &b] {
        // On a machine so busy that the answer comes too late all the same, it is asked again.
        let answer = eventually("an answer in the time that was given", async || {
            let request = sidecar.request(Method::POST, "/v1/locks/orders/k?wait=2s");
            Sidecar::read(request.timeout(std::time::Duration::from_secs(2)).send().await?).await
        })
        .await?;
        assert_eq!((answer.status, answer.code()), (StatusCode::CONFLICT, "lock-wait-timeout"));
        assert_eq!(answer.body["owner"], "first");
        assert!(answer.retry_after.is_some());
        sidecar.waiters("k", 0).await?;
    }
    world.release(&a, "k", &grant).await?;
    assert!(b.shows_nobody("k").await?);
    world.judge("k").await?;
    Ok(())
}

/// Pitfall 7 (redisson#4595): those who hung up stand in nobody's way.
#[tokio::test]
async fn a_caller_that_hangs_up_leaves_nothing_behind() -> Result<()> {
    let world = World::one().await?;
    // They would wait for longer than anything is waited for here.
    world.define("orders", concordat_protocol::lock::Settings { max_wait: 600_000, ..settings() }).await?;
    let a = world.sidecar("a").await?;
    for b in [world.sidecar("b").await?, world.sidecar("c").await?.over_http2()?] {
        let grant = world.acquire(&a, "orders/k", json!({"ttl": "10m"})).await?;
        let gone = tokio::spawn(b.request(Method::POST, "/v1/locks/orders/k?wait=10m").send());
        b.waiters("k", 1).await?;
        let stays = b.wait("orders/k", json!({}));
        b.waiters("k", 2).await?;
        gone.abort();
        b.waiters("k", 1).await?;
        world.release(&a, "k", &grant).await?;
        let next = stays.await??;
        assert_eq!(next.status, StatusCode::OK);
        assert_eq!(world.release(&b, "k", &next).await?.status, StatusCode::NO_CONTENT);
        // An attempt for who hung up may have been under way: what it takes is let go, as the two grants are.
        assert!(a.shows_nobody("k").await? && b.shows_nobody("k").await?);
    }
    world.judge("k").await?;
    Ok(())
}

/// Of an app whose requests share a connection, as many wait as may for a key: what lets go comes past them.
#[tokio::test]
async fn whoever_waits_on_a_shared_connection_holds_up_nobody() -> Result<()> {
    let wait = settings().max_waiters.into();
    let world = World::one().await?;
    let sidecar = world.sidecar("a").await?.over_http2()?;
    let mut holder = world.acquire(&sidecar, "orders/k", json!({"ttl": "5m"})).await?;
    let mut waiting: FuturesUnordered<_> =
        (0..wait).map(|_| sidecar.wait("orders/k", json!({"ttl": "5m"}))).collect();
    sidecar.waiters("k", wait).await?;
    for _ in 0..3 {
        assert_eq!(world.release(&sidecar, "k", &holder).await?.status, StatusCode::NO_CONTENT);
        holder = waiting.next().await.context("nobody waits")???;
        assert_eq!(holder.status, StatusCode::OK, "{holder:?}");
    }
    assert_eq!(world.judge("k").await?.grants.len(), 4);
    Ok(())
}

#[tokio::test]
async fn no_more_wait_than_may() -> Result<()> {
    let world = World::one().await?;
    world.define("few", concordat_protocol::lock::Settings { max_waiters: 2, ..settings() }).await?;
    let sidecar = world.sidecar("a").await?;
    assert_eq!(world.acquire(&sidecar, "few/k", json!({"ttl": "1m"})).await?.status, StatusCode::OK);
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..2 {
        waiting.spawn(sidecar.request(Method::POST, "/v1/locks/few/k?wait=1m").send());
    }
    eventually("two wait", async || {
        anyhow::ensure!(sidecar.get("/v1/locks/few/k").await?.body["waiters"] == 2, "they do not yet");
        Ok(())
    })
    .await?;
    let third = world.acquire(&sidecar, "few/k?wait=1m", json!({})).await?;
    assert_eq!((third.status, third.code()), (StatusCode::TOO_MANY_REQUESTS, "lock-queue-full"));
    assert!(third.retry_after.is_some());
    Ok(())
}

#[tokio::test]
async fn twenty_callers_get_strictly_rising_fences() -> Result<()> {
    let world = Arc::new(World::one().await?);
    let sidecars = Arc::new([world.sidecar("a").await?, world.sidecar("b").await?]);
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..20 {
        let (world, sidecars) = (world.clone(), sidecars.clone());
        callers.spawn(async move {
            for _ in 0..5 {
                let sidecar = &sidecars[caller % 2];
                let grant = world.acquire(sidecar, "orders/hot?wait=1m", json!({})).await?;
                assert_eq!(grant.status, StatusCode::OK, "{grant:?}");
                assert!(world.write(grant.fence()), "the holder's own write is taken");
                assert_eq!(world.release(sidecar, "hot", &grant).await?.status, StatusCode::NO_CONTENT);
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = callers.join_next().await {
        done??;
    }
    let history = world.judge("hot").await?;
    assert_eq!((history.grants.len(), history.accepted.len()), (100, 100));
    Ok(())
}

#[tokio::test]
async fn a_definition_deleted_or_made_anew_ends_the_wait_and_not_the_grant() -> Result<()> {
    let world = World::one().await?;
    let sidecar = world.sidecar("a").await?;
    let grant = world.acquire(&sidecar, "orders/k", json!({"ttl": "1m"})).await?;
    let waiter = tokio::spawn(sidecar.request(Method::POST, "/v1/locks/orders/k?wait=1m").send());
    sidecar.waiters("k", 1).await?;
    world.undefine("orders").await?;
    let ended = Sidecar::read(waiter.await??).await?;
    assert!(matches!(ended.code(), "no-such-lock" | "lock-lost"), "{ended:?}");
    assert_eq!(sidecar.renew("k", &grant.token()).await?.status, StatusCode::OK, "what is held stays held");
    assert_eq!(world.release(&sidecar, "k", &grant).await?.status, StatusCode::NO_CONTENT);
    assert_eq!(world.acquire(&sidecar, "orders/k", json!({})).await?.code(), "no-such-lock");

    world.define("orders", settings()).await?;
    let anew = eventually("the sidecar knows it again", async || {
        let grant = world.acquire(&sidecar, "orders/k", json!({})).await?;
        anyhow::ensure!(grant.status == StatusCode::OK, "{grant:?}");
        Ok(grant)
    })
    .await?;
    assert!(anew.fence() > grant.fence(), "fences rise through deletion and re-creation");
    world.judge("k").await?;
    Ok(())
}
