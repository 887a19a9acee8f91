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

/// A caller's `traceparent` (W3C Trace Context, version 00; what later versions add is left out).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceParent(Arc<str>);

/// The one flag that is handed on: the caller may have recorded this trace.
const SAMPLED: u8 = 1;

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

    /// The parent of what is called on its behalf: the same trace, a span of its own, sampled alike.
    pub fn child(&self) -> Self {
        let flags = self.0.get(53..).and_then(|flags| u8::from_str_radix(flags, 16).ok()).unwrap_or_default();
        let span = rand::random_range(1..=u64::MAX);
        Self(format!("00-{}-{span:016x}-{:02x}", self.trace_id(), flags & SAMPLED).into())
    }

    fn of(headers: &HeaderMap) -> Option<Self> {
        Self::parse(headers.get("traceparent")?.to_str().ok()?)
    }

    /// One that is malformed is as good as none: the standard asks to start anew, not to refuse.
    pub fn parse(text: &str) -> Option<Self> {
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
        let fields = text.get(2..55).filter(|_| well_formed && known && !zeroed)?;
        Some(Self(format!("00{fields}").into()))
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
            parsed(&format!("01{}-later", &PARENT[2..])) == parsed(PARENT),
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

    #[test]
    fn a_child_is_another_span_of_the_same_trace() {
        let parent = TraceParent::parse(PARENT).unwrap();
        let child = parent.child();
        assert_eq!(TraceParent::parse(child.as_str()).as_ref(), Some(&child));
        assert_eq!((child.trace_id(), &child.as_str()[53..]), (parent.trace_id(), "01"));
        assert_ne!(child, parent);
        assert_ne!(child, parent.child());
        let unsampled = TraceParent::parse(&PARENT.replace("-01", "-fe")).unwrap().child();
        assert_eq!(&unsampled.as_str()[53..], "00", "a flag that nobody knows is not handed on");
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
