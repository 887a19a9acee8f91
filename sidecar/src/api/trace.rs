//! What every request leaves behind: a span, its counts and, where a handler panicked, an answer all the same.

use std::{panic::AssertUnwindSafe, sync::Arc};

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures::FutureExt;
use http::{HeaderMap, Method};
use tokio::time::Instant;
use tracing::Instrument;

use crate::{
    metrics::{ErrorCode, Metrics, Operation, Route},
    problem::{Code, Problem},
};

/// A caller's `traceparent` (W3C Trace Context), to be handed on as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceParent(Arc<str>);

tokio::task_local! {
    static CURRENT: Option<TraceParent>;
}

impl TraceParent {
    /// That of the request in whose task this is called.
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Clone::clone).ok().flatten()
    }

    /// The header's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// One that is malformed is as good as none: the standard asks to start anew, not to refuse.
    fn of(headers: &HeaderMap) -> Option<Self> {
        let text = headers.get("traceparent")?.to_str().ok()?;
        let mut fields = text.split('-');
        let lengths = [2, 32, 16, 2];
        let hex = |field: &str| field.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let well_formed = lengths
            .iter()
            .all(|length| fields.next().is_some_and(|field| field.len() == *length && hex(field)));
        let version = text.get(..2)?;
        let known = version != "ff" && (version != "00" || fields.next().is_none());
        let zeroed = text.get(3..35)?.bytes().all(|byte| byte == b'0')
            || text.get(36..52)?.bytes().all(|byte| byte == b'0');
        (well_formed && known && !zeroed).then(|| Self(text.into()))
    }

    fn trace_id(&self) -> &str {
        self.0.get(3..35).unwrap_or_default()
    }
}

/// Runs a request in its span, counts it, and answers for a handler that panicked.
pub async fn observe(State(metrics): State<Arc<Metrics>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = name(request.method());
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "unmatched".to_owned(), |path| path.as_str().to_owned());
    let parent = TraceParent::of(request.headers());
    let span = tracing::debug_span!(
        "request",
        method,
        route,
        trace_id = parent.as_ref().map(TraceParent::trace_id).unwrap_or_default()
    );
    let run = AssertUnwindSafe(CURRENT.scope(parent, next.run(request))).catch_unwind().instrument(span);
    // The panic hook has told and counted it.
    let response = run.await.unwrap_or_else(|_| Problem::internal().into_response());
    if let Some(Code(code)) = response.extensions().get() {
        metrics.errors.get_or_create(&ErrorCode { code }).inc();
    }
    let status = response.status().as_u16();
    metrics
        .latency
        .get_or_create(&Route { route: route.clone(), method })
        .observe(started.elapsed().as_secs_f64());
    metrics.operations.get_or_create(&Operation { route, method, status }).inc();
    response
}

/// Methods are labels: those nobody knows must not become series of their own.
fn name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, body::Body, middleware::from_fn_with_state, routing::get};
    use http::StatusCode;
    use tower::ServiceExt;

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn parsed(text: &str) -> Option<TraceParent> {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", text.parse().unwrap());
        TraceParent::of(&headers)
    }

    #[test]
    fn a_malformed_parent_is_as_good_as_none() {
        assert_eq!(parsed(PARENT).unwrap().trace_id(), "0af7651916cd43dd8448eb211c80319c");
        assert!(
            parsed(&format!("01{}-later", &PARENT[2..])).is_some(),
            "later versions may have more fields"
        );
        for text in [
            "",
            "00",
            &PARENT[..54],
            &PARENT.to_uppercase(),
            &format!("ff{}", &PARENT[2..]),
            &format!("{PARENT}-more"),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319cé-b7ad6b716920333-01",
        ] {
            assert_eq!(parsed(text), None, "{text}");
        }
    }

    #[tokio::test]
    async fn a_panic_is_answered_and_counted_and_the_parent_is_at_hand() {
        let metrics = Arc::new(Metrics::default());
        let app = Router::new()
            .route("/panic", get(async || -> &'static str { panic!("planted") }))
            .route("/parent", get(async || TraceParent::current().unwrap().as_str().to_owned()))
            .layer(from_fn_with_state(metrics.clone(), observe));
        let ask = async |path: &str| {
            let request = Request::get(path).header("traceparent", PARENT).body(Body::empty()).unwrap();
            app.clone().oneshot(request).await.unwrap()
        };
        assert_eq!(ask("/panic").await.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(ask("/parent").await.status(), StatusCode::OK);
        assert_eq!(metrics.errors.get_or_create(&ErrorCode { code: "internal-error" }).get(), 1);
        let counted = Operation { route: "/panic".into(), method: "GET", status: 500 };
        assert_eq!(metrics.operations.get_or_create(&counted).get(), 1);
    }
}
