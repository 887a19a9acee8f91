//! What every request passes before its route and after it. One function around the router and not a layer for each
//! concern: axum clones and boxes a route's service for every layer and request, which was a third of what a request
//! cost.

use std::{convert::Infallible, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::Request,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::FutureExt;
use http::{HeaderValue, Version, header};
use http_body_util::BodyExt;
use tokio::time::Instant;
use tower::{Service, ServiceExt};
use tracing::Instrument;

use super::{
    described::{Described, Route},
    guard::{self, Token},
    header::IDEMPOTENCY_KEY,
    idempotency::{self, Replays},
    trace::{self, TraceParent},
};
use crate::{metrics::Metrics, problem::Problem};

/// How long a refused request may take to send the rest of its body.
const PATIENCE: Duration = Duration::from_secs(1);

/// A router with what stands before it. Cheap to clone.
#[derive(Clone)]
pub struct Front(Arc<Inner>);

struct Inner {
    router: Router,
    described: Described,
    token: Option<Token>,
    replays: Replays,
    metrics: Arc<Metrics>,
}

impl Front {
    /// Before `router`, whose routes are `described`.
    pub fn new(router: Router, described: Described, token: Option<Token>, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Inner { router, described, token, replays: Replays::default(), metrics }))
    }

    /// As a server takes it.
    pub fn into_service(
        self,
    ) -> impl Service<Request, Response = Response, Error = Infallible, Future: Send> + Clone + Send + 'static
    {
        tower::service_fn(move |request| {
            let front = self.clone();
            async move { Ok(front.answer(request).await) }
        })
    }

    /// Answers a request in its span, counts it, and answers for a handler that panicked.
    pub async fn answer(&self, request: Request) -> Response {
        let started = Instant::now();
        let method = trace::name(request.method());
        let route = self.0.described.at(request.uri().path());
        let path = route.map_or_else(|| Arc::from(trace::UNMATCHED), |route| route.path.clone());
        let (mut traced, parent) = trace::request(request.headers(), method, &path);
        let span = tracing::debug_span!(
            "request",
            method,
            route = &*path,
            trace_id = parent.as_ref().map(TraceParent::trace_id).unwrap_or_default()
        );
        // Boxed before it is wrapped: a route's future is kilobytes, and each wrapper would move it.
        let run = AssertUnwindSafe(trace::within(parent, Box::pin(self.run(route, request))));
        // The panic hook has told and counted it.
        let panicked = |_| Problem::internal().into_response();
        let mut response = run.catch_unwind().instrument(span).await.unwrap_or_else(panicked);
        trace::answered(&mut traced, &response);
        self.0.metrics.answered(path, method, &response, started.elapsed());
        // Answers tell what is so now: no cache may keep them.
        response.headers_mut().entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        response
    }

    async fn run(&self, route: Option<&Route>, request: Request) -> Response {
        let admitted = guard::admit(&request, self.0.token.as_ref());
        if let Err(problem) =
            admitted.and_then(|()| route.map_or(Ok(()), |route| route.check(request.method(), request.uri())))
        {
            let (version, mut response) = (request.version(), problem.into_response());
            // Whoever is still sending a body must not send the next request behind it. (HTTP/2 has streams for that.)
            if !let_finish(request.into_body()).await && version < Version::HTTP_2 {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            return response;
        }
        if request.headers().contains_key(&IDEMPOTENCY_KEY)
            && route.is_some_and(|route| route.is_replayed(request.method()))
        {
            // Boxed: it is three times as large as all the rest, and few requests take it.
            let route = async |request| self.route(request).await;
            return Box::pin(idempotency::replay(&self.0.replays, request, route)).await;
        }
        self.route(request).await
    }

    async fn route(&self, request: Request) -> Response {
        let answered: Result<Response, Infallible> = self.0.router.clone().oneshot(request).await;
        let Ok(response) = answered;
        response
    }
}

/// Takes in what a refused request still sends, within bounds: a client that writes into a closed connection sees that
/// and not the answer. Whether it came to its end.
async fn let_finish(mut body: Body) -> bool {
    let mut left = 2 * guard::LARGEST_BODY;
    let finished = async {
        while left > 0 {
            match body.frame().await {
                Some(Ok(frame)) => left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len)),
                end => return end.is_none(),
            }
        }
        false
    };
    tokio::time::timeout(PATIENCE, finished).await.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::routing::get;
    use futures::StreamExt;
    use http::StatusCode;

    use super::*;
    use crate::metrics::{ErrorCode, Operation};

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[tokio::test]
    async fn a_panic_is_answered_and_counted_and_the_parent_is_at_hand() {
        let metrics = Arc::new(Metrics::default());
        let router = Router::new()
            .route("/panic", get(async || -> &'static str { panic!("planted") }))
            .route("/parent", get(async || TraceParent::current().unwrap().as_str().to_owned()));
        let described = Described::of(&serde_json::json!({ "paths": { "/panic": {}, "/parent": {} } }));
        let front = Front::new(router, described, None, metrics.clone());
        let ask = async |path: &str| {
            let request = Request::get(path).header("host", "localhost").header("traceparent", PARENT);
            front.answer(request.body(Body::empty()).unwrap()).await
        };
        assert_eq!(ask("/panic").await.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(ask("/parent").await.status(), StatusCode::OK);
        assert_eq!(metrics.errors.get_or_create(&ErrorCode { code: "internal-error" }).get(), 1);
        let counted = Operation { route: "/panic".into(), method: "GET", status: 500 };
        assert_eq!(metrics.operations.get_or_create(&counted).get(), 1);
    }

    /// The chunks of a body, counted as they are taken.
    fn counted(chunks: usize) -> (Body, Arc<AtomicUsize>) {
        let taken = Arc::new(AtomicUsize::new(0));
        let count = taken.clone();
        let stream = futures::stream::iter(0..chunks).map(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            Ok::<_, Infallible>(Bytes::from_static(&[b'x'; 1024]))
        });
        (Body::from_stream(stream), taken)
    }

    #[tokio::test]
    async fn a_refused_request_may_finish_its_body_within_bounds() {
        let front = Front::new(Router::new(), Described::default(), None, Arc::default());
        let most = 2 * guard::LARGEST_BODY / 1024;
        for (chunks, expected, closes) in [(10, 10, false), (2 * most, most, true)] {
            let (body, taken) = counted(chunks);
            let request = Request::post("/").header("host", "example.com").body(body).unwrap();
            let response = front.answer(request).await;
            assert_eq!(response.status(), StatusCode::MISDIRECTED_REQUEST);
            assert_eq!(taken.load(Ordering::Relaxed), expected);
            assert_eq!(response.headers().contains_key(header::CONNECTION), closes);
        }
    }
}
