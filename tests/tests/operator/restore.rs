//! etcd comes back older than it was while nobody that uses it lives: Kubernetes remembers.

use anyhow::ensure;
use concordat_crds::{DistributedTransaction, Lock};
use concordat_operator::leader::REMEMBERED;
use concordat_store::{Admin, AdminConfig};
use concordat_tests::process::eventually;
use k8s_openapi::api::coordination::v1::Lease;
use serde_json::json;

use crate::world::{World, condition, holds};

#[tokio::test]
async fn a_leader_finds_by_its_lease_that_etcd_was_restored_and_tells_every_object() {
    let mut world = World::start("a_leader_finds_by_its_lease_that_etcd_was_restored").await;
    let mut first = world.operator("first").await;
    world.create::<Lock>("a", json!({ "mode": "CompareAndSwap" })).await;
    world.stands::<Lock>("a", "True", "Accepted").await;
    let backup = world.etcd.back_up().await.unwrap();
    world
        .create::<DistributedTransaction>(
            "once",
            json!({
                "protocol": "TwoPhaseCommit", "run": "Once", "input": {}, "timeout": "1s",
                "participants": [{ "name": "debit", "app": "accounts" }],
            }),
        )
        .await;
    let coordinator = world.sidecar("other", None).await;
    world
        .until::<DistributedTransaction>("once", "it is aborted: nobody takes part", |object| {
            holds(object, "Aborted")
        })
        .await;
    drop(coordinator);
    let revision = world.etcd.revision().await.unwrap();
    eventually("the lease says how far etcd was", async || {
        let lease = world.api::<Lease>().get("concordat-operator").await?;
        let text = lease.metadata.annotations.unwrap_or_default().remove(REMEMBERED).unwrap_or_default();
        let seen = text.split_once(':').and_then(|(_, seen)| seen.parse::<i64>().ok()).unwrap_or_default();
        ensure!(seen >= revision, "{text} of {revision}");
        Ok(())
    })
    .await
    .unwrap();
    first.process.kill().unwrap();
    world.etcd.put_back(&backup).await.unwrap();

    let _second = world.operator("second").await;
    let refused = |object: &serde_json::Value| {
        condition(object, "Ready").is_some_and(|ready| {
            ready.reason == "StoreUnavailable"
                && ready.message.contains("concordat epoch raise --etcd http://")
        })
    };
    world.until::<Lock>("a", "the lock says that etcd was restored, and the command", refused).await;
    world.until::<DistributedTransaction>("once", "the transaction says so, too", refused).await;
    let config = AdminConfig { endpoints: world.etcd.endpoints(), ..AdminConfig::default() };
    let admin = Admin::connect(config).await.unwrap();
    admin.raise(&world.namespace, 0, false).await.unwrap();
    world.stands::<Lock>("a", "True", "Accepted").await;
    world.stands::<DistributedTransaction>("once", "True", "Accepted").await;

    // etcd knows nothing of the transaction any more; it is not begun a second time, and its outcome stays.
    let once: DistributedTransaction = world.api().get("once").await.unwrap();
    assert!(holds(&serde_json::to_value(&once).unwrap(), "Aborted"), "{once:?}");
    let left = admin.read(&world.namespace, vec![concordat_protocol::Range::Transactions]).await.unwrap();
    assert_eq!(left.reads, [vec![]]);
}
