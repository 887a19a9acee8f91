//! The leases that grants stand under: dead ones, crowded ones, those of a sidecar that was there before, and those
//! that etcd's leader hands on.

use anyhow::{Context, Result, ensure};
use concordat_protocol::Key;
use concordat_store::keys;
use concordat_tests::{
    etcd::Etcd,
    history::lock::{RELEASE, RENEWAL},
    process::eventually,
};
use etcd_client::GetOptions;
use futures::{StreamExt, TryStreamExt, future::join_all, stream};
use reqwest::StatusCode;
use serde_json::json;

use crate::world::{LOCKS, NAMESPACE, Options, World, settings};

/// How many locks one lease carries.
const CROWD: u64 = 10_000;
/// So many of them are asked for at a time.
const AT_ONCE: usize = 128;

/// Ends the lease of whoever holds a key, or is first in its line; whoever relies on it relies on it no more.
async fn revoke(world: &World, path: &str) -> Result<()> {
    world.give_up(path);
    let stands = |key: &Key| match key {
        Key::Holder { lock, key } | Key::Waiter { lock, key, .. } => format!("{lock}/{key}") == path,
        _ => false,
    };
    let entries = world.state().await?.into_values().filter(|entry| stands(&entry.key));
    let first = entries.min_by_key(|entry| entry.create_revision).context("nobody is there")?;
    let mut client = world.etcd.client().await?;
    let found = client.get(keys::encode(NAMESPACE, &first.key), None).await?;
    client.lease_revoke(found.kvs()[0].lease()).await?;
    Ok(())
}

/// Pitfall 4 (curator#1121): a sidecar is back under the name of its pod before the old one's session has ended.
#[tokio::test]
async fn a_sidecar_that_is_back_inherits_nothing() -> Result<()> {
    let world = World::of_both_modes(Etcd::start().await?).await?;
    let mut before = world.sidecar("a").await?;
    let mut held = Vec::new();
    // Each under a lease of its own.
    for (lock, ttl) in LOCKS.into_iter().zip(["5m", "6m"]) {
        let path = format!("{lock}/k");
        let grant = world.acquire(&before, &path, json!({ "ttl": ttl })).await?;
        assert_eq!(grant.status, StatusCode::OK, "{grant:?}");
        held.push((path, grant));
    }
    before.process.kill()?;
    let back = world.sidecar("a").await?;
    for (path, grant) in &held {
        for what in [RENEWAL, RELEASE] {
            let refused = back.with_token(what, path, &grant.token()).await?;
            assert_eq!(refused.code(), "lock-token-mismatch", "a {what} of {path}: {refused:?}");
        }
        assert_eq!(world.acquire(&back, path, json!({})).await?.code(), "lock-held");
        let next = back.wait(path, json!({"ttl": "1m"}));
        back.waiters_of(path, 1).await?;
        revoke(&world, path).await?;
        let next = next.await??;
        assert_eq!(next.status, StatusCode::OK, "{next:?}");
        assert!(next.fence() > grant.fence());
        world.judge_path(path).await?;
    }
    Ok(())
}

/// Pitfall 15: a lease lasts its time to live at least; every new leader of etcd begins to count it anew.
#[tokio::test]
async fn a_leader_that_changes_while_a_lease_runs_out_loses_no_waiter() -> Result<()> {
    let world = World::of_both_modes(Etcd::three().await?).await?;
    let mut dead = world.sidecar_with("dead", Options { victim: true, ..Options::default() }).await?;
    let other = world.sidecar("other").await?;
    let mut waiting = Vec::new();
    for lock in LOCKS {
        let path = format!("{lock}/k");
        let held = json!({"ttl": "4s", "renew": true, "maxHold": "10m"});
        assert_eq!(world.acquire(&dead, &path, held).await?.status, StatusCode::OK);
        waiting.push((other.wait(&path, json!({"ttl": "1m"})), path.clone()));
        other.waiters_of(&path, 1).await?;
    }
    dead.process.kill()?;
    let leader = world.etcd.leader().await?;
    world.etcd.move_leader((leader + 1) % 3).await?;
    for (next, path) in waiting {
        let next = next.await??;
        assert_eq!(next.status, StatusCode::OK, "{next:?}");
        assert_eq!(other.with_token(RENEWAL, &path, &next.token()).await?.status, StatusCode::OK);
        world.judge_path(&path).await?;
    }
    Ok(())
}

/// Pitfall 16 (kubernetes#96836): one lease carries very many keys, and they all go at once.
#[tokio::test]
async fn a_lease_that_ends_with_thousands_of_locks_takes_none_of_a_neighbours() -> Result<()> {
    let world = World::of_both_modes(Etcd::start().await?).await?;
    world.define("crowd", settings()).await?;
    let mut crowded = world.sidecar_with("crowded", Options { victim: true, ..Options::default() }).await?;
    let neighbour = world.sidecar("neighbour").await?;
    // Renewed by its sidecar alone: a keepalive that is held up for long would lose it.
    let mut mine = Vec::new();
    for lock in LOCKS {
        let path = format!("{lock}/mine");
        let held = json!({"ttl": "4s", "renew": true, "maxHold": "10m"});
        let grant = world.acquire(&neighbour, &path, held).await?;
        assert_eq!(grant.status, StatusCode::OK, "{grant:?}");
        mine.push((path, grant));
    }
    stream::iter(0..CROWD)
        .map(|number| {
            let (world, crowded) = (&world, &crowded);
            async move {
                let held = json!({"ttl": "4s", "renew": true, "maxHold": "10m"});
                let grant = world.acquire(crowded, &format!("crowd/{number}"), held).await?;
                ensure!(grant.status == StatusCode::OK, "{grant:?}");
                Ok(())
            }
        })
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;
    let mut client = world.etcd.client().await?;
    let mut left = async || {
        let options = GetOptions::new().with_prefix().with_count_only();
        let found = client.get(format!("/concordat/{NAMESPACE}/lock/crowd/"), Some(options)).await?;
        anyhow::Ok(found.count() as u64)
    };
    assert_eq!(left().await?, CROWD);
    crowded.process.kill()?;
    let mut rounds = 0;
    while left().await? > 0 {
        for lock in LOCKS {
            let path = format!("{lock}/busy");
            let grant = world.acquire(&neighbour, &path, json!({})).await?;
            assert_eq!(grant.status, StatusCode::OK, "{grant:?}");
            assert_eq!(world.let_go(&neighbour, &path, &grant).await?.status, StatusCode::NO_CONTENT);
        }
        rounds += 1;
    }
    ensure!(rounds > 0, "nobody was busy while they went");
    for (path, grant) in &mine {
        assert_eq!(neighbour.with_token(RENEWAL, path, &grant.token()).await?.status, StatusCode::OK);
    }
    for number in [0, CROWD - 1] {
        let path = format!("crowd/{number}");
        assert_eq!(world.acquire(&neighbour, &path, json!({})).await?.status, StatusCode::OK);
        world.judge_path(&path).await?;
    }
    for path in ["orders/mine", "fair/mine", "orders/busy", "fair/busy"] {
        world.judge_path(path).await?;
    }
    Ok(())
}

/// Pitfall 21: of calls that go to etcd together some name a lease that is dead.
#[tokio::test]
async fn a_dead_lease_fails_no_call_but_its_own() -> Result<()> {
    let world = World::of_both_modes(Etcd::start().await?).await?;
    let sidecar = world.sidecar("a").await?;
    for lock in LOCKS {
        let path = format!("{lock}/k");
        let lost = world.acquire(&sidecar, &path, json!({"ttl": "12s"})).await?;
        assert_eq!(lost.status, StatusCode::OK, "{lost:?}");
        revoke(&world, &path).await?;
        let calls = (0..40).map(|number| {
            let (ttl, of) = if number % 2 == 0 { ("12s", "dead") } else { ("40s", "alive") };
            let (world, sidecar, path) = (&world, &sidecar, format!("{lock}/{of}-{number}"));
            async move { anyhow::Ok((world.acquire(sidecar, &path, json!({"ttl": ttl})).await?, path)) }
        });
        for answer in join_all(calls).await {
            let (answer, path) = answer?;
            ensure!(answer.status == StatusCode::OK || path.contains("dead"), "{path}: {answer:?}");
            world.judge_path(&path).await?;
        }
        eventually("another lease is there", async || {
            let grant = world.acquire(&sidecar, &format!("{lock}/again"), json!({"ttl": "12s"})).await?;
            ensure!(grant.status == StatusCode::OK, "{grant:?}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}
