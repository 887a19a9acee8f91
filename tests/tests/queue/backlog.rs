//! A backlog that is larger than what a sidecar keeps of it in memory.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use concordat_protocol::queue;
use concordat_tests::process::eventually;
use futures::future::try_join_all;
use reqwest::Method;
use serde_json::Value;

use crate::world::{QUEUE, Sidecar, World, read, settings};

/// Messages, and bytes of each: 72 MiB.
const MESSAGES: usize = 300;
const BYTES: usize = 250_000;
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
    let consumers = (0..TOGETHER).map(|_| async move {
        let mut arrived = BTreeSet::new();
        loop {
            let messages = consumer.receive("max=4&wait=1s").await?;
            if messages.is_empty() {
                return Ok(arrived);
            }
            for message in &messages {
                ensure!(arrived.insert(number(&message.body)?), "it came twice");
            }
            ensure!(
                consumer
                    .settle("ack", &messages, Value::Object(Default::default()))
                    .await?
                    .iter()
                    .all(|status| status == "ok")
            );
        }
    });
    let arrived: Vec<usize> = try_join_all(consumers).await?.into_iter().flatten().collect();
    assert_eq!(arrived.len(), MESSAGES);
    assert_eq!(arrived.into_iter().collect::<BTreeSet<_>>(), (0..MESSAGES).collect());
    Ok(())
}

/// Whoever buries them has not read all of them.
#[tokio::test]
async fn what_was_lost_with_its_last_delivery_becomes_dead_letters_whole() -> Result<()> {
    let world = World::start(queue::Settings { max_deliveries: 1, ..large() }).await?;
    let mut victim = world.sidecar_with("victim", Some("")).await?;
    publish(&victim).await?;
    let survivor = world.sidecar("survivor").await?;
    let mut taken = 0;
    while taken < MESSAGES {
        taken += victim.receive("max=4&wait=1s").await?.len();
    }
    assert!(survivor.receive("max=1&wait=1s").await?.is_empty(), "all are in the victim's hands");
    victim.process.kill()?;
    let dead = eventually("they become dead letters", async || {
        let (status, answer) = survivor.get(&format!("{QUEUE}/dead?max=1000")).await?;
        ensure!(status.is_success(), "{status}: {answer}");
        let letters = answer["messages"].as_array().context("no messages")?;
        ensure!(letters.len() == MESSAGES, "{} of them", letters.len());
        letters.iter().map(|letter| number(&letter["body"])).collect::<Result<BTreeSet<_>>>()
    })
    .await?;
    assert_eq!(dead, (0..MESSAGES).collect());
    Ok(())
}
