//! A sidecar dies or freezes at every step of a queue, another one goes on; whatever happened, the history holds.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use concordat_protocol::{Key, queue::Settings};
use concordat_tests::{process::eventually, proxy::Proxy};
use futures::{StreamExt, TryStreamExt, stream};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::world::{Message, Sidecar, World, settings};

/// Each step, and how often it is passed before the fault.
const POINTS: [(&str, u32); 9] = [
    ("queue-before-publish", 2),
    ("queue-after-publish", 2),
    ("queue-before-claim", 1),
    ("queue-after-claim-before-answer", 1),
    ("queue-before-answer", 1),
    ("queue-before-ack", 1),
    ("queue-after-ack", 1),
    ("queue-before-dead-letter", 0),
    ("queue-after-dead-letter", 0),
];
const MESSAGES: u64 = 12;
/// One message in this many is poison.
const POISON: u64 = 4;
/// A request to a sidecar that froze is given up.
const PATIENCE: Duration = Duration::from_secs(8);

fn fragile() -> Settings {
    Settings { max_deliveries: 3, visibility: 2_000, ..settings() }
}

#[tokio::test]
async fn a_sidecar_is_killed_at_every_step() -> Result<()> {
    stream::iter(POINTS).map(|(point, after)| killed(point, after)).buffer_unordered(2).try_collect().await
}

#[tokio::test]
async fn a_sidecar_freezes_at_every_step_and_goes_on_too_late() -> Result<()> {
    stream::iter(POINTS).map(|(point, after)| frozen(point, after)).buffer_unordered(2).try_collect().await
}

async fn killed(point: &str, after: u32) -> Result<()> {
    let (world, mut victim, survivor) = stage(&format!("{point}={after}*off->return(kill)")).await?;
    work(&victim, &survivor).await.context(point.to_owned())?;
    victim.process.wait().await?;
    survive(&world, &survivor).await.with_context(|| format!("killed at {point}"))
}

async fn frozen(point: &str, after: u32) -> Result<()> {
    println!("freezing at {point}");
    let (world, victim, survivor) = stage(&format!("{point}={after}*off->1*return(stop)->off")).await?;
    work(&victim, &survivor).await.context(point.to_owned())?;
    eventually("the victim to freeze", async || {
        ensure!(victim.process.log().contains(point), "it has not come to {point}");
        Ok(())
    })
    .await?;
    // Its session ends while it is frozen. What it was about to do it does when it goes on: too late.
    eventually("the session of the victim to end", async || {
        let sessions = world.state().await?.into_keys().filter(|key| matches!(key, Key::Session(_))).count();
        ensure!(sessions == 1, "{sessions} sessions live");
        Ok(())
    })
    .await?;
    victim.process.resume()?;
    survive(&world, &survivor).await.with_context(|| format!("frozen at {point}"))?;
    // It goes on with another session.
    let received = eventually("the victim to serve again", async || {
        tokio::time::timeout(PATIENCE, victim.receive("max=10")).await?
    })
    .await?;
    assert!(received.is_empty(), "everything has ended: {received:?}");
    world.judge().await.with_context(|| format!("after {point}"))?;
    Ok(())
}

async fn stage(failpoints: &str) -> Result<(World, Sidecar, Sidecar)> {
    let world = World::start(fragile()).await?;
    let victim = world.sidecar_with("victim", Some(failpoints)).await?;
    let survivor = world.sidecar("survivor").await?;
    Ok((world, victim, survivor))
}

/// Publishes and consumes through the victim as long as it answers; what it did not answer goes to the survivor.
async fn work(victim: &Sidecar, survivor: &Sidecar) -> Result<()> {
    let publish = async {
        let mut answers = true;
        for number in 0..MESSAGES {
            let body = json!({ "number": number });
            let name = Some(("till", number));
            if answers {
                let stored = tokio::time::timeout(PATIENCE, victim.publish(&body, name)).await;
                answers = matches!(stored, Ok(Ok((status, _))) if status.is_success());
            }
            if !answers {
                eventually("the survivor to store it", async || {
                    let (status, answer) = survivor.publish(&body, name).await?;
                    ensure!(status.is_success(), "{status}: {answer}");
                    Ok(())
                })
                .await?;
            }
        }
        Ok::<_, anyhow::Error>(())
    };
    let consume = async {
        let mut last = Vec::new();
        while let Ok(Ok((messages, _))) =
            tokio::time::timeout(PATIENCE, victim.receive_and_ack("max=2&wait=1s", &last)).await
        {
            // Odd ones are acknowledged by the next receive.
            let odd =
                |message: &Message| message.body["number"].as_u64().is_some_and(|number| number % 2 == 1);
            let now: Vec<_>;
            (last, now) = messages.into_iter().partition(odd);
            if !matches!(tokio::time::timeout(PATIENCE, consume(victim, &now)).await, Ok(Ok(()))) {
                return;
            }
        }
    };
    let (published, ()) = tokio::join!(publish, consume);
    published
}

/// Consumes through the survivor until every message has ended, and judges.
async fn survive(world: &World, survivor: &Sidecar) -> Result<()> {
    eventually("every message to have ended", async || {
        let messages = survivor.receive("max=10&wait=1s").await?;
        consume(survivor, &messages).await?;
        let account = world.account().await?;
        ensure!(account.ready + account.in_flight == 0, "{account:?}");
        Ok(())
    })
    .await?;
    let account = world.judge().await?;
    ensure!(account.published == MESSAGES as usize, "{account:?}");
    ensure!(account.given_up >= (MESSAGES / POISON) as usize, "poison was acknowledged: {account:?}");
    Ok(())
}

/// Acknowledges messages, but gives poison back.
async fn consume(sidecar: &Sidecar, messages: &[Message]) -> Result<()> {
    let poison =
        |message: &&Message| message.body["number"].as_u64().is_some_and(|number| number % POISON == 0);
    let (bad, good): (Vec<_>, Vec<_>) = messages.iter().partition(poison);
    let (bad, good): (Vec<_>, Vec<_>) =
        (bad.into_iter().cloned().collect(), good.into_iter().cloned().collect());
    if !good.is_empty() {
        sidecar.ack(&good).await?;
    }
    if !bad.is_empty() {
        sidecar.nack(&bad, json!({"reason": "poison"})).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_redrive_that_dies_is_done_or_not() -> Result<()> {
    for point in ["queue-before-redrive", "queue-after-redrive"] {
        let world = World::start(fragile()).await?;
        let victim = world.sidecar_with("victim", Some(&format!("{point}=return(kill)"))).await?;
        let survivor = world.sidecar("survivor").await?;
        survivor.publish(&json!("a"), Some(("till", 1))).await?;
        let received = survivor.receive_some(1).await?;
        survivor.nack(&received, json!({"deadLetter": true})).await?;
        let redrive = victim.json(Method::POST, "orders/dead/redrive", json!({"all": true})).await;
        assert!(redrive.is_err(), "{redrive:?}");
        let (status, answer) =
            survivor.json(Method::POST, "orders/dead/redrive", json!({"all": true})).await?;
        assert_eq!(status, StatusCode::OK);
        let left = u64::from(point == "queue-before-redrive");
        assert_eq!(answer, json!({ "redriven": left }), "{point}");
        let received = survivor.receive_some(1).await?;
        assert_eq!(received.len(), 1);
        assert_eq!(survivor.ack(&received).await?, ["ok"]);
        assert!(survivor.receive("max=10").await?.is_empty());
    }
    Ok(())
}

#[tokio::test]
async fn a_sidecar_that_ends_gives_its_messages_back_at_once() -> Result<()> {
    let world = World::start(Settings { visibility: 600_000, ..fragile() }).await?;
    let mut leaving = world.sidecar("leaving").await?;
    let staying = world.sidecar("staying").await?;
    leaving.publish(&json!("a"), None).await?;
    let received = leaving.receive_some(1).await?;
    let poll = leaving.ask(Method::POST, "orders/receive?wait=1m");
    let (polled, ended) = tokio::join!(poll.send(), leaving_ends(&mut leaving.process));
    assert!(polled.is_err() || polled.is_ok_and(|answer| !answer.status().is_success()));
    ended?;
    let again = staying.receive_some(1).await?;
    assert_eq!((received[0].deliveries, again[0].deliveries), (1, 2));
    assert_eq!(staying.ack(&received).await?, ["stale"]);
    assert_eq!(staying.ack(&again).await?, ["ok"]);
    world.settled().await?;
    Ok(())
}

/// The answer by which it took a message comes when nobody waits for it any more.
#[tokio::test]
async fn a_sidecar_that_ends_gives_back_what_it_had_just_taken() -> Result<()> {
    let world = World::start(Settings { max_deliveries: 1, ..settings() }).await?;
    let staying = world.sidecar("staying").await?;
    let proxy = Proxy::start(world.etcd.address(0)).await?;
    let mut leaving = world.sidecar_behind("leaving", &proxy).await?;
    assert!(leaving.receive("").await?.is_empty());
    staying.publish(&json!("a"), None).await?;
    proxy.delay(Duration::from_secs(1));
    let poll = tokio::spawn(leaving.ask(Method::POST, "orders/receive?wait=1m").send());
    eventually("it to be taken", async || {
        let state = world.state().await?;
        ensure!(state.keys().any(|key| matches!(key, Key::Claim { .. })), "{state:?}");
        Ok(())
    })
    .await?;
    proxy.hold();
    let ends = async {
        let polled = poll.await?;
        ensure!(polled.is_err() || polled.is_ok_and(|answer| !answer.status().is_success()), "it was served");
        proxy.heal();
        Ok(())
    };
    let (ended, left) = tokio::join!(ends, leaving_ends(&mut leaving.process));
    ended?;
    left?;
    // Nobody saw it: its only delivery is still to come.
    let received = staying.receive_some(1).await?;
    assert_eq!(staying.ack(&received).await?, ["ok"]);
    world.settled().await?;
    Ok(())
}

async fn leaving_ends(process: &mut concordat_tests::process::Process) -> Result<()> {
    let status = process.terminate().await?;
    ensure!(status.success(), "{status}");
    Ok(())
}
