//! What is answered is lost, of each answer in turn: etcd's to coordinator and participants, and a sidecar's to its
//! client.

use anyhow::{Result, ensure};
use concordat_tests::{etcd::Etcd, process::eventually, proxy::Proxy};

use super::world::World;

/// More replies than any round has, whatever is late.
const MOST: u64 = 120;

#[tokio::test]
async fn every_reply_of_etcd_may_be_lost_once() -> Result<()> {
    let etcd = Etcd::start().await?;
    let proxy = Proxy::start(etcd.address(0)).await?;
    let world = World::through(&etcd, "lost", proxy.endpoint()).await?;
    let (c, _p, _q) = (world.start("c", "").await?, world.start("p", "").await?, world.start("q", "").await?);
    let mut nth = 0;
    loop {
        nth += 1;
        ensure!(nth < MOST, "replies without end");
        let before = proxy.replies();
        proxy.drop_reply(nth);
        let id = format!("t{nth}");
        let told = eventually("it is decided", async || {
            let told = world.begin(&c, &id).await?;
            ensure!(matches!(told.status, 200 | 409), "{told:?}");
            Ok(told)
        })
        .await?;
        let finished = world.finished(&c, &id).await?;
        world.check(&id, &[&told.body, &finished], true).await?;
        // A round in which none was dropped had fewer than that: each was dropped once.
        if proxy.replies() < before + nth {
            break;
        }
    }
    ensure!(nth > 8, "no reply to a vote or a decision was among them");
    Ok(())
}

#[tokio::test]
async fn an_answer_that_a_client_lost_is_the_same_when_it_asks_again() -> Result<()> {
    let etcd = Etcd::start().await?;
    let world = World::new(&etcd, "asked-again").await?;
    let (mut c, _p, _q) =
        (world.start("c", "").await?, world.start("p", "").await?, world.start("q", "").await?);
    let proxy = Proxy::start(format!("127.0.0.1:{}", c.port)).await?;
    c.port = proxy.port();
    proxy.drop_reply(1);
    ensure!(world.begin(&c, "t1").await.is_err(), "it was to be lost");
    let told = world.begin(&c, "t1").await?;
    ensure!(told.status == 200, "{told:?}");
    let finished = world.finished(&c, "t1").await?;
    world.check("t1", &[&told.body, &finished], false).await
}
