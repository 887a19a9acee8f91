//! What users write: the custom resources of `concordat.dev/v1alpha1`.
//!
//! Each kind is a Rust type ([`Lock`], [`Queue`], [`DistributedTransaction`]) from which its
//! `CustomResourceDefinition` is generated (`cargo run -p concordat-crds --bin crdgen`). All that the API
//! server can check is in the schema: defaults, lengths, and a CEL rule with a message for every bound,
//! exclusive choice and immutable field.
#![allow(unreachable_pub, reason = "the derive of KubeSchema repeats each struct inside a function")]
#![allow(clippy::duplicated_attributes, reason = "each printer column has a type of its own")]

mod bytes;
pub mod conditions;
mod duration;
pub mod lock;
pub mod manifest;
pub mod names;
pub mod queue;
mod rule;
pub mod transaction;

pub use bytes::{Bytes, ParseBytesError};
pub use duration::{Duration, ParseDurationError};
pub use lock::{Lock, LockSpec, LockStatus};
pub use queue::{Queue, QueueSpec, QueueStatus};
pub use transaction::{DistributedTransaction, DistributedTransactionSpec, DistributedTransactionStatus};
