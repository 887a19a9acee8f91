//! What every test here starts with.

use std::{collections::BTreeMap, fmt::Debug, path::Path, process::Command};

use anyhow::{Context as _, Result, anyhow, ensure};
use concordat_protocol::{Definition, Entry, Key, Kind, Record};
use concordat_store::{keys, record};
use concordat_tests::{
    etcd::Etcd,
    history::Recorder,
    kube::{Cluster, Namespace},
    process::{Process, binary, eventually, free_port, measures},
};
use etcd_client::PutOptions;
use k8s_openapi::{
    NamespaceResourceScope, api::events::v1::Event, apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tempfile::NamedTempFile;

/// A namespace of a Kubernetes, and an etcd of Concordat's own.
pub(crate) struct World {
    pub(crate) namespace: String,
    pub(crate) etcd: Etcd,
    pub(crate) client: Client,
    pub(crate) recorder: Recorder,
    kubeconfig: NamedTempFile,
    /// Shows the API server's log when the test fails.
    _shared: Option<Namespace<'static>>,
}

/// A running sidecar.
pub(crate) struct Sidecar {
    _process: Process,
    /// Of its API.
    pub(crate) url: String,
}

/// A custom resource.
pub(crate) trait Object:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Serialize
{
}

impl<K> Object for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Serialize
{
}

/// A running operator.
pub(crate) struct Operator {
    pub(crate) process: Process,
    admin: String,
}

impl World {
    /// In the cluster that tests share.
    pub(crate) async fn start(test: &str) -> Self {
        let cluster = Cluster::shared().await.unwrap();
        let namespace = cluster.namespace(test).await.unwrap();
        let world = Self::within(cluster, namespace.name()).await;
        Self { _shared: Some(namespace), ..world }
    }

    /// In a cluster of the test's own, which it may stop.
    pub(crate) async fn alone(cluster: &Cluster, test: &str) -> Self {
        let namespace = cluster.namespace(test).await.unwrap();
        Self::within(cluster, namespace.name()).await
    }

    async fn within(cluster: &Cluster, namespace: &str) -> Self {
        Self::on(Etcd::start().await.unwrap(), cluster, namespace).await
    }

    /// On this etcd.
    pub(crate) async fn on(etcd: Etcd, cluster: &Cluster, namespace: &str) -> Self {
        let recorder = Recorder::start(etcd.client().await.unwrap());
        let kubeconfig = NamedTempFile::with_prefix("concordat-kubeconfig-").unwrap();
        let text = cluster.kubeconfig("operator", Some("system:masters")).unwrap();
        std::fs::write(kubeconfig.path(), text).unwrap();
        let client = cluster.client().await.unwrap();
        Self { namespace: namespace.to_owned(), etcd, client, recorder, kubeconfig, _shared: None }
    }

    /// With which programs log in to do everything.
    pub(crate) fn kubeconfig(&self) -> &Path {
        self.kubeconfig.path()
    }

    /// The program `concordat`, logged in to do everything. Add arguments and run it.
    pub(crate) fn concordat(&self) -> Command {
        let mut command = Command::new(binary("concordat").unwrap());
        command.env("KUBECONFIG", self.kubeconfig.path()).env_remove("CONCORDAT_ETCD_ENDPOINTS");
        command
    }

    /// Starts an operator for this namespace and this etcd, under a name of its own.
    pub(crate) async fn operator(&self, name: &str) -> Operator {
        self.operator_with(name, &["--etcd-endpoints", &self.etcd.endpoints().join(",")]).await
    }

    /// The same with these flags, of etcd's addresses among others.
    pub(crate) async fn operator_with(&self, name: &str, args: &[&str]) -> Operator {
        let own = ["--namespace", &self.namespace];
        self.operator_of(name, self.kubeconfig(), &[&own, args].concat()).await
    }

    /// With this kubeconfig and these flags alone: of every namespace, unless they say otherwise.
    pub(crate) async fn operator_of(&self, name: &str, kubeconfig: &Path, args: &[&str]) -> Operator {
        let port = free_port().unwrap();
        let mut command = Command::new(binary("concordat-operator").unwrap());
        command
            .env("KUBECONFIG", kubeconfig)
            .args(["--pod", name, "--lease-duration=5s", "--log=info,concordat_operator=debug"])
            .args(["--lease-namespace", &self.namespace])
            .args(args)
            .args(["--admin-listen", &format!("127.0.0.1:{port}")]);
        let mut process = Process::start(name, command).unwrap();
        let admin = format!("http://127.0.0.1:{port}");
        process.answers(&format!("{admin}/live")).await.unwrap();
        Operator { process, admin }
    }

    /// Starts a sidecar of an app that takes callbacks at a port, if at any.
    pub(crate) async fn sidecar(&self, app: &str, app_port: Option<u16>) -> Sidecar {
        let (api, admin) = (free_port().unwrap(), free_port().unwrap());
        let mut command = Command::new(binary("concordat-sidecar").unwrap());
        command
            .args(["--namespace", &self.namespace, "--app", app, "--pod", &format!("{app}-0")])
            .args([
                "--api-port",
                &api.to_string(),
                "--admin-address=127.0.0.1",
                "--admin-port",
                &admin.to_string(),
            ])
            .args(["--etcd-endpoints", &self.etcd.endpoints().join(",")])
            .args(app_port.map(|port| format!("--app-port={port}")));
        let mut process = Process::start(app, command).unwrap();
        process.answers(&format!("http://127.0.0.1:{admin}/ready")).await.unwrap();
        Sidecar { _process: process, url: format!("http://127.0.0.1:{api}/v1") }
    }

    pub(crate) fn api<K: Object>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub(crate) async fn create<K: Object>(&self, name: &str, spec: Value) -> K {
        let object = serde_json::json!({
            "apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": { "name": name }, "spec": spec,
        });
        let object: K = serde_json::from_value(object).unwrap();
        self.api().create(&PostParams::default(), &object).await.unwrap()
    }

    pub(crate) async fn update<K: Object>(&self, name: &str, spec: Value) -> K {
        let patch = Patch::Merge(serde_json::json!({ "spec": spec }));
        self.api().patch(name, &PatchParams::default(), &patch).await.unwrap()
    }

    pub(crate) async fn delete<K: Object>(&self, name: &str) {
        self.api::<K>().delete(name, &DeleteParams::default()).await.unwrap();
    }

    /// Waits until the object's status holds; answers the object.
    pub(crate) async fn until<K: Object>(&self, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> K {
        eventually(what, async || {
            let object: K = self.api().get(name).await?;
            let value = serde_json::to_value(&object)?;
            ensure!(holds(&value), "it is {value}");
            Ok(object)
        })
        .await
        .unwrap()
    }

    /// Waits until the operator has said of the object's present generation that it is ready, or why not.
    pub(crate) async fn stands<K: Object>(&self, name: &str, status: &str, reason: &str) -> K {
        self.until(name, &format!("{name} is Ready={status}/{reason}"), |object| {
            let Some(ready) = condition(object, "Ready") else { return false };
            let generation = object.pointer("/metadata/generation").and_then(Value::as_i64);
            (ready.status.as_str(), ready.reason.as_str()) == (status, reason)
                && ready.observed_generation == generation
        })
        .await
    }

    /// Waits until there is no such object.
    pub(crate) async fn gone<K: Object>(&self, name: &str) {
        eventually(&format!("{name} is gone"), async || {
            ensure!(self.api::<K>().get_opt(name).await?.is_none(), "it is there");
            Ok(())
        })
        .await
        .unwrap();
    }

    /// What etcd remembers now.
    pub(crate) async fn state(&self) -> BTreeMap<Key, Entry> {
        self.recorder.state().await.unwrap()
    }

    /// Waits until an object's definition holds.
    pub(crate) async fn defined(&self, kind: Kind, name: &str, holds: impl Fn(&Definition) -> bool) -> Entry {
        let key = Key::Definition { kind, name: name.into() };
        eventually(&format!("{name} is defined"), async || {
            let state = self.recorder.state().await?;
            let entry = state.get(&key).with_context(|| format!("there is no {key:?}"))?;
            match &entry.record {
                Record::Definition(definition) if holds(definition) => Ok(entry.clone()),
                other => Err(anyhow!("it is {other:?}")),
            }
        })
        .await
        .unwrap()
    }

    /// Puts a record as a sidecar would, under a lease of etcd's or none.
    pub(crate) async fn put(&self, key: &Key, record: impl Into<Record>, lease: Option<i64>) {
        let key = keys::encode(&self.namespace, key);
        let options = lease.map(|lease| PutOptions::new().with_lease(lease));
        let mut client = self.etcd.client().await.unwrap();
        client.put(key, record::encode(&record.into()), options).await.unwrap();
    }

    pub(crate) async fn remove(&self, key: &Key) {
        let key = keys::encode(&self.namespace, key);
        self.etcd.client().await.unwrap().delete(key, None).await.unwrap();
    }

    /// Waits until these events, reason and count in the order of the reasons, and no others were told of an object:
    /// they come after its status.
    pub(crate) async fn tells(&self, name: &str, events: &[(&str, i32)]) {
        eventually(&format!("{events:?} of {name}"), async || {
            let told = self.events(name).await;
            let told: Vec<_> = told.iter().map(|(reason, count)| (reason.as_str(), *count)).collect();
            ensure!(told == events, "told: {told:?}");
            Ok(())
        })
        .await
        .unwrap();
    }

    /// Reason and count of every event told of an object so far, in the order of their reasons.
    pub(crate) async fn events(&self, name: &str) -> Vec<(String, i32)> {
        let events = self.api::<Event>().list(&ListParams::default()).await.unwrap();
        let mut told: Vec<(String, i32)> = events
            .into_iter()
            .filter(|event| event.regarding.as_ref().and_then(|of| of.name.as_deref()) == Some(name))
            .map(|event| (event.reason.unwrap_or_default(), event.series.map_or(1, |series| series.count)))
            .collect();
        told.sort();
        told
    }
}

impl Operator {
    /// Waits until it is ready, leading or not.
    pub(crate) async fn ready(&mut self) {
        self.process.answers(&format!("{}/ready", self.admin)).await.unwrap();
    }

    /// Waits until it leads, or no longer does.
    pub(crate) async fn leads(&self, leads: bool) {
        self.measures(&[&format!("concordat_operator_leading {}", u8::from(leads))]).await;
    }

    /// Waits until its metrics have these lines.
    pub(crate) async fn measures(&self, lines: &[&str]) {
        measures(&self.admin, lines).await.unwrap();
    }

    pub(crate) async fn metrics(&self) -> Result<String> {
        Ok(reqwest::get(format!("{}/metrics", self.admin)).await?.error_for_status()?.text().await?)
    }
}

/// A condition of an object.
pub(crate) fn condition(object: &Value, type_: &str) -> Option<Condition> {
    let conditions = object.pointer("/status/conditions")?.as_array()?;
    let found = conditions.iter().find(|condition| condition["type"] == type_)?;
    serde_json::from_value(found.clone()).ok()
}

pub(crate) fn holds(object: &Value, type_: &str) -> bool {
    condition(object, type_).is_some_and(|condition| condition.status == "True")
}
