//! The custom resources on a real API server: what it takes, what it refuses and with which words, what it shows.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests fail the test")]

mod inputs;
mod rules;
mod shown;

use axum::http::Request;
use concordat_crds::manifest;
use concordat_tests::kube::{Cluster, Namespace};
use kube::{Client, core::Status};
use serde_json::{Value, json};

/// The three kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Lock,
    Queue,
    Transaction,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Lock, Self::Queue, Self::Transaction];

    fn plural(self) -> &'static str {
        match self {
            Self::Lock => "locks",
            Self::Queue => "queues",
            Self::Transaction => "distributedtransactions",
        }
    }

    /// The schema of the kind, as generated.
    fn schema(self) -> Value {
        let name = format!("{}.concordat.dev", self.plural());
        let (_, definition) = manifest::definitions()
            .into_iter()
            .find(|(_, crd)| crd.metadata.name.as_ref() == Some(&name))
            .unwrap();
        let schema = definition.spec.versions[0].schema.as_ref().unwrap();
        serde_json::to_value(schema.open_api_v3_schema.as_ref().unwrap()).unwrap()
    }

    /// A valid object, in a mode that most fields are for.
    fn valid(self) -> Value {
        let (kind, spec) = match self {
            Self::Lock => ("Lock", json!({ "mode": "FairQueue" })),
            Self::Queue => ("Queue", json!({ "mode": "WorkQueue" })),
            Self::Transaction => (
                "DistributedTransaction",
                json!({ "protocol": "Saga", "participants": [{ "name": "debit", "app": "accounts" }] }),
            ),
        };
        json!({
            "apiVersion": "concordat.dev/v1alpha1",
            "kind": kind,
            "metadata": { "generateName": "case-" },
            "spec": spec,
        })
    }

    /// The valid object, changed by a JSON merge patch.
    fn with(self, change: &Value) -> Value {
        let mut object = self.valid();
        merge(&mut object, change);
        object
    }
}

/// RFC 7396.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let fields = target.as_object_mut().unwrap();
    for (name, value) in patch {
        if value.is_null() {
            fields.remove(name);
        } else {
            merge(fields.entry(name).or_insert(Value::Null), value);
        }
    }
}

/// A change of one field of the spec, named by its path.
fn set(path: &str, value: impl Into<Value>) -> Value {
    path.rsplit('.').fold(value.into(), |value, name| json!({ name: value }))
}

/// One test's namespace and what it does there.
struct Desk<'a> {
    client: Client,
    namespace: Namespace<'a>,
}

impl Desk<'_> {
    async fn open(test: &str) -> Self {
        let cluster = Cluster::shared().await.unwrap();
        Self { client: cluster.client().await.unwrap(), namespace: cluster.namespace(test).await.unwrap() }
    }

    fn path(&self, kind: Kind) -> String {
        format!("/apis/concordat.dev/v1alpha1/namespaces/{}/{}", self.namespace.name(), kind.plural())
    }

    async fn send(&self, method: &str, path: &str, body: impl Into<String>) -> Result<Value, Box<Status>> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(
                "Content-Type",
                if method == "PATCH" { "application/merge-patch+json" } else { "application/json" },
            )
            .body(body.into().into_bytes())
            .unwrap();
        match self.client.request(request).await {
            Ok(answer) => Ok(answer),
            Err(kube::Error::Api(status)) => Err(status),
            Err(error) => panic!("{method} {path}: {error}"),
        }
    }

    /// Creates an object for good.
    async fn create(&self, kind: Kind, object: &Value) -> Result<Value, Box<Status>> {
        self.send("POST", &self.path(kind), object.to_string()).await
    }

    /// What creating an object would answer.
    async fn try_create(&self, kind: Kind, object: &Value) -> Result<Value, Box<Status>> {
        self.send(
            "POST",
            &format!("{}?dryRun=All&fieldValidation=Strict", self.path(kind)),
            object.to_string(),
        )
        .await
    }

    /// What changing an object by a merge patch would answer.
    async fn try_change(&self, kind: Kind, object: &Value, change: &Value) -> Result<Value, Box<Status>> {
        let path = format!("{}/{}?dryRun=All", self.path(kind), name(object));
        self.send("PATCH", &path, change.to_string()).await
    }
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap()
}

/// The fields that a refusal names, list indices left out, each with what it says of the field.
fn causes(status: &Status) -> Vec<(String, String)> {
    let causes = status.details.as_ref().map(|details| details.causes.as_slice()).unwrap_or_default();
    causes.iter().map(|cause| (without_indices(&cause.field), cause.message.clone())).collect()
}

/// `spec.participants[0].name` as the schema knows it: `spec.participants[].name`.
fn without_indices(field: &str) -> String {
    let mut indexed = false;
    field
        .chars()
        .filter(|&c| {
            indexed = (indexed && c != ']') || c == '[';
            !indexed || c == '['
        })
        .collect()
}
