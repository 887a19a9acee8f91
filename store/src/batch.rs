//! Group commit: plans that wait go to etcd together, in one transaction, and each gets its own answer.
//!
//! Everything here is pure: [`Batcher`] says what is to be asked of etcd and is told what etcd said. The store runs it
//! on etcd, the tests run it on the model of etcd.

mod batcher;
mod dialogue;
mod flight;
mod footprint;
mod form;
mod lower;
mod marker;
mod resolve;
mod shared;

pub use batcher::Batcher;
pub use dialogue::{Abandoned, Ask, Settled, Step, Told};
pub use footprint::{Footprint, Occupied, independent};
pub use lower::{LeaseId, Prepared, lower};
pub use marker::Marker;
pub use resolve::Change;

/// How many batches may be in flight at once. etcd writes those that come together to its log with one fsync, so four cost
/// less than two, each; one costs a quarter of the throughput where a plan carries many messages.
pub const FLUSHERS: usize = 4;

/// etcd's `--max-txn-ops`: a transaction's compares, and its operations in either branch, counted along each path of
/// nesting.
pub const MAX_OPERATIONS: usize = 128;

/// Bytes of a batch, estimated; below etcd's `--max-request-bytes` of 1.5 MiB by what an estimate may be wrong. A batch
/// that etcd finds too large all the same goes in halves.
pub const MAX_BYTES: usize = 1_280 << 10;

/// The rules that make a batch safe. All of them hold but in a test that shows what happens without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchRules {
    /// Plans of one batch are independent of each other.
    pub independent_inside: bool,
    /// Plans of a batch are independent of those in flight or unresolved in another.
    pub independent_across: bool,
    /// A batch that may not be sent twice carries a marker by which its outcome can be found out.
    pub marker: bool,
    /// A leased put is guarded by the presence of a key under its lease.
    pub lease_guards: bool,
}

impl Default for BatchRules {
    fn default() -> Self {
        Self { independent_inside: true, independent_across: true, marker: true, lease_guards: true }
    }
}
