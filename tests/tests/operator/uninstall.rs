//! `concordat-operator uninstall`, in a Kubernetes of the test's own: it looks at all of it.

use std::{path::Path, process::Command};

use concordat_crds::{DistributedTransaction, Lock, Queue, names::FINALIZER};
use concordat_operator::{
    inject::IDENTITY,
    pki::secret::{MANAGED_BY, PART_OF},
};
use concordat_tests::{kube::Cluster, process::binary};
use futures::{StreamExt, stream};
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::Secret,
        rbac::v1::{ClusterRole, ClusterRoleBinding},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
    runtime::{conditions::is_deleted, wait::await_condition},
};
use serde_json::{Value, json};

use crate::world::Object;

/// More than are read at once.
const MANY: usize = 501;
/// The namespace of the release.
const OWN: &str = "default";

struct Place<'a> {
    cluster: &'a Cluster,
    client: Client,
}

impl Place<'_> {
    fn api<K: Object>(&self, namespace: &str) -> Api<K> {
        Api::namespaced(self.client.clone(), namespace)
    }

    async fn create<K: Object>(&self, namespace: &str, object: Value) {
        let object: K = serde_json::from_value(object).unwrap();
        self.api(namespace).create(&PostParams::default(), &object).await.unwrap();
    }

    async fn lock(&self, namespace: &str, name: &str, finalizers: &[&str]) {
        let metadata = json!({ "name": name, "finalizers": finalizers });
        let lock = object("Lock", metadata, json!({ "mode": "CompareAndSwap" }));
        self.create::<Lock>(namespace, lock).await;
    }

    async fn secret(&self, namespace: &str, name: &str, ours: bool) {
        let labels =
            if ours { json!({ MANAGED_BY.0: MANAGED_BY.1, PART_OF.0: PART_OF.1 }) } else { json!({}) };
        let metadata = json!({ "name": name, "labels": labels });
        self.create::<Secret>(namespace, json!({ "metadata": metadata })).await;
    }

    async fn has_secret(&self, namespace: &str, name: &str) -> bool {
        self.api::<Secret>(namespace).get_opt(name).await.unwrap().is_some()
    }

    /// Runs it with these flags as this user: whether all was done, and what it said.
    fn uninstall(&self, user: &str, group: Option<&str>, flags: &[&str]) -> (bool, String) {
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = folder.path().join("kubeconfig");
        std::fs::write(&kubeconfig, self.cluster.kubeconfig(user, group).unwrap()).unwrap();
        run(&kubeconfig, &[&["uninstall"], flags].concat())
    }
}

/// Runs the operator's program: whether it ended well, and what it said.
pub(crate) fn run(kubeconfig: &Path, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(binary("concordat-operator").unwrap());
    let output = command.env("KUBECONFIG", kubeconfig).args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

fn object(kind: &str, metadata: Value, spec: Value) -> Value {
    json!({ "apiVersion": "concordat.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec })
}

const ADMIN: (&str, Option<&str>) = ("admin", Some("system:masters"));

#[tokio::test]
async fn an_uninstall_takes_away_what_is_its_own_and_nothing_else_and_does_all_that_it_can() {
    let test = "an_uninstall_takes_away_what_is_its_own_and_nothing_else_and_does_all_that_it_can";
    let cluster = Cluster::start().await.unwrap();
    let place = Place { cluster: &cluster, client: cluster.client().await.unwrap() };
    let [a, b] = [cluster.namespace(test).await.unwrap(), cluster.namespace(test).await.unwrap()];
    let [a, b] = [a.name(), b.name()];

    one_namespace(&place, a, b).await;
    everything(&place, a, b).await;
    forbidden(&place, a).await;
    without_definitions(&place, a).await;
}

/// Those of another operator stay as they are.
async fn one_namespace(place: &Place<'_>, a: &str, b: &str) {
    for namespace in [a, b] {
        place.lock(namespace, "one", &[FINALIZER]).await;
        place.secret(namespace, IDENTITY, true).await;
    }
    let (done, told) = place.uninstall(ADMIN.0, ADMIN.1, &["--namespace", a]);
    assert!(done, "{told}");
    assert!(place.api::<Lock>(a).get("one").await.unwrap().finalizers().is_empty());
    assert!(!place.has_secret(a, IDENTITY).await);
    assert_eq!(place.api::<Lock>(b).get("one").await.unwrap().finalizers(), [FINALIZER]);
    assert!(place.has_secret(b, IDENTITY).await);
}

async fn everything(place: &Place<'_>, a: &str, b: &str) {
    stream::iter(0..MANY)
        .for_each_concurrent(16, async |at| place.lock(a, &format!("many-{at}"), &[FINALIZER]).await)
        .await;
    place.lock(a, "shared", &["example.com/first", FINALIZER, "example.com/last"]).await;
    place.lock(a, "another-s", &["example.com/first"]).await;
    let metadata = json!({ "name": "statements", "finalizers": [FINALIZER] });
    place.create::<Queue>(b, object("Queue", metadata, json!({ "mode": "WorkQueue" }))).await;
    let metadata = json!({ "name": "transfer", "finalizers": [FINALIZER] });
    let participants = json!([{ "name": "ledger", "app": "ledger", "path": "/entry" }]);
    let spec = json!({ "protocol": "TwoPhaseCommit", "participants": participants });
    place.create::<DistributedTransaction>(b, object("DistributedTransaction", metadata, spec)).await;
    // Of the same name, and another's.
    place.secret(a, IDENTITY, false).await;
    for (name, ours) in [("ca", true), ("theirs", false), ("not-named", true)] {
        place.secret(OWN, name, ours).await;
    }
    place.secret(a, "ca", true).await;
    for name in ["leader", "another"] {
        place.create::<Lease>(OWN, json!({ "metadata": { "name": name } })).await;
    }

    let flags = ["--secrets=ca,theirs,not-there", "--lease=leader"];
    let (done, told) = place.uninstall(ADMIN.0, ADMIN.1, &flags);
    assert!(done, "{told}");
    let locks = place.api::<Lock>(a).list(&ListParams::default()).await.unwrap().items;
    assert_eq!(locks.len(), MANY + 3, "none is deleted");
    for lock in locks {
        let expected: &[&str] = match lock.name_any().as_str() {
            "shared" => &["example.com/first", "example.com/last"],
            "another-s" => &["example.com/first"],
            _ => &[],
        };
        assert_eq!(lock.finalizers(), expected, "{}", lock.name_any());
    }
    assert!(place.api::<Queue>(b).get("statements").await.unwrap().finalizers().is_empty());
    let transfer = place.api::<DistributedTransaction>(b).get("transfer").await.unwrap();
    assert!(transfer.finalizers().is_empty());
    for (namespace, name, stays) in [
        (a, IDENTITY, true),
        (b, IDENTITY, false),
        (OWN, "ca", false),
        (OWN, "theirs", true),
        (OWN, "not-named", true),
        (a, "ca", true),
    ] {
        assert_eq!(place.has_secret(namespace, name).await, stays, "{namespace}/{name}");
    }
    let leases: Api<Lease> = place.api(OWN);
    assert!(leases.get_opt("leader").await.unwrap().is_none());
    assert!(leases.get_opt("another").await.unwrap().is_some());
    // It may be repeated.
    let (done, told) = place.uninstall(ADMIN.0, ADMIN.1, &flags);
    assert!(done, "{told}");
}

/// What it may not do it says, and does the rest.
async fn forbidden(place: &Place<'_>, a: &str) {
    let role = json!({
        "metadata": { "name": "all-but-queues" },
        "rules": [
            { "apiGroups": ["concordat.dev"], "resources": ["locks", "distributedtransactions"], "verbs": ["list", "patch"] },
            { "apiGroups": [""], "resources": ["namespaces"], "verbs": ["list"] },
            { "apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "delete"] },
        ],
    });
    let subject = json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "weak" });
    let of =
        json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "all-but-queues" });
    let binding = json!({ "metadata": { "name": "weak" }, "roleRef": of, "subjects": [subject] });
    let (roles, bindings): (Api<ClusterRole>, Api<ClusterRoleBinding>) =
        (Api::all(place.client.clone()), Api::all(place.client.clone()));
    roles.create(&PostParams::default(), &serde_json::from_value(role).unwrap()).await.unwrap();
    bindings.create(&PostParams::default(), &serde_json::from_value(binding).unwrap()).await.unwrap();
    let namespace = place.cluster.namespace("forbidden").await.unwrap();
    place.lock(a, "late", &[FINALIZER]).await;
    place.secret(namespace.name(), IDENTITY, true).await;
    // Its rights come to be known by the API server in its own time.
    concordat_tests::process::eventually("all else is done", async || {
        let (done, told) = place.uninstall("weak", None, &["--lease=leader"]);
        assert!(!done, "{told}");
        anyhow::ensure!(!place.has_secret(namespace.name(), IDENTITY).await, "{told}");
        anyhow::ensure!(place.api::<Lock>(a).get("late").await?.finalizers().is_empty(), "{told}");
        for what in ["Queue: ", "Lease leader: "] {
            let line = told.lines().find(|line| line.starts_with(what));
            anyhow::ensure!(line.is_some_and(|line| line.contains("forbidden")), "{told}");
        }
        Ok(())
    })
    .await
    .unwrap();
}

/// `crds.keep` is off, or somebody was quicker.
async fn without_definitions(place: &Place<'_>, a: &str) {
    for name in ["shared", "another-s"] {
        let nobody = kube::api::Patch::Merge(json!({ "metadata": { "finalizers": null } }));
        place.api::<Lock>(a).patch(name, &Default::default(), &nobody).await.unwrap();
    }
    let definitions: Api<CustomResourceDefinition> = Api::all(place.client.clone());
    for definition in definitions.list(&ListParams::default()).await.unwrap() {
        let (name, uid) = (definition.name_any(), definition.uid().unwrap());
        definitions.delete(&name, &DeleteParams::default()).await.unwrap();
        await_condition(definitions.clone(), &name, is_deleted(&uid)).await.unwrap();
    }
    let namespace = place.cluster.namespace("without_definitions").await.unwrap();
    place.secret(namespace.name(), IDENTITY, true).await;
    let (done, told) = place.uninstall(ADMIN.0, ADMIN.1, &[]);
    assert!(done && !place.has_secret(namespace.name(), IDENTITY).await, "{told}");
}
