//! The API server asks the webhook about pods, over TLS that the operator sees to.

use anyhow::{Result, ensure};
use concordat_operator::inject::{INJECT, INJECTED};
use concordat_tests::process::{eventually, free_port};
use k8s_openapi::api::{
    admissionregistration::v1::MutatingWebhookConfiguration,
    core::v1::{Namespace, Pod},
};
use kube::{
    Api, Error,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::world::World;

/// A pod that Pod Security lets into a *restricted* namespace.
pub(crate) fn pod(name: &str, metadata: Value) -> Pod {
    let mut pod = json!({
        "metadata": { "name": name, "labels": { "app": "bank" } },
        "spec": {
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": { "type": "RuntimeDefault" },
            },
            "containers": [{
                "name": "bank",
                "image": "bank",
                "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } },
            }],
        },
    });
    for (key, value) in metadata.as_object().unwrap() {
        pod["metadata"][key] = value.clone();
    }
    serde_json::from_value(pod).unwrap()
}

/// Labels the world's namespace.
pub(crate) async fn label(world: &World, labels: Value) {
    let patch = Patch::Merge(json!({ "metadata": { "labels": labels } }));
    let api: Api<Namespace> = Api::all(world.client.clone());
    api.patch(&world.namespace, &PatchParams::default(), &patch).await.unwrap();
}

/// Has the API server ask at this port about pods that ask, as the chart does, and only in the world's namespace; it waits
/// for so many seconds.
pub(crate) async fn register(world: &World, port: u16, seconds: u32) -> String {
    let name = format!("{}-injector", world.namespace);
    let entry = |name: &str, namespace: Value, pod: Value| {
        json!({
            "name": name,
            "clientConfig": { "url": format!("https://127.0.0.1:{port}/inject") },
            "rules": [{
                "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"],
                "scope": "Namespaced",
            }],
            "namespaceSelector": { "matchExpressions": [
                { "key": "kubernetes.io/metadata.name", "operator": "In", "values": [world.namespace] }, namespace,
            ] },
            "objectSelector": { "matchExpressions": [pod] },
            "admissionReviewVersions": ["v1"],
            "failurePolicy": "Fail",
            "reinvocationPolicy": "IfNeeded",
            "sideEffects": "None",
            "timeoutSeconds": seconds,
        })
    };
    let says =
        |operator: &str, value: &str| json!({ "key": INJECT, "operator": operator, "values": [value] });
    let configuration = json!({
        "metadata": { "name": name },
        "webhooks": [
            entry("inject.concordat.dev", says("In", "enabled"), says("NotIn", "disabled")),
            entry("pod.inject.concordat.dev", says("NotIn", "enabled"), says("In", "enabled")),
        ],
    });
    let api: Api<MutatingWebhookConfiguration> = Api::all(world.client.clone());
    api.create(&PostParams::default(), &serde_json::from_value(configuration).unwrap()).await.unwrap();
    name
}

pub(crate) async fn made(world: &World, pod: &Pod) -> Result<Pod, Error> {
    world.api::<Pod>().create(&PostParams::default(), pod).await
}

pub(crate) fn refusal(result: Result<Pod, Error>) -> String {
    match result {
        Err(Error::Api(status)) => status.message.clone(),
        other => panic!("{other:?}"),
    }
}

/// Waits until the API server has heard of the webhook and of its certificate, and gives sidecars.
pub(crate) async fn injects(world: &World) {
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    eventually("pods that ask get their sidecar", async || {
        let pod = world.api::<Pod>().create(&dry, &pod("dry", json!({}))).await?;
        ensure!(pod.metadata.annotations.iter().any(|all| all.contains_key(INJECTED)), "it has none");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn pods_that_ask_get_their_sidecar_and_all_others_are_left_alone() {
    let world = World::start("pods_that_ask_get_their_sidecar").await;
    // Whatever the webhook does, nobody gets into this namespace who could do harm on the node.
    let labels = json!({ INJECT: "enabled", "pod-security.kubernetes.io/enforce": "restricted" });
    label(&world, labels).await;
    let port = free_port().unwrap();
    let name = register(&world, port, 5).await;
    let endpoints = world.etcd.endpoints().join(",");
    let listen = format!("--webhook-listen=127.0.0.1:{port}");
    let webhook = format!("--webhook-name={name}");
    let mut operator = world
        .operator_with(
            "operator",
            &[&listen, &webhook, "--ca-secret=concordat-ca", "--sidecar-etcd-endpoints=https://etcd:2379"]
                .into_iter()
                .chain(["--etcd-endpoints", &endpoints])
                .collect::<Vec<_>>(),
        )
        .await;
    operator.ready().await;
    injects(&world).await;

    let pod_ = made(&world, &pod("asks", json!({}))).await.unwrap();
    let spec = serde_json::to_value(pod_.spec.unwrap()).unwrap();
    let (sidecar, app) = (&spec["initContainers"][0], &spec["containers"][0]);
    assert_eq!((&sidecar["name"], &sidecar["restartPolicy"]), (&json!("concordat"), &json!("Always")));
    assert_eq!(app["env"][0], json!({ "name": "CONCORDAT_PORT", "value": "4700" }));
    // The app keeps its token for the Kubernetes API, and the sidecar has none.
    let at_token = |container: &Value| -> String {
        let mounts = container["volumeMounts"].as_array().unwrap();
        let path = "/var/run/secrets/kubernetes.io/serviceaccount";
        let mount = mounts.iter().find(|mount| mount["mountPath"] == path).unwrap();
        mount["name"].as_str().unwrap().to_owned()
    };
    assert_eq!(at_token(sidecar), "concordat-no-api-access");
    assert!(at_token(app).starts_with("kube-api-access-"), "{app}");

    // As it is, it is taken again: nothing is injected twice.
    let spec = serde_json::from_value(spec).unwrap();
    let copy = Pod { spec: Some(spec), ..pod("copy", json!({ "annotations": pod_.metadata.annotations })) };
    let copy = made(&world, &copy).await.unwrap().spec.unwrap();
    assert_eq!(copy.init_containers.unwrap().len(), 1);
    assert_eq!(copy.containers[0].env.as_ref().map(Vec::len), Some(2));

    let wrong = json!({ "annotations": { "config.concordat.dev/session-ttl": "1s" } });
    let why = refusal(made(&world, &pod("wrong", wrong)).await);
    let said = "annotation config.concordat.dev/session-ttl: \"1s\": write a duration between 3s and 10m";
    assert!(why.contains("inject.concordat.dev") && why.contains(said), "{why}");
    let metrics = operator.metrics().await.unwrap();
    assert!(metrics.contains(r#"concordat_operator_admissions_total{result="refused"} 1"#), "{metrics}");

    // With the webhook away, only pods that ask are kept waiting.
    drop(operator);
    let plain = |pod: &Pod| pod.spec.as_ref().is_some_and(|spec| spec.init_containers.is_none());
    let disabled = pod("disabled", json!({ "labels": { "app": "bank", INJECT: "disabled" } }));
    assert!(plain(&made(&world, &disabled).await.unwrap()));
    let why = refusal(made(&world, &pod("waits", json!({}))).await);
    assert!(why.contains("failed calling webhook \"inject.concordat.dev\""), "{why}");
    label(&world, json!({ INJECT: null })).await;
    eventually("the API server knows that the namespace no longer asks", async || {
        ensure!(plain(&made(&world, &pod("silent", json!({}))).await?), "it has a sidecar");
        Ok(())
    })
    .await
    .unwrap();
    let asks = pod("itself", json!({ "labels": { "app": "bank", INJECT: "enabled" } }));
    let why = refusal(made(&world, &asks).await);
    assert!(why.contains("failed calling webhook \"pod.inject.concordat.dev\""), "{why}");
}
