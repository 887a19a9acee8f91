//! Placeholder.

use std::sync::Arc;

use concordat_store::Store;

use crate::{context::Identity, definitions::Definitions, metrics::Metrics};

/// Runs transactions.
#[derive(Clone)]
pub struct TransactionEngine;

impl TransactionEngine {
    /// Starts.
    pub fn start(
        _: &Store,
        _: &Definitions,
        _: &Arc<Metrics>,
        _: &Arc<Identity>,
        _: crate::callback::Callbacks,
    ) -> Self {
        Self
    }

    /// Ends what is under way.
    #[allow(clippy::unused_async, reason = "placeholder")]
    pub async fn drain(&self) {}
}
