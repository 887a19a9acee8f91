//! What was recorded of real runs, and then told otherwise: L1 to L7 must find it.

use anyhow::{Result, ensure};
use concordat_protocol::Key;
use concordat_store::keys;
use concordat_tests::{
    etcd::Etcd,
    history::lock::{RELEASE, RENEWAL},
};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::world::{Answer, LOCKS, NAMESPACE, Sidecar, World};

/// Acquires unrecorded.
async fn acquire(sidecar: &Sidecar, path: &str) -> Result<Answer> {
    let body = json!({"ttl": "1m"});
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
            let now = callers.now();
            callers.granted(&path, ("a".into(), place as u64), &grant.token(), grant.fence(), 0);
            while callers.now() == now {
                tokio::task::yield_now().await;
            }
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
