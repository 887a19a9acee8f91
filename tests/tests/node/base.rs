//! The node itself: what the other tests rely on.

use concordat_tests::node::{BANK, ETCD, Namespace, Node, SHELL, SIDECAR, until};
use k8s_openapi::api::core::v1::{self, PersistentVolumeClaim};
use kube::Api;
use serde_json::{Value, json};

/// What the standard `restricted` asks of a container.
fn restricted() -> Value {
    json!({ "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] } })
}

/// What it asks of a pod; the user is the images' own.
fn pod(name: &str, spec: Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "labels": { "app": name } },
        "spec": {
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65532, "fsGroup": 65532, "seccompProfile": { "type": "RuntimeDefault" },
            },
        },
    });
    pod["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    pod
}

/// A namespace that admits no pod but restricted ones.
async fn namespace(test: &str) -> Namespace<'static> {
    let node = Node::shared().await.unwrap();
    node.namespace(test, &[("pod-security.kubernetes.io/enforce", "restricted")]).await.unwrap()
}

#[tokio::test]
async fn the_node_is_ready() {
    let node = Node::shared().await.unwrap();
    let found: v1::Node = Api::all(node.client().await.unwrap()).get("node").await.unwrap();
    let conditions = found.status.unwrap().conditions.unwrap();
    assert!(conditions.iter().any(|one| one.type_ == "Ready" && one.status == "True"), "{conditions:?}");
    assert!(node.helm(&["version"]).await.unwrap().contains("v4."));
}

/// The images run as they are; a static program finds a service by its name; the bank talks to its sidecar on localhost.
#[tokio::test]
async fn the_bank_runs_beside_a_sidecar_that_finds_etcd_by_name() {
    let namespace = namespace("bank").await;
    let etcd = pod(
        "etcd",
        json!({
            "containers": [{
                "name": "etcd", "image": ETCD, "securityContext": restricted(),
                "command": ["/usr/local/bin/etcd", "--data-dir=/data/etcd", "--listen-client-urls=http://0.0.0.0:2379",
                            "--advertise-client-urls=http://etcd:2379"],
                "readinessProbe": { "httpGet": { "path": "/health", "port": 2379 }, "periodSeconds": 1 },
                "volumeMounts": [{ "name": "data", "mountPath": "/data" }],
            }],
            "volumes": [{ "name": "data", "emptyDir": {} }],
        }),
    );
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "store" },
        "spec": { "selector": { "app": "etcd" }, "ports": [{ "port": 2379 }] },
    });
    let bank = pod(
        "bank",
        json!({
            "initContainers": [{
                "name": "concordat", "image": SIDECAR, "restartPolicy": "Always", "securityContext": restricted(),
                "args": ["--namespace=bank", "--app=accounts", "--etcd-endpoints=http://store:2379"],
                "startupProbe": { "httpGet": { "path": "/ready", "port": 4701 }, "periodSeconds": 1, "failureThreshold": 120 },
            }],
            "containers": [
                {
                    "name": "bank", "image": BANK, "securityContext": restricted(),
                    "args": ["accounts", "--port=8080", "--sidecar-port=4700", "--database=/data/accounts.db"],
                    "volumeMounts": [{ "name": "data", "mountPath": "/data" }],
                },
                { "name": "shell", "image": SHELL, "securityContext": restricted() },
            ],
            "volumes": [{ "name": "data", "emptyDir": {} }],
        }),
    );
    for object in [etcd, service, bank] {
        namespace.apply(object).await.unwrap();
    }
    namespace.ready("bank").await.unwrap();
    let curl =
        ["curl", "-fsS", "--retry", "20", "--retry-connrefused", "-XPUT", "-Hcontent-type: application/json"];
    let put = [&curl[..], &["-d100", "http://127.0.0.1:8080/accounts/ada"]].concat();
    namespace.exec("bank", "shell", &put).await.unwrap();
    let name = format!("store.{}.svc.cluster.local", namespace.name());
    namespace.exec("bank", "shell", &["nslookup", &name]).await.unwrap();
    let stranger = namespace.exec("bank", "shell", &["nslookup", "example.com"]).await;
    assert!(stranger.unwrap_err().to_string().contains("NXDOMAIN"), "names of the world do not exist here");
}

#[tokio::test]
async fn a_claim_is_bound_and_written_without_root() {
    let namespace = namespace("claim").await;
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": "data" },
        "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } },
    });
    let shell = pod(
        "shell",
        json!({
            "containers": [{
                "name": "shell", "image": SHELL, "securityContext": restricted(),
                "volumeMounts": [{ "name": "data", "mountPath": "/data" }],
            }],
            "volumes": [{ "name": "data", "persistentVolumeClaim": { "claimName": "data" } }],
        }),
    );
    namespace.apply(claim).await.unwrap();
    namespace.apply(shell).await.unwrap();
    namespace.ready("shell").await.unwrap();
    let claims: Api<PersistentVolumeClaim> = namespace.api();
    let bound = |claim: Option<&PersistentVolumeClaim>| {
        claim.and_then(|claim| claim.status.as_ref()?.phase.as_deref()) == Some("Bound")
    };
    until(&claims, "data", "is bound", bound).await.unwrap();
    namespace.exec("shell", "shell", &["touch", "/data/mine"]).await.unwrap();
}
