//! How the sidecar ends: not ready first, then nothing new, then what is under way, then its session.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::context::Context;

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

/// Lets the engines end what is under way; each refuses what is new and answers who waits.
pub async fn drain(context: &Context) {
    tokio::join!(context.locks.drain(), context.queues.drain(), context.transactions.drain());
}

/// Ends the session: what is leased under it goes now, not when it runs out.
pub async fn close(context: Context) {
    if tokio::time::timeout(REVOKE, context.store.close()).await.is_err() {
        tracing::warn!("etcd does not answer: the session runs out by itself");
    }
}
