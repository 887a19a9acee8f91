//! Concordat as it is installed in a cluster.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use concordat_tests::node::Node;
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};

/// The namespace of a release.
pub(crate) const SYSTEM: &str = "concordat-system";
/// Where the chart's manifests are applied without Helm.
pub(crate) const PLAIN: &str = "concordat-plain";
pub(crate) const RELEASE: &str = "concordat";
pub(crate) const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../helm/concordat");
const CRDS: [&str; 3] = ["locks", "queues", "distributedtransactions"];

/// A cluster has one.
static ALONE: Mutex<()> = Mutex::const_new(());

/// Concordat in a cluster. While it lives, other tests wait with theirs.
pub(crate) struct Installation<'a> {
    pub(crate) node: &'a Node,
    /// Where it is.
    pub(crate) namespace: &'static str,
    _alone: MutexGuard<'static, ()>,
}

impl<'a> Installation<'a> {
    /// `helm install`, with nothing but defaults.
    pub(crate) async fn install(node: &'a Node) -> Result<Self> {
        ensure!(Path::new(CHART).join("Chart.yaml").exists(), "no chart at {CHART}");
        Self::of(node, CHART, &[]).await
    }

    /// `helm install` of a chart, with these arguments besides.
    pub(crate) async fn of(node: &'a Node, chart: &str, arguments: &[&str]) -> Result<Self> {
        Self::begin(node, SYSTEM).await?.helm_install(chart, arguments).await
    }

    /// An empty namespace for it; nothing is installed anywhere.
    pub(crate) async fn begin(node: &'a Node, namespace: &'static str) -> Result<Self> {
        let alone = ALONE.lock().await;
        // What a test that failed left.
        node.helm(&["uninstall", RELEASE, "--namespace", SYSTEM, "--ignore-not-found", "--wait"]).await?;
        let kinds = "mutatingwebhookconfigurations,clusterroles,clusterrolebindings";
        node.kubectl(&["delete", kinds, "--selector=app.kubernetes.io/part-of=concordat"]).await?;
        node.kubectl(&["delete", "namespace", SYSTEM, PLAIN, "--ignore-not-found"]).await?;
        let made = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        node.kubectl_reads(&["apply", "--filename", "-"], &made.to_string()).await?;
        Ok(Self { node, namespace, _alone: alone })
    }

    /// `helm install` of a chart into its namespace, with these arguments besides.
    pub(crate) async fn helm_install(self, chart: &str, arguments: &[&str]) -> Result<Self> {
        let install = ["install", RELEASE, chart, "--namespace", self.namespace];
        let waiting = ["--wait", "--timeout", "5m"];
        let installed = self.node.helm(&[&install[..], &waiting, arguments].concat()).await;
        installed.with_context(|| self.look())?;
        Ok(self)
    }

    /// What `helm test` finds.
    pub(crate) async fn test(&self) -> Result<()> {
        let tested = self.node.helm(&["test", RELEASE, "--namespace", self.namespace]).await;
        tested.with_context(|| self.look()).map(drop)
    }

    /// The objects of the chart with other values, which are not installed.
    pub(crate) async fn rendered(&self, values: &[&str]) -> Result<Vec<Value>> {
        let values: Vec<&str> = values.iter().flat_map(|value| ["--set", value]).collect();
        let template = ["template", RELEASE, CHART, "--namespace", SYSTEM];
        let text = self.node.helm(&[&template[..], &values].concat()).await?;
        let objects: Vec<Value> = serde_saphyr::from_multiple(&text)?;
        Ok(objects.into_iter().filter(|object| !object.is_null()).collect())
    }

    /// `helm upgrade` with other values.
    pub(crate) async fn upgrade(&self, values: &[&str]) -> Result<()> {
        let upgrade = ["upgrade", RELEASE, CHART, "--namespace", self.namespace, "--wait", "--timeout", "5m"];
        let upgraded = self.node.helm(&[&upgrade[..], &set(values)].concat()).await;
        upgraded.with_context(|| self.look()).map(drop)
    }

    /// `helm rollback` to the revision before.
    pub(crate) async fn rolled_back(&self) -> Result<()> {
        let rollback = ["rollback", RELEASE, "--namespace", self.namespace, "--wait", "--timeout", "5m"];
        let rolled = self.node.helm(&rollback).await;
        rolled.with_context(|| self.look()).map(drop)
    }

    /// `helm uninstall`, with its hooks.
    pub(crate) async fn uninstall(&self) -> Result<()> {
        let uninstall = ["uninstall", RELEASE, "--namespace", self.namespace, "--wait", "--timeout", "5m"];
        let uninstalled = self.node.helm(&uninstall).await;
        uninstalled.with_context(|| self.look()).map(drop)
    }

    /// What a person would look at when something went wrong.
    pub(crate) fn look(&self) -> String {
        self.node.look(self.namespace)
    }

    /// kubectl in its namespace.
    pub(crate) async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.node.kubectl(&[&["--namespace", self.namespace], arguments].concat()).await
    }

    /// Waits until its operators, or the members of its etcd, are as they are to be.
    pub(crate) async fn rolled_out(&self, what: &str) -> Result<()> {
        let rolled = self.kubectl(&["rollout", "status", what, "--timeout=5m"]).await;
        rolled.with_context(|| self.look()).map(drop)
    }

    /// So many operators run from now on, and answer.
    pub(crate) async fn operators(&self, count: u32) -> Result<()> {
        let replicas = format!("--replicas={count}");
        self.kubectl(&["scale", "deployment/concordat-operator", &replicas]).await?;
        self.rolled_out("deployment/concordat-operator").await?;
        if count == 0 {
            let pods = "--selector=app.kubernetes.io/component=operator";
            self.kubectl(&["wait", "pods", pods, "--for=delete", "--timeout=2m"]).await?;
        }
        Ok(())
    }

    /// Nothing is left that blocks anything: no webhook, no finalizer, no Secret, no lease, no role; the resources and the
    /// data stay, as `keep` says.
    pub(crate) async fn left_nothing(&self) -> Result<()> {
        self.left_nothing_but(&[]).await?;
        self.left_the_data().await
    }

    /// Nothing but these Secrets that people made, each as namespace and name.
    pub(crate) async fn left_nothing_but(&self, given: &[(&str, &str)]) -> Result<()> {
        let names = async |arguments: &[&str]| {
            let listed = self.node.kubectl(&[&["get", "--output=json"], arguments].concat()).await?;
            let listed: Value = serde_json::from_str(&listed)?;
            anyhow::Ok(listed["items"].as_array().cloned().unwrap_or_default())
        };
        for kind in ["mutatingwebhookconfigurations", "clusterroles", "clusterrolebindings"] {
            let ours: Vec<_> = names(&[kind]).await?.into_iter().filter(of_the_chart).collect();
            ensure!(ours.is_empty(), "{kind} are left: {ours:#?}");
        }
        for kind in ["secrets", "leases", "jobs", "deployments", "statefulsets", "rolebindings"] {
            let mut ours = names(&[kind, "--all-namespaces"]).await?;
            ours.retain(|object| of_the_chart(object) && !given.iter().any(|one| is(object, one)));
            ensure!(ours.is_empty(), "{kind} are left: {ours:#?}");
        }
        for kind in CRDS {
            let objects = names(&[&format!("{kind}.concordat.dev"), "--all-namespaces"]).await?;
            ensure!(!objects.is_empty(), "{kind} are gone, which were to stay");
            for object in objects {
                ensure!(object["metadata"]["finalizers"].is_null(), "a finalizer is left: {object:#}");
            }
        }
        Ok(())
    }

    /// What its etcd knew stays on its volume.
    async fn left_the_data(&self) -> Result<()> {
        let claims = self.kubectl(&["get", "persistentvolumeclaims", "--output=name"]).await?;
        ensure!(
            claims.contains("data-concordat-etcd-0"),
            "etcd's volume is gone, which was to stay: {claims}"
        );
        Ok(())
    }
}

/// Values as Helm's arguments.
pub(crate) fn set<'a>(values: &[&'a str]) -> Vec<&'a str> {
    values.iter().flat_map(|value| ["--set", value]).collect()
}

/// Whether an object is the chart's or the operator's.
fn of_the_chart(object: &Value) -> bool {
    object["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("concordat"))
}

fn is(object: &Value, (namespace, name): &(&str, &str)) -> bool {
    object["metadata"]["namespace"] == *namespace && object["metadata"]["name"] == *name
}
