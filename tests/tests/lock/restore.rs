//! An etcd that comes back older than it was: detected, refused until its epoch is raised, and then with fences above
//! every earlier one.

use anyhow::{Result, anyhow, ensure};
use concordat_protocol::lock::Mode;
use concordat_tests::process::eventually;
use reqwest::StatusCode;
use serde_json::json;

use super::world::{Answer, NAMESPACE, Options, Sidecar, World, fair, settings};

const WAITING: &str = "?wait=60s";

/// Has a lock granted and releases it; answers the grant.
async fn once(world: &World, sidecar: &Sidecar, path: &str) -> Result<Answer> {
    let grant = world.acquire(sidecar, &format!("{path}{WAITING}"), json!({})).await?;
    ensure!(grant.status == StatusCode::OK, "{grant:?}");
    world.stop_believing(&grant);
    let released = world.let_go(sidecar, path, &grant).await?;
    ensure!(released.status == StatusCode::NO_CONTENT, "{released:?}");
    Ok(grant)
}

/// Waits until a sidecar refuses, and looks at how.
async fn refuses(sidecar: &Sidecar) -> Result<()> {
    eventually("it refuses", async || {
        let answer = sidecar.get("/v1/locks/orders/a").await?;
        ensure!(answer.code() == "etcd-restored", "{answer:?}");
        ensure!(answer.status == StatusCode::SERVICE_UNAVAILABLE, "{answer:?}");
        ensure!(answer.body["outcome"] == "notApplied" && answer.retry_after.is_some(), "{answer:?}");
        let command = answer.body["command"].as_str().unwrap_or_default();
        ensure!(command.starts_with("concordat epoch raise --etcd http://"), "{answer:?}");
        ensure!(command.ends_with(&format!("--namespace {NAMESPACE}")), "{answer:?}");
        let (status, reasons) = sidecar.ready().await?;
        ensure!(status == StatusCode::SERVICE_UNAVAILABLE && reasons.contains(command), "{reasons}");
        Ok(())
    })
    .await
}

async fn goes_on(sidecar: &Sidecar) -> Result<()> {
    eventually("it goes on", async || {
        let (status, reasons) = sidecar.ready().await?;
        if status == StatusCode::OK { Ok(()) } else { Err(anyhow!(reasons)) }
    })
    .await
}

#[tokio::test]
async fn a_running_sidecar_notices_that_etcd_came_back_older_and_goes_on_once_it_is_raised() -> Result<()> {
    let mut world = World::one().await?;
    world.define("fair", fair()).await?;
    let sidecar = world.sidecar("a").await?;
    let held = world.acquire(&sidecar, "orders/held", json!({})).await?;
    ensure!(held.status == StatusCode::OK, "{held:?}");
    let backup = world.etcd.back_up().await?;
    let mut before = Vec::new();
    for path in ["orders/a", "fair/a", "orders/a", "fair/a"] {
        before.push(once(&world, &sidecar, path).await?.fence());
    }
    world.give_up("orders/held");
    world.etcd.put_back(&backup).await?;

    refuses(&sidecar).await?;
    // One that comes anew remembers nothing: it was told.
    let fresh = world.starting("b", Options::default())?;
    refuses(&fresh).await?;
    let raised = world.admin.raise(NAMESPACE, 0, false).await?;
    assert_eq!(raised.timeline.epoch, 1);
    for sidecar in [&sidecar, &fresh] {
        goes_on(sidecar).await?;
    }

    let most = before.iter().max().copied().unwrap_or_default();
    let mut last = most;
    for (path, sidecar) in
        [("orders/a", &sidecar), ("fair/a", &fresh), ("orders/a", &fresh), ("fair/a", &sidecar)]
    {
        let grant = once(&world, sidecar, path).await?;
        ensure!(grant.fence() > last, "{} after {last}", grant.fence());
        last = grant.fence();
    }
    // Whoever held a key in the snapshot is not believed, and does not stand in the way.
    ensure!(once(&world, &fresh, "orders/held").await?.fence() > most);
    // What is shown and compared is the fence that was given.
    let grant = world.acquire(&sidecar, "fair/shown", json!({})).await?;
    let shown = fresh.get("/v1/locks/fair/shown").await?;
    assert_eq!(shown.body["holders"][0]["fence"], grant.body["fence"], "{shown:?}");
    let verified = fresh.get(&format!("/v1/locks/fair/shown/verify?fence={}", grant.fence())).await?;
    assert_eq!(verified.status, StatusCode::OK, "{verified:?}");
    assert_eq!(
        fresh.get(&format!("/v1/locks/fair/shown/verify?fence={most}")).await?.status,
        StatusCode::GONE
    );
    Ok(())
}

/// `etcdutl snapshot restore` makes the cluster's id of its token and its peers' addresses: with the same, of which etcd's
/// own instructions are an example, it is the same. Then the log tells, which begins anew.
#[tokio::test]
async fn a_restored_snapshot_is_refused_though_nobody_remembers() -> Result<()> {
    for token in [None, Some("another")] {
        let mut world = World::one().await?;
        world
            .define(
                "brief",
                concordat_protocol::lock::Settings { mode: Mode::Lease, ttl: 2_000, ..settings() },
            )
            .await?;
        let mut sidecar = world.sidecar("a").await?;
        let before = once(&world, &sidecar, "brief/a").await?.fence();
        // Written when a session is opened: by then the log is longer than a restored one.
        for _ in 0..100 {
            once(&world, &sidecar, "brief/a").await?;
        }
        sidecar.process.terminate().await?;
        let mut sidecar = world.sidecar("b").await?;
        sidecar.process.kill()?;
        world.etcd.restore(token).await?;

        let fresh = world.starting("c", Options::default())?;
        refuses(&fresh).await?;
        world.admin.raise(NAMESPACE, 0, false).await?;
        goes_on(&fresh).await?;
        ensure!(once(&world, &fresh, "brief/a").await?.fence() > before);
    }
    Ok(())
}

#[tokio::test]
async fn what_was_not_restored_is_raised_by_force_alone_and_ends_every_session() -> Result<()> {
    let world = World::one().await?;
    let sidecar = world.sidecar("a").await?;
    let before = once(&world, &sidecar, "orders/a").await?.fence();
    let refused = world.admin.raise(NAMESPACE, 0, false).await.unwrap_err();
    ensure!(refused.to_string().contains("no sign of having been restored"), "{refused}");

    let held = world.acquire(&sidecar, "orders/b", json!({})).await?;
    world.give_up("orders/b");
    let above = concordat_protocol::timeline::above(1 << 50);
    let raised = world.admin.raise(NAMESPACE, above, true).await?;
    assert_eq!((raised.timeline.epoch, raised.sessions), (1, 1));
    // Not one grant that etcd made after it is of the former epoch, whatever the sidecar has noticed.
    let granted = eventually("it grants again", async || {
        let grant = world.acquire(&sidecar, "orders/c", json!({})).await?;
        ensure!(grant.status == StatusCode::OK, "{grant:?}");
        Ok(grant)
    })
    .await?;
    ensure!(granted.fence() > 1 << 50, "{granted:?}");
    ensure!(before < held.fence() && held.fence() < 1 << 50);
    Ok(())
}
