//! What the API server makes of the definitions: defaults, columns, selectors, status.

use std::path::Path;

use concordat_crds::{DistributedTransactionSpec, LockSpec, QueueSpec};
use concordat_tests::kube::Cluster;
use serde_json::{Value, json};

use crate::{Desk, Kind, name, set};

/// What kubectl prints.
fn kubectl(cluster: &Cluster, arguments: &[&str]) -> String {
    let output = cluster.kubectl().unwrap().args(arguments).output().unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(output.status.success(), "kubectl {arguments:?}: {err}");
    out
}

#[tokio::test]
async fn kubectl_applies_the_folder() {
    let cluster = Cluster::shared().await.unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds");
    let folder = folder.to_str().unwrap();
    let printed = kubectl(cluster, &["apply", "-f", folder, "--validate=strict"]);
    for kind in Kind::ALL {
        let name = format!("customresourcedefinition.apiextensions.k8s.io/{}.concordat.dev ", kind.plural());
        assert!(printed.lines().any(|line| line.starts_with(&name)), "{name}: {printed}");
    }
    let again = kubectl(cluster, &["apply", "-f", folder]);
    assert!(again.lines().all(|line| line.ends_with(" unchanged")), "{again}");
}

#[tokio::test]
async fn kubectl_applies_the_bank_s_manifests() {
    let desk = Desk::open("bank").await;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/bank/manifests");
    let arguments = ["--namespace", desk.namespace.name(), "apply", "--validate=strict", "-f"];
    let printed = kubectl(desk.namespace.cluster(), &[&arguments[..], &[folder.to_str().unwrap()]].concat());
    for kind in ["distributedtransaction", "lock", "queue"] {
        let made =
            |line: &str| line.starts_with(&format!("{kind}.concordat.dev/")) && line.ends_with(" created");
        assert!(printed.lines().any(made), "{kind}: {printed}");
    }
}

#[tokio::test]
async fn every_definition_is_established_and_structural() {
    let desk = Desk::open("established").await;
    for kind in Kind::ALL {
        let path = format!(
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{}.concordat.dev",
            kind.plural()
        );
        let definition = desk.send("GET", &path, "").await.unwrap();
        let mut conditions: Vec<_> = definition["status"]["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|condition| (condition["type"].as_str().unwrap(), condition["status"].as_str().unwrap()))
            .collect();
        conditions.sort_unstable();
        // A schema that is not structural would add `NonStructuralSchema`.
        assert_eq!(conditions, [("Established", "True"), ("NamesAccepted", "True")], "{kind:?}");
    }
}

#[tokio::test]
async fn the_defaults_are_the_contract_s() {
    let desk = Desk::open("defaults").await;
    let participants = json!([{ "name": "debit", "app": "accounts" }]);
    for (kind, spec, defaulted) in [
        (
            Kind::Lock,
            json!({ "mode": "CompareAndSwap" }),
            json!({
                "mode": "CompareAndSwap", "kind": "Mutex", "ttl": "15s", "lockDelay": "0s", "maxHold": "0s",
                "maxWait": "1m", "maxWaiters": 1024,
            }),
        ),
        (
            Kind::Queue,
            json!({ "mode": "WorkQueue" }),
            json!({
                "mode": "WorkQueue", "partitions": 1, "ordering": "None", "visibility": "30s", "maxDeliveries": 5,
                "backoff": ["1s", "5s", "30s"], "deadLetter": { "queue": "", "retention": "168h" },
                "retention": { "age": "168h", "bytes": "256Mi" }, "onFull": "Refuse", "maxMessageBytes": "256Ki",
                "dedupWindow": "5m",
            }),
        ),
        (
            Kind::Transaction,
            json!({ "protocol": "TwoPhaseCommit", "participants": participants }),
            json!({
                "protocol": "TwoPhaseCommit", "timeout": "30s", "run": "OnDemand", "retention": "10m",
                "participants": [{
                    "name": "debit", "app": "accounts", "timeout": "3s", "after": [],
                    "retry": { "initial": "100ms", "max": "30s", "factor": 2, "attempts": 0 },
                }],
            }),
        ),
    ] {
        let mut object = kind.valid();
        object["spec"] = spec.clone();
        let created = desk.create(kind, &object).await.unwrap();
        assert_eq!(created["spec"], defaulted, "{kind:?}: the API server's");
        // Without an API server the Rust types fill in the same.
        let read = match kind {
            Kind::Lock => serde_json::to_value(serde_json::from_value::<LockSpec>(spec).unwrap()),
            Kind::Queue => serde_json::to_value(serde_json::from_value::<QueueSpec>(spec).unwrap()),
            Kind::Transaction => {
                serde_json::to_value(serde_json::from_value::<DistributedTransactionSpec>(spec).unwrap())
            }
        };
        assert_eq!(read.unwrap(), defaulted, "{kind:?}: the Rust types'");
    }
}

#[tokio::test]
async fn kubectl_shows_the_columns_and_the_category() {
    let desk = Desk::open("columns").await;
    let (cluster, namespace) = (desk.namespace.cluster(), desk.namespace.name());
    for kind in Kind::ALL {
        let object = desk.create(kind, &kind.valid()).await.unwrap();
        let path = format!("{}/{}/status", desk.path(kind), name(&object));
        desk.send("PATCH", &path, json!({ "status": full_status(kind) }).to_string()).await.unwrap();
    }
    let columns = |arguments: &[&str]| {
        let mut all = vec!["--namespace", namespace, "get"];
        all.extend(arguments);
        let printed = kubectl(cluster, &all);
        let lines: Vec<_> =
            printed.lines().map(|line| line.split_whitespace().skip(1).collect::<Vec<_>>()).collect();
        let [head, row] = lines.as_slice() else { panic!("{printed}") };
        // Age, the last one, is whatever it is.
        format!("{} / {}", head.join(" "), row[..row.len() - 1].join(" "))
    };
    assert_eq!(columns(&["locks"]), "READY MODE HELD WAITERS AGE / True FairQueue 3 2");
    assert_eq!(columns(&["queues"]), "READY MODE MESSAGES IN FLIGHT DEAD AGE / True WorkQueue 5 4 1");
    assert_eq!(columns(&["dtx"]), "READY PROTOCOL OUTCOME ACTIVE STUCK AGE / True Saga undecided 3 1");
    let of_category = kubectl(cluster, &["--namespace", namespace, "get", "concordat", "--output=name"]);
    let kinds: Vec<_> = of_category.lines().filter_map(|line| line.split('.').next()).collect();
    assert_eq!(kinds, ["distributedtransaction", "lock", "queue"]);
}

#[tokio::test]
async fn objects_are_selected_by_field() {
    let desk = Desk::open("selectors").await;
    for (kind, selector, chosen, other) in [
        (Kind::Lock, "spec.mode=Lease", set("spec.mode", "Lease"), set("spec.mode", "FairQueue")),
        (Kind::Lock, "spec.kind=Semaphore", set("spec.kind", "Semaphore"), set("spec.kind", "ReadWrite")),
        (Kind::Queue, "spec.mode=Log", set("spec.mode", "Log"), set("spec.mode", "PubSub")),
        (Kind::Queue, "spec.ordering=Key", set("spec.ordering", "Key"), set("spec.ordering", "None")),
        (Kind::Transaction, "spec.protocol=TCC", set("spec.protocol", "TCC"), set("spec.protocol", "Saga")),
        (
            Kind::Transaction,
            "spec.run=Once",
            json!({ "spec": { "run": "Once", "input": {} } }),
            set("spec.run", "OnDemand"),
        ),
    ] {
        let chosen = desk.create(kind, &kind.with(&chosen)).await.unwrap();
        let other = desk.create(kind, &kind.with(&other)).await.unwrap();
        let path = format!("{}?fieldSelector={}", desk.path(kind), selector.replace('=', "%3D"));
        let found = desk.send("GET", &path, "").await.unwrap();
        let found: Vec<_> = found["items"].as_array().unwrap().iter().map(name).collect();
        assert!(found.contains(&name(&chosen)) && !found.contains(&name(&other)), "{selector}: {found:?}");
    }
}

#[tokio::test]
async fn transactions_are_selected_by_outcome() {
    let desk = Desk::open("outcome").await;
    let kind = Kind::Transaction;
    let object = desk.create(kind, &kind.valid()).await.unwrap();
    desk.create(kind, &kind.valid()).await.unwrap();
    let status = format!("{}/{}/status", desk.path(kind), name(&object));
    desk.send("PATCH", &status, json!({ "status": { "outcome": "aborted" } }).to_string()).await.unwrap();
    let found = desk
        .send("GET", &format!("{}?fieldSelector=status.outcome%3Daborted", desk.path(kind)), "")
        .await
        .unwrap();
    assert_eq!(found["items"].as_array().unwrap().iter().map(name).collect::<Vec<_>>(), [name(&object)]);
}

#[tokio::test]
async fn a_status_is_kept_whole_and_apart_from_the_spec() {
    let desk = Desk::open("status").await;
    for kind in Kind::ALL {
        let mut object = kind.valid();
        object["status"] = full_status(kind);
        let created = desk.create(kind, &object).await.unwrap();
        assert_eq!(created["status"], Value::Null, "{kind:?}: users write no status");
        let path = format!("{}/{}/status", desk.path(kind), name(&created));
        let change = json!({ "status": full_status(kind), "spec": { "unheard": "of" } });
        let changed = desk.send("PATCH", &path, change.to_string()).await.unwrap();
        assert_eq!(changed["status"], full_status(kind), "{kind:?}");
        assert_eq!(changed["metadata"]["generation"], 1, "{kind:?}: a status is no new generation");
    }
}

#[tokio::test]
async fn a_condition_is_there_once_a_type() {
    let desk = Desk::open("conditions").await;
    for kind in Kind::ALL {
        let created = desk.create(kind, &kind.valid()).await.unwrap();
        let path = format!("{}/{}/status", desk.path(kind), name(&created));
        let ready = full_status(kind)["conditions"][0].clone();
        let twice = json!({ "status": { "conditions": [ready, ready] } });
        let refusal = desk.send("PATCH", &path, twice.to_string()).await.unwrap_err();
        assert!(
            refusal.message.contains("status.conditions[1]: Duplicate value"),
            "{kind:?}: {}",
            refusal.message
        );
    }
}

/// A status with every field of the kind.
fn full_status(kind: Kind) -> Value {
    let conditions = json!([{
        "type": "Ready", "status": "True", "reason": "Accepted", "message": "in force",
        "lastTransitionTime": "2026-11-24T12:00:00Z", "observedGeneration": 1,
    }]);
    match kind {
        Kind::Lock => json!({
            "observedGeneration": 1, "held": 3, "waiters": 2, "oldestWait": "1m30s", "conditions": conditions,
            "holders": [{
                "key": "a/b é", "pod": "worker-1", "owner": "nightly run", "fence": (1u64 << 53) - 1,
                "since": "2026-11-24T12:00:00Z",
            }],
        }),
        Kind::Queue => json!({
            "observedGeneration": 1, "ready": 5, "inFlight": 4, "delayed": 2, "dead": 1, "oldestAge": "3h",
            "consumers": 2, "groups": [{ "name": "audit", "lag": 7 }], "conditions": conditions,
        }),
        Kind::Transaction => json!({
            "observedGeneration": 1, "active": 3, "committed": 1024, "aborted": 7, "stuck": 1, "id": "t-1",
            "outcome": "undecided", "conditions": conditions,
            "branches": [{ "name": "debit", "state": "prepared", "attempts": 2, "message": "timed out" }],
        }),
    }
}
