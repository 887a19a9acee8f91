//! Routes as they are described to the world: what a request is held against, so that nothing is passed over in silence
//! and nothing goes undescribed.

use std::{borrow::Cow, collections::BTreeSet, sync::Arc};

use http::{Method, Uri};
use percent_encoding::percent_decode_str;
use serde_json::Value;

use crate::problem::Problem;

/// All routes, by path.
#[derive(Default)]
pub struct Described(matchit::Router<Route>);

/// One path with its operations.
pub struct Route {
    /// The path with its parameters in braces.
    pub path: Arc<str>,
    /// They are few: looking through them is quicker than hashing.
    operations: Vec<(Method, Operation)>,
}

#[derive(Default)]
struct Operation {
    /// Names of its query parameters.
    parameters: BTreeSet<String>,
    /// Names of its headers, in lower case.
    headers: BTreeSet<String>,
    tag: String,
}

impl Described {
    /// From an OpenAPI description. Paths that exclude each other are those of a router, so that there are none here.
    pub fn of(description: &Value) -> Self {
        let mut routes = matchit::Router::new();
        for (path, methods) in description["paths"].as_object().into_iter().flatten() {
            let operations = methods.as_object().into_iter().flatten().filter_map(|(method, operation)| {
                Some((Method::from_bytes(method.to_uppercase().as_bytes()).ok()?, Operation::of(operation)))
            });
            let route = Route { path: path.as_str().into(), operations: operations.collect() };
            if let Err(error) = routes.insert(path.as_str(), route) {
                tracing::error!(path, %error, "a route is described twice");
            }
        }
        Self(routes)
    }

    /// The route of a path as it came.
    pub fn at(&self, path: &str) -> Option<&Route> {
        self.0.at(path).ok().map(|found| found.value)
    }
}

impl Operation {
    fn of(description: &Value) -> Self {
        let named = |place: &str| {
            let parameters = description["parameters"].as_array().into_iter().flatten();
            let there = parameters.filter(move |parameter| parameter["in"] == place);
            there.filter_map(|parameter| parameter["name"].as_str()).collect::<Vec<_>>()
        };
        Self {
            parameters: named("query").into_iter().map(str::to_owned).collect(),
            headers: named("header").into_iter().map(str::to_lowercase).collect(),
            tag: description["tags"][0].as_str().unwrap_or_default().to_owned(),
        }
    }
}

impl Route {
    /// Refuses a query parameter that the operation does not have.
    ///
    /// # Errors
    /// 400 with its name.
    pub fn check(&self, method: &Method, uri: &Uri) -> Result<(), Problem> {
        let query = uri.query().unwrap_or_default();
        let (false, Some(operation)) = (query.is_empty(), self.operation(method)) else { return Ok(()) };
        let mut names = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| percent_decode_str(pair.split('=').next().unwrap_or_default()).decode_utf8_lossy());
        match names.find(|name| !operation.parameters.contains(&**name)).map(Cow::into_owned) {
            Some(name) => Err(Problem::invalid(format!("query: this route has no parameter {name:?}"))),
            None => Ok(()),
        }
    }

    /// Whether repeats of an operation are answered from this sidecar's memory: those on locks that take an
    /// `Idempotency-Key`. (Publish and begin remember theirs in etcd.)
    pub fn is_replayed(&self, method: &Method) -> bool {
        self.operation(method).is_some_and(|operation| {
            operation.tag == "locks" && operation.headers.contains("idempotency-key")
        })
    }

    fn operation(&self, method: &Method) -> Option<&Operation> {
        self.operations.iter().find(|(known, _)| known == method).map(|(_, operation)| operation)
    }

    /// The query parameters of an operation, in the order of the alphabet.
    #[cfg(test)]
    pub(super) fn parameters(&self, method: &str) -> Vec<&str> {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        self.operation(&method).unwrap().parameters.iter().map(String::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_described_is_taken() {
        let wait = json!({ "name": "wait", "in": "query" });
        let key = json!({ "name": "key", "in": "path" });
        let described = Described::of(
            &json!({ "paths": { "/{key}": { "get": { "parameters": [wait, key] }, "post": {} } } }),
        );
        for (method, uri, taken) in [
            (Method::GET, "/a?wait=1s", true),
            (Method::GET, "/a?w%61it=1s&", true),
            (Method::GET, "/a?", true),
            (Method::GET, "/a?wiat=1s", false),
            (Method::GET, "/a?wait=1s&key=b", false),
            (Method::GET, "/a?=", false),
            (Method::POST, "/a?wait=1s", false),
            (Method::POST, "/a", true),
        ] {
            let uri: Uri = uri.parse().unwrap();
            let checked = described.at(uri.path()).unwrap().check(&method, &uri);
            assert_eq!(checked.is_ok(), taken, "{method} {uri}");
        }
    }

    #[test]
    fn only_operations_on_locks_are_replayed() {
        let header = json!([{ "name": "Idempotency-Key", "in": "header" }]);
        let described = Described::of(&json!({ "paths": {
            "/locks": { "post": { "tags": ["locks"], "parameters": header }, "delete": { "tags": ["locks"] } },
            "/queues": { "post": { "tags": ["queues"], "parameters": header } },
        } }));
        let replayed = |path, method| described.at(path).unwrap().is_replayed(&method);
        assert!(replayed("/locks", Method::POST));
        assert!(!replayed("/locks", Method::DELETE) && !replayed("/queues", Method::POST));
    }
}
