//! What a pod's annotations ask of its sidecar.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    api::core::v1::{Pod, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};
use tracing_subscriber::EnvFilter;

use super::{Settings, quantity};

/// What annotations that set up the sidecar begin with.
pub const CONFIG: &str = "config.concordat.dev/";
const APP_ID: &str = "concordat.dev/app-id";
const APP_PORT: &str = "concordat.dev/app-port";
/// Labels that name an app when no annotation does, in this order.
const NAMES: [&str; 2] = ["app.kubernetes.io/name", "app"];

/// Checked, with what is left out filled in.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) app_id: String,
    pub(super) app_port: Option<u16>,
    pub(super) api_port: u16,
    pub(super) admin_port: u16,
    /// Ports of Dapr's HTTP and gRPC API, if it is served.
    pub(super) dapr: Option<(u16, u16)>,
    pub(super) log: String,
    pub(super) log_format: Option<String>,
    pub(super) session_ttl: Option<String>,
    pub(super) drain_grace: Option<String>,
    pub(super) trace_ratio: String,
    pub(super) image: String,
    pub(super) resources: ResourceRequirements,
    /// Whether apps must show a token.
    pub(super) token: bool,
}

impl Options {
    /// The ports that the sidecar listens on, each with the annotation that changes it.
    pub(super) fn ports(&self) -> Vec<(u16, &'static str)> {
        let mut ports = vec![(self.api_port, "api-port"), (self.admin_port, "admin-port")];
        if let Some((http, grpc)) = self.dapr {
            ports.extend([(http, "dapr-http-port"), (grpc, "dapr-grpc-port")]);
        }
        ports
    }
}

/// Reads a pod's annotations and labels; else all that is to be changed.
pub(super) fn read(pod: &Pod, settings: &Settings) -> Result<Options, Vec<String>> {
    let none = BTreeMap::new();
    let annotations = pod.metadata.annotations.as_ref().unwrap_or(&none);
    let mut wrong = Vec::new();
    let mut options = Options {
        app_id: String::new(),
        app_port: None,
        api_port: 4700,
        admin_port: 4701,
        dapr: None,
        log: settings.log.clone(),
        log_format: None,
        session_ttl: None,
        drain_grace: None,
        trace_ratio: settings.trace_ratio.clone(),
        image: settings.image.clone(),
        resources: settings.resources.clone(),
        token: true,
    };
    match app_id(pod, annotations) {
        Ok(id) => options.app_id = id,
        Err(why) => wrong.push(why),
    }
    if let Some(text) = annotations.get(APP_PORT) {
        match port(text) {
            Ok(port) => options.app_port = Some(port),
            Err(why) => wrong.push(format!("annotation {APP_PORT}: {text:?}: {why}")),
        }
    }
    let (mut dapr, mut dapr_ports) = (false, (3500, 50001));
    let set = annotations.iter().filter_map(|(name, text)| Some((name.strip_prefix(CONFIG)?, text.trim())));
    for (name, text) in set {
        let result = match name {
            "api-port" => port(text).map(|port| options.api_port = port),
            "admin-port" => port(text).map(|port| options.admin_port = port),
            "dapr" => one_of(text, &["true", "false"]).map(|text| dapr = text == "true"),
            "dapr-http-port" => port(text).map(|port| dapr_ports.0 = port),
            "dapr-grpc-port" => port(text).map(|port| dapr_ports.1 = port),
            "log" => log(text).map(|text| options.log = text),
            "log-format" => one_of(text, &["json", "text"]).map(|text| options.log_format = Some(text)),
            "session-ttl" => duration(text, 3).map(|text| options.session_ttl = Some(text)),
            "drain-grace" => duration(text, 0).map(|text| options.drain_grace = Some(text)),
            "trace-ratio" => ratio(text).map(|text| options.trace_ratio = text),
            "image" => image(text).map(|text| options.image = text),
            "token" => one_of(text, &["enabled", "disabled"]).map(|text| options.token = text == "enabled"),
            "cpu-request" | "memory-request" | "cpu-limit" | "memory-limit" => {
                resource(&mut options.resources, name, text)
            }
            _ => Err("nobody knows it: see docs/injection.md for those there are".into()),
        };
        if let Err(why) = result {
            wrong.push(format!("annotation {CONFIG}{name}: {text:?}: {why}"));
        }
    }
    options.dapr = dapr.then_some(dapr_ports);
    wrong.extend(too_little(&options.resources));
    if wrong.is_empty() { Ok(options) } else { Err(wrong) }
}

fn app_id(pod: &Pod, annotations: &BTreeMap<String, String>) -> Result<String, String> {
    let labels = pod.metadata.labels.as_ref();
    let label = |name| Some(("label", name, labels?.get(name)?));
    let annotation = annotations.get(APP_ID).map(|id| ("annotation", APP_ID, id));
    let Some((kind, name, id)) = annotation.or_else(|| NAMES.into_iter().find_map(label)) else {
        return Err(format!("the app has no name: set annotation {APP_ID}, or label {}", NAMES[0]));
    };
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let edges = !id.starts_with('-') && !id.ends_with('-');
    if (1..=63).contains(&id.len()) && id.bytes().all(allowed) && edges {
        return Ok(id.clone());
    }
    let rule = "1 to 63 of a-z, 0-9 and '-', with no '-' at either end";
    Err(if name == APP_ID {
        format!("{kind} {name}: {id:?}: write {rule}")
    } else {
        format!("{kind} {name}: {id:?} cannot be an app's id: set annotation {APP_ID} to {rule}")
    })
}

fn port(text: &str) -> Result<u16, String> {
    text.parse().ok().filter(|port| *port > 0).ok_or_else(|| "write a port between 1 and 65535".into())
}

fn one_of(text: &str, words: &[&str]) -> Result<String, String> {
    if words.contains(&text) { Ok(text.to_owned()) } else { Err(format!("write {}", words.join(" or "))) }
}

fn log(text: &str) -> Result<String, String> {
    let why = "write a level, or directives as in info,concordat_store=debug";
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|_| why.into())
}

fn duration(text: &str, least: u64) -> Result<String, String> {
    let bounds = Duration::from_secs(least)..=Duration::from_mins(10);
    match text.parse::<concordat_crds::Duration>() {
        Ok(duration) if bounds.contains(&Duration::from(duration)) => Ok(text.to_owned()),
        _ => Err(format!("write a duration between {least}s and 10m")),
    }
}

/// A share, 0 to 1.
pub(crate) fn ratio(text: &str) -> Result<String, String> {
    let share = text.parse::<f64>().is_ok_and(|share| (0.0..=1.0).contains(&share));
    if share { Ok(text.to_owned()) } else { Err("write a share between 0 and 1, as in 0.1".into()) }
}

fn image(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:@".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) {
        Ok(text.to_owned())
    } else {
        Err("write an image as in ghcr.io/concordat-dev/sidecar:0.1.0".into())
    }
}

/// Sets `<what>-request` or `<what>-limit`.
fn resource(resources: &mut ResourceRequirements, name: &str, text: &str) -> Result<(), String> {
    if quantity::read(text).is_none() {
        return Err("write a quantity as in 100m or 64Mi".into());
    }
    let (what, list) = match name.split_once('-') {
        Some((what, "request")) => (what, &mut resources.requests),
        Some((what, _)) => (what, &mut resources.limits),
        None => return Err("write what it is of".into()),
    };
    list.get_or_insert_default().insert(what.to_owned(), Quantity(text.to_owned()));
    Ok(())
}

/// Limits that are below what is asked for.
fn too_little(resources: &ResourceRequirements) -> Vec<String> {
    let (Some(requests), Some(limits)) = (&resources.requests, &resources.limits) else { return Vec::new() };
    requests
        .iter()
        .filter_map(|(what, request)| {
            let limit = limits.get(what)?;
            (quantity::read(&request.0)? > quantity::read(&limit.0)?).then(|| {
                format!(
                    "the sidecar's {what} request {} is above its limit {}: set annotation {CONFIG}{what}-request or \
                     {CONFIG}{what}-limit",
                    request.0, limit.0
                )
            })
        })
        .collect()
}
