//! A real Prometheus on this machine, which is the node. It is told of the chart what Prometheus' operator would tell it.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use concordat_tests::process::{Process, cache, folder, free_port};
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
    pub(crate) async fn start(kubeconfig: &Path, objects: &[Value]) -> Result<Self> {
        let of = |kind: &'static str| objects.iter().filter(move |object| object["kind"] == kind);
        let mut scraped = Vec::new();
        for monitor in of("ServiceMonitor").chain(of("PodMonitor")) {
            scraped.extend(jobs(monitor, kubeconfig)?);
        }
        let folder = folder("prometheus")?;
        let file = |name: &str| folder.path().join(name);
        let groups: Vec<&Value> =
            of("PrometheusRule").filter_map(|rule| rule["spec"]["groups"].as_array()).flatten().collect();
        ensure!(!scraped.is_empty() && !groups.is_empty(), "the chart watches nothing");
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

/// What a monitor is to Prometheus, as its operator makes it.
fn jobs(monitor: &Value, kubeconfig: &Path) -> Result<Vec<Value>> {
    let namespace = monitor["metadata"]["namespace"].as_str().context("no namespace")?;
    let name = monitor["metadata"]["name"].as_str().context("no name")?;
    let spec = &monitor["spec"];
    let by_service = monitor["kind"] == "ServiceMonitor";
    let (role, of, port_name) = if by_service {
        ("endpoints", "service", "__meta_kubernetes_endpoint_port_name")
    } else {
        ("pod", "pod", "__meta_kubernetes_pod_container_port_name")
    };
    let mut discovery = json!({"role": role, "kubeconfig_file": kubeconfig});
    if spec["namespaceSelector"]["any"] != true {
        discovery["namespaces"] = json!({"names": [namespace]});
    }
    let keep =
        |labels: Value, regex: &str| json!({"action": "keep", "source_labels": labels, "regex": regex});
    let mut selected = vec![
        json!({"action": "drop", "source_labels": ["__meta_kubernetes_pod_phase"], "regex": "(Failed|Succeeded)"}),
    ];
    ensure!(spec["selector"]["matchExpressions"].is_null(), "{name} selects by what is not known here");
    for (label, value) in spec["selector"]["matchLabels"].as_object().into_iter().flatten() {
        let label: String =
            label.chars().map(|letter| if letter.is_alphanumeric() { letter } else { '_' }).collect();
        let labels = json!([
            format!("__meta_kubernetes_{of}_label_{label}"),
            format!("__meta_kubernetes_{of}_labelpresent_{label}"),
        ]);
        selected.push(keep(labels, &format!("({});true", value.as_str().context("no value")?)));
    }
    let endpoints = if by_service { &spec["endpoints"] } else { &spec["podMetricsEndpoints"] };
    let endpoints = endpoints.as_array().context("no endpoint")?;
    let job = |(number, endpoint): (usize, &Value)| {
        let mut relabelled = selected.clone();
        if let Some(port) = endpoint["port"].as_str() {
            relabelled.push(keep(json!([port_name]), port));
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
            "job_name": format!("{}/{namespace}/{name}/{number}", monitor["kind"]),
            "kubernetes_sd_configs": [discovery.clone()],
            "metrics_path": endpoint["path"],
            "relabel_configs": relabelled,
        }))
    };
    endpoints.iter().enumerate().map(job).collect()
}
