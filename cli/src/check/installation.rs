//! What the chart brings to a cluster.

use std::collections::{BTreeMap, BTreeSet};

use concordat_crds::manifest;
use k8s_openapi::{
    api::{
        admissionregistration::v1::MutatingWebhookConfiguration,
        apps::v1::{Deployment, StatefulSet},
        discovery::v1::EndpointSlice,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::Value;

use super::{Finding, said, text};
use crate::{
    cluster::{Cluster, Installation},
    version,
};

/// The oldest Kubernetes that the chart takes: init containers that stay are stable in it (KEP 753).
const OLDEST: u32 = 33;

/// Whether the API server answers.
pub(super) async fn cluster(cluster: &Cluster) -> Finding {
    let info = match cluster.client.apiserver_version().await {
        Ok(info) => info,
        Err(error) => {
            return Finding::failed(
                "cluster",
                format!("{}: {}", cluster.server, said(&error)),
                "see that the kubeconfig's server and user are right, as by kubectl version",
            );
        }
    };
    let found = format!("Kubernetes {} at {}", info.git_version, cluster.server);
    let minor = info.minor.trim_end_matches('+').parse::<u32>();
    if info.major == "1" && minor.is_ok_and(|minor| minor < OLDEST) {
        let advice = format!("upgrade to 1.{OLDEST} or later: the chart takes no older one");
        return Finding::failed("cluster", found, advice);
    }
    Finding::ok("cluster", found)
}

/// Whether the custom resources are there, as this version has them.
pub(super) async fn definitions(cluster: &Cluster) -> Vec<Finding> {
    let api: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let mut findings = Vec::new();
    for (file, ours) in manifest::definitions() {
        let name = ours.name_any();
        let check = format!("CRD {}", ours.spec.names.kind);
        let install =
            format!("kubectl apply --server-side -f crds/{file}, or helm upgrade with crds.enabled");
        findings.push(match api.get_opt(&name).await {
            Ok(Some(theirs)) if schemas(&theirs) == schemas(&ours) => {
                Finding::ok(check, format!("{name}, as of {}", version::CLIENT))
            }
            Ok(Some(_)) => Finding::warning(
                check,
                format!("{name} is of another version than this program ({})", version::CLIENT),
                install,
            ),
            Ok(None) => Finding::failed(check, format!("{name} is not there"), install),
            Err(error) => Finding::failed(check, said(&error), "it takes the right to get its definition"),
        });
    }
    findings
}

/// The schema of each version.
fn schemas(of: &CustomResourceDefinition) -> BTreeMap<&str, Value> {
    let versions = of.spec.versions.iter();
    versions
        .map(|version| (version.name.as_str(), serde_json::to_value(&version.schema).unwrap_or_default()))
        .collect()
}

/// Whether the operator runs, and is of this version.
pub(super) async fn operator(cluster: &Cluster) -> Finding {
    const CHECK: &str = "operator";
    let operators = match cluster.operators().await {
        Ok(operators) => operators,
        Err(error) => {
            let advice =
                "it takes the right to list Deployments; --concordat-namespace asks of one namespace";
            return Finding::failed(CHECK, said(&error), advice);
        }
    };
    let Some(operator) = operators.first() else {
        return Finding::failed(
            CHECK,
            "there is no Deployment of it",
            "helm install concordat helm/concordat --namespace concordat-system --create-namespace",
        );
    };
    state_of(operator)
}

fn state_of(operator: &Deployment) -> Finding {
    const CHECK: &str = "operator";
    let (name, namespace) = (operator.name_any(), operator.namespace().unwrap_or_default());
    let wanted = operator.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let ready = operator.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
    let found = format!("Deployment {namespace}/{name}: {ready} of {wanted} ready");
    let advice = format!("kubectl --namespace {namespace} describe deployment {name}, and its pods' logs");
    if ready == 0 {
        return Finding::failed(CHECK, found, advice);
    }
    if ready < wanted {
        return Finding::warning(CHECK, found, advice);
    }
    match version::of_operator(operator) {
        Some(of) if of != version::CLIENT => {
            let advice = format!("use concordat {of}, or upgrade the chart");
            Finding::warning(
                CHECK,
                format!("{found}, version {of}, this program {}", version::CLIENT),
                advice,
            )
        }
        _ => Finding::ok(CHECK, found),
    }
}

/// Whether new pods can get their sidecar.
pub(super) async fn webhook(cluster: &Cluster, of: &Installation) -> Vec<Finding> {
    const CHECK: &str = "webhook";
    let name = format!("{}-injector", of.name);
    let api: Api<MutatingWebhookConfiguration> = Api::all(cluster.client.clone());
    let configuration = match api.get_opt(&name).await {
        Ok(Some(configuration)) => serde_json::to_value(configuration).unwrap_or_default(),
        Ok(None) => {
            return vec![Finding::failed(
                CHECK,
                format!("there is no MutatingWebhookConfiguration {name}"),
                "helm upgrade with webhook.enabled; without it pods get no sidecar",
            )];
        }
        Err(error) => {
            let advice = "it takes the right to get MutatingWebhookConfigurations";
            return vec![Finding::failed(CHECK, said(&error), advice)];
        }
    };
    let webhooks = || configuration["webhooks"].as_array().into_iter().flatten();
    let trusted = |webhook: &Value| !text(webhook, "/clientConfig/caBundle").is_empty();
    let mut findings = vec![if webhooks().all(trusted) {
        Finding::ok(CHECK, format!("{name} has a CA bundle"))
    } else {
        Finding::failed(
            CHECK,
            format!("{name} has no CA bundle: every pod that asks for a sidecar is refused"),
            "the operator writes it (cert-manager's cainjector with pki.provider=cert-manager): see its log",
        )
    }];
    let service = |webhook| {
        let part = |pointer| text(webhook, pointer);
        (part("/clientConfig/service/namespace"), part("/clientConfig/service/name"))
    };
    let services: BTreeSet<(&str, &str)> =
        webhooks().map(service).filter(|(_, name)| !name.is_empty()).collect();
    for (namespace, service) in services {
        findings.push(endpoints(cluster, namespace, service).await);
    }
    findings
}

async fn endpoints(cluster: &Cluster, namespace: &str, service: &str) -> Finding {
    const CHECK: &str = "webhook Service";
    let api: Api<EndpointSlice> = Api::namespaced(cluster.client.clone(), namespace);
    let of_the_service = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
    let slices = match api.list(&of_the_service).await {
        Ok(slices) => slices.items,
        Err(error) => {
            return Finding::failed(CHECK, said(&error), "it takes the right to list EndpointSlices");
        }
    };
    let is_ready = |endpoint: &k8s_openapi::api::discovery::v1::Endpoint| {
        endpoint.conditions.as_ref().is_none_or(|of| of.ready != Some(false))
    };
    let ready =
        slices.iter().flat_map(|slice| &slice.endpoints).filter(|endpoint| is_ready(endpoint)).count();
    if ready == 0 {
        return Finding::failed(
            CHECK,
            format!(
                "{namespace}/{service} has no ready endpoint: every pod that asks for a sidecar is refused"
            ),
            "see that the operator's pods are ready",
        );
    }
    Finding::ok(CHECK, format!("{namespace}/{service} has {ready} ready endpoints"))
}

/// Whether all members of the etcd that came with it are ready; nothing when it came with none.
pub(super) async fn members(cluster: &Cluster, of: &Installation) -> Option<Finding> {
    const CHECK: &str = "etcd members";
    let (name, namespace) = (format!("{}-etcd", of.name), &of.namespace);
    let api: Api<StatefulSet> = Api::namespaced(cluster.client.clone(), namespace);
    let set = match api.get_opt(&name).await {
        Ok(set) => set?,
        Err(error) => {
            let advice = format!("it takes the right to get StatefulSets in namespace {namespace}");
            return Some(Finding::failed(CHECK, said(&error), advice));
        }
    };
    let wanted = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let ready = set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
    let found = format!("StatefulSet {namespace}/{name}: {ready} of {wanted} ready");
    let advice = format!("kubectl --namespace {namespace} describe statefulset {name}, and its pods' logs");
    Some(if ready == wanted {
        Finding::ok(CHECK, found)
    } else if ready > wanted / 2 {
        Finding::warning(CHECK, found, advice)
    } else {
        Finding::failed(CHECK, format!("{found}: no majority"), advice)
    })
}
