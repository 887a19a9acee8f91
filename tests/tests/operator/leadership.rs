//! One leads; a second one takes over; two that both believe they lead do no harm.

use std::{collections::BTreeMap, sync::Arc};

use concordat_crds::Lock;
use concordat_operator::{
    etcd::{Error, Term},
    metrics::Metrics,
};
use concordat_protocol::{Key, Kind, Lease, Plan, Record, session::Stat};
use concordat_store::{Admin, AdminConfig};
use concordat_tests::etcd::Etcd;
use serde_json::json;

use crate::world::World;

#[tokio::test]
async fn a_second_operator_takes_over_from_one_that_was_killed() {
    let world = World::start("a_second_operator_takes_over_from_one_that_was_killed").await;
    let mut first = world.operator("first").await;
    first.leads(true).await;
    let mut second = world.operator("second").await;
    second.ready().await;
    second.leads(false).await;
    world.create::<Lock>("a", json!({ "mode": "CompareAndSwap" })).await;
    world.stands::<Lock>("a", "True", "Accepted").await;

    first.process.kill().unwrap();
    world.update::<Lock>("a", json!({ "ttl": "9s" })).await;
    world.stands::<Lock>("a", "True", "Accepted").await;
    second.leads(true).await;
    assert_eq!(world.events("a").await, [("Accepted".to_owned(), 1)], "the second one tells nothing new");
    let epochs = world.recorder.changes().await.unwrap();
    let holders: Vec<String> = epochs
        .iter()
        .filter_map(|change| match &change.entry.as_ref()?.record {
            Record::Epoch(epoch) => epoch.holder.split('_').next().map(Into::into),
            _ => None,
        })
        .collect();
    assert_eq!(holders, ["first", "second"]);
}

#[tokio::test]
async fn an_operator_that_is_asked_to_end_hands_its_lease_over_and_exits_with_success() {
    let world = World::start("an_operator_that_is_asked_to_end").await;
    let mut first = world.operator("first").await;
    first.leads(true).await;
    let status = first.process.terminate().await.unwrap();
    assert!(status.success(), "{status}");
    let leases: kube::Api<k8s_openapi::api::coordination::v1::Lease> = world.api();
    let lease = leases.get("concordat-operator").await.unwrap().spec.unwrap();
    assert_eq!(lease.holder_identity.unwrap_or_default(), "");
}

#[tokio::test]
async fn a_leader_that_froze_past_its_lease_does_no_harm_when_it_goes_on() {
    let world = World::start("a_leader_that_froze_past_its_lease_does_no_harm_when_it_goes_on").await;
    let first = world.operator("first").await;
    first.leads(true).await;
    world.create::<Lock>("a", json!({ "mode": "CompareAndSwap", "ttl": "3s" })).await;
    world.stands::<Lock>("a", "True", "Accepted").await;
    first.process.pause().unwrap();
    let second = world.operator("second").await;
    second.leads(true).await;
    for ttl in ["4s", "5s", "6s"] {
        world.update::<Lock>("a", json!({ "ttl": ttl })).await;
        world.stands::<Lock>("a", "True", "Accepted").await;
    }
    first.process.resume().unwrap();
    first.leads(false).await;
    world.update::<Lock>("a", json!({ "ttl": "7s" })).await;
    world.stands::<Lock>("a", "True", "Accepted").await;
    second.leads(true).await;

    let mut last: BTreeMap<Key, i64> = BTreeMap::new();
    for change in world.recorder.changes().await.unwrap() {
        if let Some(Record::Definition(definition)) = change.entry.map(|entry| entry.record) {
            let before = last.insert(change.key, definition.generation).unwrap_or_default();
            assert!(before < definition.generation, "generation {} after {before}", definition.generation);
        }
    }
    assert_eq!(last.into_values().collect::<Vec<_>>(), [5]);
}

#[tokio::test]
async fn the_writes_of_a_term_are_refused_once_another_has_begun() {
    let etcd = Etcd::start().await.unwrap();
    let admin = async || {
        let config = AdminConfig { endpoints: etcd.endpoints(), ..AdminConfig::default() };
        Admin::connect(config).await.unwrap()
    };
    let term = async |holder| Term::begin(admin().await, holder, Arc::new(Metrics::default())).await.unwrap();
    let key = Key::Stat { kind: Kind::Lock, name: "a".into(), session: "s".into() };
    let put = || Plan::new().put(key.clone(), Stat::default(), Lease::Forever);
    let first = term("first").await;
    assert!(first.write("ns", put()).await.unwrap().held);
    let second = term("second").await;
    let before = admin().await.read("ns", vec![key.clone().into()]).await.unwrap();
    for plan in [put(), Plan::new().delete(key.clone()), Plan::new().absent(key.clone()).delete(key.clone())]
    {
        assert!(matches!(first.write("ns", plan).await, Err(Error::Superseded)));
    }
    assert!(first.over().is_cancelled() && !second.over().is_cancelled());
    assert_eq!(admin().await.read("ns", vec![key.clone().into()]).await.unwrap().reads, before.reads);
    // A compare of the plan's own that does not hold is not taken for that.
    assert!(!second.write("ns", Plan::new().absent(key.clone()).delete(key)).await.unwrap().held);
    assert!(!second.over().is_cancelled());
}
