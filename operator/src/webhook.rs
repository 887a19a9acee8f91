//! The webhook that gives pods their sidecars: AdmissionReview v1 over TLS, on every replica whether it leads or not.
//! What becomes of a pod is decided by [`crate::inject`]; this reads the question, and the labels of the pod's namespace.

pub mod certificates;
mod guests;
mod serve;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::{Body, to_bytes},
    extract::{RawQuery, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use self::certificates::Certificates;
use crate::{
    inject::{self, Settings, Skipped, Verdict},
    metrics::Metrics,
};

/// Far more than etcd lets an object have, with another one beside it.
const LARGEST: usize = 8 << 20;
/// How long an API server waits that does not say so.
const UNSAID: Duration = Duration::from_secs(5);
/// The longest that any API server waits.
const LONGEST: Duration = Duration::from_secs(30);
/// The version of the questions that are understood.
const VERSION: &str = "admission.k8s.io/v1";

/// What it takes to answer.
pub struct Webhook {
    /// To read namespaces with.
    pub client: Client,
    /// What sidecars are.
    pub settings: Settings,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// What the API server asks.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review {
    api_version: String,
    request: Request,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    uid: String,
    kind: Kind,
    #[serde(default)]
    sub_resource: String,
    #[serde(default)]
    namespace: String,
    operation: String,
    #[serde(default)]
    object: Value,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(default)]
    group: String,
    kind: String,
}

impl Request {
    fn makes_a_pod(&self) -> bool {
        (self.kind.group.as_str(), self.kind.kind.as_str()) == ("", "Pod")
            && self.operation == "CREATE"
            && self.sub_resource.is_empty()
    }
}

/// Serves `/inject` until `stop`, then ends what is under way.
pub async fn serve(
    listener: TcpListener,
    certificates: Arc<Certificates>,
    webhook: Arc<Webhook>,
    stop: CancellationToken,
) {
    let router = Router::new().route("/inject", post(inject)).with_state(webhook);
    serve::serve(listener, certificates, router, stop).await;
}

async fn inject(State(webhook): State<Arc<Webhook>>, RawQuery(query): RawQuery, body: Body) -> Response {
    let began = Instant::now();
    let until = began + patience(query.as_deref());
    let (result, response) = match read(body, until).await {
        Ok(request) => webhook.answer(&request, until).await,
        Err((status, why)) => ("invalid", (status, why).into_response()),
    };
    webhook.metrics.admitted(result, began.elapsed());
    response
}

/// How long an answer may take, with all that comes before it: four fifths of what the API server waits, as it says in
/// `?timeout=5s` what its configuration says (`timeoutSeconds`). The rest is for the way; an answer that says what is
/// wrong is worth more than none.
fn patience(query: Option<&str>) -> Duration {
    let said =
        query.into_iter().flat_map(|query| query.split('&')).find_map(|one| one.strip_prefix("timeout="));
    let waits = said.and_then(|text| text.parse::<concordat_crds::Duration>().ok()).map(Duration::from);
    waits.filter(|waits| !waits.is_zero()).unwrap_or(UNSAID).min(LONGEST) * 4 / 5
}

/// Reads a question in time; else says what is wrong with it.
async fn read(body: Body, until: Instant) -> Result<Request, (StatusCode, String)> {
    let slow = |_| (StatusCode::REQUEST_TIMEOUT, "the review took too long to come\n".to_owned());
    let large = |_| (StatusCode::PAYLOAD_TOO_LARGE, format!("write a review of at most {LARGEST} bytes\n"));
    let bytes = timeout_at(until, to_bytes(body, LARGEST)).await.map_err(slow)?.map_err(large)?;
    let bad = |why: String| (StatusCode::BAD_REQUEST, format!("this is no AdmissionReview: {why}\n"));
    let review: Review = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
    if review.api_version != VERSION {
        return Err(bad(format!("it is {:?}: set admissionReviewVersions: [v1]", review.api_version)));
    }
    Ok(review.request)
}

impl Webhook {
    /// The answer, and one word of what it is.
    async fn answer(&self, request: &Request, until: Instant) -> (&'static str, Response) {
        if !request.makes_a_pod() {
            return ("ignored", answered(&request.uid, json!({ "allowed": true })));
        }
        let decides = inject::namespace_decides(&request.object);
        let labels = if decides { self.labels(&request.namespace, until).await } else { Ok(BTreeMap::new()) };
        let labels = match labels {
            Ok(labels) => labels,
            // The webhook's failure policy decides: nobody is told that a pod asks for nothing when that is not known.
            Err(error) => {
                tracing::warn!(%error, request.namespace, "a pod's namespace cannot be read");
                let why = format!("namespace {} cannot be read: {error}\n", request.namespace);
                return ("error", (StatusCode::INTERNAL_SERVER_ERROR, why).into_response());
            }
        };
        let verdict = inject::decide(&request.object, &labels, &self.settings);
        let (result, answer) = told(&verdict);
        tracing::debug!(request.namespace, request.uid, result, "a pod was looked at");
        (result, answered(&request.uid, answer))
    }

    /// The labels of a namespace as they are now: those of a cache may be from before it asked, and its pods would run
    /// without a sidecar and not know.
    async fn labels(&self, namespace: &str, until: Instant) -> Result<BTreeMap<String, String>, String> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        match timeout_at(until, api.get_metadata(namespace)).await {
            Ok(Ok(found)) => Ok(found.metadata.labels.unwrap_or_default()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the Kubernetes API does not answer in time".into()),
        }
    }
}

/// A verdict in one word, and as the API server is told it.
fn told(verdict: &Verdict) -> (&'static str, Value) {
    let patched = |patch: &json_patch::Patch| {
        let mut answer = json!({ "allowed": true });
        if !patch.is_empty() {
            answer["patchType"] = json!("JSONPatch");
            answer["patch"] = json!(BASE64_STANDARD.encode(json!(patch).to_string()));
        }
        answer
    };
    match verdict {
        Verdict::Inject(patch) => ("injected", patched(patch)),
        Verdict::Skip(Skipped::HostNetwork, patch) => {
            let mut answer = patched(patch);
            let warning = "concordat: this pod gets no sidecar, for its hostNetwork is the node's; without it, it would";
            answer["warnings"] = json!([warning]);
            ("skipped", answer)
        }
        Verdict::Skip(_, patch) => ("skipped", patched(patch)),
        Verdict::Refuse(why) => {
            let status = json!({ "code": 422, "reason": "Invalid", "message": format!("concordat: {why}") });
            ("refused", json!({ "allowed": false, "status": status }))
        }
    }
}

fn answered(uid: &str, mut response: Value) -> Response {
    response["uid"] = json!(uid);
    Json(json!({ "apiVersion": VERSION, "kind": "AdmissionReview", "response": response })).into_response()
}

#[cfg(test)]
mod tests {
    use axum::http;

    use super::*;

    async fn asked(body: &str) -> Result<Request, (StatusCode, String)> {
        read(Body::from(body.to_owned()), Instant::now() + UNSAID).await
    }

    #[test]
    fn an_answer_takes_less_than_the_api_server_waits() {
        for (query, milliseconds) in [
            (None, 4_000),
            (Some(""), 4_000),
            (Some("timeout=5s"), 4_000),
            (Some("timeout=1s"), 800),
            (Some("a=b&timeout=10s&c"), 8_000),
            (Some("timeout=0s"), 4_000),
            (Some("timeout=soon"), 4_000),
            (Some("timeout=9h"), 24_000),
        ] {
            assert_eq!(patience(query), Duration::from_millis(milliseconds), "{query:?}");
        }
    }

    /// The review comes late, and the namespace cannot be read at all: one deadline holds for both.
    #[tokio::test(start_paused = true)]
    async fn all_of_an_answer_has_one_deadline() {
        let nobody = tower::service_fn(async |_: http::Request<kube::client::Body>| {
            std::future::pending::<Result<http::Response<Body>, std::convert::Infallible>>().await
        });
        let settings = Settings {
            image: String::new(),
            pull_policy: None,
            log: String::new(),
            resources: Default::default(),
            etcd_endpoints: Vec::new(),
            etcd_server_name: None,
            otlp_endpoint: None,
            trace_ratio: String::new(),
        };
        let webhook =
            Arc::new(Webhook { client: Client::new(nobody, "a"), settings, metrics: Arc::default() });
        let review = json!({
            "apiVersion": VERSION,
            "request": {
                "uid": "u", "kind": { "kind": "Pod" }, "operation": "CREATE", "namespace": "a", "object": {},
            },
        });
        for (late, status) in [
            (Duration::from_secs(7), StatusCode::INTERNAL_SERVER_ERROR),
            (Duration::from_secs(9), StatusCode::REQUEST_TIMEOUT),
        ] {
            let text = review.to_string();
            let body = Body::from_stream(futures::stream::once(async move {
                tokio::time::sleep(late).await;
                Ok::<_, std::io::Error>(text)
            }));
            let began = Instant::now();
            let answer = inject(State(webhook.clone()), RawQuery(Some("timeout=10s".into())), body).await;
            assert_eq!((answer.status(), began.elapsed()), (status, Duration::from_secs(8)));
        }
    }

    #[tokio::test]
    async fn what_is_no_review_is_answered_with_why() {
        let review = json!({
            "apiVersion": VERSION,
            "request": { "uid": "u", "kind": { "group": "", "kind": "Pod" }, "operation": "CREATE", "object": {} },
        });
        let pod = asked(&review.to_string()).await.ok().unwrap();
        assert!(pod.makes_a_pod() && pod.namespace.is_empty());
        let of = |path: &str, value: &str| {
            let mut other = review.clone();
            *other.pointer_mut(path).unwrap() = json!(value);
            other.to_string()
        };
        for (path, value) in [
            ("/request/operation", "UPDATE"),
            ("/request/kind/kind", "Service"),
            ("/request/kind/group", "a"),
        ] {
            assert!(!asked(&of(path, value)).await.ok().unwrap().makes_a_pod(), "{path}");
        }
        for (body, why) in [
            ("", "EOF"),
            ("{", "EOF"),
            ("{}", "missing field `apiVersion`"),
            (r#"{"apiVersion":"admission.k8s.io/v1"}"#, "missing field `request`"),
            (&of("/apiVersion", "admission.k8s.io/v1beta1"), "set admissionReviewVersions: [v1]"),
            (&"[".repeat(10_000), "invalid type"),
        ] {
            let (status, said) = asked(body).await.err().unwrap();
            assert_eq!(status, StatusCode::BAD_REQUEST);
            assert!(said.contains(why), "{said}");
        }
        let (status, _) = asked(&" ".repeat(LARGEST + 1)).await.err().unwrap();
        assert_eq!(status, http::StatusCode::PAYLOAD_TOO_LARGE);
    }

    #[test]
    fn no_review_panics() {
        bolero::check!().for_each(|bytes: &[u8]| {
            let _ = serde_json::from_slice::<Review>(bytes);
        });
    }

    #[test]
    fn a_verdict_is_told_as_the_api_server_reads_it() {
        let (word, answer) = told(&Verdict::Refuse("rename it".into()));
        assert_eq!(
            (word, &answer["allowed"], &answer["status"]["message"]),
            ("refused", &json!(false), &json!("concordat: rename it"))
        );
        let (word, answer) = told(&Verdict::Skip(Skipped::NotAsked, json_patch::Patch::default()));
        assert_eq!((word, answer), ("skipped", json!({ "allowed": true })));
        let patch: json_patch::Patch =
            serde_json::from_value(json!([{ "op": "remove", "path": "/a" }])).unwrap();
        let (word, answer) = told(&Verdict::Skip(Skipped::HostNetwork, patch));
        assert_eq!((word, &answer["patch"]), ("skipped", &json!("W3sib3AiOiJyZW1vdmUiLCJwYXRoIjoiL2EifV0=")));
        assert!(answer["warnings"][0].as_str().is_some_and(|text| text.len() <= 120), "{answer}");
    }
}
