//! Query parameters that a route does not have: refused by what the route's description declares, so that none is passed
//! over in silence and none goes undescribed.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use percent_encoding::percent_decode_str;
use serde_json::Value;

use crate::problem::Problem;

/// The names of the query parameters of each route, by method and path.
#[derive(Clone, Debug, Default)]
pub struct Declared(Arc<HashMap<(String, String), BTreeSet<String>>>);

impl Declared {
    /// From an OpenAPI description.
    pub fn of(description: &Value) -> Self {
        let mut declared: HashMap<_, BTreeSet<_>> = HashMap::new();
        for (path, methods) in description["paths"].as_object().into_iter().flatten() {
            for (method, operation) in methods.as_object().into_iter().flatten() {
                let parameters = operation["parameters"].as_array().into_iter().flatten();
                let in_query = parameters.filter(|parameter| parameter["in"] == "query");
                let names = in_query.filter_map(|parameter| parameter["name"].as_str().map(str::to_owned));
                declared.insert((method.to_uppercase(), path.clone()), names.collect());
            }
        }
        Self(Arc::new(declared))
    }

    /// The parameters of a route, in the order of the alphabet.
    #[cfg(test)]
    pub(super) fn names(&self, method: &str, path: &str) -> Vec<&str> {
        self.0[&(method.to_owned(), path.to_owned())].iter().map(String::as_str).collect()
    }

    fn unknown(&self, request: &Request) -> Option<String> {
        let query = request.uri().query().filter(|query| !query.is_empty())?;
        let path = request.extensions().get::<MatchedPath>()?.as_str().to_owned();
        let declared = self.0.get(&(request.method().to_string(), path))?;
        query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| percent_decode_str(pair.split('=').next().unwrap_or_default()).decode_utf8_lossy())
            .find(|name| !declared.contains(&**name))
            .map(std::borrow::Cow::into_owned)
    }
}

/// Refuses a request with a parameter that its route does not have.
pub async fn refuse_unknown(State(declared): State<Declared>, request: Request, next: Next) -> Response {
    match declared.unknown(&request) {
        Some(name) => {
            Problem::invalid(format!("query: this route has no parameter {name:?}")).into_response()
        }
        None => next.run(request).await,
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, body::Body, middleware::from_fn_with_state, routing::get};
    use http::StatusCode;
    use serde_json::json;
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn only_what_is_described_is_taken() {
        let wait = json!({ "name": "wait", "in": "query" });
        let key = json!({ "name": "key", "in": "path" });
        let description =
            json!({ "paths": { "/{key}": { "get": { "parameters": [wait, key] }, "post": {} } } });
        let app = Router::new()
            .route("/{key}", get("yes").post("yes"))
            .route_layer(from_fn_with_state(Declared::of(&description), refuse_unknown));
        for (method, uri, status) in [
            ("GET", "/a?wait=1s", StatusCode::OK),
            ("GET", "/a?w%61it=1s&", StatusCode::OK),
            ("GET", "/a?", StatusCode::OK),
            ("GET", "/a?wiat=1s", StatusCode::BAD_REQUEST),
            ("GET", "/a?wait=1s&key=b", StatusCode::BAD_REQUEST),
            ("GET", "/a?=", StatusCode::BAD_REQUEST),
            ("POST", "/a?wait=1s", StatusCode::BAD_REQUEST),
        ] {
            let request = Request::builder().method(method).uri(uri).body(Body::empty()).unwrap();
            assert_eq!(app.clone().oneshot(request).await.unwrap().status(), status, "{method} {uri}");
        }
    }
}
