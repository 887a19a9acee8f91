//! Placeholder.

use std::sync::Arc;

use concordat_store::Store;

use crate::{context::Identity, definitions::Definitions, metrics::Metrics};

/// Runs locks.
#[derive(Clone)]
pub struct LockEngine;

impl LockEngine {
    /// Starts.
    pub fn start(_: &Store, _: &Definitions, _: &Arc<Metrics>, _: &Arc<Identity>) -> Self {
        Self
    }

    /// Ends what is under way.
    #[allow(clippy::unused_async, reason = "placeholder")]
    pub async fn drain(&self) {}
}
