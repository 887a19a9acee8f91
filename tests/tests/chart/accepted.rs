//! A real API server takes all of it, to the letter.

use concordat_tests::kube::Cluster;
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams, PostParams},
    core::GroupVersionKind,
    discovery::pinned_kind,
};
use serde_json::{Value, json};

use crate::world::{CASES, objects, title};

/// Kinds that others define.
const FOREIGN: [&str; 2] = ["monitoring.coreos.com/v1", "cert-manager.io/v1"];

/// Sends an object as `kubectl apply --server-side --dry-run=server --validate=strict` does.
pub(crate) async fn dry_run(client: &Client, object: &Value) -> Result<(), kube::Error> {
    let params = PatchParams::apply("concordat-tests").force().dry_run().validation_strict();
    apply(client, object, &params).await
}

pub(crate) async fn apply(client: &Client, object: &Value, params: &PatchParams) -> Result<(), kube::Error> {
    let (api_version, kind) = (object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap());
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let (resource, _) = pinned_kind(client, &GroupVersionKind::gvk(group, version, kind)).await?;
    let api: Api<DynamicObject> = match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let name = object["metadata"]["name"].as_str().unwrap();
    api.patch(name, params, &Patch::Apply(object)).await?;
    Ok(())
}

#[tokio::test]
async fn the_api_server_takes_every_object_to_the_letter() {
    let cluster = Cluster::shared().await.unwrap();
    let client = cluster.client().await.unwrap();
    let namespace = cluster.namespace("the_api_server_takes_every_object_to_the_letter").await.unwrap();
    let here = format!("--set=tests.namespace={}", namespace.name());
    // The one namespace of a case that has one.
    let other = json!("shop");
    // Accounts of pods; nothing else is made.
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace.name());
    for release in ["concordat", "coordination"] {
        let account = json!({ "metadata": { "name": format!("{release}-test") } });
        accounts.create(&PostParams::default(), &serde_json::from_value(account).unwrap()).await.unwrap();
    }
    let mut refused = Vec::new();
    for (case, values) in CASES {
        for mut object in objects(namespace.name(), &[values, &[&*here]].concat()) {
            if object["metadata"]["namespace"] == other {
                object["metadata"]["namespace"] = json!(namespace.name());
            }
            if FOREIGN.iter().any(|foreign| object["apiVersion"] == *foreign) {
                continue;
            }
            if let Err(error) = dry_run(&client, &object).await {
                refused.push(format!("{case}: {}: {error}", title(&object)));
            }
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

#[tokio::test]
async fn an_object_with_an_unknown_field_is_not_taken() {
    let cluster = Cluster::shared().await.unwrap();
    let client = cluster.client().await.unwrap();
    let namespace = cluster.namespace("an_object_with_an_unknown_field_is_not_taken").await.unwrap();
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "a", "namespace": namespace.name() }, "spec": { "ports": [{ "port": 80 }] },
    });
    dry_run(&client, &service).await.unwrap();
    service["spec"]["surprise"] = true.into();
    assert!(dry_run(&client, &service).await.unwrap_err().to_string().contains("surprise"));
}

/// The namespace of a release may ask for Pod Security's strictest level.
#[tokio::test]
async fn every_pod_passes_pod_security_restricted() {
    let cluster = Cluster::shared().await.unwrap();
    let client = cluster.client().await.unwrap();
    let namespace = cluster.namespace("every_pod_passes_pod_security_restricted").await.unwrap();
    let restricted =
        json!({ "metadata": { "labels": { "pod-security.kubernetes.io/enforce": "restricted" } } });
    let namespaces = Api::<Namespace>::all(client.clone());
    namespaces.patch(namespace.name(), &PatchParams::default(), &Patch::Merge(restricted)).await.unwrap();
    let api: Api<Pod> = Api::namespaced(client, namespace.name());
    let mut seen = 0;
    for (case, values) in CASES {
        for object in objects(namespace.name(), values) {
            let pod = match object["kind"].as_str().unwrap() {
                "Deployment" | "StatefulSet" | "Job" => &object["spec"]["template"],
                "Pod" => &object,
                _ => continue,
            };
            let mut pod: Pod = serde_json::from_value(pod.clone()).unwrap();
            pod.metadata.name = Some("pod".into());
            pod.metadata.namespace = Some(namespace.name().into());
            let spec = pod.spec.as_mut().unwrap();
            // A StatefulSet brings this volume, and there are no priority classes' pods in every namespace, nor accounts.
            spec.priority_class_name = None;
            spec.service_account_name = None;
            let volumes = spec.volumes.get_or_insert_default();
            for mount in spec.containers[0].volume_mounts.iter().flatten() {
                if !volumes.iter().any(|volume| volume.name == mount.name) {
                    volumes
                        .push(serde_json::from_value(json!({ "name": mount.name, "emptyDir": {} })).unwrap());
                }
            }
            let params = PostParams { dry_run: true, ..PostParams::default() };
            let made = api.create(&params, &pod).await;
            made.unwrap_or_else(|error| panic!("{case}: {}: {error}", title(&object)));
            seen += 1;
        }
    }
    assert!(seen > 10, "{seen} pods");
}
