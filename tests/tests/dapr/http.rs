//! Over HTTP: every shape, status and refusal.

use anyhow::{Context, Result, ensure};
use concordat_tests::process::eventually;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::world::{STORE, World, settings};

#[tokio::test]
async fn a_lock_is_taken_refused_to_all_others_and_let_go_by_its_owner() -> Result<()> {
    let world = World::new().await?;
    let sidecar = world.serving("a").await?;
    let granted = sidecar.lock("c 42/é", "first", 60).await?;
    assert_eq!((granted.status, &granted.body), (StatusCode::OK, &json!({ "success": true })));
    let fence = granted.fence().context("no fence")?;
    let shown = sidecar.inspect("c%2042%2F%C3%A9").await?;
    assert_eq!((&shown["fence"], &shown["holders"][0]["owner"]), (&json!(fence), &json!("first")));

    // The owner's own name takes it no second time, as with Dapr on Redis.
    for owner in ["second", "first"] {
        let held = sidecar.lock("c 42/é", owner, 60).await?;
        assert_eq!((held.status, &held.body), (StatusCode::OK, &json!({ "success": false })), "{owner}");
        assert_eq!(held.fence(), None);
    }
    assert_eq!(sidecar.unlock("c 42/é", "second").await?, 2);
    assert_eq!(sidecar.unlock("c 42/é", "first").await?, 0);
    assert_eq!(sidecar.unlock("c 42/é", "first").await?, 1);
    assert_eq!(sidecar.unlock("never taken", "first").await?, 1);

    let next = sidecar.lock("c 42/é", "second", 60).await?;
    ensure!(next.fence().is_some_and(|next| next > fence), "{next:?}");
    assert_eq!(sidecar.unlock("c 42/é", "first").await?, 2, "a late unlock leaves the next grant alone");
    assert_eq!(sidecar.unlock("c 42/é", "second").await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_sidecar_lets_go_only_of_what_it_granted_by_this_api() -> Result<()> {
    let world = World::new().await?;
    let (a, b) = (world.serving("a").await?, world.serving("b").await?);
    assert_eq!(a.lock("k", "job", 60).await?.body["success"], true);
    assert_eq!(b.lock("k", "job", 60).await?.body["success"], false);
    assert_eq!(b.unlock("k", "job").await?, 2, "the same owner at another sidecar");
    assert_eq!(a.inspect("k").await?["holders"][0]["owner"], "job");
    assert_eq!(a.unlock("k", "job").await?, 0);
    assert_eq!(b.unlock("k", "job").await?, 1);

    let url = format!("http://127.0.0.1:{}/v1/locks/orders/k", a.api);
    let native = reqwest::Client::new().post(url).json(&json!({ "owner": "job" })).send().await?;
    assert_eq!(native.status(), StatusCode::OK);
    assert_eq!(a.lock("k", "job", 60).await?.body["success"], false);
    assert_eq!(a.unlock("k", "job").await?, 2, "a grant of the localhost API has a token");
    assert_eq!(a.inspect("k").await?["holders"][0]["owner"], "job");
    Ok(())
}

#[tokio::test]
async fn what_is_not_let_go_comes_free_when_its_expiry_is_over() -> Result<()> {
    let world = World::new().await?;
    let sidecar = world.serving("a").await?;
    assert_eq!(sidecar.lock("short", "a", 1).await?.body["success"], true);
    // No longer than said, and as long: the Lock's ttl is of no matter.
    assert_eq!(sidecar.lock("long", "a", 7_200).await?.body["success"], true);
    for (key, most) in [("short", 1_000), ("long", 7_200_000)] {
        let left = sidecar.inspect(key).await?["expiresInMs"].as_u64();
        ensure!(left.is_none_or(|left| left <= most), "{key}: {left:?}");
    }
    eventually("it is over", async || {
        ensure!(sidecar.lock("short", "b", 60).await?.body["success"] == true, "it is held");
        Ok(())
    })
    .await?;
    assert_eq!(sidecar.unlock("short", "a").await?, 2);
    assert_eq!(sidecar.unlock("short", "b").await?, 0);
    assert_eq!(sidecar.unlock("long", "a").await?, 0);

    assert_eq!(sidecar.lock("short", "a", 1).await?.body["success"], true);
    sidecar.is_free("short").await?;
    assert_eq!(sidecar.unlock("short", "a").await?, 1);
    Ok(())
}

/// The app was told how long it holds: its sidecar's death changes nothing.
#[tokio::test]
async fn a_lock_outlives_the_sidecar_that_granted_it() -> Result<()> {
    let world = World::new().await?;
    let (mut a, b) = (world.serving("a").await?, world.serving("b").await?);
    assert_eq!(a.lock("k", "job", 600).await?.body["success"], true);
    a.kill()?;
    let again = world.serving("a").await?;
    for sidecar in [&again, &b] {
        assert_eq!(sidecar.lock("k", "other", 60).await?.body["success"], false);
        assert_eq!(sidecar.unlock("k", "job").await?, 2);
    }
    assert_eq!(b.inspect("k").await?["holders"][0]["owner"], "job");
    Ok(())
}

#[tokio::test]
async fn what_is_wrong_is_refused_as_dapr_refuses_it() -> Result<()> {
    let world = World::new().await?;
    world.define("bounded", lock_with_max_hold()).await?;
    world.define("later", lock_of_a_later_mode()).await?;
    let sidecar = world.serving("a").await?;
    let ask = |resource: &str, owner: &str, expiry: Value| json!({ "resourceId": resource, "lockOwner": owner, "expiryInSeconds": expiry });
    let long = "x".repeat(513);
    let bad = "ERR_MALFORMED_REQUEST";
    let lock = |store: &str| format!("/v1.0-alpha1/lock/{store}");
    let unlock = format!("/v1.0-alpha1/unlock/{STORE}");
    let table: &[(&str, Value, u16, &str)] = &[
        (&lock(STORE), ask("", "a", json!(1)), 400, bad),
        (&lock(STORE), ask("r", "", json!(1)), 400, bad),
        (&lock(STORE), ask("r", "a", json!(0)), 400, bad),
        (&lock(STORE), ask("r", "a", json!(-1)), 400, bad),
        (&lock(STORE), ask("r", "a", json!(1_i64 << 31)), 400, bad),
        (&lock(STORE), ask("r", "a", json!("soon")), 400, bad),
        (&lock(STORE), ask(&long, "a", json!(1)), 400, bad),
        (&lock(STORE), ask("r", &long, json!(1)), 400, bad),
        (&lock(STORE), json!([]), 400, bad),
        (&lock(STORE), json!({}), 400, bad),
        (&lock("bounded"), ask("r", "a", json!(6)), 400, bad),
        (&lock("nowhere"), ask("r", "a", json!(1)), 400, "ERR_LOCK_STORE_NOT_FOUND"),
        (&lock("orders"), ask("r", "a", json!(1)), 400, "ERR_LOCK_STORE_NOT_FOUND"),
        (&lock(STORE), ask("a||b", "a", json!(1)), 500, "ERR_TRY_LOCK"),
        (&lock("later"), ask("r", "a", json!(1)), 500, "ERR_TRY_LOCK"),
        (&unlock, ask("", "a", json!(1)), 400, bad),
        (&unlock, ask("r", "", json!(1)), 400, bad),
        (&unlock, ask("a||b", "a", json!(1)), 500, "ERR_UNLOCK"),
        ("/v1.0-alpha1/unlock/nowhere", ask("r", "a", json!(1)), 400, "ERR_LOCK_STORE_NOT_FOUND"),
        // As Dapr's own documentation writes it.
        ("/v1.0-alpha/lock/lockstore", ask("r", "a", json!(1)), 404, "ERR_METHOD_NOT_FOUND"),
        ("/v1.0/state/lockstore", json!([]), 404, "ERR_METHOD_NOT_FOUND"),
    ];
    for (path, body, status, code) in table {
        let answer = sidecar.post(path, body).await?;
        assert_eq!((answer.status.as_u16(), &answer.body["errorCode"]), (*status, &json!(code)), "{body}");
        ensure!(answer.body["message"].as_str().is_some_and(|message| !message.is_empty()), "{answer:?}");
    }
    let text = sidecar.send(Method::POST, &lock(STORE), &[], "no JSON").await?;
    assert_eq!((text.status.as_u16(), &text.body["errorCode"]), (400, &json!(bad)));
    let bounded = sidecar.post(&lock("bounded"), &ask("r", "a", json!(5))).await?;
    assert_eq!(bounded.body, json!({ "success": true }));
    assert_eq!(sidecar.inspect("r").await?["holders"], json!([]), "nothing was taken");
    Ok(())
}

#[tokio::test]
async fn a_store_is_the_first_lock_that_names_it_and_none_is_said() -> Result<()> {
    let world = World::empty().await?;
    let mut sidecar = world.serving("a").await?;
    let unset = sidecar.lock("k", "a", 60).await?;
    assert_eq!(
        (unset.status.as_u16(), &unset.body["errorCode"]),
        (500, &json!("ERR_LOCK_STORE_NOT_CONFIGURED"))
    );

    world.define("second", settings(Some(STORE))).await?;
    world.define("orders", settings(Some(STORE))).await?;
    sidecar.says("these Locks have one daprStore").await?;
    assert_eq!(sidecar.lock("k", "a", 60).await?.body["success"], true);
    assert_eq!(sidecar.inspect("k").await?["holders"][0]["owner"], "a");

    let metadata = sidecar.send(Method::GET, "/v1.0/metadata", &[], "").await?;
    assert_eq!((metadata.status, &metadata.body["id"]), (StatusCode::OK, &json!("billing")));
    assert_eq!(metadata.body["components"][0]["name"], STORE);
    Ok(())
}

#[tokio::test]
async fn the_token_is_asked_for_where_there_is_one_and_web_pages_never_get_in() -> Result<()> {
    let world = World::new().await?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("token");
    std::fs::write(&file, "secret\n")?;
    let file = file.to_str().context("a path")?;
    let sidecar = world.sidecar("a", &["--dapr", "--token-file", file]).await?;
    let get = async |path: &str, headers: &[(&str, &str)]| {
        anyhow::Ok(sidecar.send(Method::GET, path, headers, "").await?.status.as_u16())
    };
    assert_eq!(get("/v1.0/metadata", &[]).await?, 401);
    assert_eq!(get("/v1.0/metadata", &[("dapr-api-token", "wrong")]).await?, 401);
    assert_eq!(get("/v1.0/metadata", &[("dapr-api-token", "secret")]).await?, 200);
    assert_eq!(get("/v1.0/metadata", &[("dapr-api-token", "secret"), ("origin", "null")]).await?, 403);
    assert_eq!(get("/v1.0/metadata", &[("dapr-api-token", "secret"), ("host", "example.com")]).await?, 421);
    for health in ["/v1.0/healthz", "/v1.0/healthz/outbound"] {
        assert_eq!(get(health, &[]).await?, 204, "{health}");
    }
    let refused = sidecar.lock("k", "a", 60).await?;
    assert_eq!((refused.status.as_u16(), &refused.body["message"]), (401, &json!("invalid api token")));
    Ok(())
}

#[tokio::test]
async fn nothing_listens_unless_it_is_switched_on() -> Result<()> {
    let world = World::new().await?;
    let sidecar = world.sidecar("a", &[]).await?;
    for port in [sidecar.http, sidecar.grpc] {
        ensure!(tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err(), "{port} is open");
    }
    Ok(())
}

fn lock_with_max_hold() -> concordat_protocol::lock::Settings {
    concordat_protocol::lock::Settings { max_hold: 5_000, ..settings(Some("bounded")) }
}

fn lock_of_a_later_mode() -> concordat_protocol::lock::Settings {
    use concordat_protocol::lock::{Mode, Sharing};
    concordat_protocol::lock::Settings {
        mode: Mode::CompareAndSwap,
        sharing: Sharing::Semaphore,
        ..settings(Some("later"))
    }
}
