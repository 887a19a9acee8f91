//! A backlog that is larger than what a sidecar keeps of it in memory.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use concordat_protocol::queue;
use concordat_tests::process::eventually;
use futures::future::try_join_all;
use parking_lot::Mutex;
use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{QUEUE, Sidecar, World, read, settings};

/// Messages, and bytes of each: 72 MiB.
const MESSAGES: usize = 300;
const BYTES: usize = 250_000;
/// So many of them are 4 MiB, the most that one answer has of dead letters.
const BROWSED: usize = (4 << 20) / BYTES;
/// What a sidecar may take of a node unless it is told otherwise (`sidecar.resources` of the chart).
const MEMORY: u64 = 128 << 20;
/// Who works at a time.
const TOGETHER: usize = 4;

fn large() -> queue::Settings {
    queue::Settings { retention_bytes: 1 << 30, ..settings() }
}

/// The body of a message: its number, and much.
fn body(number: usize) -> String {
    format!("{number} {}", "x".repeat(BYTES))
}

/// Which message a body is of; nothing of it may be missing.
fn number(body: &Value) -> Result<usize> {
    let text = body.as_str().context("no text")?;
    let number = text.split(' ').next().unwrap_or_default().parse()?;
    ensure!(text == self::body(number), "the body of {number} is another");
    Ok(number)
}

async fn publish(sidecar: &Sidecar) -> Result<()> {
    let publishers = (0..TOGETHER).map(|publisher| async move {
        for number in (publisher..MESSAGES).step_by(TOGETHER) {
            let request = sidecar.ask(Method::POST, &format!("{QUEUE}/messages"));
            let request = request.header("content-type", "text/plain").body(body(number));
            let (status, answer) = read(request.send().await?).await?;
            ensure!(status.is_success(), "{status}: {answer}");
        }
        Ok(())
    });
    try_join_all(publishers).await?;
    Ok(())
}

#[tokio::test]
async fn it_arrives_whole() -> Result<()> {
    let world = World::start(large()).await?;
    let publisher = world.sidecar("publisher").await?;
    publish(&publisher).await?;
    let consumer = &world.sidecar("consumer").await?;
    let arrived = &Mutex::new(BTreeSet::new());
    let consumers = (0..TOGETHER).map(|_| {
        eventually("all of it arrives", async move || {
            while arrived.lock().len() < MESSAGES {
                let messages = consumer.receive("max=4&wait=1s").await?;
                ensure!(!messages.is_empty(), "{} have arrived", arrived.lock().len());
                for message in &messages {
                    assert!(arrived.lock().insert(number(&message.body)?), "it came twice");
                }
                let statuses = consumer.settle("ack", &messages, json!({})).await?;
                assert!(statuses.iter().all(|status| status == "ok"), "{statuses:?}");
            }
            Ok(())
        })
    });
    try_join_all(consumers).await?;
    assert_eq!(*arrived.lock(), (0..MESSAGES).collect());
    assert!(consumer.process.peak()? < MEMORY);
    Ok(())
}

/// Whoever buries them has not read all of them.
#[tokio::test]
async fn what_was_lost_with_its_last_delivery_becomes_dead_letters_whole() -> Result<()> {
    let world = World::start(queue::Settings { max_deliveries: 1, ..large() }).await?;
    let mut victim = world.sidecar("victim").await?;
    publish(&victim).await?;
    let survivor = world.sidecar("survivor").await?;
    let mut taken = 0;
    eventually("the victim takes all", async || {
        while taken < MESSAGES {
            let messages = victim.receive("max=4&wait=1s").await?.len();
            ensure!(messages > 0, "it has {taken}");
            taken += messages;
        }
        Ok(())
    })
    .await?;
    assert!(survivor.receive("max=1&wait=1s").await?.is_empty(), "all are in the victim's hands");
    victim.process.kill()?;
    let mut dead = BTreeSet::new();
    eventually("they become dead letters", async || {
        let (status, answer) = survivor.get(&format!("{QUEUE}/dead?max=1000")).await?;
        ensure!(status.is_success(), "{status}: {answer}");
        let letters = answer["messages"].as_array().context("no messages")?;
        assert!(letters.len() <= BROWSED, "{} of them in one answer", letters.len());
        for letter in letters {
            assert!(dead.insert(number(&letter["body"])?), "it was put back");
        }
        // An answer has only some of them, the oldest: these are put back, for the next answer to have others.
        let ids: Vec<_> = letters.iter().map(|letter| letter["id"].clone()).collect();
        let redriven =
            survivor.json(Method::POST, &format!("{QUEUE}/dead/redrive"), json!({ "ids": ids })).await?;
        ensure!(ids.is_empty() || redriven.1["redriven"] == ids.len(), "{redriven:?}");
        ensure!(dead.len() == MESSAGES, "{} of them", dead.len());
        Ok(())
    })
    .await?;
    assert_eq!(dead, (0..MESSAGES).collect());
    assert!(survivor.process.peak()? < MEMORY);
    assert_eq!(world.account().await?.ready, MESSAGES, "they are messages again");
    Ok(())
}
