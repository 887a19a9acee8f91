//! What was recorded of real runs, and then told otherwise: L1 to L7 must find it.

use anyhow::{Context, Result, ensure};
use concordat_protocol::{
    Key,
    lock::{Fence, Settings, Sharing},
};
use concordat_store::keys;
use concordat_tests::{
    etcd::Etcd,
    history::lock::{RELEASE, RENEWAL},
    process::eventually,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::world::{Answer, LOCKS, NAMESPACE, Sidecar, World, fair};

/// Acquires unrecorded.
async fn acquire(sidecar: &Sidecar, path: &str) -> Result<Answer> {
    acquire_with(sidecar, path, json!({"ttl": "1m"})).await
}

async fn acquire_with(sidecar: &Sidecar, path: &str, body: Value) -> Result<Answer> {
    let grant = sidecar.ask(Method::POST, &format!("/v1/locks/{path}"), None, Some(body)).await?;
    ensure!(grant.status == StatusCode::OK, "{grant:?}");
    Ok(grant)
}

async fn is_found(world: &World, path: &str, invariant: &str) -> Result<()> {
    let found = world.judge_path(path).await.err().map(|found| found.to_string()).unwrap_or_default();
    ensure!(found.starts_with(invariant), "{invariant} is to find it at {path}, not: {found}");
    Ok(())
}

#[tokio::test]
async fn a_history_that_was_told_otherwise_is_found() -> Result<()> {
    let world = World::of_both_modes(Etcd::start().await?).await?;
    let sidecar = world.sidecar("a").await?;
    let callers = &sidecar.callers;
    for lock in LOCKS {
        let at = |key: &str| format!("{lock}/{key}");
        // One that relies on what it let go, alone and beside the next.
        let path = at("both");
        let first = world.acquire(&sidecar, &path, json!({"ttl": "1m"})).await?;
        sidecar.with_token(RELEASE, &path, &first.token()).await?;
        is_found(&world, &path, "L7").await?;
        world.acquire(&sidecar, &path, json!({"ttl": "1m"})).await?;
        is_found(&world, &path, if lock == "fair" { "L1" } else { "L4" }).await?;

        // A grant that etcd knows nothing of.
        let path = at("unknown");
        let grant = world.acquire(&sidecar, &path, json!({})).await?;
        world.judge_path(&path).await?;
        callers.granted(&path, ("a".into(), 0), "another", grant.fence() + (1 << 40), 0);
        is_found(&world, &path, "L2").await?;

        // The later of two in a line was answered first.
        let path = at("order");
        let mut grants = Vec::new();
        for _ in 0..2 {
            let grant = acquire(&sidecar, &path).await?;
            sidecar.ask(Method::DELETE, &format!("/v1/locks/{path}"), Some(&grant.token()), None).await?;
            grants.push(grant);
        }
        // In the other mode there is no line but by arrival, and their fences would tell.
        if lock != "fair" {
            grants.reverse();
        }
        for (place, grant) in grants.iter().enumerate().rev() {
            callers.granted(&path, ("a".into(), place as u64), &grant.token(), grant.fence(), 0);
            tick(&world).await;
        }
        is_found(&world, &path, "L6").await?;

        // A release by somebody else's token, and a renewal of what is gone.
        for (what, key) in [(RELEASE, "forged"), (RENEWAL, "late")] {
            let path = at(key);
            let grant = world.acquire(&sidecar, &path, json!({})).await?;
            world.let_go(&sidecar, &path, &grant).await?;
            world.judge_path(&path).await?;
            let token = if what == RELEASE { "anything else".to_owned() } else { grant.token() };
            callers.succeeded(what, &path, &token, callers.now() + 1);
            is_found(&world, &path, "L7").await?;
        }
    }
    // A grant by a sidecar whose session had ended before.
    let mut dead = Vec::new();
    for lock in LOCKS {
        let path = format!("{lock}/dead");
        dead.push((acquire(&sidecar, &path).await?, path));
    }
    let mut client = world.etcd.client().await?;
    for session in world.state().await?.into_keys().filter(|key| matches!(key, Key::Session(_))) {
        client.delete(keys::encode(NAMESPACE, &session), None).await?;
    }
    world.changes().await?;
    let now = callers.now();
    while callers.now() == now {
        tokio::task::yield_now().await;
    }
    for (grant, path) in dead {
        callers.granted(&path, ("a".into(), 0), &grant.token(), grant.fence(), 0);
        is_found(&world, &path, "L4").await?;
    }
    Ok(())
}

/// Those who share a lock, and what of it they ask for: the first leaves the second no room.
const SHARED: [(&str, &str, &str); 2] = [
    ("rw", r#"{"ttl": "1m", "mode": "shared"}"#, r#"{"ttl": "1m"}"#),
    ("many", r#"{"ttl": "1m", "permits": 3}"#, r#"{"ttl": "1m", "permits": 2}"#),
];

#[tokio::test]
async fn a_history_of_those_who_share_a_lock_that_was_told_otherwise_is_found() -> Result<()> {
    let world = World::one().await?;
    world.define("rw", Settings { sharing: Sharing::ReadWrite, ..fair() }).await?;
    world.define("many", Settings { sharing: Sharing::Semaphore, permits: 4, ..fair() }).await?;
    let sidecar = world.sidecar("a").await?;
    let callers = &sidecar.callers;
    for (lock, first, second) in SHARED {
        let (first, second): (Value, Value) = (serde_json::from_str(first)?, serde_json::from_str(second)?);
        // As many as there is room for.
        let path = format!("{lock}/together");
        for _ in 0..2 {
            let body = if lock == "rw" { first.clone() } else { second.clone() };
            assert_eq!(world.acquire(&sidecar, &path, body).await?.status, StatusCode::OK);
        }
        world.judge_path(&path).await?;

        // One too many: the first relies on what it let go.
        let path = format!("{lock}/both");
        let early = world.acquire(&sidecar, &path, first.clone()).await?;
        sidecar.with_token(RELEASE, &path, &early.token()).await?;
        world.acquire(&sidecar, &path, second.clone()).await?;
        is_found(&world, &path, "L1").await?;

        // One that came later and was answered first.
        let path = format!("{lock}/order");
        let mut grants = Vec::new();
        for body in [&first, &second] {
            let grant = acquire_with(&sidecar, &path, body.clone()).await?;
            sidecar.ask(Method::DELETE, &format!("/v1/locks/{path}"), Some(&grant.token()), None).await?;
            grants.push(grant);
        }
        for grant in grants.iter().rev() {
            callers.granted(&path, (grant.token(), 0), &grant.token(), grant.fence(), 0);
            tick(&world).await;
        }
        is_found(&world, &path, "L6").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_stale_write_that_a_resource_took_is_found() -> Result<()> {
    let world = World::of_both_modes(Etcd::start().await?).await?;
    let sidecar = world.sidecar("a").await?;
    let callers = &sidecar.callers;
    let mut earliest = Vec::new();
    for lock in LOCKS {
        let path = format!("{lock}/k");
        let mut fences = Vec::new();
        for _ in 0..2 {
            let grant = world.acquire(&sidecar, &path, json!({"ttl": "1m"})).await?;
            assert!(callers.write_to(&path, grant.fence()), "the holder's own write is taken");
            fences.push(grant.fence());
            world.let_go(&sidecar, &path, &grant).await?;
        }
        assert!(!callers.write_to(&path, fences[0]), "a stale one is refused");
        world.judge_path(&path).await?;
        callers.took(&path, fences[0]);
        is_found(&world, &path, "L3").await?;
        earliest.push((path, fences[0]));
    }
    // A fence that comes again after the record of the first was forgotten.
    callers.forget();
    for (path, fence) in earliest {
        world.judge_path(&path).await?;
        callers.granted(&path, ("a".into(), 0), "another", fence, 0);
        is_found(&world, &path, "L2").await?;
    }
    Ok(())
}

/// What etcd takes when a leader that stood still goes on is excused, and nothing else.
#[tokio::test]
async fn a_thaw_of_a_leader_excuses_what_etcd_took_then_alone() -> Result<()> {
    let world = World::one().await?;
    let (sidecar, other) = (world.sidecar("a").await?, world.sidecar("b").await?);
    let take = async |key: &str| -> Result<()> {
        let holder = Key::Holder { lock: "orders".into(), key: key.into() };
        world.etcd.client().await?.delete(keys::encode(NAMESPACE, &holder), None).await?;
        world.changes().await?;
        Ok(())
    };
    for (key, excused) in [("before", false), ("after", true)] {
        let path = format!("orders/{key}");
        world.acquire(&sidecar, &path, json!({"ttl": "1m"})).await?;
        if !excused {
            take(key).await?;
        }
        tick(&world).await;
        sidecar.callers.leader_thaws();
        if excused {
            take(key).await?;
        }
        world.acquire(&other, &path, json!({})).await?;
        if excused {
            world.judge_path(&path).await?;
        } else {
            is_found(&world, &path, "L4").await?;
        }
    }
    Ok(())
}

/// A sidecar may grant what etcd took when a leader went on, before it learns of that. Who stands in front has been granted
/// first all the same.
#[tokio::test]
async fn a_thaw_of_a_leader_changes_nobodys_turn() -> Result<()> {
    let world = World::of_both_modes(Etcd::start().await?).await?;
    let (first, second) = (world.sidecar("a").await?, world.sidecar("b").await?);
    for (path, in_turn) in [("fair/in-turn", true), ("fair/out-of-turn", false)] {
        let front = acquire(&first, path).await?;
        let waits = second.wait(path, json!({}));
        let (key, fence) =
            eventually("one waits", async || last_in_line(&world, front.fence()).await).await?;
        waits.abort();
        first.callers.leader_thaws();
        world.etcd.client().await?.delete(keys::encode(NAMESPACE, &key), None).await?;
        world.changes().await?;
        let mut told = [(front.token(), front.fence()), ("behind".into(), fence)];
        if !in_turn {
            told.reverse();
        }
        for (token, fence) in told {
            tick(&world).await;
            first.callers.granted(path, ("a".into(), 0), &token, fence, 0);
        }
        if in_turn {
            world.judge_path(path).await?;
        } else {
            is_found(&world, path, "L6").await?;
        }
    }
    Ok(())
}

/// Whoever came last to a fair lock, and by what fence, if that was after this one.
async fn last_in_line(world: &World, after: u64) -> Result<(Key, u64)> {
    let state = world.state().await?;
    let line = state.into_iter().filter(|(key, _)| matches!(key, Key::Waiter { .. }));
    let fenced = line.filter_map(|(key, entry)| Some((key, Fence::new(entry.create_revision, 0, 0)?.get())));
    fenced.max_by_key(|(_, fence)| *fence).filter(|(_, fence)| *fence > after).context("nobody came")
}

/// Until the next millisecond of what is recorded.
async fn tick(world: &World) {
    let now = world.now();
    while world.now() == now {
        tokio::task::yield_now().await;
    }
}
