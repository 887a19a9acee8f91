//! Concordat as its chart installs it.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use concordat_tests::node::Node;
use serde_json::Value;

/// The namespace of the release.
pub(crate) const SYSTEM: &str = "concordat-system";
const RELEASE: &str = "concordat";
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../helm/concordat");
const CRDS: [&str; 3] = ["locks", "queues", "distributedtransactions"];

/// A release of the chart.
pub(crate) struct Installation<'a> {
    pub(crate) node: &'a Node,
}

impl<'a> Installation<'a> {
    /// `helm install`, with nothing but defaults.
    pub(crate) async fn install(node: &'a Node) -> Result<Self> {
        ensure!(Path::new(CHART).join("Chart.yaml").exists(), "no chart at {CHART}");
        let install = ["install", RELEASE, CHART, "--namespace", SYSTEM, "--create-namespace"];
        let waiting = ["--wait", "--timeout", "5m"];
        let installed = node.helm(&[&install[..], &waiting].concat()).await;
        installed.with_context(|| node.look(SYSTEM))?;
        Ok(Self { node })
    }

    /// What `helm test` finds.
    pub(crate) async fn test(&self) -> Result<()> {
        let tested = self.node.helm(&["test", RELEASE, "--namespace", SYSTEM]).await;
        tested.with_context(|| self.node.look(SYSTEM)).map(drop)
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
        let upgrade = ["upgrade", RELEASE, CHART, "--namespace", SYSTEM, "--wait", "--timeout", "5m"];
        let values: Vec<&str> = values.iter().flat_map(|value| ["--set", value]).collect();
        let upgraded = self.node.helm(&[&upgrade[..], &values].concat()).await;
        upgraded.with_context(|| self.node.look(SYSTEM)).map(drop)
    }

    /// `helm uninstall`, with its hooks.
    pub(crate) async fn uninstall(&self) -> Result<()> {
        let uninstall = ["uninstall", RELEASE, "--namespace", SYSTEM, "--wait", "--timeout", "5m"];
        let uninstalled = self.node.helm(&uninstall).await;
        uninstalled.with_context(|| self.node.look(SYSTEM)).map(drop)
    }

    /// kubectl in the namespace of the release.
    pub(crate) async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.node.kubectl(&[&["--namespace", SYSTEM], arguments].concat()).await
    }

    /// So many operators run from now on, and answer.
    pub(crate) async fn operators(&self, count: u32) -> Result<()> {
        let replicas = format!("--replicas={count}");
        self.kubectl(&["scale", "deployment/concordat-operator", &replicas]).await?;
        let rolled = ["rollout", "status", "deployment/concordat-operator", "--timeout=3m"];
        self.kubectl(&rolled).await?;
        if count == 0 {
            let pods = "--selector=app.kubernetes.io/component=operator";
            self.kubectl(&["wait", "pods", pods, "--for=delete", "--timeout=2m"]).await?;
        }
        Ok(())
    }

    /// Nothing is left that blocks anything: no webhook, no finalizer, no Secret, no role; the resources and the data
    /// stay, as `keep` says.
    pub(crate) async fn left_nothing(&self) -> Result<()> {
        let names = async |arguments: &[&str]| {
            let listed = self.node.kubectl(&[&["get", "--output=json"], arguments].concat()).await?;
            let listed: Value = serde_json::from_str(&listed)?;
            anyhow::Ok(listed["items"].as_array().cloned().unwrap_or_default())
        };
        for kind in ["mutatingwebhookconfigurations", "clusterroles", "clusterrolebindings"] {
            let ours: Vec<_> = names(&[kind]).await?.into_iter().filter(of_the_chart).collect();
            ensure!(ours.is_empty(), "{kind} are left: {ours:#?}");
        }
        let secrets = names(&["secrets", "--all-namespaces"]).await?;
        let ours: Vec<_> = secrets.into_iter().filter(of_the_chart).collect();
        ensure!(ours.is_empty(), "Secrets are left: {ours:#?}");
        for kind in CRDS {
            for object in names(&[&format!("{kind}.concordat.dev"), "--all-namespaces"]).await? {
                ensure!(object["metadata"]["finalizers"].is_null(), "a finalizer is left: {object:#}");
            }
        }
        Ok(())
    }
}

/// Whether an object is the chart's or the operator's.
fn of_the_chart(object: &Value) -> bool {
    object["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("concordat"))
}
