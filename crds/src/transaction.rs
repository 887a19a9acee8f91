//! The custom resource `DistributedTransaction`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Duration, conditions, rule};

/// A transaction over several apps, begun by apps as often as they like or, like a Job, once.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "concordat.dev",
    version = "v1alpha1",
    kind = "DistributedTransaction",
    namespaced,
    status = "DistributedTransactionStatus",
    derive = "PartialEq",
    category = "concordat",
    shortname = "dtx",
    selectable = ".spec.protocol",
    selectable = ".spec.run",
    selectable = ".status.outcome",
    doc = "A transaction over several apps, begun by apps as often as they like or, like a Job, once.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(name = "Protocol", type_ = "string", json_path = ".spec.protocol"),
    printcolumn(name = "Outcome", type_ = "string", json_path = ".status.outcome"),
    printcolumn(name = "Active", type_ = "integer", json_path = ".status.active"),
    printcolumn(name = "Stuck", type_ = "integer", json_path = ".status.stuck"),
    printcolumn(name = "Run", type_ = "string", json_path = ".spec.run", priority = 1),
    printcolumn(name = "Committed", type_ = "integer", json_path = ".status.committed", priority = 1),
    printcolumn(name = "Aborted", type_ = "integer", json_path = ".status.aborted", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.run != 'Once' || has(self.input)")
        .message("run Once needs an input")
        .field_path(".input")
        .reason(Reason::FieldValueRequired),
    validation = Rule::new("self.run == 'Once' || !has(self.input)")
        .message("input is for run Once only: with OnDemand whoever begins a transaction gives its input")
        .field_path(".input")
        .reason(Reason::FieldValueForbidden),
    validation = Rule::new("self.protocol == 'Saga' || self.participants.all(p, size(p.after) == 0)")
        .message("after is for protocol Saga only")
        .field_path(".participants")
        .reason(Reason::FieldValueForbidden),
    validation = Rule::new(
        "self.participants.all(p, p.after.all(a, self.participants.exists(q, q.name == a)))"
    ).message("after must name participants of this transaction").field_path(".participants")
)]
pub struct DistributedTransactionSpec {
    /// How the participants agree. Immutable.
    #[x_kube(validation = rule::immutable())]
    pub protocol: Protocol,

    /// The apps that take part, 1 to 64, each under a name of its own.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub participants: Vec<Participant>,

    /// How long a transaction may take to its decision, 100ms to 168h.
    #[serde(default = "default_timeout")]
    #[x_kube(validation = rule::duration("100ms", "168h"))]
    pub timeout: Duration,

    /// `OnDemand`: apps begin transactions through their sidecars. `Once`: applying this object begins one, with
    /// `input`. Immutable.
    #[serde(default)]
    #[x_kube(validation = rule::immutable())]
    pub run: Run,

    /// The input of the one transaction of run `Once`: any JSON object up to 256Ki.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "free_form_object")]
    pub input: Option<Map<String, Value>>,

    /// How long a finished transaction can be read, 1s to 720h.
    #[serde(default = "default_retention")]
    #[x_kube(validation = rule::duration("1s", "720h"))]
    pub retention: Duration,
}

/// How participants agree.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the field's own")]
pub enum Protocol {
    TwoPhaseCommit,
    ThreePhaseCommit,
    Saga,
    #[serde(rename = "TCC")]
    Tcc,
    Message,
}

/// Who begins transactions.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "described at the field, where kubectl explain shows it")]
pub enum Run {
    #[default]
    OnDemand,
    Once,
}

/// One app's part in a transaction.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!(self.name in self.after)")
        .message("a participant cannot come after itself")
        .field_path(".after")
)]
pub struct Participant {
    /// The name of the branch, a DNS label.
    #[schemars(length(max = 63))]
    #[x_kube(validation = rule::dns_label())]
    pub name: String,

    /// The app id whose pods take this part, a DNS label.
    #[schemars(length(max = 63))]
    #[x_kube(validation = rule::dns_label())]
    pub app: String,

    /// The path under which the app takes this branch's operations; `/concordat/<name>` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    #[x_kube(validation = Rule::new("self.matches('^(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+$')")
        .message("must be a path such as /transfer/debit: segments of letters, digits and '-', '_', '~', '.', \
                  none beginning with a dot"))]
    pub path: Option<String>,

    /// How long one call may take, 10ms to 1h.
    #[serde(default = "default_call_timeout")]
    #[x_kube(validation = rule::duration("10ms", "1h"))]
    pub timeout: Duration,

    /// When a call that failed is made again.
    #[serde(default)]
    pub retry: Retry,

    /// `Saga` only: the participants whose results this one needs.
    #[serde(default)]
    #[schemars(length(max = 63), inner(length(max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub after: Vec<String>,

    /// The branch's input, any JSON object; the transaction's input when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "free_form_object")]
    pub input: Option<Map<String, Value>>,
}

impl Participant {
    /// The path under which the app takes this branch's operations, without a trailing `/`.
    pub fn path(&self) -> String {
        self.path.clone().unwrap_or_else(|| format!("/concordat/{}", self.name))
    }
}

/// When a call that failed is made again. Waits are jittered.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("duration(self.initial) <= duration(self.max)")
        .message("must not exceed max")
        .field_path(".initial")
)]
pub struct Retry {
    /// The first wait, 1ms to 24h, and no longer than `max`.
    #[serde(default = "default_initial")]
    #[x_kube(validation = rule::duration("1ms", "24h"))]
    pub initial: Duration,

    /// The longest wait, 1ms to 24h.
    #[serde(default = "default_max")]
    #[x_kube(validation = rule::duration("1ms", "24h"))]
    pub max: Duration,

    /// What each wait is multiplied with to give the next, 1 to 10.
    #[serde(default = "default_factor")]
    #[schemars(extend("format" = "int32"))]
    #[x_kube(validation = rule::number(1, 10))]
    pub factor: u32,

    /// How many calls are made, up to 1000; 0 for as many as it takes.
    #[serde(default)]
    #[schemars(extend("format" = "int32"))]
    #[x_kube(validation = rule::number(0, 1000))]
    pub attempts: u32,
}

impl Default for Retry {
    fn default() -> Self {
        Self { initial: default_initial(), max: default_max(), factor: default_factor(), attempts: 0 }
    }
}

/// What the operator last saw of the transactions of this kind (`OnDemand`), or of the one (`Once`).
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DistributedTransactionStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// `OnDemand`: transactions under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "int64"))]
    pub active: Option<u64>,

    /// `OnDemand`: transactions that committed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "int64"))]
    pub committed: Option<u64>,

    /// `OnDemand`: transactions that aborted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "int64"))]
    pub aborted: Option<u64>,

    /// `OnDemand`: transactions that cannot go on without a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "int64"))]
    pub stuck: Option<u64>,

    /// `Once`: the transaction's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub id: Option<String>,

    /// `Once`: how it ended, or `undecided`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,

    /// `Once`: where each branch is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub branches: Vec<Branch>,

    /// `Ready` and `Stuck`; `Once`: also `Committed` and `Aborted`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions::schema")]
    pub conditions: Vec<Condition>,
}

/// How a transaction ended. Never a guess.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names say it")]
pub enum Outcome {
    Committed,
    Aborted,
    Undecided,
}

/// Where a branch of a transaction is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Branch {
    /// The participant's name.
    #[schemars(length(max = 63))]
    pub name: String,
    /// What it has done so far.
    #[schemars(length(max = 63))]
    pub state: String,
    /// How many calls were made for its current operation.
    #[serde(default)]
    #[schemars(extend("format" = "int64"))]
    pub attempts: u64,
    /// Why the last call failed, if it did.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub message: String,
}

/// An object whose fields are not ours to know.
fn free_form_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "nullable": true, "x-kubernetes-preserve-unknown-fields": true })
}

fn default_timeout() -> Duration {
    Duration::from_secs(30)
}

fn default_call_timeout() -> Duration {
    Duration::from_secs(3)
}

fn default_retention() -> Duration {
    Duration::from_secs(600)
}

fn default_initial() -> Duration {
    Duration::from_millis(100)
}

fn default_max() -> Duration {
    Duration::from_secs(30)
}

fn default_factor() -> u32 {
    2
}
