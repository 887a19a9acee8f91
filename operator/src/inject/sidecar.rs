//! The sidecar as a container, the volumes it needs, and what of the app's would be in its way.

use k8s_openapi::api::core::v1::{Container, PodSpec, Volume};
use serde_json::{Value, json};

use super::{CONTAINER, IDENTITY, Settings, options::CONFIG, options::Options};

/// The volume in memory with the token that apps must show.
pub(super) const TOKEN: &str = "concordat-token";
/// Where containers have it.
pub(super) const TOKEN_DIR: &str = "/run/concordat";
/// The token itself.
const TOKEN_FILE: &str = "/run/concordat/token";
/// The volume with what etcd knows the namespace by.
const ETCD: &str = "concordat-etcd";
const ETCD_DIR: &str = "/etc/concordat/etcd";
/// An empty volume over the place where Kubernetes would mount a token for its API, which it does wherever nothing is.
const NO_API: &str = "concordat-no-api-access";
const API_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// What stands for the address of the pod's node where traces go to; Kubernetes puts it in.
pub(crate) const HOST_IP: &str = "$(HOST_IP)";
/// Whom the sidecar runs as, whatever the pod says of its containers.
const USER: i64 = 65532;

/// Whether etcd asks for certificates.
fn secure(settings: &Settings) -> bool {
    settings.etcd_endpoints.iter().all(|endpoint| endpoint.starts_with("https://"))
}

/// What the app has that cannot be beside a sidecar, with what to change.
pub(super) fn collisions(spec: &PodSpec, options: &Options) -> Vec<String> {
    let mut wrong = Vec::new();
    let ports = options.ports();
    for (at, (port, annotation)) in ports.iter().enumerate() {
        if options.app_port == Some(*port) {
            wrong.push(format!(
                "the sidecar listens on {port}, which concordat.dev/app-port says is the app's: set annotation \
                 {CONFIG}{annotation}"
            ));
        }
        if let Some((_, other)) = ports.iter().take(at).find(|(other, _)| other == port) {
            wrong.push(format!("{CONFIG}{annotation} and {CONFIG}{other} are both {port}: change one"));
        }
    }
    let containers = || spec.init_containers.iter().flatten().chain(&spec.containers);
    if containers().any(|container| container.name == CONTAINER) {
        wrong.push(format!("a container is called {CONTAINER}, as the sidecar is: rename it"));
    }
    for container in containers() {
        for port in container.ports.iter().flatten() {
            let tcp = port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
            let ours = ports.iter().find(|(ours, _)| tcp && i32::from(*ours) == port.container_port);
            if let Some((port, annotation)) = ours {
                wrong.push(format!(
                    "container {} listens on {port}, as the sidecar would: set annotation {CONFIG}{annotation}",
                    container.name
                ));
            }
        }
        let there = |path: &str| path.trim_end_matches('/') == TOKEN_DIR;
        let mut mounts = container.volume_mounts.iter().flatten();
        if options.token && mounts.any(|mount| mount.name != TOKEN && there(&mount.mount_path)) {
            wrong.push(format!(
                "container {} mounts a volume at {TOKEN_DIR}, where the sidecar's token is to be: mount it elsewhere, \
                 or set annotation {CONFIG}token: disabled",
                container.name
            ));
        }
    }
    for Volume { name, .. } in spec.volumes.iter().flatten() {
        if [TOKEN, ETCD, NO_API].contains(&name.as_str()) {
            wrong.push(format!("a volume is called {name}, as one of the sidecar's is: rename it"));
        }
    }
    wrong
}

/// The sidecar's container.
pub(super) fn container(options: &Options, settings: &Settings) -> Value {
    let probe = |path: &str| json!({ "path": path, "port": options.admin_port });
    let mut mounts = vec![json!({ "name": NO_API, "mountPath": API_DIR, "readOnly": true })];
    if options.token {
        mounts.push(json!({ "name": TOKEN, "mountPath": TOKEN_DIR }));
    }
    if secure(settings) {
        mounts.push(json!({ "name": ETCD, "mountPath": ETCD_DIR, "readOnly": true }));
    }
    let mut container = json!({
        "name": CONTAINER,
        "image": options.image,
        // This is what makes it a sidecar: it starts before all that follow it, and ends after them.
        "restartPolicy": "Always",
        "env": env(options, settings),
        "ports": [{ "name": "concordat-admin", "containerPort": options.admin_port, "protocol": "TCP" }],
        // The app starts once the sidecar has reached etcd.
        "startupProbe": { "httpGet": probe("/ready"), "periodSeconds": 1, "timeoutSeconds": 3, "failureThreshold": 300 },
        "livenessProbe": { "httpGet": probe("/live"), "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 3 },
        "resources": options.resources,
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"] },
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": USER,
            "runAsNonRoot": true,
            "runAsUser": USER,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    });
    if let Some(policy) = &settings.pull_policy {
        container["imagePullPolicy"] = json!(policy);
    }
    container
}

/// What the sidecar is told. Each port is said even where it is the default: for Services called `concordat-api` and the
/// like Kubernetes sets variables of the same names, which ours go before.
fn env(options: &Options, settings: &Settings) -> Vec<Value> {
    let text = |name: &str, value: &str| json!({ "name": format!("CONCORDAT_{name}"), "value": value });
    let field = |name: &str, path: &str| json!({ "name": format!("CONCORDAT_{name}"), "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let (http, grpc) = options.dapr.unwrap_or((3500, 50001));
    let mut env = vec![
        field("NAMESPACE", "metadata.namespace"),
        field("POD", "metadata.name"),
        text("APP", &options.app_id),
        // Empty says that there is none.
        text("APP_PORT", &options.app_port.map(|port| port.to_string()).unwrap_or_default()),
        text("API_PORT", &options.api_port.to_string()),
        text("ADMIN_PORT", &options.admin_port.to_string()),
        text("DAPR", if options.dapr.is_some() { "true" } else { "false" }),
        text("DAPR_HTTP_PORT", &http.to_string()),
        text("DAPR_GRPC_PORT", &grpc.to_string()),
        text("ETCD_ENDPOINTS", &settings.etcd_endpoints.join(",")),
        text("LOG", &options.log),
    ];
    if secure(settings) {
        env.push(text("ETCD_CA_FILE", &format!("{ETCD_DIR}/ca.crt")));
        env.push(text("ETCD_CERT_FILE", &format!("{ETCD_DIR}/tls.crt")));
        env.push(text("ETCD_KEY_FILE", &format!("{ETCD_DIR}/tls.key")));
        env.push(text("ISOLATED", "true"));
        env.extend(settings.etcd_server_name.as_ref().map(|name| text("ETCD_SERVER_NAME", name)));
    }
    if options.token {
        env.push(text("NEW_TOKEN_FILE", TOKEN_FILE));
    }
    if let Some(endpoint) = &settings.otlp_endpoint {
        if endpoint.contains(HOST_IP) {
            let node = json!({ "fieldRef": { "fieldPath": "status.hostIP" } });
            env.push(json!({ "name": "HOST_IP", "valueFrom": node }));
        }
        env.push(text("OTLP_ENDPOINT", endpoint));
        // Who calls as part of a trace says whether it is recorded; the share is of those that begin here.
        env.push(json!({ "name": "OTEL_TRACES_SAMPLER", "value": "parentbased_traceidratio" }));
        env.push(json!({ "name": "OTEL_TRACES_SAMPLER_ARG", "value": options.trace_ratio }));
    }
    for (name, value) in [
        ("LOG_FORMAT", &options.log_format),
        ("SESSION_TTL", &options.session_ttl),
        ("DRAIN_GRACE", &options.drain_grace),
    ] {
        env.extend(value.as_ref().map(|value| text(name, value)));
    }
    env
}

/// The volumes that the pod gets for its sidecar.
pub(super) fn volumes(options: &Options, settings: &Settings) -> Vec<Value> {
    let mut volumes = vec![json!({ "name": NO_API, "emptyDir": {} })];
    if options.token {
        volumes.push(json!({ "name": TOKEN, "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } }));
    }
    if secure(settings) {
        // Its files are root's, and no group is the sidecar's alone: what keeps others from them is that it alone has the
        // mount.
        volumes.push(json!({ "name": ETCD, "secret": { "secretName": IDENTITY, "defaultMode": 0o444 } }));
    }
    volumes
}

/// What an app's container gets to find the sidecar by: variables and mounts that it has not got.
pub(super) fn for_app(container: &Container, api_port: &str, token: bool) -> (Vec<Value>, Vec<Value>) {
    let mut env = vec![("CONCORDAT_PORT", api_port)];
    let mut mounts = Vec::new();
    if token {
        env.push(("CONCORDAT_TOKEN_FILE", TOKEN_FILE));
        if !container.volume_mounts.iter().flatten().any(|mount| mount.name == TOKEN) {
            mounts.push(json!({ "name": TOKEN, "mountPath": TOKEN_DIR, "readOnly": true }));
        }
    }
    let has = |name| container.env.iter().flatten().any(|of| of.name == name);
    env.retain(|(name, _)| !has(*name));
    (env.into_iter().map(|(name, value)| json!({ "name": name, "value": value })).collect(), mounts)
}
