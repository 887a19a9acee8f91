//! How the sidecar ends: not ready first, then nothing new, then what is under way, then its session.

use std::time::Duration;

use concordat_protocol::{Key, Lease, Plan, session};
use concordat_store::Store;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::context::Context;

/// How long telling others may take: nothing waits for an etcd that is away.
const WITHDRAW: Duration = Duration::from_secs(1);
/// How long revoking the session may take: etcd may be away.
const REVOKE: Duration = Duration::from_secs(3);

/// SIGTERM and SIGINT.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on neither ends the process by itself.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next one.
    pub async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Tells others to aim no new work at this sidecar, then lets the engines end what is under way; each refuses what is
/// new and answers who waits.
pub async fn drain(context: &Context) {
    if tokio::time::timeout(WITHDRAW, withdraw(&context.store)).await.is_err() {
        tracing::debug!("etcd does not answer: others learn that this sidecar ends when its session does");
    }
    tokio::join!(context.locks.drain(), context.queues.drain(), context.transactions.drain());
}

/// Puts into the session's record that it takes no new work.
async fn withdraw(store: &Store) {
    let of = store.session();
    let record = session::Session { pod: of.pod.clone(), app: of.app.clone(), accepts: false };
    let key = Key::Session(of.id.clone());
    let plan = Plan::new().present(key.clone()).put(key, record, Lease::Session(of.id));
    if let Err(error) = store.commit(plan).await {
        tracing::debug!(%error, "others were not told that this sidecar ends");
    }
}

/// Ends the session: what is leased under it goes now, not when it runs out.
pub async fn close(context: &Context) {
    if tokio::time::timeout(REVOKE, context.store.clone().close()).await.is_err() {
        tracing::warn!("etcd does not answer: the session runs out by itself");
    }
}
