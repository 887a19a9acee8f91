//! What the chart lets whom do: enough, and no more.

use std::process::Command;

use anyhow::ensure;
use concordat_crds::Lock;
use concordat_tests::{
    etcd::{Etcd, Settings},
    kube::{Cluster, Namespace},
    process::{Process, binary, eventually, free_port},
};
use k8s_openapi::{
    api::{
        authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
        coordination::v1::Lease,
        core::v1::{self, Secret},
        events::v1::Event,
    },
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::{accepted::apply, world::objects};

/// The kinds that give rights, and to whom.
const GIVING: [&str; 5] = ["ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"];
/// The group of all service accounts.
const ACCOUNTS: &str = "system:serviceaccounts";

/// A release's rights in a cluster, and nothing else of it. Its name is its namespace's, so that releases of several
/// tests do not mix.
struct Release {
    namespace: Namespace<'static>,
    cluster: &'static Cluster,
}

impl Release {
    async fn install(test: &str) -> Self {
        Self::install_with(test, &[]).await
    }

    async fn install_with(test: &str, values: &[&str]) -> Self {
        let cluster = Cluster::shared().await.unwrap();
        let namespace = cluster.namespace(test).await.unwrap();
        let admin = cluster.client().await.unwrap();
        let name = format!("--set=fullnameOverride={0},tests.namespace={0}", namespace.name());
        let giving = |object: &Value| GIVING.iter().any(|kind| object["kind"] == *kind);
        let values = [&[&*name], values].concat();
        for object in objects(namespace.name(), &values).iter().filter(|object| giving(object)) {
            apply(&admin, object, &PatchParams::apply("concordat-tests")).await.unwrap();
        }
        Self { namespace, cluster }
    }

    /// The user that Kubernetes takes a component's service account for.
    fn user(&self, component: &str) -> String {
        format!("system:serviceaccount:{0}:{0}-{component}", self.namespace.name())
    }

    async fn client(&self, user: &str) -> Client {
        self.cluster.client_as(user, Some(ACCOUNTS)).await.unwrap()
    }

    /// The operator with the rights of its service account, and these flags.
    async fn operator(&self, etcd: &Etcd, flags: &[&str]) -> Process {
        let (system, port) = (self.namespace.name(), free_port().unwrap());
        let kubeconfig = tempfile::NamedTempFile::with_prefix("concordat-kubeconfig-").unwrap();
        let text = self.cluster.kubeconfig(&self.user("operator"), Some(ACCOUNTS)).unwrap();
        std::fs::write(kubeconfig.path(), text).unwrap();
        let mut command = Command::new(binary("concordat-operator").unwrap());
        command
            .env("KUBECONFIG", kubeconfig.path())
            .args(["--pod=operator", "--log=debug,hyper_util=info", "--lease-namespace", system])
            .arg(format!("--lease-name={system}-operator"))
            .args(["--etcd-endpoints", &etcd.endpoints().join(",")])
            .arg(format!("--admin-listen=127.0.0.1:{port}"))
            .args(flags);
        let mut operator = Process::start("operator", command).unwrap();
        operator.answers(&format!("http://127.0.0.1:{port}/ready")).await.unwrap();
        operator
    }
}

/// Whether whoever has this client may do a verb on a resource, as in `locks.concordat.dev/status`, and a name.
async fn may(client: &Client, verb: &str, resource: &str, namespace: &str, name: &str) -> bool {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
    let set = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let attributes = ResourceAttributes {
        verb: set(verb),
        group: set(group),
        resource: set(resource),
        subresource: set(subresource),
        namespace: set(namespace),
        name: set(name),
        ..ResourceAttributes::default()
    };
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() },
        ..SelfSubjectAccessReview::default()
    };
    let answer = Api::all(client.clone()).create(&PostParams::default(), &review).await.unwrap();
    answer.status.unwrap().allowed
}

/// The operator, logged in as the chart's service account, does with its rights all that it does.
#[tokio::test]
async fn the_operator_works_with_the_chart_s_rights() {
    let release = Release::install("the_operator_works_with_the_chart_s_rights").await;
    let etcd = Etcd::start().await.unwrap();
    let system = release.namespace.name();
    let operator = release.operator(&etcd, &[]).await;

    let shop = release.cluster.namespace("the_operator_works_with_the_chart_s_rights").await.unwrap();
    let admin = release.cluster.client().await.unwrap();
    let locks: Api<Lock> = Api::namespaced(admin.clone(), shop.name());
    let lock = json!({
        "apiVersion": "concordat.dev/v1alpha1", "kind": "Lock", "metadata": { "name": "orders" },
        "spec": { "mode": "CompareAndSwap" },
    });
    locks.create(&PostParams::default(), &serde_json::from_value(lock).unwrap()).await.unwrap();
    until_ready(&locks, 1).await;
    locks
        .patch("orders", &PatchParams::default(), &Patch::Merge(json!({ "spec": { "ttl": "9s" } })))
        .await
        .unwrap();
    until_ready(&locks, 2).await;
    // Taking the annotation off is the last of what is done for it.
    let force = json!({ "metadata": { "annotations": { "concordat.dev/force-release": "nobody=1" } } });
    locks.patch("orders", &PatchParams::default(), &Patch::Merge(force)).await.unwrap();
    eventually("the annotation is taken off", async || {
        let annotations = locks.get("orders").await?.metadata.annotations.unwrap_or_default();
        ensure!(!annotations.contains_key("concordat.dev/force-release"), "it is there");
        Ok(())
    })
    .await
    .unwrap();
    locks.delete("orders", &DeleteParams::default()).await.unwrap();
    eventually("the lock is gone", async || {
        ensure!(locks.get_opt("orders").await?.is_none(), "it is there");
        Ok(())
    })
    .await
    .unwrap();
    let events: Api<Event> = Api::namespaced(admin.clone(), shop.name());
    eventually("it is told of", async || {
        ensure!(!events.list(&ListParams::default()).await?.items.is_empty(), "nothing is told");
        Ok(())
    })
    .await
    .unwrap();
    let leases: Api<Lease> = Api::namespaced(admin, system);
    let lease = leases.get(&format!("{system}-operator")).await.unwrap();
    assert!(lease.spec.unwrap().holder_identity.unwrap().starts_with("operator_"));
    let log = operator.log();
    assert!(!log.contains("forbidden"), "{log}");
}

async fn until_ready(locks: &Api<Lock>, generation: i64) {
    eventually("the lock is ready", async || {
        let status = locks.get("orders").await?.status;
        let ready = |of: &Condition| {
            of.type_ == "Ready" && of.status == "True" && of.observed_generation == Some(generation)
        };
        ensure!(status.is_some_and(|status| status.conditions.iter().any(ready)), "it is not");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn the_operator_can_do_nothing_that_it_does_not_do() {
    let release = Release::install("the_operator_can_do_nothing_that_it_does_not_do").await;
    let here = release.namespace.name();
    let client = release.client(&release.user("operator")).await;
    let lease = format!("{here}-operator");
    let (etcd, authority) = (format!("{here}-etcd"), format!("{here}-ca"));
    for (verb, resource, namespace, name, expected) in [
        ("watch", "locks.concordat.dev", "", "", true),
        ("patch", "queues.concordat.dev", "shop", "a", true),
        ("patch", "distributedtransactions.concordat.dev/status", "shop", "a", true),
        ("create", "locks.concordat.dev", "shop", "", false),
        ("delete", "queues.concordat.dev", "shop", "a", false),
        ("update", "leases.coordination.k8s.io", here, &*lease, true),
        ("update", "leases.coordination.k8s.io", here, "another", false),
        ("create", "leases.coordination.k8s.io", "kube-system", "", false),
        ("patch", "statefulsets.apps", here, &*etcd, true),
        ("patch", "statefulsets.apps", here, "another", false),
        ("delete", "statefulsets.apps", here, &*etcd, false),
        ("patch", "statefulsets.apps", "shop", &*etcd, false),
        ("get", "secrets", "shop", "concordat-etcd-client", true),
        ("delete", "secrets", "shop", "concordat-etcd-client", false),
        ("get", "secrets", "shop", "password", false),
        ("list", "secrets", "shop", "", false),
        ("watch", "secrets", "", "", false),
        ("get", "secrets", here, "password", false),
        ("update", "secrets", here, &*authority, true),
        ("patch", "secrets", here, &*authority, false),
        ("get", "pods", "shop", "a", false),
        ("create", "pods", "shop", "", false),
        ("create", "pods/exec", "shop", "a", false),
        ("get", "configmaps", "shop", "a", false),
        ("patch", "namespaces", "", "shop", false),
        ("patch", "mutatingwebhookconfigurations.admissionregistration.k8s.io", "", "another", false),
        ("create", "mutatingwebhookconfigurations.admissionregistration.k8s.io", "", "", false),
        ("patch", "customresourcedefinitions.apiextensions.k8s.io", "", "locks.concordat.dev", false),
        ("bind", "clusterroles.rbac.authorization.k8s.io", "", "cluster-admin", false),
        ("impersonate", "users", "", "admin", false),
        ("create", "serviceaccounts/token", "shop", "default", false),
    ] {
        let allowed = may(&client, verb, resource, namespace, name).await;
        assert_eq!(allowed, expected, "{verb} {resource} {namespace}/{name}");
    }
}

/// With `operator.namespace` it has rights there, and none in any other namespace.
#[tokio::test]
async fn the_operator_of_one_namespace_works_with_rights_there_alone() {
    let test = "the_operator_of_one_namespace_works_with_rights_there_alone";
    let cluster = Cluster::shared().await.unwrap();
    let shop = cluster.namespace(test).await.unwrap();
    let shop = shop.name();
    let one = format!("--set=operator.namespace={shop}");
    let release = Release::install_with(test, &[&one]).await;
    let here = release.namespace.name();
    let client = release.client(&release.user("operator")).await;
    for (verb, resource, name) in [
        ("watch", "locks.concordat.dev", ""),
        ("patch", "queues.concordat.dev/status", "a"),
        ("list", "pods", ""),
        ("get", "secrets", "concordat-etcd-client"),
        ("create", "secrets", ""),
        ("create", "events.events.k8s.io", ""),
    ] {
        assert!(may(&client, verb, resource, shop, name).await, "{verb} {resource}");
        assert!(!may(&client, verb, resource, "elsewhere", name).await, "{verb} {resource} elsewhere");
        assert!(!may(&client, verb, resource, "", name).await, "{verb} {resource} everywhere");
    }
    for (name, expected) in [(shop, true), ("elsewhere", false), ("", false)] {
        assert_eq!(may(&client, "watch", "namespaces", "", name).await, expected, "{name}");
    }
    let uninstall = release.client(&release.user("uninstall")).await;
    assert!(may(&uninstall, "patch", "locks.concordat.dev", shop, "a").await);
    assert!(!may(&uninstall, "patch", "locks.concordat.dev", "elsewhere", "a").await);

    let etcd = Etcd::with(Settings { tls: true, ..Settings::default() }).await.unwrap();
    let root = tempfile::tempdir().unwrap();
    etcd.issue("root", root.path()).unwrap();
    let admin = cluster.client().await.unwrap();
    let authority = format!("{here}-ca");
    let (certificate, key) = etcd.authority().unwrap();
    let secret = json!({
        "metadata": { "name": authority },
        "stringData": { "tls.crt": certificate, "tls.key": key, "ca.crt": certificate },
    });
    let secrets: Api<Secret> = Api::namespaced(admin.clone(), here);
    secrets.create(&PostParams::default(), &serde_json::from_value(secret).unwrap()).await.unwrap();
    let file = |flag: &str, name: &str| format!("--etcd-{flag}={}", root.path().join(name).display());
    let files = [file("ca-file", "ca.crt"), file("cert-file", "tls.crt"), file("key-file", "tls.key")];
    let [ca, certificate, key] = &files;
    let flags = ["--namespace", shop, "--identities", "--ca-secret", &authority, ca, certificate, key];
    let operator = release.operator(&etcd, &flags).await;
    let label = json!({ "metadata": { "labels": { "concordat.dev/inject": "enabled" } } });
    let namespaces: Api<v1::Namespace> = Api::all(admin.clone());
    namespaces.patch(shop, &PatchParams::default(), &Patch::Merge(label)).await.unwrap();
    let secrets: Api<Secret> = Api::namespaced(admin.clone(), shop);
    eventually("the namespace has an identity", async || {
        ensure!(secrets.get_opt("concordat-etcd-client").await?.is_some(), "it has none");
        Ok(())
    })
    .await
    .unwrap();
    let locks: Api<Lock> = Api::namespaced(admin, shop);
    let lock = json!({
        "apiVersion": "concordat.dev/v1alpha1", "kind": "Lock", "metadata": { "name": "orders" },
        "spec": { "mode": "CompareAndSwap" },
    });
    locks.create(&PostParams::default(), &serde_json::from_value(lock).unwrap()).await.unwrap();
    until_ready(&locks, 1).await;
    let log = operator.log();
    assert!(!log.contains("forbidden"), "{log}");
}

/// A rule that says everything would make the list above worthless.
#[test]
fn no_rule_says_everything() {
    for object in objects("concordat-system", &["--set=uninstall.enabled=true"]) {
        for rule in object["rules"].as_array().into_iter().flatten() {
            assert!(!rule.to_string().contains('*'), "{}: {rule}", object["metadata"]["name"]);
        }
    }
}

#[tokio::test]
async fn people_see_and_write_what_their_role_says() {
    let release = Release::install("people_see_and_write_what_their_role_says").await;
    let here = release.namespace.name();
    let admin = release.cluster.client().await.unwrap();
    for role in ["viewer", "editor"] {
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": { "name": role, "namespace": here },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": format!("{here}-{role}") },
            "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": role }],
        });
        apply(&admin, &binding, &PatchParams::apply("concordat-tests")).await.unwrap();
    }
    let [viewer, editor] = ["viewer", "editor"];
    let viewer = release.cluster.client_as(viewer, None).await.unwrap();
    let editor = release.cluster.client_as(editor, None).await.unwrap();
    for (verb, resource, sees, writes) in [
        ("list", "locks.concordat.dev", true, true),
        ("get", "distributedtransactions.concordat.dev/status", true, true),
        ("create", "queues.concordat.dev", false, true),
        ("patch", "locks.concordat.dev", false, true),
        ("patch", "locks.concordat.dev/status", false, false),
        ("get", "secrets", false, false),
    ] {
        assert_eq!(may(&viewer, verb, resource, here, "a").await, sees, "viewer: {verb} {resource}");
        assert_eq!(may(&editor, verb, resource, here, "a").await, writes, "editor: {verb} {resource}");
        assert!(!may(&viewer, verb, resource, "elsewhere", "a").await, "viewer elsewhere: {verb} {resource}");
    }
}

/// An app's pod has the service account `default` of its namespace, or one of its owner's: the chart names neither.
#[tokio::test]
async fn app_pods_have_no_rights() {
    let release = Release::install("app_pods_have_no_rights").await;
    let here = release.namespace.name();
    let app = release.client("system:serviceaccount:shop:default").await;
    for resource in ["locks.concordat.dev", "queues.concordat.dev", "distributedtransactions.concordat.dev"] {
        for verb in ["get", "list", "watch", "create", "patch", "delete"] {
            assert!(!may(&app, verb, resource, "shop", "a").await, "{verb} {resource}");
        }
    }
    for (namespace, name) in [("shop", "concordat-etcd-client"), (here, "concordat-ca")] {
        assert!(!may(&app, "get", "secrets", namespace, name).await, "{namespace}/{name}");
    }
}

/// What an uninstall and a test are run as may do that, and goes with them.
#[tokio::test]
async fn hooks_can_do_what_they_are_for() {
    let release = Release::install("hooks_can_do_what_they_are_for").await;
    let here = release.namespace.name();
    let uninstall = release.client(&release.user("uninstall")).await;
    let authority = format!("{here}-ca");
    for (verb, resource, namespace, name, expected) in [
        ("list", "locks.concordat.dev", "", "", true),
        ("patch", "distributedtransactions.concordat.dev", "shop", "a", true),
        ("delete", "queues.concordat.dev", "shop", "a", false),
        ("list", "namespaces", "", "", true),
        ("delete", "secrets", "shop", "concordat-etcd-client", true),
        ("delete", "secrets", "shop", "password", false),
        ("list", "secrets", "shop", "", false),
        ("delete", "secrets", here, &*authority, true),
        ("delete", "secrets", "shop", &*authority, false),
    ] {
        let allowed = may(&uninstall, verb, resource, namespace, name).await;
        assert_eq!(allowed, expected, "{verb} {resource} {namespace}/{name}");
    }
    let test = release.client(&release.user("test")).await;
    assert!(may(&test, "create", "pods", here, "").await);
    assert!(!may(&test, "create", "pods", "elsewhere", "").await);
    assert!(!may(&test, "get", "pods", here, "a").await);
}
