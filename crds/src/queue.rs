//! The custom resource `Queue`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Bytes, Duration, conditions, rule};

/// A queue of messages.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "concordat.dev",
    version = "v1alpha1",
    kind = "Queue",
    namespaced,
    status = "QueueStatus",
    derive = "PartialEq",
    category = "concordat",
    selectable = ".spec.mode",
    selectable = ".spec.ordering",
    doc = "A queue of messages.",
    validation = Rule::new("self.spec.deadLetter.queue != self.metadata.name")
        .message("a queue cannot be its own dead letter queue")
        .field_path(".spec.deadLetter.queue"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(name = "Messages", type_ = "integer", json_path = ".status.ready"),
    printcolumn(name = "In Flight", type_ = "integer", json_path = ".status.inFlight"),
    printcolumn(name = "Dead", type_ = "integer", json_path = ".status.dead"),
    printcolumn(name = "Delayed", type_ = "integer", json_path = ".status.delayed", priority = 1),
    printcolumn(name = "Consumers", type_ = "integer", json_path = ".status.consumers", priority = 1),
    printcolumn(name = "Oldest", type_ = "string", json_path = ".status.oldestAge", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("oldSelf.ordering != 'Key' || self.ordering == 'Key'")
        .message("ordering is immutable once it is Key")
        .field_path(".ordering"),
    validation = Rule::new("oldSelf.ordering != 'Key' || self.partitions == oldSelf.partitions")
        .message("partitions are immutable under ordering Key")
        .field_path(".partitions"),
    validation = Rule::new("self.onFull != 'DropOldest' || self.mode in ['PubSub', 'Log']")
        .message("DropOldest is for modes PubSub and Log only")
        .field_path(".onFull"),
    validation = Rule::new("quantity(self.maxMessageBytes).compareTo(quantity(self.retention.bytes)) <= 0")
        .message("must not exceed retention.bytes")
        .field_path(".maxMessageBytes")
)]
pub struct QueueSpec {
    /// Who gets a message: `WorkQueue` one consumer, which acknowledges it; `PubSub` every subscriber of the
    /// moment; `Log` every group, at its own pace, from what is retained. Immutable.
    #[x_kube(validation = rule::immutable())]
    pub mode: QueueMode,

    /// How many parts the queue has, 1 to 64. Immutable under ordering `Key`.
    #[serde(default = "default_partitions")]
    #[schemars(extend("format" = "int32"))]
    #[x_kube(validation = rule::number(1, 64))]
    pub partitions: u32,

    /// `None`, or `Key`: messages of one key stay in one partition and in order. `Key` cannot be left again.
    #[serde(default)]
    pub ordering: QueueOrdering,

    /// How long a consumer has to acknowledge a message before it is delivered again, 1s to 12h.
    #[serde(default = "default_visibility")]
    #[x_kube(validation = rule::duration("1s", "12h"))]
    pub visibility: Duration,

    /// How often a message is delivered before it goes to the dead letters, 1 to 1000.
    #[serde(default = "default_max_deliveries")]
    #[schemars(extend("format" = "int32"))]
    #[x_kube(validation = rule::number(1, 1000))]
    pub max_deliveries: u32,

    /// How long a message waits after its first, second, … failed delivery, up to 24h each; the last one
    /// repeats. Up to 16; none for no wait.
    #[serde(default = "default_backoff")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = rule::durations("0s", "24h"))]
    pub backoff: Vec<Duration>,

    /// Where messages go that used up their deliveries.
    #[serde(default)]
    pub dead_letter: DeadLetter,

    /// How much is kept.
    #[serde(default)]
    pub retention: Retention,

    /// What happens to a message that the queue has no room for: `Refuse` it, or `DropOldest` (`PubSub` and
    /// `Log` only).
    #[serde(default)]
    pub on_full: OnFull,

    /// The largest message, 1 to 1Mi, and no more than `retention.bytes`.
    #[serde(default = "default_max_message_bytes")]
    #[x_kube(validation = rule::bytes("1", "1Mi"))]
    pub max_message_bytes: Bytes,

    /// How long a producer's sequence number is remembered, up to 24h; 0s for not at all.
    #[serde(default = "default_dedup_window")]
    #[x_kube(validation = rule::duration("0s", "24h"))]
    pub dedup_window: Duration,
}

/// Who gets a message.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "described at the field, where kubectl explain shows it")]
pub enum QueueMode {
    WorkQueue,
    PubSub,
    Log,
}

/// Which messages stay in order.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "described at the field, where kubectl explain shows it")]
pub enum QueueOrdering {
    #[default]
    None,
    Key,
}

/// What happens to a message that the queue has no room for.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "described at the field, where kubectl explain shows it")]
pub enum OnFull {
    #[default]
    Refuse,
    DropOldest,
}

/// Where messages go that used up their deliveries.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetter {
    /// A queue of the same namespace; empty to keep them beside this one.
    #[serde(default)]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new(
        "self == '' || self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')"
    ).message("must be empty or the name of a queue"))]
    pub queue: String,

    /// How long dead letters beside the queue are kept, 1s to 8760h.
    #[serde(default = "week")]
    #[x_kube(validation = rule::duration("1s", "8760h"))]
    pub retention: Duration,
}

impl Default for DeadLetter {
    fn default() -> Self {
        Self { queue: String::new(), retention: week() }
    }
}

/// How much a queue keeps.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Retention {
    /// For how long, 1s to 8760h.
    #[serde(default = "week")]
    #[x_kube(validation = rule::duration("1s", "8760h"))]
    pub age: Duration,

    /// How much in all, 1Ki to 1Ti.
    #[serde(default = "default_retention_bytes")]
    #[x_kube(validation = rule::bytes("1Ki", "1Ti"))]
    pub bytes: Bytes,
}

impl Default for Retention {
    fn default() -> Self {
        Self { age: week(), bytes: default_retention_bytes() }
    }
}

/// What the operator last saw of a queue.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct QueueStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Messages that a consumer could have now.
    #[serde(default)]
    #[schemars(extend("format" = "int64"))]
    pub ready: u64,

    /// Messages delivered and not yet acknowledged.
    #[serde(default)]
    #[schemars(extend("format" = "int64"))]
    pub in_flight: u64,

    /// Messages that wait for their delay or back-off to end.
    #[serde(default)]
    #[schemars(extend("format" = "int64"))]
    pub delayed: u64,

    /// Dead letters kept beside the queue.
    #[serde(default)]
    #[schemars(extend("format" = "int64"))]
    pub dead: u64,

    /// The age of the oldest message that is not acknowledged; absent when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_age: Option<Duration>,

    /// Sidecars that consume.
    #[serde(default)]
    #[schemars(extend("format" = "int64"))]
    pub consumers: u64,

    /// The groups furthest behind, at most 10.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub groups: Vec<QueueGroup>,

    /// `Ready`, `Draining` and `DeadLetters`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions::schema")]
    pub conditions: Vec<Condition>,
}

/// How far a group of consumers is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct QueueGroup {
    /// The group's name.
    #[schemars(length(max = 512))]
    pub name: String,
    /// Messages that it has yet to read.
    #[schemars(extend("format" = "int64"))]
    pub lag: u64,
}

fn default_partitions() -> u32 {
    1
}

fn default_visibility() -> Duration {
    Duration::from_secs(30)
}

fn default_max_deliveries() -> u32 {
    5
}

fn default_backoff() -> Vec<Duration> {
    [1, 5, 30].map(Duration::from_secs).to_vec()
}

fn default_max_message_bytes() -> Bytes {
    Bytes::kibi(256)
}

fn default_retention_bytes() -> Bytes {
    Bytes::mebi(256)
}

fn default_dedup_window() -> Duration {
    Duration::from_secs(300)
}

fn week() -> Duration {
    Duration::from_secs(7 * 24 * 3600)
}
