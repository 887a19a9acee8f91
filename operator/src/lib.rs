//! What Kubernetes talks to: compiles custom resources into definitions in etcd, mirrors live state back into their
//! `.status`, collects what deleted ones leave.
//!
//! One pipeline for each kind: `compile` (pure: object to settings, or what to change) → the definition is written →
//! `status` (pure: what was read of etcd to status) → the status is patched where it changed. The operator decides
//! nothing about a transaction, a lock or a message: sidecars go on without it.

pub mod age;
pub mod conditions;
pub mod invalid;
pub mod lock;
pub mod queue;
pub mod transaction;

pub use conditions::Standing;
pub use invalid::Invalid;
