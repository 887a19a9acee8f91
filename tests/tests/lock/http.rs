//! The contract of API.md §2, call by call.

use anyhow::{Result, ensure};
use concordat_protocol::lock::{Mode, Settings, Sharing};
use concordat_tests::process::eventually;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::world::{Answer, World, settings};

#[tokio::test]
async fn a_lock_is_taken_shown_renewed_and_let_go() -> Result<()> {
    let world = World::one().await?;
    let sidecar = world.sidecar("a").await?;
    let nobody = sidecar.get("/v1/locks/orders/c42").await?;
    assert_eq!(nobody.body, json!({"holders": [], "waiters": 0, "fence": null, "expiresInMs": null}));

    let grant = world
        .acquire(&sidecar, "orders/c42", json!({"owner": "billing", "mode": "exclusive", "permits": 1}))
        .await?;
    assert_eq!(grant.status, StatusCode::OK, "{grant:?}");
    assert_eq!(grant.token().len(), 32);
    assert!(grant.fence() > 0 && grant.fence() < 1 << 53);
    assert!(grant.body["expiresInMs"].as_u64().is_some_and(|ms| ms > 0 && ms <= settings().ttl), "{grant:?}");
    assert!(grant.body["waitedMs"].is_u64());

    let shown = sidecar.get("/v1/locks/orders/c42").await?;
    assert_eq!(shown.body["holders"][0]["owner"], "billing");
    assert_eq!(shown.body["holders"][0]["pod"], "a");
    assert_eq!(shown.body["fence"], grant.fence());
    assert!(!shown.body.to_string().contains(&grant.token()), "tokens are never shown");

    let second = world.acquire(&sidecar, "orders/c42", json!({})).await?;
    assert_eq!((second.status, second.code()), (StatusCode::CONFLICT, "lock-held"));
    assert_eq!(second.body["owner"], "billing");
    assert!(second.retry_after.is_some());

    let renewed = sidecar.renew("c42", &grant.token()).await?;
    assert_eq!(renewed.status, StatusCode::OK);
    assert!(renewed.body["expiresInMs"].is_u64());
    for wrong in ["0123456789abcdef0123456789abcdef", "anything else"] {
        for method in [Method::PUT, Method::DELETE] {
            let answer = sidecar.ask(method, "/v1/locks/orders/c42", Some(wrong), None).await?;
            assert_eq!(
                (answer.status, answer.code()),
                (StatusCode::PRECONDITION_FAILED, "lock-token-mismatch")
            );
        }
    }
    let path = format!("/v1/locks/orders/c42/verify?fence={}", grant.fence());
    assert_eq!(sidecar.get(&path).await?.status, StatusCode::OK);

    for _ in 0..2 {
        assert_eq!(world.release(&sidecar, "c42", &grant).await?.status, StatusCode::NO_CONTENT);
    }
    assert_eq!(sidecar.get(&path).await?.status, StatusCode::GONE);
    assert!(sidecar.shows_nobody("c42").await?);
    world.judge("c42").await?;
    Ok(())
}

/// Pitfall 3 (etcd#22082): a release that comes late frees what was granted since.
#[tokio::test]
async fn an_old_release_repeated_leaves_a_later_grant_alone() -> Result<()> {
    let world = World::one().await?;
    let (a, b) = (world.sidecar("a").await?, world.sidecar("b").await?);
    let first = world.acquire(&a, "orders/k", json!({})).await?;
    assert_eq!(world.release(&a, "k", &first).await?.status, StatusCode::NO_CONTENT);
    let second = world.acquire(&b, "orders/k", json!({"owner": "b"})).await?;
    assert_eq!(second.status, StatusCode::OK);
    assert!(second.fence() > first.fence());
    assert_eq!(world.release(&a, "k", &first).await?.status, StatusCode::NO_CONTENT);
    assert_eq!(world.release(&b, "k", &first).await?.code(), "lock-token-mismatch");
    assert_eq!(a.renew("k", &first.token()).await?.code(), "lock-token-mismatch");
    assert_eq!(world.holder("k").await?.map(|holder| holder.owner), Some("b".to_owned()));
    world.judge("k").await?;
    Ok(())
}

/// A key for each order, say: what a sidecar remembers of those it is done with has bounds.
#[tokio::test]
async fn thousands_of_keys_are_used_once_each_and_the_first_once_more() -> Result<()> {
    const KEYS: usize = 6_000;
    let world = World::one().await?;
    world.define("lease", Settings { mode: Mode::Lease, ..settings() }).await?;
    let sidecar = &world.sidecar("a").await?;
    let world = &world;
    let used = |number: usize| async move {
        let path = format!("lease/{number}");
        let grant = world.acquire(sidecar, &path, json!({})).await?;
        ensure!(grant.status == StatusCode::OK, "{grant:?}");
        let released = world.let_go(sidecar, &path, &grant).await?;
        ensure!(released.status == StatusCode::NO_CONTENT, "{released:?}");
        Ok(grant)
    };
    let grants: Vec<Answer> = stream::iter(0..KEYS).map(used).buffered(32).try_collect().await?;
    let (first, last) = (&grants[0], &grants[KEYS - 1]);
    // A release that is repeated is told from a wrong one as long as its key is remembered.
    let repeated = world.let_go(sidecar, &format!("lease/{}", KEYS - 1), last).await?;
    assert_eq!(repeated.status, StatusCode::NO_CONTENT);
    assert_eq!(world.let_go(sidecar, "lease/0", first).await?.code(), "lock-token-mismatch");
    assert!(used(0).await?.fence() > last.fence());
    Ok(())
}

#[tokio::test]
async fn keys_are_any_text_and_one_is_the_default() -> Result<()> {
    let world = World::one().await?;
    let sidecar = world.sidecar("a").await?;
    for (asked, key) in [
        ("orders/a%2Fb", "a/b"),
        ("orders/a%2Fb%2F", "a/b/"),
        ("orders/%C3%A9%F0%9F%94%92%20x", "é🔒 x"),
        ("orders/%25", "%"),
        ("orders/1", "1"),
        ("orders/10", "10"),
        ("orders", "-"),
    ] {
        let grant = world.acquire(&sidecar, asked, json!({})).await?;
        assert_eq!(grant.status, StatusCode::OK, "{asked}: {grant:?}");
        assert!(world.holder(key).await?.is_some(), "{asked} is {key}");
    }
    let holders = |answer: crate::world::Answer| answer.body["holders"].clone();
    let default = sidecar.get("/v1/locks/orders").await?;
    assert_eq!(holders(default), holders(sidecar.get("/v1/locks/orders/-").await?));
    let longest = "k".repeat(512);
    assert_eq!(
        world.acquire(&sidecar, &format!("orders/{longest}"), json!({})).await?.status,
        StatusCode::OK
    );
    let longer = world.acquire(&sidecar, &format!("orders/{longest}k"), json!({})).await?;
    assert_eq!((longer.status, longer.code()), (StatusCode::BAD_REQUEST, "invalid-request"));
    Ok(())
}

#[tokio::test]
async fn wrong_requests_are_refused_and_write_nothing() -> Result<()> {
    let world = World::one().await?;
    world
        .define("pool", concordat_protocol::lock::Settings { sharing: Sharing::Semaphore, ..settings() })
        .await?;
    let sidecar = world.sidecar("a").await?;
    let long = "o".repeat(257);
    for (path, body, status, code) in [
        ("/v1/locks/nowhere/k", json!({}), 404, "no-such-lock"),
        ("/v1/locks/pool/k", json!({}), 501, "mode-not-supported"),
        ("/v1/locks/orders/k?wait=5", json!({}), 400, "invalid-request"),
        ("/v1/locks/orders/k?wait=-5s", json!({}), 400, "invalid-request"),
        ("/v1/locks/orders/k?wiat=5s", json!({}), 400, "invalid-request"),
        ("/v1/locks/orders/k?wait=1s&wait=1s", json!({}), 400, "invalid-request"),
        ("/v1/locks/orders/k", json!({"mode": "shared"}), 400, "invalid-request"),
        ("/v1/locks/orders/k", json!({"mode": "Exclusive"}), 400, "invalid-request"),
        ("/v1/locks/orders/k", json!({"permits": 2}), 400, "invalid-request"),
        ("/v1/locks/orders/k", json!({"permits": 0}), 400, "invalid-request"),
        ("/v1/locks/orders/k", json!({"ttl": 15}), 400, "invalid-request"),
        ("/v1/locks/orders/k", json!({"ttl": "1s"}), 400, "invalid-request"),
        ("/v1/locks/orders/k", json!({"ttl": "2h"}), 400, "invalid-request"),
        ("/v1/locks/orders/k", json!({"maxHold": "0s"}), 400, "invalid-request"),
        ("/v1/locks/orders/k", json!({"owner": long}), 400, "invalid-request"),
        ("/v1/locks/orders/k", json!({"holder": "x"}), 400, "invalid-request"),
        ("/v1/locks/orders/k", json!([]), 400, "invalid-request"),
    ] {
        let answer = sidecar.ask(Method::POST, path, None, Some(body.clone())).await?;
        assert_eq!((answer.status.as_u16(), answer.code()), (status, code), "{path} {body}: {answer:?}");
    }
    for (method, path, status, code) in [
        (Method::PUT, "/v1/locks/orders/k", 400, "invalid-request"),
        (Method::DELETE, "/v1/locks/orders/k", 400, "invalid-request"),
        (Method::GET, "/v1/locks/nowhere/k", 404, "no-such-lock"),
        (Method::GET, "/v1/locks/orders/k/verify", 400, "invalid-request"),
        (Method::GET, "/v1/locks/orders/k/verify?fence=-1", 400, "invalid-request"),
        (Method::GET, "/v1/locks/orders/k/verify?fence=1", 410, "lock-superseded"),
        (Method::GET, "/v1/locks/orders/k/events", 400, "invalid-request"),
        (Method::PATCH, "/v1/locks/orders/k", 405, "method-not-allowed"),
    ] {
        let answer = sidecar.ask(method, path, None, None).await?;
        assert_eq!((answer.status.as_u16(), answer.code()), (status, code), "{path}: {answer:?}");
    }
    assert!(world.holder("k").await?.is_none());
    world.judge("k").await?;
    Ok(())
}

/// Pitfall 5: the answer to an acquire is lost.
#[tokio::test]
async fn a_repeat_with_its_idempotency_key_is_the_same_grant() -> Result<()> {
    let world = World::one().await?;
    let sidecar = world.sidecar("a").await?;
    let mut answers = Vec::new();
    for _ in 0..3 {
        let request = sidecar.request(Method::POST, "/v1/locks/orders/k").header("Idempotency-Key", "once");
        answers.push(crate::world::Sidecar::read(request.send().await?).await?);
    }
    assert!(
        answers.iter().all(|answer| answer.status == StatusCode::OK && answer.token() == answers[0].token())
    );
    assert_eq!(world.judge("k").await?.changes.len(), 1);
    Ok(())
}

/// Pitfall 11: what nobody renews ends, and what renews itself ends with `maxHold`.
#[tokio::test]
async fn a_grant_that_is_not_renewed_ends_and_is_said_to_be_lost() -> Result<()> {
    let world = World::one().await?;
    let sidecar = world.sidecar("a").await?;
    let short = world.acquire(&sidecar, "orders/short", json!({"ttl": "4s"})).await?;
    let kept = json!({"ttl": "4s", "renew": true, "maxHold": "20s"});
    let kept = world.acquire(&sidecar, "orders/kept", kept).await?;
    world.is_free("short").await?;
    assert!(world.holder("kept").await?.is_some(), "it renews itself past its ttl");
    world.is_free("kept").await?;
    for (key, grant) in [("short", &short), ("kept", &kept)] {
        assert_eq!(sidecar.renew(key, &grant.token()).await?.code(), "lock-lost");
        assert_eq!(world.release(&sidecar, key, grant).await?.code(), "lock-lost");
        assert_eq!(
            world.acquire(&sidecar, &format!("orders/{key}"), json!({})).await?.status,
            StatusCode::OK
        );
    }
    Ok(())
}

#[tokio::test]
async fn sigterm_lets_go_of_all_and_sends_away_who_waits() -> Result<()> {
    let world = World::one().await?;
    let (mut a, b) = (world.sidecar("a").await?, world.sidecar("b").await?);
    for key in 0..20 {
        assert_eq!(world.acquire(&a, &format!("orders/{key}"), json!({})).await?.status, StatusCode::OK);
    }
    assert_eq!(world.acquire(&b, "orders/b", json!({})).await?.status, StatusCode::OK);
    let waiter = a.request(Method::POST, "/v1/locks/orders/b?wait=1m").send();
    let waiter = tokio::spawn(waiter);
    a.waiters("b", 1).await?;
    assert_eq!(a.process.terminate().await?.code(), Some(0));
    let sent_away = crate::world::Sidecar::read(waiter.await??).await?;
    assert_eq!(
        (sent_away.status, &sent_away.body["outcome"]),
        (StatusCode::SERVICE_UNAVAILABLE, &json!("notApplied"))
    );
    for key in 0..20 {
        assert!(world.holder(&key.to_string()).await?.is_none(), "{key} is still held");
    }
    Ok(())
}

#[tokio::test]
async fn what_happens_is_counted_for_the_operator_and_for_metrics() -> Result<()> {
    let world = World::one().await?;
    let sidecar = world.sidecar("a").await?;
    let grant = world.acquire(&sidecar, "orders/k", json!({"ttl": "1m"})).await?;
    let waiter = tokio::spawn(sidecar.request(Method::POST, "/v1/locks/orders/k?wait=1m").send());
    let counters = |counters: [u64; 2]| {
        let world = &world;
        async move {
            eventually("the counters are put", async || {
                let stat = world.stat().await?;
                ensure!([stat.get("granted"), stat.get("waiters")] == counters, "{stat:?}");
                ensure!((stat.get("waitingSince") > 0) == (counters[1] > 0), "{stat:?}");
                Ok(())
            })
            .await
        }
    };
    counters([1, 1]).await?;
    world.release(&sidecar, "k", &grant).await?;
    assert_eq!(waiter.await??.status(), StatusCode::OK);
    counters([2, 0]).await?;
    let metrics = reqwest::get(format!("{}/metrics", sidecar.admin)).await?.text().await?;
    for line in ["concordat_sidecar_lock_grants_total 2", "concordat_sidecar_lock_wait_seconds_count 2"] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    Ok(())
}
