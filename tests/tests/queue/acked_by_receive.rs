//! A receive that brings acknowledgements along.

use anyhow::{Context, Result, ensure};
use concordat_tests::process::eventually;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::world::{Sidecar, World, read, settings};

#[tokio::test]
async fn a_receive_acknowledges_what_an_earlier_one_brought() -> Result<()> {
    let world = World::start(settings()).await?;
    let sidecar = world.sidecar("shop").await?;
    for body in ["a", "b"] {
        sidecar.publish(&json!(body), None).await?;
    }
    let first = sidecar.receive_some(1).await?;
    let (second, statuses) = sidecar.receive_and_ack("max=1&wait=5s", &first).await?;
    assert_eq!((second.len(), statuses), (1, vec!["ok".to_owned()]));
    assert_ne!(first[0].body, second[0].body);
    let both = [first, second].concat();
    for _ in 0..2 {
        // Without a message it is told all the same; a repeat is well too.
        let (none, statuses) = sidecar.receive_and_ack("max=1", &both).await?;
        assert!(none.is_empty(), "{none:?}");
        assert_eq!(statuses, ["ok", "ok"]);
    }

    sidecar.publish(&json!("c"), None).await?;
    let failed = sidecar.receive_some(1).await?;
    sidecar.nack(&failed, json!({"delay": "0s"})).await?;
    let (again, statuses) = sidecar.receive_and_ack("max=1&wait=5s", &failed).await?;
    assert_eq!(statuses, ["stale"], "an old receipt acknowledges nothing");
    assert_eq!((again.len(), again[0].deliveries), (1, 2));
    assert_eq!(sidecar.receive_and_ack("max=1", &again).await?.1, ["ok"]);
    world.settled().await?;
    Ok(())
}

#[tokio::test]
async fn what_is_malformed_neither_acknowledges_nor_receives() -> Result<()> {
    let world = World::start(settings()).await?;
    let sidecar = world.sidecar("shop").await?;
    for body in ["a", "b"] {
        sidecar.publish(&json!(body), None).await?;
    }
    let received = sidecar.receive_some(1).await?;
    let receipt = &received[0].receipt;
    for body in [
        json!({"ack": []}),
        json!({"ack": [receipt, "x"]}),
        json!({"ack": receipt}),
        json!({"receipts": [receipt]}),
        json!([[receipt]]),
    ] {
        let (status, problem) =
            sidecar.json(Method::POST, "orders/receive?max=1&wait=5s", body.clone()).await?;
        assert_eq!(
            (status, &problem["code"]),
            (StatusCode::BAD_REQUEST, &json!("invalid-request")),
            "{body}"
        );
    }
    let nobody = sidecar.json(Method::POST, "nobody/receive", json!({"ack": [receipt]})).await?;
    assert_eq!((nobody.0, &nobody.1["code"]), (StatusCode::NOT_FOUND, &json!("no-such-queue")));
    let account = world.judge().await?;
    assert_eq!((account.ready, account.in_flight, account.acknowledged), (1, 1, 0), "{account:?}");
    Ok(())
}

#[tokio::test]
async fn who_hangs_up_has_acknowledged_and_takes_no_message() -> Result<()> {
    let world = World::start(settings()).await?;
    let sidecar = world.sidecar("shop").await?;
    let poll = acknowledges_and_waits(&world, &sidecar).await?;
    poll.abort();
    assert!(poll.await.is_err_and(|error| error.is_cancelled()), "it was answered before anything came");
    sidecar.publish(&json!("b"), None).await?;
    let received = sidecar.receive_some(1).await?;
    assert_eq!(received[0].body, "b");
    assert_eq!(sidecar.ack(&received).await?, ["ok"]);
    world.settled().await?;
    Ok(())
}

#[tokio::test]
async fn a_sidecar_that_ends_tells_what_was_acknowledged() -> Result<()> {
    let world = World::start(settings()).await?;
    let mut sidecar = world.sidecar("shop").await?;
    let poll = acknowledges_and_waits(&world, &sidecar).await?;
    let status = sidecar.process.terminate().await?;
    ensure!(status.success(), "{status}");
    let (status, answer) = read(poll.await??).await?;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!(answer["messages"], json!([]));
    let acked = answer["acked"].as_array().context("nothing is told")?;
    let statuses: Vec<&Value> = acked.iter().map(|one| &one["status"]).collect();
    assert_eq!(statuses, ["ok"]);
    Ok(())
}

/// A message is received and acknowledged by a call that goes on waiting for another one.
async fn acknowledges_and_waits(
    world: &World,
    sidecar: &Sidecar,
) -> Result<JoinHandle<reqwest::Result<Response>>> {
    let body = json!("a");
    sidecar.publish(&body, None).await?;
    let received = sidecar.receive_some(1).await?;
    world.history.lock().ack_asked.insert((serde_json::to_vec(&body)?, 1));
    let poll = sidecar.ask(Method::POST, "orders/receive?max=10&wait=1m");
    let poll = tokio::spawn(poll.json(&json!({"ack": [received[0].receipt]})).send());
    eventually("it to be acknowledged", async || {
        let account = world.account().await?;
        ensure!(account.acknowledged == 1, "{account:?}");
        Ok(())
    })
    .await?;
    Ok(poll)
}
