//! What Kubernetes talks to: compiles custom resources into definitions in etcd, mirrors live state back into their
//! `.status`, collects what deleted ones leave.
//!
//! One pipeline for each kind: `compile` (pure: object to settings, or what to change) → the definition is written →
//! `status` (pure: what was read of etcd to status) → the status is patched where it changed. The operator decides
//! nothing about a transaction, a lock or a message: sidecars go on without it.

pub mod admin;
pub mod age;
pub mod args;
pub mod cleanup;
pub mod conditions;
pub mod controller;
pub mod etcd;
pub mod events;
mod identity;
pub mod immutable;
pub mod inject;
pub mod invalid;
pub mod kind;
pub mod leader;
pub mod lock;
pub mod metrics;
pub mod pki;
pub mod queue;
pub mod run;
mod shallow;
mod sweep;
pub mod task;
pub mod transaction;
pub mod wake;
pub mod webhook;

pub use conditions::Standing;
pub use invalid::Invalid;
