//! What every route and engine is given.

use std::{ops::Deref, sync::Arc};

use concordat_protocol::App;
use concordat_store::Store;

use crate::{
    callback::Callbacks,
    definitions::Definitions,
    engine::{lock::LockEngine, queue::QueueEngine, transaction::TransactionEngine},
    metrics::Metrics,
};

/// Who this sidecar is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The app whose part it takes.
    pub app: App,
    /// The app's port on 127.0.0.1, if it takes part in transactions.
    pub app_port: Option<u16>,
    /// Whether it takes part in nothing.
    pub guest: bool,
}

/// The parts of a running sidecar. Cheap to clone: each request does.
#[derive(Clone)]
pub struct Context(Arc<Parts>);

impl From<Parts> for Context {
    fn from(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }
}

impl Deref for Context {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// What a [`Context`] gives access to.
pub struct Parts {
    /// etcd.
    pub store: Store,
    /// Custom resources of the namespace.
    pub definitions: Definitions,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Who this sidecar is.
    pub identity: Arc<Identity>,
    /// Calls to the app.
    pub callbacks: Callbacks,
    /// Locks.
    pub locks: LockEngine,
    /// Queues.
    pub queues: QueueEngine,
    /// Transactions.
    pub transactions: TransactionEngine,
}
