//! `kubectl concordat`: what it asks of the API server.

use std::process::Command;

use anyhow::Context;
use concordat_crds::{Lock, names::FORCE_RELEASE_ANNOTATION};
use concordat_operator::pki::Life;
use concordat_tests::{
    kube::Cluster,
    process::{binary, eventually},
};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        admissionregistration::v1::MutatingWebhookConfiguration,
        apps::v1::{Deployment, StatefulSet},
        core::v1::{Namespace, Secret},
        discovery::v1::EndpointSlice,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    runtime::{conditions::is_deleted, wait::await_condition},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::world::World;

/// What it printed, and whether all was well.
fn run(mut command: Command, arguments: &[&str]) -> (bool, String) {
    let output = command.args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

#[tokio::test]
async fn a_lock_is_released_by_the_operator_and_what_came_of_it_is_told() {
    let world = World::start("a_lock_is_released_by_the_operator_and_what_came_of_it_is_told").await;
    let namespace = world.namespace.clone();
    let release = |name: &str, fence: &str| {
        let arguments = ["lock", "release", name, "k", "--fence", fence, "--namespace", &namespace];
        run(world.concordat(), &arguments)
    };
    let (done, told) = release("orders", "1");
    assert!(
        !done && told.contains("the Lock \"orders\" in namespace") && told.contains("not found"),
        "{told}"
    );

    let operator = world.operator("operator").await;
    world.create::<Lock>("orders", json!({ "mode": "FairQueue", "ttl": "1m" })).await;
    world.stands::<Lock>("orders", "True", "Accepted").await;
    let sidecar = world.sidecar("shop", None).await;
    let (client, url) = (reqwest::Client::new(), format!("{}/locks/orders/k", sidecar.url));
    let held = eventually("the lock is granted", async || {
        let body = json!({ "ttl": "1h", "owner": "till-3" });
        Ok(client.post(&url).json(&body).send().await?.error_for_status()?.json::<Value>().await?)
    })
    .await
    .unwrap();
    let fence = held["fence"].to_string();

    let (done, told) = release("orders", "7");
    assert!(
        !done && told.contains("\"k\" is not held with fence 7 any more: nothing was released"),
        "{told}"
    );
    // The same refusal again is told again, though it makes no new Event.
    let (done, told) = release("orders", "7");
    assert!(!done && told.contains("is not held with fence 7"), "{told}");
    let (done, told) = release("orders", &fence);
    assert!(
        done && told.starts_with("released: \"k\" was taken from pod \"shop-0\", owner \"till-3\""),
        "{told}"
    );
    let renewed =
        client.put(&url).header("Lock-Token", held["token"].as_str().unwrap()).send().await.unwrap();
    assert_eq!(renewed.status(), 410);

    // One that is under way is not replaced.
    drop(operator);
    let patch = json!({ "metadata": { "annotations": { FORCE_RELEASE_ANNOTATION: "k=1" } } });
    world.api::<Lock>().patch("orders", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    let (done, told) = release("orders", "7");
    assert!(!done && told.contains("\"k=1\" is being released already"), "{told}");
}

/// What `check` finds, by check.
struct Found(Vec<Value>);

impl Found {
    fn of(kubeconfig: &std::path::Path) -> Self {
        let mut command = Command::new(binary("concordat").unwrap());
        command.env("KUBECONFIG", kubeconfig).env_remove("CONCORDAT_ETCD_ENDPOINTS");
        let output = command.args(["check", "-o", "json"]).output().unwrap();
        let found: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!("{error}: {}", String::from_utf8_lossy(&output.stderr));
        });
        let fails = found.iter().any(|of| of["status"] == "failed");
        assert_eq!(output.status.success(), !fails, "the exit code says whether something fails: {found:?}");
        for of in &found {
            let advised = of["advice"].as_str().is_some_and(|advice| !advice.is_empty());
            assert_eq!(advised, of["status"] != "ok", "what to do about it: {of}");
        }
        Self(found)
    }

    /// Asserts that a check stands so, and has found something with this in it.
    fn has(&self, status: &str, check: &str, found: &str) {
        let is_it = |of: &&Value| {
            of["check"] == check
                && of["status"] == status
                && of["found"].as_str().is_some_and(|text| text.contains(found))
        };
        assert!(self.0.iter().any(|of| is_it(&of)), "{status} {check} {found:?} is not in {:#?}", self.0);
    }
}

async fn put<K>(api: &Api<K>, name: &str, object: Value)
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let mut object = object;
    object["apiVersion"] = K::api_version(&()).into();
    object["kind"] = K::kind(&()).into();
    object["metadata"]["name"] = name.into();
    let params = PatchParams::apply("tests").force();
    api.patch(name, &params, &Patch::Apply(object)).await.with_context(|| name.to_owned()).unwrap();
}

fn certificate(life: Life) -> Value {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    let date = |at: Timestamp| {
        let date = at.to_zoned(jiff::tz::TimeZone::UTC).date();
        rcgen::date_time_ymd(date.year().into(), date.month() as u8, date.day() as u8)
    };
    (params.not_before, params.not_after) = (date(life.not_before), date(life.not_after));
    let key = rcgen::KeyPair::generate().unwrap();
    json!({ "stringData": { "tls.crt": params.self_signed(&key).unwrap().pem() } })
}

async fn deployment(api: &Api<Deployment>, image: &str, ready: i32) {
    let labels = json!({ "app.kubernetes.io/name": "concordat", "app.kubernetes.io/component": "operator" });
    let spec = json!({
        "replicas": 2, "selector": { "matchLabels": labels },
        "template": {
            "metadata": { "labels": labels },
            "spec": { "containers": [{ "name": "operator", "image": image }] },
        },
    });
    put(api, "concordat-operator", json!({ "metadata": { "labels": labels }, "spec": spec })).await;
    let status = json!({ "status": { "replicas": 2, "readyReplicas": ready } });
    api.patch_status("concordat-operator", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

/// The etcd of an installation: this many of its three members are ready.
async fn members(api: &Api<StatefulSet>, ready: i32) {
    let labels = json!({ "app.kubernetes.io/name": "concordat", "app.kubernetes.io/component": "etcd" });
    let spec = json!({
        "replicas": 3, "serviceName": "concordat-etcd", "selector": { "matchLabels": labels },
        "template": {
            "metadata": { "labels": labels },
            "spec": { "containers": [{ "name": "etcd", "image": "etcd" }] },
        },
    });
    put(api, "concordat-etcd", json!({ "spec": spec })).await;
    let status = json!({ "status": { "replicas": 3, "readyReplicas": ready } });
    api.patch_status("concordat-etcd", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

#[tokio::test]
async fn what_an_installation_lacks_is_told_with_what_to_do() {
    const NAMESPACE: &str = "coordination";
    let mut cluster = Cluster::start().await.unwrap();
    let kubeconfig = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(kubeconfig.path(), cluster.kubeconfig("admin", Some("system:masters")).unwrap()).unwrap();
    let kubeconfig = kubeconfig.path();
    let client: Client = cluster.client().await.unwrap();

    let found = Found::of(kubeconfig);
    found.has("ok", "cluster", "Kubernetes v1.");
    for kind in ["Lock", "Queue", "DistributedTransaction"] {
        found.has("ok", &format!("CRD {kind}"), "as of");
    }
    found.has("failed", "operator", "there is no Deployment of it");
    found.has("failed", "webhook", "there is no MutatingWebhookConfiguration concordat-injector");
    found.has("failed", "certificates", "there are none in namespace concordat-system");
    found.has("failed", "etcd", "the Secret concordat-etcd-root in namespace concordat-system");

    // Found where it is, and each thing as it stands.
    let namespace: Namespace = serde_json::from_value(json!({ "metadata": { "name": NAMESPACE } })).unwrap();
    Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &namespace).await.unwrap();
    let operators: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
    deployment(&operators, "ghcr.io/concordat-dev/operator:9.9.9", 1).await;
    let webhooks: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let webhook = |bundle: &str| {
        let service = json!({ "name": "concordat-webhook", "namespace": NAMESPACE, "path": "/inject" });
        json!({ "webhooks": [{
            "name": "inject.concordat.dev", "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "clientConfig": { "service": service, "caBundle": bundle },
        }] })
    };
    put(&webhooks, "concordat-injector", webhook("")).await;
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), NAMESPACE);
    members(&sets, 1).await;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let day = |day: i64| Timestamp::now() + jiff::SignedDuration::from_hours(24 * day);
    let life = |from: i64, to: i64| Life { not_before: day(from), not_after: day(to) };
    put(&secrets, "concordat-ca", certificate(life(-3000, 650))).await;
    put(&secrets, "concordat-etcd-tls", certificate(life(-25, 5))).await;
    let mut root = certificate(life(-31, -1));
    root["stringData"]["ca.crt"] = root["stringData"]["tls.crt"].clone();
    root["stringData"]["tls.key"] = json!("that of nobody");
    put(&secrets, "concordat-etcd-root", root).await;
    put(&secrets, "concordat-etcd-client", json!({ "stringData": { "tls.crt": "none" } })).await;
    put(&secrets, "another-s", json!({ "stringData": { "tls.crt": "none" } })).await;
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut other = definitions.get("locks.concordat.dev").await.unwrap();
    let schema =
        other.spec.versions[0].schema.as_mut().and_then(|of| of.open_api_v3_schema.as_mut()).unwrap();
    schema.description = Some("of another version".into());
    definitions.replace("locks.concordat.dev", &PostParams::default(), &other).await.unwrap();
    let found = Found::of(kubeconfig);
    found.has("warning", "CRD Lock", "of another version");
    found.has("warning", "operator", "Deployment coordination/concordat-operator: 1 of 2 ready");
    found.has("failed", "webhook", "has no CA bundle");
    found.has("failed", "webhook Service", "coordination/concordat-webhook has no ready endpoint");
    found.has("ok", "certificate coordination/concordat-ca", "days");
    found.has("warning", "certificate coordination/concordat-etcd-tls", "less than 1/4 of its life");
    found.has("failed", "certificate coordination/concordat-etcd-root", "it ended at");
    found.has("failed", "certificate coordination/concordat-etcd-client", "is no certificate");
    found.has("failed", "etcd members", "1 of 3 ready: no majority");
    found.has("failed", "etcd", "no pod of etcd is ready in namespace coordination (there: none)");
    assert!(!format!("{:?}", found.0).contains("another-s"), "of others nothing is said");

    deployment(&operators, "ghcr.io/concordat-dev/operator:9.9.9", 2).await;
    let authority = certificate(life(-1, 1))["stringData"]["tls.crt"].as_str().unwrap().to_owned();
    let bundle = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, authority);
    put(&webhooks, "concordat-injector", webhook(&bundle)).await;
    members(&sets, 2).await;
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), NAMESPACE);
    let slice = json!({
        "metadata": { "labels": { "kubernetes.io/service-name": "concordat-webhook" } },
        "addressType": "IPv4", "ports": [{ "port": 8443 }],
        "endpoints": [{ "addresses": ["10.0.0.9"], "conditions": { "ready": true } },
                      { "addresses": ["10.0.0.8"], "conditions": { "ready": false } }],
    });
    put(&slices, "concordat-webhook-x", slice).await;
    let found = Found::of(kubeconfig);
    found.has("warning", "operator", "version 9.9.9, this program 0.");
    found.has("ok", "webhook", "has a CA bundle");
    found.has("ok", "webhook Service", "has 1 ready endpoints");
    found.has("warning", "etcd members", "2 of 3 ready");
    members(&sets, 3).await;
    Found::of(kubeconfig).has("ok", "etcd members", "3 of 3 ready");
    deployment(&operators, &format!("ghcr.io/concordat-dev/operator:{}", env!("CARGO_PKG_VERSION")), 2).await;
    Found::of(kubeconfig).has("ok", "operator", "2 of 2 ready");
    let queues = definitions.delete("queues.concordat.dev", &DeleteParams::default()).await.unwrap();
    let uid = queues.left().and_then(|of| of.uid()).unwrap();
    await_condition(definitions, "queues.concordat.dev", is_deleted(&uid)).await.unwrap();
    Found::of(kubeconfig).has("failed", "CRD Queue", "is not there");

    // Who may do nothing is told what it takes.
    let powerless = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(powerless.path(), cluster.kubeconfig("powerless", None).unwrap()).unwrap();
    let found = Found::of(powerless.path());
    found.has("ok", "cluster", "Kubernetes v1.");
    for check in ["CRD Lock", "operator", "webhook", "certificates", "etcd"] {
        found.has("failed", check, "forbidden");
    }

    // A way that leads nowhere is named.
    let file = kubeconfig.to_str().unwrap();
    for (flags, said) in [
        (["--kubeconfig", "/nowhere"], "--kubeconfig /nowhere"),
        (["--context", "another"], "--context names one of its contexts"),
        (["--concordat-namespace", "another"], "the Secret concordat-etcd-root in namespace another"),
    ] {
        let mut command = Command::new(binary("concordat").unwrap());
        command.env("KUBECONFIG", file).env_remove("CONCORDAT_ETCD_ENDPOINTS");
        let (done, told) = run(command, &[&["get", "locks"][..], &flags].concat());
        assert!(!done && told.contains(said), "{flags:?}: {told}");
    }

    cluster.stop_api_server();
    let found = Found::of(kubeconfig);
    found.has("failed", "cluster", "https://127.0.0.1:");
    assert_eq!(found.0.len(), 1, "{:?}", found.0);
}
