//! Flags of the webhook, and of the sidecars that it gives.

use std::{net::SocketAddr, path::PathBuf};

use clap::ValueEnum;
use k8s_openapi::api::core::v1::ResourceRequirements;

use super::{Args, endpoint, filter};
use crate::inject::{HOST_IP, Settings, ratio};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Injection {
    /// Address of the webhook that gives pods their sidecar; port 0 for any that is free [default: none is served]
    #[arg(long, env = "CONCORDAT_WEBHOOK_LISTEN", value_name = "ADDRESS:PORT")]
    pub(crate) webhook_listen: Option<SocketAddr>,
    /// MutatingWebhookConfiguration that is told whom to trust
    #[arg(long, env = "CONCORDAT_WEBHOOK_NAME", value_name = "NAME", conflicts_with = "webhook_cert_dir")]
    pub(crate) webhook_name: Option<String>,
    /// Service of the webhook, in the namespace of the lease
    #[arg(long, env = "CONCORDAT_WEBHOOK_SERVICE", value_name = "NAME", default_value = "concordat-webhook")]
    pub(crate) webhook_service: String,
    /// Folder with the webhook's tls.crt and tls.key, which somebody else renews, cert-manager say
    #[arg(long, env = "CONCORDAT_WEBHOOK_CERT_DIR", value_name = "FOLDER")]
    pub(crate) webhook_cert_dir: Option<PathBuf>,
    /// Image of sidecars
    #[arg(long, env = "CONCORDAT_SIDECAR_IMAGE", value_name = "IMAGE", default_value = concat!("ghcr.io/concordat-dev/sidecar:", env!("CARGO_PKG_VERSION")))]
    sidecar_image: String,
    /// When it is pulled [default: Kubernetes']
    #[arg(long, env = "CONCORDAT_SIDECAR_PULL_POLICY", value_name = "POLICY")]
    sidecar_pull_policy: Option<PullPolicy>,
    /// Which logs sidecars write
    #[arg(long, env = "CONCORDAT_SIDECAR_LOG", value_name = "FILTER", default_value = "info", value_parser = filter)]
    sidecar_log: String,
    /// What sidecars ask of a node, as in {"requests":{"cpu":"10m"}}
    #[arg(long, env = "CONCORDAT_SIDECAR_RESOURCES", value_name = "JSON", default_value = "{}", value_parser = resources)]
    sidecar_resources: ResourceRequirements,
    /// Addresses of etcd that sidecars are told, separated by commas [default: the operator's]
    #[arg(long, env = "CONCORDAT_SIDECAR_ETCD_ENDPOINTS", value_name = "URL,URL", value_delimiter = ',', value_parser = endpoint)]
    sidecar_etcd_endpoints: Vec<String>,
    /// Collector that sidecars export traces to by OTLP over gRPC, as in http://collector.observability:4317; $(HOST_IP)
    /// stands for their node [default: they trace nothing]
    #[arg(long, env = "CONCORDAT_SIDECAR_OTLP_ENDPOINT", value_name = "URL", value_parser = collector)]
    sidecar_otlp_endpoint: Option<String>,
    /// Share of the traces that begin at sidecars which they record, 0 to 1
    #[arg(long, env = "CONCORDAT_SIDECAR_TRACE_RATIO", value_name = "SHARE", default_value = "1", value_parser = ratio)]
    sidecar_trace_ratio: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "PascalCase")]
enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

impl Args {
    /// What sidecars are.
    pub(crate) fn sidecars(&self) -> Settings {
        let flags = &self.injection;
        let endpoints = &flags.sidecar_etcd_endpoints;
        Settings {
            image: flags.sidecar_image.clone(),
            pull_policy: flags.sidecar_pull_policy.map(|policy| format!("{policy:?}")),
            log: flags.sidecar_log.clone(),
            resources: flags.sidecar_resources.clone(),
            etcd_endpoints: if endpoints.is_empty() { &self.etcd_endpoints } else { endpoints }.clone(),
            etcd_server_name: self.etcd_server_name.clone(),
            otlp_endpoint: flags.sidecar_otlp_endpoint.clone(),
            trace_ratio: flags.sidecar_trace_ratio.clone(),
        }
    }
}

/// Sidecars are given no authority that could vouch for a collector: an `https://` one has no place here.
fn collector(text: &str) -> Result<String, String> {
    let uri: Option<http::Uri> = text.replace(HOST_IP, "127.0.0.1").parse().ok();
    let plain = |uri: &http::Uri| {
        let host = uri.authority().is_some_and(|host| !host.as_str().contains('@'));
        uri.scheme_str() == Some("http") && host && uri.path().len() <= 1 && uri.query().is_none()
    };
    match uri.filter(plain) {
        Some(_) => Ok(text.to_owned()),
        None => Err("write it as in http://collector.observability:4317, the port for gRPC; a collector outside of the \
                     cluster is reached through one in it"
            .into()),
    }
}

fn resources(text: &str) -> Result<ResourceRequirements, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}
