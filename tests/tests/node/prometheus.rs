//! A real Prometheus on this machine, which is the node. It is told of the chart what Prometheus' operator would tell it.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};
use concordat_tests::{
    node::Node,
    process::{Process, cache, folder, free_port},
};
use serde_json::{Value, json};

/// How often it looks: a test waits for it.
const INTERVAL: &str = "1s";
/// What it sets at the series of a target, and what a histogram adds.
pub(crate) const OF_TARGETS: [&str; 9] =
    ["__name__", "job", "namespace", "service", "pod", "container", "endpoint", "instance", "le"];

/// It ends with this.
pub(crate) struct Prometheus {
    _process: Process,
    url: String,
    client: reqwest::Client,
}

impl Prometheus {
    /// For the ServiceMonitors, PodMonitors and PrometheusRules among the objects of a chart.
    pub(crate) async fn start(node: &Node, objects: &[Value]) -> Result<Self> {
        let of = |kind: &'static str| objects.iter().filter(move |object| object["kind"] == kind);
        let mut scraped = Vec::new();
        for monitor in of("ServiceMonitor").chain(of("PodMonitor")) {
            scraped.extend(jobs(monitor)?);
        }
        let folder = folder("prometheus")?;
        let file = |name: &str| folder.path().join(name);
        let groups: Vec<&Value> =
            of("PrometheusRule").filter_map(|rule| rule["spec"]["groups"].as_array()).flatten().collect();
        ensure!(!scraped.is_empty() && !groups.is_empty(), "the chart watches nothing");
        fs::write(file("pods.json"), pods(node).await?.to_string())?;
        fs::write(file("services.json"), services(node).await?.to_string())?;
        fs::write(file("rules.json"), json!({"groups": groups}).to_string())?;
        // YAML takes JSON as it is.
        let config = json!({
            "global": {"scrape_interval": INTERVAL, "scrape_timeout": INTERVAL, "evaluation_interval": INTERVAL},
            "scrape_configs": scraped,
            "rule_files": ["rules.json"],
        });
        fs::write(file("prometheus.json"), config.to_string())?;
        let program = cache()?.join("prometheus/prometheus");
        ensure!(program.exists(), "{} is not there: run `tests/prometheus/install`", program.display());
        let port = free_port()?;
        let mut command = Command::new(program);
        command
            .arg(format!("--config.file={}", file("prometheus.json").display()))
            .arg(format!("--storage.tsdb.path={}", file("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let mut process = Process::start_in(folder, "prometheus", command)?;
        let url = format!("http://127.0.0.1:{port}");
        process.answers(&format!("{url}/-/ready")).await?;
        Ok(Self { _process: process, url, client: reqwest::Client::new() })
    }

    /// What its API answers.
    pub(crate) async fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value> {
        let request = self.client.get(format!("{}/api/v1/{path}", self.url)).query(parameters);
        let answer: Value = request.send().await?.json().await?;
        ensure!(answer["status"] == "success", "{path} {parameters:?}: {answer}");
        Ok(answer["data"].clone())
    }

    /// The series that a query has now.
    pub(crate) async fn query(&self, query: &str) -> Result<Vec<Value>> {
        let found = self.get("query", &[("query", query)]).await?;
        found["result"].as_array().cloned().with_context(|| format!("{query} has no series but {found}"))
    }
}

async fn all(node: &Node, kind: &str) -> Result<Vec<Value>> {
    let listed = node.kubectl(&["get", kind, "--all-namespaces", "--output=json"]).await?;
    let listed: Value = serde_json::from_str(&listed)?;
    listed["items"].as_array().cloned().with_context(|| format!("no {kind}"))
}

/// Every port of every pod that a service leads to, as Prometheus' own discovery would tell: Debian builds it without that of
/// Kubernetes.
async fn services(node: &Node) -> Result<Value> {
    let services = all(node, "services").await?;
    let mut targets = Vec::new();
    for slice in all(node, "endpointslices").await? {
        let (namespace, name) =
            (&slice["metadata"]["namespace"], &slice["metadata"]["labels"]["kubernetes.io/service-name"]);
        let of = |service: &&Value| {
            service["metadata"]["namespace"] == *namespace && service["metadata"]["name"] == *name
        };
        let Some(service) = services.iter().find(of) else { continue };
        let mut labels =
            json!({"__meta_kubernetes_namespace": namespace, "__meta_kubernetes_service_name": name});
        of_labels(&mut labels, "service", service);
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            labels["__meta_kubernetes_pod_name"] =
                json!(endpoint["targetRef"]["name"].as_str().unwrap_or_default());
            for port in slice["ports"].as_array().into_iter().flatten() {
                labels["__meta_kubernetes_endpoint_port_name"] =
                    json!(port["name"].as_str().unwrap_or_default());
                if let Some(address) = endpoint["addresses"][0].as_str() {
                    targets
                        .push(json!({"targets": [format!("{address}:{}", port["port"])], "labels": labels}));
                }
            }
        }
    }
    Ok(json!(targets))
}

/// Every port of every pod.
async fn pods(node: &Node) -> Result<Value> {
    let mut targets = Vec::new();
    for pod in &all(node, "pods").await? {
        let (metadata, spec, status) = (&pod["metadata"], &pod["spec"], &pod["status"]);
        let mut labels = json!({
            "__meta_kubernetes_namespace": metadata["namespace"],
            "__meta_kubernetes_pod_name": metadata["name"],
            "__meta_kubernetes_pod_phase": status["phase"],
        });
        of_labels(&mut labels, "pod", pod);
        for name in metadata["annotations"].as_object().into_iter().flat_map(|all| all.keys()) {
            let name = label_name(name);
            labels[format!("__meta_kubernetes_pod_annotationpresent_{name}")] = json!("true");
        }
        let containers = ["containers", "initContainers"].map(|list| spec[list].as_array());
        for container in containers.into_iter().flatten().flatten() {
            for port in container["ports"].as_array().into_iter().flatten() {
                let mut labels = labels.clone();
                labels["__meta_kubernetes_pod_container_name"] = container["name"].clone();
                labels["__meta_kubernetes_pod_container_port_name"] =
                    json!(port["name"].as_str().unwrap_or_default());
                if let Some(address) = status["podIP"].as_str() {
                    let target = format!("{address}:{}", port["containerPort"]);
                    targets.push(json!({"targets": [target], "labels": labels}));
                }
            }
        }
    }
    Ok(json!(targets))
}

/// The labels of an object.
fn of_labels(labels: &mut Value, role: &str, object: &Value) {
    for (name, value) in object["metadata"]["labels"].as_object().into_iter().flatten() {
        let name = label_name(name);
        labels[format!("__meta_kubernetes_{role}_label_{name}")] = value.clone();
        labels[format!("__meta_kubernetes_{role}_labelpresent_{name}")] = json!("true");
    }
}

/// As Prometheus makes a label's name of what Kubernetes calls so.
fn label_name(name: &str) -> String {
    name.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '_' }).collect()
}

/// What a monitor is to Prometheus, as its operator makes it.
fn jobs(monitor: &Value) -> Result<Vec<Value>> {
    let namespace = monitor["metadata"]["namespace"].as_str().context("no namespace")?;
    let name = monitor["metadata"]["name"].as_str().context("no name")?;
    let spec = &monitor["spec"];
    let by_service = monitor["kind"] == "ServiceMonitor";
    let (role, targets, ports, endpoints) = if by_service {
        ("service", "services.json", "__meta_kubernetes_endpoint_port_name", &spec["endpoints"])
    } else {
        ("pod", "pods.json", "__meta_kubernetes_pod_container_port_name", &spec["podMetricsEndpoints"])
    };
    let keep =
        |labels: Value, regex: &str| json!({"action": "keep", "source_labels": labels, "regex": regex});
    let mut selected = vec![
        json!({"action": "drop", "source_labels": ["__meta_kubernetes_pod_phase"], "regex": "(Failed|Succeeded)"}),
    ];
    if spec["namespaceSelector"]["any"] != true {
        selected.push(keep(json!(["__meta_kubernetes_namespace"]), namespace));
    }
    ensure!(spec["selector"]["matchExpressions"].is_null(), "{name} selects by what is not known here");
    for (label, value) in spec["selector"]["matchLabels"].as_object().into_iter().flatten() {
        let label = label_name(label);
        let labels = json!([
            format!("__meta_kubernetes_{role}_label_{label}"),
            format!("__meta_kubernetes_{role}_labelpresent_{label}"),
        ]);
        selected.push(keep(labels, &format!("({});true", value.as_str().context("no value")?)));
    }
    let endpoints = endpoints.as_array().context("no endpoint")?;
    let job = |(number, endpoint): (usize, &Value)| {
        let mut relabelled = selected.clone();
        if let Some(port) = endpoint["port"].as_str() {
            relabelled.push(keep(json!([ports]), port));
            relabelled.push(json!({"target_label": "endpoint", "replacement": port}));
        }
        for (from, to) in [
            ("namespace", "namespace"),
            ("service_name", "service"),
            ("pod_container_name", "container"),
            ("pod_name", "pod"),
        ] {
            relabelled
                .push(json!({"source_labels": [format!("__meta_kubernetes_{from}")], "target_label": to}));
        }
        relabelled.push(if by_service {
            json!({"target_label": "job", "source_labels": ["__meta_kubernetes_service_name"]})
        } else {
            json!({"target_label": "job", "replacement": format!("{namespace}/{name}")})
        });
        for of in endpoint["relabelings"].as_array().into_iter().flatten() {
            relabelled.push(keep(of["sourceLabels"].clone(), of["regex"].as_str().context("no regex")?));
            ensure!(of["action"] == "keep", "{name} does what is not known here: {of}");
        }
        Ok(json!({
            "job_name": format!("{role}Monitor/{namespace}/{name}/{number}"),
            "file_sd_configs": [{"files": [targets]}],
            "metrics_path": endpoint["path"],
            "relabel_configs": relabelled,
        }))
    };
    endpoints.iter().enumerate().map(job).collect()
}
