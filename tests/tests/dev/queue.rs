//! `concordat describe queue` and `concordat queue`.

use anyhow::{Context, Result, ensure};
use concordat_tests::process::eventually;
use serde_json::{Value, json as document};

use crate::world::{Dev, Manifests, QUEUE, concordat, json, rows};

/// Publishes a message and gives it up; its id.
async fn dead(dev: &Dev, body: &str) -> Result<String> {
    let published = dev.send("POST", "/v1/queues/mails/messages", body).await?;
    ensure!(published.status == 201, "{published:?}");
    let received = dev.send("POST", "/v1/queues/mails/receive?max=1&wait=30s", "").await?;
    let receipt = &received.body["messages"][0]["receipt"];
    let nack = document!({"receipts": [receipt], "deadLetter": true, "reason": "no such address"});
    let nacked = dev.send("POST", "/v1/queues/mails/nack", &nack.to_string()).await?;
    ensure!(nacked.body["results"][0]["status"] == "ok", "{nacked:?}");
    Ok(published.body["id"].as_str().context("no id")?.to_owned())
}

#[tokio::test]
async fn dead_letters_are_shown_and_put_back() -> Result<()> {
    let dev = Dev::start(&Manifests::new(&[("queue.yaml", QUEUE)])?, &[]).await?;
    let etcd = dev.etcd()?;
    let first = dead(&dev, r#"{"to": "a"}"#).await?;
    let second = dead(&dev, r#"{"to": "b"}"#).await?;

    let told = concordat(&etcd, &["queue", "peek", "mails"])?;
    let letters = rows(&told, &["ID", "KEY", "DELIVERIES", "REASON"]);
    assert_eq!(letters.len(), 2, "{told}");
    assert_eq!(letters[0][..4], [&first, "-", "1", "no such address"], "{told}");
    assert_eq!(letters[0][5], r#"{"to":"a"}"#, "{told}");
    let one: Value = json(&etcd, &["queue", "peek", "mails", "--max", "1"])?;
    assert_eq!((one.as_array().map(Vec::len), &one[0]["id"]), (Some(1), &first.as_str().into()));

    let told = json(&etcd, &["describe", "queue", "mails"])?;
    assert_eq!((&told["name"], &told["mode"]), (&"mails".into(), &"WorkQueue".into()), "{told}");
    assert_eq!((&told["ready"], &told["dead"]), (&0.into(), &2.into()), "{told}");
    assert_eq!(told["deadLetters"].as_array().map(Vec::len), Some(2), "{told}");

    assert_eq!(concordat(&etcd, &["queue", "redrive", "mails", &first])?, "put back into mails: 1\n");
    assert_eq!(json(&etcd, &["queue", "redrive", "mails", "--all"])?["redriven"], 1, "{second} is left");
    let told = concordat(&etcd, &["describe", "queue", "mails"])?;
    assert!(told.contains("Ready messages:   2\n") && told.contains("Dead letters: none\n"), "{told}");
    Ok(())
}

#[tokio::test]
async fn who_consumes_is_shown() -> Result<()> {
    let dev = Dev::start(&Manifests::new(&[("queue.yaml", QUEUE)])?, &[]).await?;
    let etcd = dev.etcd()?;
    let waits = dev.send("POST", "/v1/queues/mails/receive?wait=60s", "");
    let shown = async {
        eventually("the consumer is told", async || {
            let told = concordat(&etcd, &["describe", "queue", "mails"])?;
            let consumers = rows(&told, &["APP", "POD", "DELIVERED"]);
            ensure!(consumers == [["accounts", "accounts-0", "0"]], "{told}");
            Ok(())
        })
        .await
    };
    tokio::select! {
        answer = waits => anyhow::bail!("there is no message: {answer:?}"),
        shown = shown => shown,
    }
}

#[tokio::test]
async fn what_is_not_there_is_said() -> Result<()> {
    let dev = Dev::start(&Manifests::new(&[("queue.yaml", QUEUE)])?, &[]).await?;
    let etcd = dev.etcd()?;
    for (arguments, said) in [
        (&["describe", "queue", "mail"][..], "there is no queue \"mail\" in namespace \"default\""),
        (&["describe", "queue", "mail"], "(there: mails)"),
        (&["queue", "peek", "mail"], "no-such-queue"),
        (&["queue", "redrive", "mails"], "<IDS"),
        (&["queue", "redrive", "mails", "0-1", "--all"], "cannot be used with"),
        (&["queue", "peek", "mails", "--max", "1001"], "1..=1000"),
    ] {
        let error = concordat(&etcd, arguments).expect_err("it is not there").to_string();
        assert!(error.contains(said), "{arguments:?}: {error}");
    }
    Ok(())
}
