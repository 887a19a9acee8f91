//! What is answered is lost, of each answer in turn: etcd's to a sidecar, and a sidecar's to its caller.

use anyhow::{Result, ensure};
use concordat_tests::{
    etcd::Etcd,
    history::lock::{RELEASE, RENEWAL},
    process::eventually,
    proxy::Proxy,
};
use reqwest::StatusCode;
use serde_json::json;

use crate::world::{LOCKS, Options, World};

/// More replies than any round has, whatever is late.
const MOST: u64 = 60;

/// Pitfalls 5 and 6: while a grant is asked for, renewed and let go.
#[tokio::test]
async fn every_reply_of_etcd_may_be_lost_once() -> Result<()> {
    let world = World::of_both_modes(Etcd::start().await?).await?;
    let proxy = Proxy::start(world.etcd.address(0)).await?;
    let options = Options { etcd: Some(proxy.endpoint()), ..Options::default() };
    let sidecar = world.sidecar_with("a", options).await?;
    for lock in LOCKS {
        let path = format!("{lock}/k");
        let mut nth = 0;
        loop {
            nth += 1;
            ensure!(nth < MOST, "replies without end");
            let before = proxy.replies();
            proxy.drop_reply(nth);
            let grant = eventually("a grant", async || {
                let grant = world
                    .acquire(
                        &sidecar,
                        &format!("{path}?wait=30s"),
                        json!({"ttl": "8s", "renew": true, "maxHold": "10m"}),
                    )
                    .await?;
                ensure!(grant.status == StatusCode::OK, "{grant:?}");
                Ok(grant)
            })
            .await?;
            let granted = proxy.replies();
            eventually("its lease is kept alive", async || {
                ensure!(proxy.replies() > granted, "not yet");
                Ok(())
            })
            .await?;
            eventually("it is renewed", async || {
                let renewed = sidecar.with_token(RENEWAL, &path, &grant.token()).await?;
                ensure!(renewed.status == StatusCode::OK, "{renewed:?}");
                Ok(())
            })
            .await?;
            eventually("it is let go", async || {
                let released = world.let_go(&sidecar, &path, &grant).await?;
                ensure!(released.status == StatusCode::NO_CONTENT, "{released:?}");
                Ok(())
            })
            .await?;
            world.path_is_free(&path).await?;
            // A round in which none was dropped had fewer than that: each was dropped once.
            if proxy.replies() < before + nth {
                break;
            }
        }
        ensure!(nth > 3, "no reply to an acquire, a keepalive or a release was among them");
        world.judge_path(&path).await?;
    }
    Ok(())
}

/// Pitfalls 3 and 5: the sidecar did it, its caller does not know and asks again.
#[tokio::test]
async fn every_answer_of_a_sidecar_may_be_lost_once() -> Result<()> {
    let world = World::of_both_modes(Etcd::start().await?).await?;
    let (mut sidecar, other) = (world.sidecar("a").await?, world.sidecar("b").await?);
    let proxy = sidecar.behind_proxy().await?;
    for lock in LOCKS {
        let path = format!("{lock}/k");
        let body = json!({"ttl": "1m", "owner": "once"});
        proxy.drop_reply(1);
        ensure!(sidecar.acquire_as(&path, &body, lock).await.is_err(), "the grant was to be lost");
        let grant = sidecar.acquire_as(&path, &body, lock).await?;
        assert_eq!(grant.status, StatusCode::OK, "{grant:?}");
        let again = sidecar.acquire_as(&path, &body, lock).await?;
        assert_eq!((again.token(), again.fence()), (grant.token(), grant.fence()));
        assert_eq!(world.acquire(&other, &path, json!({})).await?.code(), "lock-held");
        for what in [RENEWAL, RELEASE] {
            if what == RELEASE {
                world.stop_believing(&grant);
            }
            proxy.drop_reply(1);
            ensure!(
                sidecar.with_token(what, &path, &grant.token()).await.is_err(),
                "the {what} was to be lost"
            );
            let answer = sidecar.with_token(what, &path, &grant.token()).await?;
            ensure!(answer.status.is_success(), "a {what}: {answer:?}");
        }
        let next = world.acquire(&other, &path, json!({"ttl": "1m"})).await?;
        assert_eq!(next.status, StatusCode::OK, "{next:?}");
        assert!(next.fence() > grant.fence());
        // The release that was lost comes once more.
        assert_eq!(world.let_go(&sidecar, &path, &grant).await?.status, StatusCode::NO_CONTENT);
        assert_eq!(other.with_token(RENEWAL, &path, &next.token()).await?.status, StatusCode::OK);
        world.judge_path(&path).await?;
    }
    assert_eq!(world.judge("k").await?.changes.len(), 4, "granted, told to be, let go, granted");
    assert_eq!(world.judge_line("fair", "k").await?.stood.len(), 3, "granted, refused, granted");
    Ok(())
}
