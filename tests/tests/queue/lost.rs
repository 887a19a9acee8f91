//! What is answered is lost, of each answer in turn: etcd's to a sidecar, and a sidecar's to its client.

use anyhow::{Result, ensure};
use concordat_protocol::queue::Settings;
use concordat_tests::{process::eventually, proxy::Proxy};
use serde_json::json;

use crate::world::{Sidecar, World, settings};

/// More replies than any round has, whatever is late.
const MOST: u64 = 60;

/// What nobody heard of is soon delivered again.
fn impatient() -> Settings {
    Settings { visibility: 2_000, ..settings() }
}

/// Publishes until it is stored.
async fn publish(sidecar: &Sidecar, number: u64) -> Result<()> {
    eventually("a message to be stored", async || {
        let (status, answer) = sidecar.publish(&json!(number), Some(("till", number))).await?;
        ensure!(status.is_success(), "{status}: {answer}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn every_reply_of_etcd_may_be_lost_once() -> Result<()> {
    let world = World::start(impatient()).await?;
    let proxy = Proxy::start(world.etcd.address(0)).await?;
    let sidecar = world.sidecar_behind("shop", &proxy).await?;
    let mut nth = 0;
    loop {
        nth += 1;
        ensure!(nth < MOST, "replies without end");
        let before = proxy.replies();
        proxy.drop_reply(nth);
        publish(&sidecar, nth).await?;
        eventually("it to be acknowledged", async || {
            let received = sidecar.receive("max=10&wait=1s").await?;
            if !received.is_empty() {
                sidecar.ack(&received).await?;
            }
            let account = world.account().await?;
            ensure!(account.acknowledged as u64 == nth, "{account:?}");
            Ok(())
        })
        .await?;
        // A round in which none was dropped had fewer than that: each was dropped once.
        if proxy.replies() < before + nth {
            break;
        }
    }
    ensure!(nth > 3, "no reply to a publish, a receive or an ack was among them");
    let account = world.settled().await?;
    ensure!(account.published as u64 == nth && account.given_up == 0, "{account:?}");
    Ok(())
}

#[tokio::test]
async fn every_answer_of_a_sidecar_may_be_lost_once() -> Result<()> {
    let world = World::start(impatient()).await?;
    let mut sidecar = world.sidecar("shop").await?;
    let proxy = sidecar.behind_proxy().await?;
    proxy.drop_reply(1);
    ensure!(sidecar.publish(&json!(1), Some(("till", 1))).await.is_err(), "it was to be lost");
    publish(&sidecar, 1).await?;
    proxy.drop_reply(1);
    ensure!(sidecar.receive("max=1&wait=5s").await.is_err(), "it was to be lost");
    let received = sidecar.receive_some(10).await?;
    ensure!(received.len() == 1 && received[0].deliveries == 2, "{received:?}");
    proxy.drop_reply(1);
    ensure!(sidecar.ack(&received).await.is_err(), "it was to be lost");
    assert_eq!(sidecar.ack(&received).await?, ["ok"], "a repeat");
    let account = world.settled().await?;
    ensure!((account.published, account.acknowledged) == (1, 1), "{account:?}");
    Ok(())
}
