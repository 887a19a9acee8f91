//! The localhost API: routes, and what stands before all of them.

pub mod described;
pub mod duration;
pub mod extract;
pub mod front;
#[cfg(test)]
mod fuzz;
pub mod guard;
pub mod header;
pub mod idempotency;
pub mod lock;
pub mod openapi;
pub mod queue;
pub mod trace;
pub mod transaction;

use std::convert::Infallible;

use axum::{
    Router,
    extract::Request,
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use concordat_store::Restored;
use http::{Method, Uri, header::CONTENT_TYPE};
use tower::Service;
use utoipa_axum::router::OpenApiRouter;

use self::{described::Described, front::Front, guard::Token};
use crate::{context::Context, problem::Problem};

/// All routes of the API, with what describes them.
pub fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::with_openapi(openapi::base())
        .merge(lock::routes())
        .merge(queue::routes())
        .merge(transaction::routes())
}

/// The API as it is served.
pub fn front(context: Context, token: Option<Token>) -> Front {
    let metrics = context.metrics.clone();
    let (router, description) = routes().split_for_parts();
    let description = serde_json::to_value(&description).unwrap_or_default();
    let described = Described::of(&description);
    let description = Bytes::from(description.to_string());
    let router =
        router.route("/openapi.json", get(async move || json(description.clone()))).with_state(context);
    Front::new(refusing(router), described, token, metrics)
}

/// What is no route is refused by a problem document too.
fn refusing(router: Router) -> Router {
    router
        .fallback(async |uri: Uri| guard::unknown_route(&uri))
        .method_not_allowed_fallback(async |method: Method, uri: Uri| guard::wrong_method(&method, &uri))
}

fn json(body: Bytes) -> Response {
    ([(CONTENT_TYPE, "application/json")], body).into_response()
}

/// What answers in place of the API while etcd's epoch must be raised first.
pub fn restored(
    restored: &Restored,
    token: Option<Token>,
) -> impl Service<Request, Response = Response, Error = Infallible, Future: Send> + Clone + Send + 'static {
    let problem = Problem::restored(restored);
    tower::service_fn(move |request: Request| {
        let refused = guard::admit(&request, token.as_ref()).err().unwrap_or_else(|| problem.clone());
        async move { Ok(refused.into_response()) }
    })
}

/// 503 while the sidecar ends: what would begin is refused.
pub fn ending() -> Problem {
    Problem::unavailable("shutting-down", "the sidecar is about to end")
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, convert::Infallible, sync::Arc};

    use axum::body::Body;
    use http::{
        Request, StatusCode,
        header::{ALLOW, CACHE_CONTROL},
    };
    use http_body_util::BodyExt;
    use serde_json::Value;

    use super::*;

    fn app() -> Front {
        let router = Router::new().route("/known", get("yes").post(async |_: extract::Raw| "taken"));
        Front::new(refusing(router), Described::default(), None, Arc::default())
    }

    async fn ask(request: http::request::Builder, body: Body) -> (StatusCode, http::HeaderMap, Value) {
        let response = app().answer(request.header("host", "localhost").body(body).unwrap()).await;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (parts.status, parts.headers, serde_json::from_slice(&body).unwrap_or_default())
    }

    #[tokio::test]
    async fn what_is_no_route_is_refused_by_a_problem_too() {
        let (status, headers, problem) = ask(Request::get("/unknown"), Body::empty()).await;
        assert_eq!((status, &problem["code"]), (StatusCode::NOT_FOUND, &"no-such-route".into()));
        assert_eq!(headers[CONTENT_TYPE], "application/problem+json");
        let (status, headers, problem) = ask(Request::delete("/known"), Body::empty()).await;
        assert_eq!(
            (status, &problem["code"]),
            (StatusCode::METHOD_NOT_ALLOWED, &"method-not-allowed".into())
        );
        assert_eq!(headers[ALLOW], "GET,HEAD,POST");
        assert_eq!(headers[CACHE_CONTROL], "no-store");
    }

    #[tokio::test]
    async fn a_body_without_a_length_is_cut_off_where_it_gets_too_large() {
        let chunk = |_| Ok::<_, Infallible>(Bytes::from_static(&[b'x'; 1024]));
        let body = |chunks| Body::from_stream(futures::stream::iter((0..chunks).map(chunk)));
        let chunks = guard::LARGEST_BODY / 1024;
        assert_eq!(ask(Request::post("/known"), body(chunks)).await.0, StatusCode::OK);
        let (status, _, problem) = ask(Request::post("/known"), body(chunks + 1)).await;
        assert_eq!((status, &problem["code"]), (StatusCode::PAYLOAD_TOO_LARGE, &"payload-too-large".into()));
    }

    #[test]
    fn every_query_parameter_is_described() {
        let description = serde_json::to_value(routes().into_openapi()).unwrap();
        let described = Described::of(&description);
        for (method, path, names) in [
            ("POST", "/v1/locks/{lock}/{key}", &["wait"][..]),
            ("POST", "/v1/locks/{lock}", &["wait"]),
            ("GET", "/v1/locks/{lock}/{key}/verify", &["fence"]),
            ("GET", "/v1/locks/{lock}/{key}", &[]),
            ("POST", "/v1/queues/{queue}/messages", &[]),
            ("POST", "/v1/queues/{queue}/receive", &["group", "max", "visibility", "wait"]),
            ("GET", "/v1/queues/{queue}/dead", &["max"]),
            ("POST", "/v1/transactions/{transaction}", &["wait"]),
            ("GET", "/v1/transactions/{transaction}/{id}", &["wait"]),
            ("GET", "/v1/transactions/{transaction}", &["limit", "state"]),
        ] {
            assert_eq!(described.at(path).unwrap().parameters(method), names, "{method} {path}");
        }
    }

    #[test]
    fn every_body_has_a_fuzz_target() {
        let targets = [
            include_str!("api/lock/fuzz.rs"),
            include_str!("api/queue/fuzz.rs"),
            include_str!("api/transaction/fuzz.rs"),
        ]
        .concat();
        let description = serde_json::to_value(routes().into_openapi()).unwrap();
        let operations =
            description["paths"].as_object().unwrap().values().flat_map(|path| path.as_object().unwrap());
        for (_, operation) in operations.filter(|(_, operation)| operation["requestBody"].is_object()) {
            let schema = operation["requestBody"]["content"]["application/json"]["schema"].to_string();
            // By the name of the type; where there is none, by that of the operation.
            let name = match schema.split_once("#/components/schemas/") {
                Some((_, name)) => name.split('"').next().unwrap_or_default(),
                None => operation["operationId"].as_str().unwrap(),
            };
            let snake: String = name
                .chars()
                .flat_map(|letter| [letter.is_uppercase().then_some('_'), Some(letter.to_ascii_lowercase())])
                .flatten()
                .collect();
            let target = format!("fn fuzz_{}()", snake.trim_start_matches('_'));
            assert!(targets.contains(&target), "{target} is not there");
        }
    }

    #[test]
    fn every_operation_is_described_once() {
        let description = serde_json::to_value(routes().into_openapi()).unwrap();
        assert!(description["openapi"].as_str().unwrap().starts_with("3.1"));
        let mut ids = HashSet::new();
        for (path, methods) in description["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                let id = operation["operationId"].as_str().unwrap();
                assert!(ids.insert(id.to_owned()), "{method} {path}: {id} names two operations");
            }
        }
    }
}
