//! What deleted objects leave.

use anyhow::ensure;
use concordat_crds::{DistributedTransaction, Lock, Queue};
use concordat_protocol::{
    Key, Kind, Range,
    lock::{self, Holder, Shadow, Share},
    queue::{Message, Segment, SegmentId},
    session::{Session, Stat},
    transaction::{Decision, Operation, Stage, Transaction, Work, once_id, plans},
};
use concordat_tests::process::eventually;
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::world::{Operator, World, condition, holds};

fn two_phase() -> Value {
    json!({ "protocol": "TwoPhaseCommit", "participants": [{ "name": "debit", "app": "accounts" }] })
}

fn segment(queue: &str, number: u64) -> Key {
    let id = SegmentId { session: "s".into(), number, messages: 1, bytes: 1 };
    Key::Segment { queue: queue.into(), partition: 0, segment: id }
}

#[tokio::test]
async fn a_deleted_queue_goes_with_all_of_its_keys_and_no_other_s() {
    let world = World::start("a_deleted_queue_goes_with_all_of_its_keys_and_no_other_s").await;
    let _operator = world.operator("operator").await;
    for name in ["jobs", "jobs-2"] {
        world.create::<Queue>(name, json!({ "mode": "WorkQueue" })).await;
        world.stands::<Queue>(name, "True", "Accepted").await;
        // More than one plan can delete.
        for number in 0..250 {
            world.put(&segment(name, number), Segment { messages: vec![Message::default()] }, None).await;
        }
        let stat = Key::Stat { kind: Kind::Queue, name: name.into(), session: "s".into() };
        world.put(&stat, Stat::default(), None).await;
    }
    world.until::<Queue>("jobs-2", "its messages are counted", |queue| queue["status"]["ready"] == 250).await;
    world.delete::<Queue>("jobs").await;
    world.gone::<Queue>("jobs").await;
    let state = world.state().await;
    let left: Vec<&Key> = state
        .keys()
        .filter(|key| {
            Range::Queue("jobs".into()).contains(key)
                || Range::Stats(Kind::Queue, "jobs".into()).contains(key)
                || **key == Key::Definition { kind: Kind::Queue, name: "jobs".into() }
        })
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(state.keys().filter(|key| Range::Queue("jobs-2".into()).contains(key)).count(), 250);
    world.stands::<Queue>("jobs-2", "True", "Accepted").await;

    // The definition went first: nothing new could come while the rest was removed.
    let changes = world.recorder.changes().await.unwrap();
    let deleted =
        |key: &Key| changes.iter().find(|of| of.key == *key && of.entry.is_none()).unwrap().revision;
    let definition = deleted(&Key::Definition { kind: Kind::Queue, name: "jobs".into() });
    assert!(definition < deleted(&segment("jobs", 0)));
}

#[tokio::test]
async fn a_deleted_lock_waits_for_its_holder() {
    let world = World::start("a_deleted_lock_waits_for_its_holder").await;
    let _operator = world.operator("operator").await;
    world.create::<Lock>("a", json!({ "mode": "Lease", "lockDelay": "1m" })).await;
    world.stands::<Lock>("a", "True", "Accepted").await;
    let held = Key::Holder { lock: "a".into(), key: "k".into() };
    let holder = Holder {
        session: "s".into(),
        pod: "worker-0".into(),
        owner: "me".into(),
        since: 1,
        regrants: 0,
        stays: false,
    };
    let shadow = lock::plans::shadow(&"a".into(), &"k".into());
    let left = Shadow { holder: holder.clone(), share: Share::EXCLUSIVE, delay: 60_000 };
    world.put(&held, holder, None).await;
    world.put(&shadow, left, None).await;
    world.delete::<Lock>("a").await;
    let lock: Lock = world.stands("a", "False", "Deleting").await;
    let message = condition(&json!(lock), "Ready").unwrap().message;
    assert!(message.contains("worker-0"), "{message}");
    assert!(world.state().await.contains_key(&held), "a holder was robbed");
    assert!(!world.state().await.contains_key(&Key::Definition { kind: Kind::Lock, name: "a".into() }));
    // What is left of one that was lost holds nothing, and goes.
    world.remove(&held).await;
    world.gone::<Lock>("a").await;
    assert!(!world.state().await.contains_key(&shadow));
}

/// What stays with a sidecar nobody holds, and its sidecar lets go of it: when the definition is gone, and after some
/// seconds in any case.
#[tokio::test]
async fn a_deleted_lock_goes_though_it_stays_with_a_sidecar() {
    let world = World::start("a_deleted_lock_goes_though_it_stays_with_a_sidecar").await;
    let _operator = world.operator("operator").await;
    world.create::<Lock>("a", json!({ "mode": "CompareAndSwap" })).await;
    world.stands::<Lock>("a", "True", "Accepted").await;
    let sidecar = world.sidecar("shop", None).await;
    let (client, url) = (reqwest::Client::new(), format!("{}/locks/a/k", sidecar.url));
    let granted: Value = eventually("it is granted", async || {
        Ok(client.post(&url).send().await?.error_for_status()?.json().await?)
    })
    .await
    .unwrap();
    let release = client.delete(&url).header("lock-token", granted["token"].as_str().unwrap());
    release.send().await.unwrap().error_for_status().unwrap();
    let held = Key::Holder { lock: "a".into(), key: "k".into() };
    assert!(world.state().await.contains_key(&held), "it does not stay");
    world.delete::<Lock>("a").await;
    world.gone::<Lock>("a").await;
    assert!(!world.state().await.contains_key(&held));
    assert_eq!(client.post(&url).send().await.unwrap().status(), reqwest::StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_deleted_transaction_waits_for_what_is_undecided_and_tells_what_is_stuck() {
    let world =
        World::start("a_deleted_transaction_waits_for_what_is_undecided_and_tells_what_is_stuck").await;
    let _operator = world.operator("operator").await;
    world.create::<DistributedTransaction>("pay", two_phase()).await;
    let object: DistributedTransaction = world.stands("pay", "True", "Accepted").await;
    let definition = world.defined(Kind::Transaction, "pay", |_| true).await;
    let begin = || -> Transaction {
        let settings = concordat_operator::transaction::compile(&object).unwrap();
        let now = concordat_protocol::Now::default();
        let begun = plans::new("pay".into(), &settings, definition.create_revision, "{}".into(), now);
        Transaction { coordinator: Some(("accounts".into(), "s".into())), ..begun }
    };
    let undecided = Key::Transaction("one".into());
    let stuck = Key::Transaction("two".into());
    world.put(&undecided, begin(), None).await;
    let mut refused = Transaction { decision: Some(Decision::Commit), ..begin() };
    refused.branches[0].stage = Stage::Stuck;
    world.put(&stuck, refused, None).await;
    world.delete::<DistributedTransaction>("pay").await;

    let object: DistributedTransaction = world.stands("pay", "False", "Deleting").await;
    let value = json!(object);
    let message = condition(&value, "Ready").unwrap().message;
    assert!(
        message.contains("1 undecided") && message.contains("1 stuck") && message.contains("two"),
        "{message}"
    );
    assert!(holds(&value, "Stuck"), "{value}");
    world.tells("pay", &[("Accepted", 1), ("Deleting", 1), ("Stuck", 1)]).await;
    world.remove(&undecided).await;
    world
        .until::<DistributedTransaction>("pay", "one of two is over", |object| {
            condition(object, "Ready").is_some_and(|ready| !ready.message.contains("undecided"))
        })
        .await;
    assert!(world.state().await.contains_key(&stuck), "what is stuck was dropped");
    world.remove(&stuck).await;
    world.gone::<DistributedTransaction>("pay").await;
}

/// No pod can start in a namespace that is deleted. Once the last of its sidecars is gone nobody will ever end what is
/// under way there, and the namespace must not wait for it.
#[tokio::test]
async fn a_deleted_namespace_waits_for_transactions_no_longer_than_for_its_sidecars() {
    let world =
        World::start("a_deleted_namespace_waits_for_transactions_no_longer_than_for_its_sidecars").await;
    let operator = world.operator("operator").await;
    world.create::<DistributedTransaction>("pay", two_phase()).await;
    let object: DistributedTransaction = world.stands("pay", "True", "Accepted").await;
    let definition = world.defined(Kind::Transaction, "pay", |_| true).await;
    let settings = concordat_operator::transaction::compile(&object).unwrap();
    let now = concordat_protocol::Now::default();
    let begun = plans::new("pay".into(), &settings, definition.create_revision, "{}".into(), now);
    let prepared = Transaction { coordinator: Some(("accounts".into(), "s".into())), ..begun };
    let other = Transaction { name: "other".into(), ..prepared.clone() };
    let operation = || Work {
        operation: Operation::Prepare,
        participant: prepared.branches[0].participant.clone(),
        input: None,
        coordinator: ("accounts".into(), "s".into()),
        transaction: 0,
        attempts: 0,
        last_error: String::new(),
        traceparent: String::new(),
    };
    let work = |id: &str| Key::Work {
        app: "accounts".into(),
        session: None,
        transaction: id.into(),
        branch: "debit".into(),
    };
    let record = |id: &str| Key::Transaction(id.into());
    for (id, transaction) in [("one", &prepared), ("two", &other)] {
        world.put(&record(id), transaction.clone(), None).await;
        world.put(&work(id), operation(), None).await;
    }
    let session = Key::Session("s".into());
    world
        .put(&session, Session { pod: "accounts-0".into(), app: "accounts".into(), accepts: true }, None)
        .await;

    let namespaces = Api::<Namespace>::all(world.client.clone());
    world.delete::<DistributedTransaction>("pay").await;
    world.stands::<DistributedTransaction>("pay", "False", "Deleting").await;
    namespaces.delete(&world.namespace, &DeleteParams::default()).await.unwrap();
    // It has looked since.
    let before = passes(&operator).await;
    eventually("two passes more", async || {
        ensure!(passes(&operator).await > before + 1);
        Ok(())
    })
    .await
    .unwrap();
    assert!(world.state().await.contains_key(&record("one")), "it was dropped, and a sidecar is there");

    world.remove(&session).await;
    world.gone::<DistributedTransaction>("pay").await;
    let state = world.state().await;
    assert!(!state.contains_key(&record("one")) && !state.contains_key(&work("one")), "{state:?}");
    assert!(state.contains_key(&record("two")) && state.contains_key(&work("two")), "another's was dropped");
    let log = operator.process.log();
    assert!(log.contains("one (undecided: debit Preparing)"), "{log}");
}

async fn passes(operator: &Operator) -> u64 {
    let metrics = operator.metrics().await.unwrap();
    let counter = r#"concordat_operator_reconciles_total{kind="transaction",result="ok"} "#;
    metrics.lines().find_map(|line| line.strip_prefix(counter)).map_or(0, |count| count.parse().unwrap())
}

#[tokio::test]
async fn a_deleted_transaction_takes_back_what_nobody_took_up() {
    let world = World::start("a_deleted_transaction_takes_back_what_nobody_took_up").await;
    let _operator = world.operator("operator").await;
    let mut once = two_phase();
    once["run"] = "Once".into();
    once["input"] = json!({});
    let object: DistributedTransaction = world.create("pay", once).await;
    world
        .until::<DistributedTransaction>("pay", "it is handed over", |of| of.pointer("/status/id").is_some())
        .await;
    let id = Key::Transaction(once_id(&object.uid().unwrap()));
    assert!(world.state().await.contains_key(&id));
    world.delete::<DistributedTransaction>("pay").await;
    world.gone::<DistributedTransaction>("pay").await;
    let left: Vec<Key> = world.state().await.into_keys().filter(|key| *key != Key::Epoch).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn an_object_made_anew_inherits_nothing_from_one_that_lost_its_finalizer() {
    let world = World::start("an_object_made_anew_inherits_nothing").await;
    let mut operator = world.operator("first").await;
    world.create::<Queue>("jobs", json!({ "mode": "WorkQueue" })).await;
    world.stands::<Queue>("jobs", "True", "Accepted").await;
    let before = world.defined(Kind::Queue, "jobs", |_| true).await;
    world.put(&segment("jobs", 1), Segment { messages: vec![Message::default()] }, None).await;
    operator.process.kill().unwrap();
    let params = kube::api::PatchParams::default();
    let strip = kube::api::Patch::Merge(json!({ "metadata": { "finalizers": [] } }));
    world.api::<Queue>().patch_metadata("jobs", &params, &strip).await.unwrap();
    world.delete::<Queue>("jobs").await;
    world.gone::<Queue>("jobs").await;
    let anew: Queue = world.create("jobs", json!({ "mode": "WorkQueue" })).await;

    let _operator = world.operator("second").await;
    world.stands::<Queue>("jobs", "True", "Accepted").await;
    let uid = anew.uid().unwrap();
    let after = world.defined(Kind::Queue, "jobs", |of| of.uid == uid).await;
    assert!(after.create_revision > before.create_revision);
    assert!(!world.state().await.contains_key(&segment("jobs", 1)));
}

/// Its finalizer was taken off by force, and it was deleted, while no operator ran.
#[tokio::test]
async fn an_object_that_went_while_nobody_looked_is_removed() {
    let world = World::start("an_object_that_went_while_nobody_looked_is_removed").await;
    let mut operator = world.operator("operator").await;
    for name in ["gone", "stays"] {
        world.create::<Queue>(name, json!({ "mode": "WorkQueue" })).await;
        world.stands::<Queue>(name, "True", "Accepted").await;
        world.put(&segment(name, 1), Segment { messages: vec![Message::default()] }, None).await;
    }
    operator.process.kill().unwrap();
    let patch = json!({ "metadata": { "finalizers": null } });
    world.api::<Queue>().patch("gone", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    world.delete::<Queue>("gone").await;
    world.gone::<Queue>("gone").await;
    assert!(world.state().await.contains_key(&segment("gone", 1)), "nobody removed it yet");

    let _next = world.operator("next").await;
    eventually("nothing is left of it", async || {
        let state = world.state().await;
        ensure!(
            !state.contains_key(&Key::Definition { kind: Kind::Queue, name: "gone".into() }),
            "its definition"
        );
        ensure!(!state.contains_key(&segment("gone", 1)), "its message");
        Ok(())
    })
    .await
    .unwrap();
    let state = world.state().await;
    assert!(state.contains_key(&Key::Definition { kind: Kind::Queue, name: "stays".into() }));
    assert!(state.contains_key(&segment("stays", 1)));
}
