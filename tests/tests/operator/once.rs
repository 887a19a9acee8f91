//! Transactions to run once, by real sidecars and an app.

use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    routing::post,
};
use concordat_crds::DistributedTransaction;
use concordat_protocol::{Key, Kind, transaction::once_id};
use concordat_tests::{kube::Cluster, process::eventually};
use kube::ResourceExt;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::world::{World, condition, holds};

/// An app that takes every part in a transaction, but answers `prepare` as it is told. It ends with its runtime.
async fn app(prepare: StatusCode) -> u16 {
    async fn answer(
        State(prepare): State<StatusCode>,
        Path((_, operation)): Path<(String, String)>,
    ) -> StatusCode {
        if operation == "prepare" { prepare } else { StatusCode::OK }
    }
    let router = Router::new().route("/concordat/{branch}/{operation}", post(answer)).with_state(prepare);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(axum::serve(listener, router).into_future());
    port
}

fn spec() -> Value {
    json!({
        "protocol": "TwoPhaseCommit", "run": "Once", "input": { "amount": 10 }, "retention": "1s",
        "participants": [{ "name": "debit", "app": "accounts" }, { "name": "credit", "app": "ledger" }],
    })
}

#[tokio::test]
async fn it_commits_and_its_outcome_outlives_all_that_etcd_knew_of_it() {
    let world = World::start("it_commits_and_its_outcome_outlives_all_that_etcd_knew_of_it").await;
    let mut operator = world.operator("first").await;
    // Handed over first: sidecars find it when they come.
    let object: DistributedTransaction = world.create("pay", spec()).await;
    let id = once_id(&object.uid().unwrap());
    world
        .until::<DistributedTransaction>("pay", "it is handed over", |of| {
            of["status"]["outcome"] == "undecided"
        })
        .await;
    let _accounts = world.sidecar("accounts", Some(app(StatusCode::OK).await)).await;
    let _ledger = world.sidecar("ledger", Some(app(StatusCode::OK).await)).await;
    let mut kubectl = Cluster::shared().await.unwrap().kubectl().unwrap();
    kubectl.args(["wait", "--for=condition=Committed", "distributedtransaction/pay", "--timeout=120s"]);
    kubectl.args(["--namespace", &world.namespace]);
    let waited = tokio::task::spawn_blocking(move || kubectl.output()).await.unwrap().unwrap();
    assert!(waited.status.success(), "{}", String::from_utf8_lossy(&waited.stderr));
    let committed: DistributedTransaction = world
        .until("pay", "it commits", |of| {
            holds(of, "Committed") && of["status"]["branches"][1]["state"] == "applied"
        })
        .await;
    let value = json!(committed);
    assert_eq!(value["status"]["outcome"], "committed");
    assert!(!holds(&value, "Aborted") && !holds(&value, "Stuck"), "{value}");
    let states: Vec<&Value> = committed_branches(&value);
    assert_eq!(states, [&json!("applied"), &json!("applied")]);

    // Its retention ends, and an operator that knows nothing looks at it: the outcome stays, and it is not begun again.
    let done = Key::Done(id.clone());
    eventually("it is applied everywhere", async || {
        anyhow::ensure!(world.recorder.state().await?.contains_key(&done), "it is not");
        Ok(())
    })
    .await
    .unwrap();
    world.tells("pay", &[("Accepted", 1), ("Committed", 1)]).await;
    world.remove(&done).await;
    operator.process.kill().unwrap();
    let second = world.operator("second").await;
    second.leads(true).await;
    world.update::<DistributedTransaction>("pay", json!({ "retention": "2s" })).await;
    let looked: DistributedTransaction = world.stands("pay", "True", "Accepted").await;
    let value = json!(looked);
    assert!(holds(&value, "Committed"), "{value}");
    assert_eq!((&value["status"]["outcome"], committed_branches(&value).len()), (&json!("committed"), 2));
    let changes = world.recorder.changes().await.unwrap();
    let begun = changes
        .iter()
        .filter(|of| of.key == Key::Transaction(id.clone()))
        .filter_map(|of| of.entry.as_ref())
        .map(|entry| entry.create_revision)
        .collect::<std::collections::BTreeSet<_>>();
    assert_eq!(begun.len(), 1, "it was begun once");
    // Nothing is told again.
    world.tells("pay", &[("Accepted", 1), ("Committed", 1)]).await;

    world.delete::<DistributedTransaction>("pay").await;
    world.gone::<DistributedTransaction>("pay").await;
    let definition = Key::Definition { kind: Kind::Transaction, name: "pay".into() };
    assert!(!world.state().await.contains_key(&definition));
}

fn committed_branches(object: &Value) -> Vec<&Value> {
    object["status"]["branches"].as_array().into_iter().flatten().map(|branch| &branch["state"]).collect()
}

#[tokio::test]
async fn it_aborts_when_a_participant_says_no_and_says_why() {
    let world = World::start("it_aborts_when_a_participant_says_no_and_says_why").await;
    let _operator = world.operator("operator").await;
    let _accounts = world.sidecar("accounts", Some(app(StatusCode::OK).await)).await;
    let _ledger = world.sidecar("ledger", Some(app(StatusCode::CONFLICT).await)).await;
    world.create::<DistributedTransaction>("pay", spec()).await;
    let aborted: DistributedTransaction =
        world.until("pay", "it aborts", |of| of["status"]["outcome"] == "aborted").await;
    let value = json!(aborted);
    assert!(holds(&value, "Aborted") && !holds(&value, "Committed"), "{value}");
    let why = condition(&value, "Aborted").unwrap().message;
    assert!(why.contains("credit"), "{why}");
}
