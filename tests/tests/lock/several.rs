//! Several keys by one token.

use std::sync::Arc;

use anyhow::{Result, ensure};
use concordat_tests::process::eventually;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    holding::Events,
    world::{Answer, Options, Sidecar, World},
};

async fn acquire(sidecar: &Sidecar, keys: &[&str], more: Value) -> Result<Answer> {
    let answer = sidecar.ask(Method::POST, "/v1/locks:acquire", None, Some(body(keys, more))).await?;
    for of in answer.body["locks"].as_array().into_iter().flatten() {
        let (Some(key), Some(fence)) = (of["key"].as_str(), of["fence"].as_u64()) else { continue };
        let arrival = sidecar.callers.arrive();
        let expires_in = answer.body["expiresInMs"].as_u64().unwrap_or_default();
        let caller = (arrival.to_string(), arrival);
        sidecar.callers.granted(&format!("orders/{key}"), caller, &answer.token(), fence, expires_in);
    }
    Ok(answer)
}

fn body(keys: &[&str], more: Value) -> Value {
    let locks: Vec<Value> = keys.iter().map(|key| json!({"lock": "orders", "key": key})).collect();
    let mut body = json!({"locks": locks});
    if let (Value::Object(body), Value::Object(more)) = (&mut body, more) {
        body.extend(more);
    }
    body
}

async fn release(sidecar: &Sidecar, token: &str) -> Result<Answer> {
    sidecar.callers.stop_believing(token);
    sidecar.ask(Method::POST, "/v1/locks:release", Some(token), None).await
}

#[tokio::test]
async fn several_are_taken_shown_renewed_and_let_go_by_one_token() -> Result<()> {
    let world = World::one().await?;
    let sidecar = world.sidecar("a").await?;
    let grant = acquire(&sidecar, &["c", "a", "b"], json!({"ttl": "1m", "owner": "batch"})).await?;
    assert_eq!(grant.status, StatusCode::OK, "{grant:?}");
    let keys: Vec<_> = (0..3).map(|at| grant.body["locks"][at]["key"].clone()).collect();
    assert_eq!(keys, ["c", "a", "b"], "in the order in which they were asked for");
    assert!(grant.body["expiresInMs"].as_u64().is_some_and(|ms| ms > 0 && ms <= 60_000));
    for at in 0..3 {
        let of = &grant.body["locks"][at];
        let shown = sidecar.get(&format!("/v1/locks/orders/{}", of["key"].as_str().unwrap())).await?;
        assert_eq!(
            (&shown.body["holders"][0]["owner"], &shown.body["fence"]),
            (&json!("batch"), &of["fence"])
        );
    }
    assert_eq!(sidecar.renew("b", &grant.token()).await?.status, StatusCode::OK);
    assert_eq!(sidecar.renew("other", &grant.token()).await?.code(), "lock-token-mismatch");
    for _ in 0..2 {
        assert_eq!(release(&sidecar, &grant.token()).await?.status, StatusCode::NO_CONTENT);
    }
    for key in ["a", "b", "c"] {
        assert!(sidecar.shows_nobody(key).await?);
        world.judge(key).await?;
    }
    // The token is one grant: let go at one of its keys, all are.
    let grant = acquire(&sidecar, &["a", "b"], json!({})).await?;
    assert_eq!(world.release(&sidecar, "b", &grant).await?.status, StatusCode::NO_CONTENT);
    assert!(sidecar.shows_nobody("a").await? && sidecar.shows_nobody("b").await?);
    // A token of a single key is let go here too.
    let single = world.acquire(&sidecar, "orders/a", json!({})).await?;
    assert_eq!(release(&sidecar, &single.token()).await?.status, StatusCode::NO_CONTENT);
    assert_eq!(release(&sidecar, &"0".repeat(32)).await?.code(), "lock-token-mismatch");
    Ok(())
}

#[tokio::test]
async fn all_or_none_are_taken() -> Result<()> {
    let world = World::one().await?;
    let (a, b) = (world.sidecar("a").await?, world.sidecar("b").await?);
    let held = world.acquire(&a, "orders/b", json!({"ttl": "1m", "owner": "first"})).await?;
    for (wait, code) in [("0s", "lock-held"), ("1s", "lock-wait-timeout")] {
        let refused = acquire(&b, &["a", "b", "c"], json!({"wait": wait})).await?;
        assert_eq!((refused.status, refused.code()), (StatusCode::CONFLICT, code), "{refused:?}");
        assert_eq!((&refused.body["key"], &refused.body["owner"]), (&json!("b"), &json!("first")));
        assert!(a.shows_nobody("a").await? && a.shows_nobody("c").await?);
    }
    // A caller that hangs up while it waits leaves nothing behind.
    let body = body(&["a", "b", "c"], json!({"wait": "1m"}));
    let gone = tokio::spawn(b.request(Method::POST, "/v1/locks:acquire").json(&body).send());
    b.waiters("b", 1).await?;
    gone.abort();
    world.is_free("a").await?;
    world.release(&a, "b", &held).await?;
    let grant = acquire(&b, &["a", "b", "c"], json!({})).await?;
    assert_eq!(grant.status, StatusCode::OK, "{grant:?}");
    Ok(())
}

/// Pitfall 19.
#[tokio::test]
async fn callers_that_ask_in_opposite_orders_all_get_theirs() -> Result<()> {
    let world = Arc::new(World::one().await?);
    let sidecars = Arc::new([world.sidecar("a").await?, world.sidecar("b").await?]);
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..8 {
        let (world, sidecars) = (world.clone(), sidecars.clone());
        callers.spawn(async move {
            let sidecar = &sidecars[caller % 2];
            let keys = if caller / 2 % 2 == 0 { ["x", "y", "z"] } else { ["z", "y", "x"] };
            for _ in 0..5 {
                let grant = acquire(sidecar, &keys, json!({"wait": "2m", "ttl": "1m"})).await?;
                ensure!(grant.status == StatusCode::OK, "{grant:?}");
                for of in grant.body["locks"].as_array().into_iter().flatten() {
                    // All three guard one resource: only whoever holds them all may write.
                    if of["key"] == "z" {
                        ensure!(world.write(of["fence"].as_u64().unwrap_or_default()), "out of turn");
                    }
                }
                ensure!(release(sidecar, &grant.token()).await?.status == StatusCode::NO_CONTENT);
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = callers.join_next().await {
        done??;
    }
    for key in ["x", "y", "z"] {
        assert_eq!(world.judge(key).await?.grants.len(), 40, "{key}");
    }
    Ok(())
}

#[tokio::test]
async fn whoever_held_several_and_is_killed_gives_up_all() -> Result<()> {
    let world = World::one().await?;
    let options = Options { victim: true, ..Options::default() };
    let (mut a, b) = (world.sidecar_with("a", options).await?, world.sidecar("b").await?);
    assert_eq!(acquire(&a, &["x", "y"], json!({"ttl": "4s"})).await?.status, StatusCode::OK);
    a.process.kill()?;
    let next = acquire(&b, &["y", "x"], json!({"wait": "1m"})).await?;
    assert_eq!(next.status, StatusCode::OK, "{next:?}");
    Ok(())
}

/// Pitfall 5: what the first call was answered never reached its caller.
#[tokio::test]
async fn a_repeat_with_the_same_idempotency_key_is_the_same_grant() -> Result<()> {
    let world = World::one().await?;
    let sidecar = world.sidecar("a").await?;
    let ask = async || {
        let request = sidecar.request(Method::POST, "/v1/locks:acquire").header("Idempotency-Key", "once");
        Sidecar::read(request.json(&body(&["x", "y"], json!({"ttl": "1m"}))).send().await?).await
    };
    let (first, again) = (ask().await?, ask().await?);
    assert_eq!(first.status, StatusCode::OK);
    assert_eq!(first.body, again.body);
    assert_eq!(world.judge("x").await?.changes.len(), 1, "one grant");
    Ok(())
}

#[tokio::test]
async fn one_lost_is_all_lost_and_told() -> Result<()> {
    let world = World::one().await?;
    let (a, b) = (world.sidecar("a").await?, world.sidecar("b").await?);
    let grant = acquire(&a, &["x", "y"], json!({"ttl": "1m", "renew": true})).await?;
    let mut events = Events::of(&a, "orders/y", &grant.token()).await?;
    assert_eq!(events.is("granted").await?["locks"], grant.body["locks"]);
    world.take_by_force("x").await?;
    assert_eq!(events.last().await?, "lost");
    for key in ["x", "y"] {
        assert_eq!(a.renew(key, &grant.token()).await?.code(), "lock-lost");
    }
    assert_eq!(release(&a, &grant.token()).await?.code(), "lock-lost");
    eventually("both are free", async || {
        let next = acquire(&b, &["x", "y"], json!({})).await?;
        ensure!(next.status == StatusCode::OK, "{next:?}");
        Ok(())
    })
    .await?;
    Ok(())
}
