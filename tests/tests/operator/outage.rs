//! The Kubernetes API or etcd is away.

use concordat_crds::Lock;
use concordat_protocol::{Kind, Settings};
use concordat_tests::kube::Cluster;
use serde_json::{Value, json};

use crate::world::World;

#[tokio::test]
async fn sidecars_work_without_an_api_server_which_the_operator_then_follows_again() {
    let mut cluster = Cluster::start().await.unwrap();
    let world = World::alone(&cluster, "sidecars_work_without_an_api_server").await;
    let mut operator = world.operator("operator").await;
    world.create::<Lock>("a", json!({ "mode": "CompareAndSwap" })).await;
    world.stands::<Lock>("a", "True", "Accepted").await;

    cluster.stop_api_server();
    operator.leads(false).await;
    let sidecar = world.sidecar("worker", None).await;
    let http = reqwest::Client::new();
    let lock = async |key: &str| {
        let answer = http.post(format!("{}/locks/a/{key}", sidecar.url)).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
        answer.json::<Value>().await.unwrap()
    };
    let (first, second) = (lock("first").await, lock("second").await);
    let release = http.delete(format!("{}/locks/a/first", sidecar.url));
    let released = release.header("Lock-Token", first["token"].as_str().unwrap()).send().await.unwrap();
    assert_eq!(released.status(), 204);

    cluster.start_api_server().await.unwrap();
    operator.ready().await;
    operator.leads(true).await;
    let object: Lock = world.until("a", "what is held is shown", |lock| lock["status"]["held"] == 1).await;
    let holder = &object.status.unwrap().holders[0];
    assert_eq!((holder.key.as_str(), holder.pod.as_str()), ("second", "worker-0"));
    assert_eq!(Some(holder.fence), second["fence"].as_u64());
    world.update::<Lock>("a", json!({ "ttl": "9s" })).await;
    world.stands::<Lock>("a", "True", "Accepted").await;
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
