//! Whether a pod gets a sidecar, and how: a pure function from the pod and its namespace's labels to a JSON patch.
//!
//! Whoever asks, by the label `concordat.dev/inject: enabled` on the pod or else on its namespace, gets it or is told
//! what to change; nobody runs without it and does not know. What an app's containers say themselves is never changed:
//! they get two variables and a mount, no more.

mod options;
mod patch;
mod quantity;
mod sidecar;

use std::collections::BTreeMap;

use json_patch::Patch;
use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};
use serde::Deserialize;
use serde_json::Value;

pub use options::CONFIG;
pub(crate) use options::ratio;
pub(crate) use sidecar::HOST_IP;

/// The label of pods and namespaces that asks for a sidecar, or against it.
pub const INJECT: &str = "concordat.dev/inject";
/// The annotation of a pod that tells which version of the operator gave it its sidecar.
pub const INJECTED: &str = "concordat.dev/injected";
/// The annotation of a pod that tells why it got none, though it or its namespace asks.
pub const SKIPPED: &str = "concordat.dev/skipped";
/// The sidecar's container.
pub const CONTAINER: &str = "concordat";
/// The Secret, one a namespace, by which etcd knows sidecars.
pub const IDENTITY: &str = "concordat-etcd-client";
/// Pods that a kubelet tells of but does not ask for.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// What is the same for all sidecars.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Their image.
    pub image: String,
    /// When it is pulled; Kubernetes' default if not said.
    pub pull_policy: Option<String>,
    /// Which logs are written: a filter.
    pub log: String,
    /// What they ask of a node.
    pub resources: ResourceRequirements,
    /// Addresses of etcd. With `https://` sidecars show the certificate of their namespace, and prove that it opens no
    /// other namespace.
    pub etcd_endpoints: Vec<String>,
    /// The name that etcd's certificate bears, if not its hosts'.
    pub etcd_server_name: Option<String>,
    /// Where they export traces to, if anywhere.
    pub otlp_endpoint: Option<String>,
    /// Share of the traces that begin at them which they record, 0 to 1.
    pub trace_ratio: String,
}

/// What becomes of a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It gets a sidecar.
    Inject(Patch),
    /// It gets none, or has one. The patch may be empty.
    Skip(Skipped, Patch),
    /// It is not let in: what to change.
    Refuse(String),
}

/// Why a pod gets no sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skipped {
    /// Neither it nor its namespace asks.
    NotAsked,
    /// It asks for none.
    Disabled,
    /// It has one.
    Injected,
    /// On the node's own network its sidecar would be everybody's there.
    HostNetwork,
    /// The kubelet runs it whatever is said here.
    Static,
}

impl Skipped {
    /// One word for annotations, logs and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::NotAsked => "not-asked",
            Self::Disabled => "disabled",
            Self::Injected => "already-injected",
            Self::HostNetwork => "host-network",
            Self::Static => "static-pod",
        }
    }
}

/// What the label says: yes, no, nothing, or what nobody understands.
fn asks(labels: Option<&BTreeMap<String, String>>) -> Result<Option<bool>, &str> {
    match labels.and_then(|labels| labels.get(INJECT)).map(String::as_str) {
        None => Ok(None),
        Some("enabled") => Ok(Some(true)),
        Some("disabled") => Ok(Some(false)),
        Some(other) => Err(other),
    }
}

/// Whether the labels of the pod's namespace say what its own do not.
pub fn namespace_decides(pod: &Value) -> bool {
    pod.pointer("/metadata/labels").and_then(|labels| labels.get(INJECT)).is_none()
}

/// What becomes of a pod in a namespace with these labels.
pub fn decide(pod: &Value, namespace: &BTreeMap<String, String>, settings: &Settings) -> Verdict {
    let objects = ["metadata", "spec"].iter().all(|part| pod.get(part).is_some_and(Value::is_object));
    let pod = match Pod::deserialize(pod) {
        Ok(pod) if objects => pod,
        Ok(_) => return Verdict::Refuse("this is no pod: it lacks metadata or spec".into()),
        Err(error) => return Verdict::Refuse(format!("this is no pod: {error}")),
    };
    let annotated = |annotation| pod.metadata.annotations.iter().any(|all| all.contains_key(annotation));
    let spec = pod.spec.clone().unwrap_or_default();
    if annotated(MIRROR) {
        return Verdict::Skip(Skipped::Static, Patch::default());
    }
    match asks(pod.metadata.labels.as_ref()) {
        Err(other) => {
            return Verdict::Refuse(format!("label {INJECT}: {other:?}: write enabled or disabled"));
        }
        Ok(Some(false)) => return skip(&pod, Skipped::Disabled),
        Ok(None) if asks(Some(namespace)) != Ok(Some(true)) => {
            return Verdict::Skip(Skipped::NotAsked, Patch::default());
        }
        Ok(_) => {}
    }
    if spec.host_network == Some(true) {
        return skip(&pod, Skipped::HostNetwork);
    }
    let mut inits = spec.init_containers.iter().flatten();
    if annotated(INJECTED)
        && let Some(at) = inits.position(|container| container.name == CONTAINER)
    {
        return Verdict::Skip(Skipped::Injected, patch::completed(&spec, at));
    }
    let options = match options::read(&pod, settings) {
        Ok(options) => options,
        Err(wrong) => return Verdict::Refuse(wrong.join("; ")),
    };
    match sidecar::collisions(&spec, &options) {
        wrong if wrong.is_empty() => Verdict::Inject(patch::injected(&pod, &spec, &options, settings)),
        wrong => Verdict::Refuse(wrong.join("; ")),
    }
}

fn skip(pod: &Pod, why: Skipped) -> Verdict {
    Verdict::Skip(why, patch::annotated(pod, SKIPPED, why.word()))
}

#[cfg(test)]
mod tests;
