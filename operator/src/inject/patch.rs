//! What is changed of a pod, as RFC 6902 writes it.

use json_patch::{AddOperation, Patch, PatchOperation, RemoveOperation, jsonptr::PointerBuf};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use serde_json::{Value, json};

use super::{INJECTED, SKIPPED, Settings, options::Options, sidecar};

/// A patch in the making.
#[derive(Default)]
struct Changes(Vec<PatchOperation>);

impl Changes {
    fn add<'a>(&mut self, path: impl IntoIterator<Item = &'a str>, value: Value) {
        let path = PointerBuf::from_tokens(path);
        self.0.push(PatchOperation::Add(AddOperation { path, value }));
    }

    /// Puts values at the front of a list, or at its end, and makes the list where there is none.
    fn list(&mut self, path: &[&str], there: bool, values: Vec<Value>, front: bool) {
        if values.is_empty() {
        } else if !there {
            self.add(path.iter().copied(), Value::Array(values));
        } else if front {
            for value in values.into_iter().rev() {
                self.add(path.iter().copied().chain(["0"]), value);
            }
        } else {
            for value in values {
                self.add(path.iter().copied().chain(["-"]), value);
            }
        }
    }

    fn annotate(&mut self, pod: &Pod, name: &str, value: &str) {
        match &pod.metadata.annotations {
            Some(all) if all.get(name).map(String::as_str) == Some(value) => {}
            Some(_) => self.add(["metadata", "annotations", name], json!(value)),
            None => self.add(["metadata", "annotations"], json!({ name: value })),
        }
    }

    /// Gives each of these containers what it needs to find the sidecar. Variables come first, so that the app's own may
    /// refer to them.
    fn introduce<'a>(
        &mut self,
        list: &str,
        containers: impl Iterator<Item = (usize, &'a Container)>,
        api_port: &str,
        token: bool,
    ) {
        for (at, container) in containers {
            let (env, mounts) = sidecar::for_app(container, api_port, token);
            let at = at.to_string();
            self.list(&["spec", list, &at, "env"], container.env.is_some(), env, true);
            let mounted = container.volume_mounts.is_some();
            self.list(&["spec", list, &at, "volumeMounts"], mounted, mounts, false);
        }
    }
}

/// A pod gets a sidecar.
pub(super) fn injected(pod: &Pod, spec: &PodSpec, options: &Options, settings: &Settings) -> Patch {
    let mut changes = Changes::default();
    changes.annotate(pod, INJECTED, env!("CARGO_PKG_VERSION"));
    if pod.metadata.annotations.iter().any(|all| all.contains_key(SKIPPED)) {
        let path = PointerBuf::from_tokens(["metadata", "annotations", SKIPPED]);
        changes.0.push(PatchOperation::Remove(RemoveOperation { path }));
    }
    let port = options.api_port.to_string();
    // Before the sidecar is at their front: their places are still what they were.
    let inits = spec.init_containers.iter().flatten().enumerate();
    changes.introduce("initContainers", inits, &port, options.token);
    changes.introduce("containers", spec.containers.iter().enumerate(), &port, options.token);
    let sidecar = vec![sidecar::container(options, settings)];
    changes.list(&["spec", "initContainers"], spec.init_containers.is_some(), sidecar, true);
    let volumes = sidecar::volumes(options, settings);
    changes.list(&["spec", "volumes"], spec.volumes.is_some(), volumes, false);
    Patch(changes.0)
}

/// A pod has a sidecar, at this place among its init containers: others have come since.
pub(super) fn completed(spec: &PodSpec, at: usize) -> Patch {
    let mut changes = Changes::default();
    let inits = spec.init_containers.iter().flatten();
    let Some(sidecar) = inits.clone().nth(at) else { return Patch::default() };
    let told = |name| sidecar.env.iter().flatten().find(|of| of.name == name).and_then(|of| of.value.clone());
    let port = told("CONCORDAT_API_PORT").unwrap_or_else(|| "4700".into());
    let token = told("CONCORDAT_NEW_TOKEN_FILE").is_some();
    changes.introduce("initContainers", inits.enumerate().skip(at + 1), &port, token);
    changes.introduce("containers", spec.containers.iter().enumerate(), &port, token);
    Patch(changes.0)
}

/// A pod gets an annotation.
pub(super) fn annotated(pod: &Pod, name: &str, value: &str) -> Patch {
    let mut changes = Changes::default();
    changes.annotate(pod, name, value);
    Patch(changes.0)
}
