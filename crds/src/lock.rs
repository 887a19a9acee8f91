//! The custom resource `Lock`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::{Duration, conditions, rule};

/// A family of locks: one for each key, all with these settings.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "concordat.dev",
    version = "v1alpha1",
    kind = "Lock",
    namespaced,
    status = "LockStatus",
    derive = "PartialEq",
    category = "concordat",
    selectable = ".spec.mode",
    selectable = ".spec.kind",
    doc = "A family of locks: one for each key, all with these settings.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(name = "Held", type_ = "integer", json_path = ".status.held"),
    printcolumn(name = "Waiters", type_ = "integer", json_path = ".status.waiters"),
    printcolumn(name = "Kind", type_ = "string", json_path = ".spec.kind", priority = 1),
    printcolumn(name = "TTL", type_ = "string", json_path = ".spec.ttl", priority = 1),
    printcolumn(name = "Oldest Wait", type_ = "string", json_path = ".status.oldestWait", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.kind == 'Mutex' || self.mode == 'FairQueue'")
        .message("kinds ReadWrite and Semaphore need mode FairQueue")
        .field_path(".kind"),
    validation = Rule::new("self.kind == 'Semaphore' || !has(self.permits)")
        .message("permits are for kind Semaphore only")
        .field_path(".permits")
        .reason(Reason::FieldValueForbidden),
    validation = Rule::new("self.mode != 'CompareAndSwap' || duration(self.lockDelay) == duration('0s')")
        .message("lockDelay is for modes Lease and FairQueue only")
        .field_path(".lockDelay"),
    validation = Rule::new("self.kind == 'Mutex' || !has(self.daprStore)")
        .message("daprStore is for kind Mutex only")
        .field_path(".daprStore")
        .reason(Reason::FieldValueForbidden)
)]
pub struct LockSpec {
    /// How a lock is granted: `CompareAndSwap` to whoever writes first, `Lease` likewise with a delay after a
    /// lost holder, `FairQueue` in order of arrival. Immutable.
    #[x_kube(validation = rule::immutable())]
    pub mode: LockMode,

    /// What is granted: `Mutex` one holder, `ReadWrite` one writer or many readers, `Semaphore` as many holders
    /// as there are permits. `ReadWrite` and `Semaphore` need mode `FairQueue`. Immutable.
    #[serde(default)]
    #[x_kube(validation = rule::immutable())]
    pub kind: LockKind,

    /// How many may hold a `Semaphore` at once, 1 to 1024; 1 when absent. For kind `Semaphore` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "int32"))]
    #[x_kube(validation = rule::number(1, 1024))]
    pub permits: Option<u32>,

    /// How long a lock stays held after its holder's sidecar was last heard of, 2s to 24h.
    #[serde(default = "default_ttl")]
    #[x_kube(validation = rule::duration("2s", "24h"))]
    pub ttl: Duration,

    /// How long a lock is granted to nobody after a holder was lost, up to 60s. For modes `Lease` and
    /// `FairQueue` only.
    #[serde(default)]
    #[x_kube(validation = rule::duration("0s", "60s"))]
    pub lock_delay: Duration,

    /// How long one holder may keep a lock, up to 168h; 0s for as long as it likes.
    #[serde(default)]
    #[x_kube(validation = rule::duration("0s", "168h"))]
    pub max_hold: Duration,

    /// The longest wait that a caller may ask for, up to 1h.
    #[serde(default = "default_max_wait")]
    #[x_kube(validation = rule::duration("0s", "1h"))]
    pub max_wait: Duration,

    /// How many may wait for one key, up to 65536; 0 for nobody.
    #[serde(default = "default_max_waiters")]
    #[schemars(extend("format" = "int32"))]
    #[x_kube(validation = rule::number(0, 65536))]
    pub max_waiters: u32,

    /// The store by which apps written for Dapr's lock API name this Lock. Of several Locks in a namespace that give
    /// the same, the first by name is meant. For kind `Mutex` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new(
        "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')"
    )
    .message("must be the name of a store: DNS labels separated by dots"))]
    pub dapr_store: Option<String>,
}

/// How a lock is granted.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "described at the field, where kubectl explain shows it")]
pub enum LockMode {
    CompareAndSwap,
    Lease,
    FairQueue,
}

/// What a lock grants.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "described at the field, where kubectl explain shows it")]
pub enum LockKind {
    #[default]
    Mutex,
    ReadWrite,
    Semaphore,
}

/// What the operator last saw of a family of locks.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct LockStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// How many keys are held.
    #[serde(default)]
    #[schemars(extend("format" = "int64"))]
    pub held: u64,

    /// How many wait, over all keys.
    #[serde(default)]
    #[schemars(extend("format" = "int64"))]
    pub waiters: u64,

    /// How long the longest wait has lasted; absent when nobody waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_wait: Option<Duration>,

    /// The longest holders, at most 10.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub holders: Vec<LockHolder>,

    /// `Ready` and `Contended`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions::schema")]
    pub conditions: Vec<Condition>,
}

/// Who holds a lock.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct LockHolder {
    /// The key held.
    #[schemars(length(max = 512))]
    pub key: String,
    /// The pod whose sidecar holds it.
    #[schemars(length(max = 253))]
    pub pod: String,
    /// What the holder said of itself, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub owner: String,
    /// The fence of this grant, below 2^53.
    #[schemars(extend("format" = "int64"))]
    pub fence: u64,
    /// Since when it is held.
    #[schemars(schema_with = "instant")]
    pub since: Time,
}

impl LockSpec {
    /// How many may hold one key at once.
    pub fn permits(&self) -> u32 {
        self.permits.unwrap_or(1)
    }
}

fn instant(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": "date-time" })
}

fn default_ttl() -> Duration {
    Duration::from_secs(15)
}

fn default_max_wait() -> Duration {
    Duration::from_secs(60)
}

fn default_max_waiters() -> u32 {
    1024
}
