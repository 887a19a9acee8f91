//! The Kubernetes API or etcd is away.

use concordat_crds::Lock;
use concordat_protocol::{Kind, Settings};
use concordat_tests::kube::Cluster;
use serde_json::json;

use crate::world::World;

#[tokio::test]
async fn an_api_server_that_was_away_is_followed_again() {
    let mut cluster = Cluster::start().await.unwrap();
    let (namespace, etcd, mut operator) = {
        let world = World::within(&cluster, "an_api_server_that_was_away_is_followed_again").await;
        let operator = world.operator("operator").await;
        world.create::<Lock>("a", json!({ "mode": "CompareAndSwap" })).await;
        world.stands::<Lock>("a", "True", "Accepted").await;
        let World { namespace, etcd, .. } = world;
        (namespace.name().to_owned(), etcd, operator)
    };
    let _ = (&namespace, &etcd);
    cluster.stop_api_server();
    operator.leads(false).await;
    cluster.start_api_server().await.unwrap();
    operator.ready().await;
    operator.leads(true).await;
}

#[tokio::test]
async fn an_etcd_that_was_away_is_told_and_made_good_for() {
    let mut world = World::start("an_etcd_that_was_away_is_told_and_made_good_for").await;
    let mut operator = world.operator("operator").await;
    world.create::<Lock>("a", json!({ "mode": "CompareAndSwap", "ttl": "3s" })).await;
    world.stands::<Lock>("a", "True", "Accepted").await;
    world.etcd.kill(0).unwrap();
    world.update::<Lock>("a", json!({ "ttl": "8s" })).await;
    let lock: Lock = world.stands("a", "False", "StoreUnavailable").await;
    assert_eq!(lock.status.unwrap().held, 0);
    world.etcd.restart(0).await.unwrap();
    world.stands::<Lock>("a", "True", "Accepted").await;
    world.defined(Kind::Lock, "a", |of| matches!(&of.settings, Settings::Lock(of) if of.ttl == 8_000)).await;
    operator.ready().await;
}
