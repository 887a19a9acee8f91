//! The types and reasons of every condition in `.status.conditions`.

use schemars::{Schema, SchemaGenerator, json_schema};

/// The object was accepted and is in force. Always there, on every kind.
pub const READY: &str = "Ready";

/// `DistributedTransaction`, run `Once`: the decision is commit.
pub const COMMITTED: &str = "Committed";
/// `DistributedTransaction`, run `Once`: the decision is abort.
pub const ABORTED: &str = "Aborted";
/// `DistributedTransaction`: a transaction cannot go on without a person.
pub const STUCK: &str = "Stuck";

/// `Lock`: there are waiters.
pub const CONTENDED: &str = "Contended";

/// `Queue`: the object is being deleted and its messages are still consumed.
pub const DRAINING: &str = "Draining";
/// `Queue`: messages went to the dead letters.
pub const DEAD_LETTERS: &str = "DeadLetters";

/// The schema of `.status.conditions`: `metav1.Condition`s with the bounds that Kubernetes gives them, one a type.
pub(crate) fn schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "reason", "message", "lastTransitionTime"],
            "properties": {
                "type": { "type": "string", "maxLength": 316, "description": "What the condition speaks of." },
                "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
                "reason": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": 1024,
                    "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
                    "description": "Why, for programs.",
                },
                "message": { "type": "string", "maxLength": 32768, "description": "Why, for people." },
                "lastTransitionTime": {
                    "type": "string",
                    "format": "date-time",
                    "description": "When the status last changed.",
                },
                "observedGeneration": {
                    "type": "integer",
                    "format": "int64",
                    "minimum": 0,
                    "description": "The generation of the spec that this condition speaks of.",
                },
            },
        },
    })
}

/// Why a condition has its status: CamelCase, stable, for programs.
pub mod reason {
    /// Ready: the definition is in force.
    pub const ACCEPTED: &str = "Accepted";
    /// Not ready: the spec asks for what cannot be; the message says what to change.
    pub const INVALID: &str = "Invalid";
    /// Not ready: the mode, kind or protocol is reserved and does not work yet.
    pub const MODE_NOT_SUPPORTED: &str = "ModeNotSupported";
    /// Not ready: Concordat's etcd cannot be reached, or refuses writes.
    pub const STORE_UNAVAILABLE: &str = "StoreUnavailable";
    /// Not ready: the object is being deleted.
    pub const DELETING: &str = "Deleting";

    /// Committed, aborted: the transaction is decided.
    pub const DECIDED: &str = "Decided";
    /// Neither committed nor aborted: there is no decision yet.
    pub const UNDECIDED: &str = "Undecided";
    /// Stuck: a participant refused what it had agreed to do.
    pub const PARTICIPANT_REFUSED: &str = "ParticipantRefused";
    /// Stuck: etcd was restored from a snapshot in which the transaction was not decided yet.
    pub const ETCD_RESTORED: &str = "EtcdRestored";
    /// Stuck is false: every transaction can go on by itself.
    pub const PROGRESSING: &str = "Progressing";

    /// Contended: somebody waits.
    pub const WAITERS: &str = "Waiters";
    /// Contended is false: nobody waits.
    pub const NO_WAITERS: &str = "NoWaiters";

    /// Draining: messages are left.
    pub const MESSAGES_LEFT: &str = "MessagesLeft";
    /// Draining is false: the queue is in use.
    pub const IN_USE: &str = "InUse";
    /// Dead letters: messages used up their deliveries.
    pub const DELIVERIES_EXHAUSTED: &str = "DeliveriesExhausted";
    /// Dead letters is false: there are none.
    pub const NO_DEAD_LETTERS: &str = "NoDeadLetters";
}
