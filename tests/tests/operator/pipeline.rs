//! Compile, define, tell.

use std::fs;

use concordat_crds::{DistributedTransaction, Lock, Queue, names::FINALIZER};
use concordat_operator::{lock, queue, transaction};
use concordat_protocol::{
    Definition, Key, Kind, Record, Settings, lock::Holder, queue::Mode, session::Stat, transaction::once_id,
};
use concordat_tests::{kube::Cluster, process::eventually};
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, ResourceExt,
    api::{
        ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
    },
    runtime::{conditions, wait::await_condition},
};
use serde_json::{Value, json};

use crate::world::{World, condition, holds};

fn two_phase() -> Value {
    json!({ "protocol": "TwoPhaseCommit", "participants": [{ "name": "debit", "app": "accounts" }] })
}

fn once() -> Value {
    let mut spec = two_phase();
    spec["run"] = "Once".into();
    spec["input"] = json!({ "amount": 10 });
    spec
}

#[tokio::test]
async fn what_is_applied_is_defined_and_ready() {
    let world = World::start("what_is_applied_is_defined_and_ready").await;
    let _operator = world.operator("operator").await;
    world.create::<Lock>("a", json!({ "mode": "CompareAndSwap", "ttl": "3s" })).await;
    world.create::<Queue>("b", json!({ "mode": "WorkQueue", "partitions": 3 })).await;
    world.create::<DistributedTransaction>("c", two_phase()).await;

    let lock: Lock = world.stands("a", "True", "Accepted").await;
    let queue: Queue = world.stands("b", "True", "Accepted").await;
    let transaction: DistributedTransaction = world.stands("c", "True", "Accepted").await;
    for (kind, name, uid, finalizers, settings) in [
        (Kind::Lock, "a", lock.uid(), lock.finalizers(), Settings::Lock(lock::compile(&lock).unwrap())),
        (Kind::Queue, "b", queue.uid(), queue.finalizers(), Settings::Queue(queue::compile(&queue).unwrap())),
        (
            Kind::Transaction,
            "c",
            transaction.uid(),
            transaction.finalizers(),
            Settings::Transaction(transaction::compile(&transaction).unwrap()),
        ),
    ] {
        let entry = world.defined(kind, name, |_| true).await;
        let expected = Definition { uid: uid.unwrap(), generation: 1, settings };
        assert_eq!(entry.record, Record::Definition(expected));
        assert_eq!(finalizers, [FINALIZER], "{name}");
    }
    assert_eq!(lock.status.unwrap().observed_generation, Some(1));
    assert_eq!(transaction.status.unwrap().active, Some(0));
}

#[tokio::test]
async fn a_mode_that_does_not_work_yet_is_defined_and_not_ready() {
    let world = World::start("a_mode_that_does_not_work_yet_is_defined_and_not_ready").await;
    let _operator = world.operator("operator").await;
    world.create::<Queue>("log", json!({ "mode": "Log" })).await;
    let mut saga = once();
    saga["protocol"] = "Saga".into();
    world.create::<DistributedTransaction>("saga", saga).await;

    let queue: Queue = world.stands("log", "False", "ModeNotSupported").await;
    let ready = condition(&json!(queue), "Ready").unwrap();
    assert_eq!(ready.message, "mode Log with ordering None does not work yet");
    let saga: DistributedTransaction = world.stands("saga", "False", "ModeNotSupported").await;
    // Sidecars need the definitions to answer that the mode is not supported; nothing is begun under them.
    world
        .defined(Kind::Queue, "log", |of| matches!(&of.settings, Settings::Queue(of) if of.mode == Mode::Log))
        .await;
    world.defined(Kind::Transaction, "saga", |_| true).await;
    let id = once_id(&saga.uid().unwrap());
    assert!(!world.state().await.contains_key(&Key::Transaction(id)));
}

#[tokio::test]
async fn a_change_reaches_the_definition_and_spares_what_is_under_it() {
    let world = World::start("a_change_reaches_the_definition_and_spares_what_is_under_it").await;
    let _operator = world.operator("operator").await;
    world.create::<Lock>("a", json!({ "mode": "CompareAndSwap", "ttl": "3s" })).await;
    world.stands::<Lock>("a", "True", "Accepted").await;
    let before = world.defined(Kind::Lock, "a", |_| true).await;
    world.update::<Lock>("a", json!({ "ttl": "7s" })).await;
    let after = world
        .defined(
            Kind::Lock,
            "a",
            |of| matches!(&of.settings, Settings::Lock(settings) if settings.ttl == 7_000),
        )
        .await;
    assert_eq!(after.create_revision, before.create_revision);
    let Record::Definition(definition) = after.record else { panic!("no definition") };
    assert_eq!(definition.generation, 2);
    world.stands::<Lock>("a", "True", "Accepted").await;
    // What did not change is not told again.
    world.tells("a", &[("Accepted", 1)]).await;
}

/// The API server takes any depth, and serde_json 127 levels.
#[tokio::test]
async fn an_input_that_is_nested_too_deep_is_told_so_and_disturbs_no_other() {
    let world = World::start("an_input_that_is_nested_too_deep").await;
    let resource = ApiResource::erase::<DistributedTransaction>(&());
    let body = |name: &str, levels: usize| {
        let mut spec = once();
        spec["input"] = json!("INPUT");
        let object = json!({
            "apiVersion": "concordat.dev/v1alpha1", "kind": "DistributedTransaction",
            "metadata": { "name": name }, "spec": spec,
        });
        let input = format!("{}{{}}{}", r#"{"a":"#.repeat(levels), "}".repeat(levels));
        object.to_string().replace("\"INPUT\"", &input)
    };
    let url = format!("/apis/concordat.dev/v1alpha1/namespaces/{}/{}", world.namespace, resource.plural);
    for (name, levels) in [("deep", 70), ("deeper", 200), ("deepest", 3_000)] {
        let request = hyper::Request::post(&url).header("content-type", "application/json");
        let request = request.body(body(name, levels).into_bytes()).unwrap();
        world.client.request_text(request).await.unwrap();
    }

    let _operator = world.operator("operator").await;
    world.create::<DistributedTransaction>("good", once()).await;
    world.stands::<DistributedTransaction>("good", "True", "Accepted").await;
    for name in ["deep", "deeper", "deepest"] {
        world.tells(name, &[("Invalid", 1)]).await;
    }
    // Of one that a client can read at all the status tells as well.
    let deep = world.stands::<DistributedTransaction>("deep", "False", "Invalid").await;
    let ready = condition(&serde_json::to_value(&deep).unwrap(), "Ready").unwrap();
    assert!(ready.message.contains("spec.input must be nested at most 64 levels deep"), "{}", ready.message);
}

#[tokio::test]
async fn a_malformed_object_is_told_so_and_disturbs_no_other() {
    let cluster = Cluster::start().await.unwrap();
    let world = World::alone(&cluster, "a_malformed_object_is_told_so_and_disturbs_no_other").await;
    // As in a cluster whose CRDs were less strict once: the object is from then.
    let crds: Api<CustomResourceDefinition> = Api::all(world.client.clone());
    let name = "locks.concordat.dev";
    let strict = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../crds/lock.yaml")).unwrap();
    let strict: Value = serde_saphyr::from_str(&strict).unwrap();
    let mut lax = strict.clone();
    lax["spec"]["versions"][0]["schema"]["openAPIV3Schema"] =
        json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    lax["spec"]["versions"][0]["selectableFields"] = json!([]);
    let install = async |definition: &Value| {
        let params = PatchParams::apply("concordat-tests").force();
        crds.patch(name, &params, &Patch::Apply(definition)).await.unwrap();
        await_condition(crds.clone(), name, conditions::is_crd_established()).await.unwrap();
    };
    install(&lax).await;
    let resource = ApiResource::erase::<Lock>(&());
    let locks: Api<DynamicObject> = Api::namespaced_with(world.client.clone(), &world.namespace, &resource);
    for (name, spec) in
        [("bad", json!({ "mode": "Sideways" })), ("worse", json!({ "mode": "Lease", "ttl": [1] }))]
    {
        let object = DynamicObject::new(name, &resource).data(json!({ "spec": spec }));
        eventually("the lax definition is served", async || {
            Ok(locks.create(&PostParams::default(), &object).await?)
        })
        .await
        .unwrap();
    }
    install(&strict).await;

    let operator = world.operator("operator").await;
    world.create::<Lock>("good", json!({ "mode": "CompareAndSwap" })).await;
    world.stands::<Lock>("good", "True", "Accepted").await;
    let message = eventually("the bad one is told so", async || {
        let object = serde_json::to_value(locks.get("bad").await?)?;
        let ready = condition(&object, "Ready").ok_or_else(|| anyhow::anyhow!("no condition: {object}"))?;
        assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "Invalid"));
        Ok(ready.message)
    })
    .await
    .unwrap();
    assert!(message.contains("must be of its kind's form") && message.contains("Sideways"), "{message}");
    world.tells("bad", &[("Invalid", 1)]).await;
    // Of this one the API server takes no status whatever: its rules cannot be evaluated.
    world.tells("worse", &[("Invalid", 1)]).await;
    // A definition that changes ends all watches: the operator looks at every object again, and has nothing new to tell.
    let passes = async || -> anyhow::Result<u64> {
        let metrics = operator.metrics().await?;
        let name = "concordat_operator_reconciles_total{kind=\"lock\",result=\"ok\"} ";
        let count = metrics.lines().find_map(|line| line.strip_prefix(name));
        Ok(count.ok_or_else(|| anyhow::anyhow!("no passes: {metrics}"))?.parse()?)
    };
    let before = passes().await.unwrap();
    let mut told = strict.clone();
    told["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["description"] = json!("told in other words");
    install(&told).await;
    eventually("all are looked at again", async || {
        let count = passes().await?;
        anyhow::ensure!(count >= before + 3, "{count} passes, {before} before");
        Ok(())
    })
    .await
    .unwrap();
    world.tells("worse", &[("Invalid", 1)]).await;
    world.update::<Lock>("good", json!({ "ttl": "9s" })).await;
    world.stands::<Lock>("good", "True", "Accepted").await;
    for name in ["good", "bad", "worse"] {
        locks.delete(name, &DeleteParams::default()).await.unwrap();
        eventually("it is gone", async || {
            anyhow::ensure!(locks.get_opt(name).await?.is_none(), "{name} is there");
            Ok(())
        })
        .await
        .unwrap();
    }
}

#[tokio::test]
async fn live_state_reaches_the_status_at_most_every_two_seconds() {
    let world = World::start("live_state_reaches_the_status_at_most_every_two_seconds").await;
    let _operator = world.operator("operator").await;
    world.create::<Lock>("busy", json!({ "mode": "CompareAndSwap" })).await;
    world.stands::<Lock>("busy", "True", "Accepted").await;
    let api: Api<Lock> = world.api();
    let params = WatchParams::default().fields("metadata.name=busy");
    let mut written = api.watch(&params, "0").await.unwrap().boxed();

    // A sidecar that grants without pause, and counts it more often than it may.
    let session = || "busy-sidecar".into();
    let mut grants = 0;
    let churn = async {
        loop {
            grants += 1;
            let holder = Holder {
                session: session(),
                pod: "pod".into(),
                owner: format!("owner {grants}"),
                since: 1_000 * grants,
                regrants: 0,
                stays: false,
            };
            world.put(&Key::Holder { lock: "busy".into(), key: "k".into() }, holder, None).await;
            let stat = Stat { counters: vec![("granted".into(), grants), ("waiters".into(), grants)] };
            world
                .put(&Key::Stat { kind: Kind::Lock, name: "busy".into(), session: session() }, stat, None)
                .await;
        }
    };
    let statuses = async {
        let mut times: Vec<Timestamp> = Vec::new();
        while times.len() < 4 {
            let Some(WatchEvent::Modified(lock)) = written.try_next().await.unwrap() else { continue };
            let of_status = lock
                .managed_fields()
                .iter()
                .find(|fields| fields.manager.as_deref() == Some("concordat-operator/lock-status"));
            let Some(time) = of_status.and_then(|fields| fields.time.clone()) else { continue };
            let Some(status) = lock.status.filter(|status| status.held == 1) else { continue };
            assert_eq!(status.holders[0].key, "k");
            if times.last() != Some(&time.0) {
                times.push(time.0);
            }
        }
        times
    };
    let times = tokio::select! { times = statuses => times, () = churn => unreachable!() };
    for pair in times.windows(2) {
        assert!(pair[1].duration_since(pair[0]).as_secs() >= 2, "written at {times:?}");
    }
    assert!(grants > 20, "{grants} grants made {} statuses", times.len());
    world.tells("busy", &[("Accepted", 1)]).await;
}

#[tokio::test]
async fn a_transaction_to_run_once_is_handed_over_unowned_and_once() {
    let world = World::start("a_transaction_to_run_once_is_handed_over_unowned_and_once").await;
    let mut operator = world.operator("first").await;
    let object: DistributedTransaction = world.create("pay", once()).await;
    let id = once_id(&object.uid().unwrap());
    let object: DistributedTransaction = world
        .until("pay", "it is handed over", |object| {
            object.pointer("/status/outcome") == Some(&json!("undecided"))
        })
        .await;
    let value = json!(object);
    assert!(holds(&value, "Ready") && !holds(&value, "Committed") && !holds(&value, "Aborted"), "{value}");
    assert_eq!(value.pointer("/status/id"), Some(&json!(id.to_string())));
    let definition = world.defined(Kind::Transaction, "pay", |_| true).await;
    let entry = world.state().await.remove(&Key::Transaction(id.clone())).unwrap();
    let Record::Transaction(put) = entry.record else { panic!("no transaction") };
    assert_eq!((&put.coordinator, put.deadline, &*put.input), (&None, 0, r#"{"amount":10}"#));
    assert_eq!(put.definition, definition.create_revision);

    // Once more, by an operator that knows nothing, after all of it ended and was forgotten: not again.
    operator.process.kill().unwrap();
    world.remove(&Key::Transaction(id.clone())).await;
    let second = world.operator("second").await;
    second.leads(true).await;
    world
        .until::<DistributedTransaction>("pay", "the second one looked at it", |object| {
            condition(object, "Committed").is_some_and(|condition| condition.status == "Unknown")
        })
        .await;
    let puts = world.recorder.changes().await.unwrap();
    let puts =
        puts.iter().filter(|change| change.key == Key::Transaction(id.clone()) && change.entry.is_some());
    assert_eq!(puts.count(), 1);
}
