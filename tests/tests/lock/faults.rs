//! What breaks: sidecars killed or frozen at every step, etcd's leader, the way to etcd, replies.

use anyhow::{Context, Result, ensure};
use concordat_tests::{etcd::Etcd, history::lock::RENEWAL, process::eventually, proxy::Proxy};
use futures::{StreamExt, TryStreamExt, stream};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::world::{LOCKS, Options, Sidecar, World};

const STEPS: [&str; 6] = [
    "lock-before-acquire",
    "lock-after-acquire-before-answer",
    "lock-before-telling",
    "lock-after-telling",
    "lock-before-release",
    "lock-after-release",
];

/// So many cases run at a time.
const AT_ONCE: usize = 2;

/// Waits until what a sidecar has of `orders` does not stay any more, so that its release is a plan of its own.
async fn lasts(world: &World, sidecar: &Sidecar) -> Result<()> {
    eventually("it has lasted", async || {
        let stays = world.holder("k").await?.is_some_and(|holder| holder.stays && holder.pod == "struck");
        let lives = sidecar.get("/v1/locks/orders/k").await;
        ensure!(!stays || lives.is_err(), "not yet");
        Ok(lives)
    })
    .await?
    .map(drop)
}

/// Takes and releases a key through a sidecar that meets its end, or a pause, at one of the steps; then another takes it.
async fn meets(lock: &str, step: &str, fate: &str) -> Result<()> {
    let world = World::of_both_modes(Etcd::start().await?).await?;
    let failpoints = Some(format!("{step}=1*return({fate})"));
    let options = Options { failpoints, victim: true, ..Options::default() };
    let (mut struck, other) = (world.sidecar_with("struck", options).await?, world.sidecar("other").await?);
    let path = format!("{lock}/k");
    let calls = async {
        let grant = world.acquire(&struck, &path, json!({"ttl": "4s"})).await?;
        if grant.status == StatusCode::OK {
            world.write(grant.fence());
            lasts(&world, &struck).await?;
            world.let_go(&struck, &path, &grant).await?;
        }
        anyhow::Ok(())
    };
    let wait = format!("{path}?wait=1m");
    let took = async {
        // Only what has been struck is fair game: before, the other would simply be first.
        eventually("the fail point is met", async || {
            ensure!(struck.process.log().contains(step), "not yet");
            Ok(())
        })
        .await?;
        let grant = world.acquire(&other, &wait, json!({"ttl": "30s"})).await?;
        ensure!(grant.status == StatusCode::OK, "{grant:?}");
        world.write(grant.fence());
        if fate == "stop" {
            struck.process.resume()?;
        }
        Ok(grant)
    };
    // A killed sidecar's caller is told by the connection that breaks, a frozen one's when it goes on.
    let (told, grant) = tokio::join!(calls, took);
    let grant = grant?;
    if fate == "kill" {
        ensure!(told.is_err(), "the sidecar was to die at {step}");
        ensure!(struck.process.wait().await?.code().is_none(), "by a signal");
    }
    let renewed = other.with_token(RENEWAL, &path, &grant.token()).await?;
    assert_eq!(renewed.status, StatusCode::OK, "nobody took it from its holder");
    assert_eq!(world.let_go(&other, &path, &grant).await?.status, StatusCode::NO_CONTENT);
    world.judge_path(&path).await.with_context(|| format!("{lock}, {step}, {fate}"))
}

async fn at_every_step(fate: &str) -> Result<()> {
    let cases = STEPS.iter().flat_map(|step| LOCKS.map(|lock| (lock, step)));
    // Of a fair lock all is told by who stands in its line.
    let cases = cases.filter(|(lock, step)| *lock != "fair" || !step.ends_with("telling"));
    let cases = cases.map(|(lock, step)| meets(lock, step, fate));
    stream::iter(cases).buffer_unordered(AT_ONCE).try_collect().await
}

#[tokio::test]
async fn a_sidecar_killed_at_any_step_gives_up_its_lock() -> Result<()> {
    at_every_step("kill").await
}

#[tokio::test]
async fn a_sidecar_frozen_past_its_ttl_at_any_step_takes_nothing_from_the_next() -> Result<()> {
    at_every_step("stop").await
}

/// Pitfalls 1, 2, 10 and 12: whoever was frozen past its ttl learns that it holds nothing, and its writes are refused.
#[tokio::test]
async fn a_holder_and_a_waiter_frozen_past_their_session_are_told_and_fenced_off() -> Result<()> {
    let world = World::one().await?;
    let a = world.sidecar_with("a", Options { victim: true, ..Options::default() }).await?;
    let b = world.sidecar("b").await?;
    let stale = world.acquire(&a, "orders/k", json!({"ttl": "4s"})).await?;
    assert!(world.write(stale.fence()));
    let held = world.acquire(&b, "orders/other", json!({"ttl": "1m"})).await?;
    let waiter = tokio::spawn(a.request(Method::POST, "/v1/locks/orders/other?wait=2m").send());
    a.waiters("other", 1).await?;

    a.process.pause()?;
    let next = world.acquire(&b, "orders/k?wait=1m", json!({})).await?;
    assert_eq!(next.status, StatusCode::OK, "{next:?}");
    assert!(world.write(next.fence()));
    a.process.resume()?;
    let told = Sidecar::read(waiter.await??).await?;
    assert_eq!((told.status, told.code()), (StatusCode::GONE, "lock-lost"), "a waiter's session died");
    assert!(!world.write(stale.fence()), "the stale write is refused");
    assert_eq!(a.renew("k", &stale.token()).await?.code(), "lock-lost");
    assert_eq!(b.renew("other", &held.token()).await?.status, StatusCode::OK);
    world.judge("k").await?;
    world.judge("other").await?;
    Ok(())
}

#[tokio::test]
async fn a_lost_leader_of_etcd_costs_no_exclusion() -> Result<()> {
    let mut world = World::of_both_modes(Etcd::three().await?).await?;
    let sidecars = [world.sidecar("a").await?, world.sidecar("b").await?];
    for round in 0..3 {
        for sidecar in &sidecars {
            let mut held = Vec::new();
            for lock in LOCKS {
                let path = format!("{lock}/k?wait=30s");
                let grant = eventually("a grant", async || {
                    let grant = world.acquire(sidecar, &path, json!({})).await?;
                    ensure!(grant.status == StatusCode::OK, "{grant:?}");
                    Ok(grant)
                })
                .await?;
                assert!(world.write(grant.fence()));
                held.push((format!("{lock}/k"), grant));
            }
            if round == 1 {
                let leader = world.etcd.leader().await?;
                world.etcd.kill(leader)?;
                world.etcd.restart(leader).await?;
            }
            for (path, grant) in &held {
                eventually("it is let go", async || {
                    let released = world.let_go(sidecar, path, grant).await?;
                    ensure!(matches!(released.status.as_u16(), 204 | 410), "{released:?}");
                    Ok(())
                })
                .await?;
            }
        }
    }
    assert!(world.judge("k").await?.grants.len() >= 6);
    assert!(world.judge_line("fair", "k").await?.grants.len() >= 6);
    Ok(())
}

#[tokio::test]
async fn away_from_etcd_nothing_is_held_and_nothing_is_guessed() -> Result<()> {
    let world = World::of_both_modes(Etcd::start().await?).await?;
    let proxy = Proxy::start(world.etcd.address(0)).await?;
    let options = Options { etcd: Some(proxy.endpoint()), victim: true, ..Options::default() };
    let cut_off = world.sidecar_with("cut-off", options).await?;
    let other = world.sidecar("other").await?;
    let mut lost = Vec::new();
    for lock in LOCKS {
        let path = format!("{lock}/k");
        let held = json!({"ttl": "4s", "renew": true, "maxHold": "10m"});
        let grant = world.acquire(&cut_off, &path, held).await?;
        assert_eq!(grant.status, StatusCode::OK);
        lost.push((path, grant.token()));
    }
    proxy.swallow();
    let mut next = Vec::new();
    for (path, token) in &lost {
        eventually("the loss is told", async || {
            let renewed = cut_off.with_token(RENEWAL, path, token).await?;
            ensure!((renewed.status, renewed.code()) == (StatusCode::GONE, "lock-lost"), "{renewed:?}");
            Ok(())
        })
        .await?;
        let grant = world.acquire(&other, &format!("{path}?wait=1m"), json!({"ttl": "1m"})).await?;
        assert_eq!(grant.status, StatusCode::OK, "{grant:?}");
        next.push(grant);
        let refused = world.acquire(&cut_off, &path.replace("/k", "/new"), json!({})).await?;
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{refused:?}");
        assert!(refused.body["outcome"].is_string());
    }
    proxy.heal();
    eventually("it recovers unaided", async || {
        let grant = world.acquire(&cut_off, "orders/new", json!({})).await?;
        ensure!(grant.status == StatusCode::OK, "{grant:?}");
        Ok(())
    })
    .await?;
    for ((path, token), next) in lost.iter().zip(next) {
        let renewed = cut_off.with_token(RENEWAL, path, token).await?;
        assert_eq!(renewed.code(), "lock-lost", "lost once is lost for good");
        assert_eq!(other.with_token(RENEWAL, path, &next.token()).await?.status, StatusCode::OK);
        world.judge_path(path).await?;
    }
    Ok(())
}
