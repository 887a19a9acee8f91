//! One leads; a second one takes over; two that both believe they lead do no harm.

use std::{collections::BTreeMap, sync::Arc};

use concordat_crds::Lock;
use concordat_operator::{
    etcd::{Error, Term},
    metrics::Metrics,
};
use concordat_protocol::{Definition, Key, Kind, Lease, Plan, Record, Settings, session::Stat};
use concordat_store::{Admin, AdminConfig};
use concordat_tests::{
    etcd::Etcd,
    history::{Change, Recorder},
};
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
    world.tells("a", &[("Accepted", 1)]).await;

    first.process.kill().unwrap();
    world.update::<Lock>("a", json!({ "ttl": "9s" })).await;
    world.stands::<Lock>("a", "True", "Accepted").await;
    second.leads(true).await;
    // The second one tells nothing new.
    world.tells("a", &[("Accepted", 1)]).await;
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

    let last = generations_rise(&world.recorder.changes().await.unwrap()).unwrap();
    assert_eq!(last.into_values().collect::<Vec<_>>(), [5]);
}

/// No operator undoes what a later one did: the generations of each definition rise. The last of each.
fn generations_rise(changes: &[Change]) -> Result<BTreeMap<Key, i64>, String> {
    let mut last: BTreeMap<Key, i64> = BTreeMap::new();
    for change in changes {
        if let Some(Record::Definition(definition)) = change.entry.as_ref().map(|entry| &entry.record) {
            let before = last.insert(change.key.clone(), definition.generation).unwrap_or_default();
            if before >= definition.generation {
                return Err(format!("generation {} came after {before}", definition.generation));
            }
        }
    }
    Ok(last)
}

/// Planted: a leader whose term is over writes without the compare on the epoch.
#[tokio::test]
async fn a_write_that_does_not_compare_the_epoch_is_found() {
    let etcd = Etcd::start().await.unwrap();
    let recorder = Recorder::start(etcd.client().await.unwrap());
    let first = term(&etcd, "first").await;
    let second = term(&etcd, "second").await;
    let key = Key::Definition { kind: Kind::Lock, name: "a".into() };
    let define = |generation| {
        let lock = Lock::new("a", serde_json::from_value(json!({ "mode": "CompareAndSwap" })).unwrap());
        let settings = Settings::Lock(concordat_operator::lock::compile(&lock).unwrap());
        let definition = Definition { uid: "a".into(), generation, settings };
        Plan::new().put(key.clone(), definition, Lease::Forever)
    };
    assert!(second.write("ns", define(2)).await.unwrap().held);
    assert!(matches!(first.write("ns", define(1)).await, Err(Error::Superseded)));
    generations_rise(&recorder.changes().await.unwrap()).unwrap();

    assert!(first.admin().write("ns", define(1)).await.unwrap().held);
    generations_rise(&recorder.changes().await.unwrap()).unwrap_err();
}

async fn admin(etcd: &Etcd) -> Admin {
    let config = AdminConfig { endpoints: etcd.endpoints(), ..AdminConfig::default() };
    Admin::connect(config).await.unwrap()
}

async fn term(etcd: &Etcd, holder: &str) -> Term {
    Term::begin(admin(etcd).await, holder, Arc::new(Metrics::default())).await.unwrap()
}

#[tokio::test]
async fn the_writes_of_a_term_are_refused_once_another_has_begun() {
    let etcd = Etcd::start().await.unwrap();
    let key = Key::Stat { kind: Kind::Lock, name: "a".into(), session: "s".into() };
    let put = || Plan::new().put(key.clone(), Stat::default(), Lease::Forever);
    let first = term(&etcd, "first").await;
    assert!(first.write("ns", put()).await.unwrap().held);
    let second = term(&etcd, "second").await;
    let before = admin(&etcd).await.read("ns", vec![key.clone().into()]).await.unwrap();
    for plan in [put(), Plan::new().delete(key.clone()), Plan::new().absent(key.clone()).delete(key.clone())]
    {
        assert!(matches!(first.write("ns", plan).await, Err(Error::Superseded)));
    }
    assert!(first.over().is_cancelled() && !second.over().is_cancelled());
    assert_eq!(admin(&etcd).await.read("ns", vec![key.clone().into()]).await.unwrap().reads, before.reads);
    // A compare of the plan's own that does not hold is not taken for that.
    assert!(!second.write("ns", Plan::new().absent(key.clone()).delete(key)).await.unwrap().held);
    assert!(!second.over().is_cancelled());
}
