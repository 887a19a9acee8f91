//! What the leader's metrics tell of custom resources, one by one.

use anyhow::ensure;
use concordat_crds::{DistributedTransaction, Lock, Queue};
use concordat_protocol::{
    Key, Kind, Now,
    lock::Holder,
    queue::{DeadLetter, Message, Segment, SegmentId},
    session::{Stat, counter},
    transaction::{Decision, Stage, Transaction, plans},
};
use concordat_tests::process::eventually;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::world::{Operator, World};

/// The line of a gauge of an object.
fn line(world: &World, gauge: &str, name: &str, value: &str) -> String {
    let namespace = &world.namespace;
    format!("concordat_operator_{gauge}{{object_namespace=\"{namespace}\",object_name=\"{name}\"}} {value}")
}

impl Operator {
    /// Waits until it tells these gauges of an object.
    async fn tells(&self, world: &World, name: &str, gauges: &[(&str, &str)]) {
        let lines: Vec<_> = gauges.iter().map(|(gauge, value)| line(world, gauge, name, value)).collect();
        self.measures(&lines.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }

    /// Waits until it tells nothing of an object.
    async fn tells_nothing(&self, name: &str) {
        eventually(&format!("nothing is told of {name}"), async || {
            let text = self.metrics().await?;
            ensure!(!text.contains(&format!("object_name=\"{name}\"")), "{text}");
            Ok(())
        })
        .await
        .unwrap();
    }
}

/// A sidecar counted something, which makes the operator look.
async fn counted(world: &World, kind: Kind, name: &str, counters: &[(&str, u64)]) {
    let key = Key::Stat { kind, name: name.into(), session: "s".into() };
    let counters = counters.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    world.put(&key, Stat { counters }, None).await;
}

fn segment(number: u64, messages: u32) -> SegmentId {
    SegmentId { session: "s".into(), number, messages, bytes: 1 }
}

#[tokio::test]
async fn what_is_stuck_dead_or_waited_for_is_measured_until_its_object_is_gone() {
    let world = World::start("what_is_stuck_dead_or_waited_for_is_measured").await;
    let operator = world.operator("operator").await;
    world.create::<Lock>("vault", json!({ "mode": "CompareAndSwap" })).await;
    world.create::<Queue>("mails", json!({ "mode": "WorkQueue" })).await;
    let spec =
        json!({ "protocol": "TwoPhaseCommit", "participants": [{ "name": "debit", "app": "accounts" }] });
    world.create::<DistributedTransaction>("pay", spec).await;
    // Where there is nothing, nought is told: an alert that cannot come for want of a series would not be noticed.
    let nought = [("lock_held", "0"), ("lock_waiters", "0"), ("lock_oldest_wait_seconds", "0.0")];
    operator.tells(&world, "vault", &nought).await;
    let nought =
        ["ready", "in_flight", "delayed", "dead_letters", "consumers"].map(|of| format!("queue_{of}"));
    operator.tells(&world, "mails", &nought.each_ref().map(|of| (of.as_str(), "0"))).await;
    operator.tells(&world, "mails", &[("queue_oldest_message_seconds", "0.0")]).await;
    let nought = ["active", "undecided", "stuck"].map(|of| format!("transactions_{of}"));
    operator.tells(&world, "pay", &nought.each_ref().map(|of| (of.as_str(), "0"))).await;
    operator.tells(&world, "pay", &[("transactions_oldest_seconds", "0.0")]).await;

    let held = Key::Holder { lock: "vault".into(), key: "k".into() };
    let holder = Holder {
        session: "s".into(),
        pod: "worker-0".into(),
        owner: "me".into(),
        since: 1,
        regrants: 0,
        stays: false,
    };
    world.put(&held, holder, None).await;
    counted(&world, Kind::Lock, "vault", &[(counter::WAITERS, 3)]).await;
    operator.tells(&world, "vault", &[("lock_held", "1"), ("lock_waiters", "3")]).await;

    let dead = Key::Dead { queue: "mails".into(), partition: 0, segment: segment(9, 1), index: 0 };
    world.put(&dead, DeadLetter::default(), None).await;
    let waiting = Key::Segment { queue: "mails".into(), partition: 0, segment: segment(1, 2) };
    world.put(&waiting, Segment { messages: vec![Message::default(); 2] }, None).await;
    counted(&world, Kind::Queue, "mails", &[(counter::DEAD_LETTERED, 1)]).await;
    operator.tells(&world, "mails", &[("queue_ready", "2"), ("queue_dead_letters", "1")]).await;

    let object: DistributedTransaction = world.stands("pay", "True", "Accepted").await;
    let definition = world.defined(Kind::Transaction, "pay", |_| true).await;
    let settings = concordat_operator::transaction::compile(&object).unwrap();
    let begun = plans::new("pay".into(), &settings, definition.create_revision, "{}".into(), Now::default());
    let begun = Transaction { coordinator: Some(("accounts".into(), "s".into())), ..begun };
    let mut refused = Transaction { decision: Some(Decision::Commit), ..begun.clone() };
    refused.branches[0].stage = Stage::Stuck;
    let [undecided, stuck] = ["one", "two"].map(|id| Key::Transaction(id.into()));
    world.put(&undecided, begun, None).await;
    world.put(&stuck, refused, None).await;
    counted(&world, Kind::Transaction, "pay", &[(counter::BEGUN, 2)]).await;
    let told = [("transactions_active", "2"), ("transactions_undecided", "1"), ("transactions_stuck", "1")];
    operator.tells(&world, "pay", &told).await;

    for key in [&held, &undecided, &stuck] {
        world.remove(key).await;
    }
    world.delete::<Lock>("vault").await;
    world.delete::<Queue>("mails").await;
    world.delete::<DistributedTransaction>("pay").await;
    for name in ["vault", "mails", "pay"] {
        operator.tells_nothing(name).await;
    }
}

/// As when somebody takes the finalizer off by hand: no pass of the operator's ends it.
#[tokio::test]
async fn an_object_that_goes_by_force_is_measured_no_longer() {
    let world = World::start("an_object_that_goes_by_force_is_measured_no_longer").await;
    let operator = world.operator("operator").await;
    world.create::<Queue>("mails", json!({ "mode": "WorkQueue" })).await;
    operator.tells(&world, "mails", &[("queue_ready", "0")]).await;
    let strip = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    world.api::<Queue>().patch("mails", &PatchParams::default(), &strip).await.unwrap();
    world.delete::<Queue>("mails").await;
    operator.tells_nothing("mails").await;
}

#[tokio::test]
async fn only_who_leads_measures_objects() {
    let world = World::start("only_who_leads_measures_objects").await;
    let first = world.operator("first").await;
    first.leads(true).await;
    world.create::<Queue>("mails", json!({ "mode": "WorkQueue" })).await;
    first.tells(&world, "mails", &[("queue_ready", "0")]).await;
    let mut second = world.operator("second").await;
    second.ready().await;
    second.leads(false).await;
    second.tells_nothing("mails").await;

    first.process.pause().unwrap();
    second.leads(true).await;
    second.tells(&world, "mails", &[("queue_ready", "0")]).await;
    first.process.resume().unwrap();
    first.leads(false).await;
    first.tells_nothing("mails").await;
}
