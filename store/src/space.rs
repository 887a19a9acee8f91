//! How much room etcd has left.

use std::{sync::Arc, time::Duration};

use concordat_protocol::Millis;
use etcd_client::StatusResponse;
use parking_lot::Mutex;

use crate::{Refusal, clock::Clock, exchange::Exchange};

/// What takes in new work stops at this share of the quota, in per cent; the rest is for what is under way.
const INTAKE_PERCENT: i64 = 80;
/// How long an answer of etcd's is good for, milliseconds.
const FRESH: Millis = 2_000;
/// What etcd uses when no quota is configured (`--quota-backend-bytes`, "Default is 0": 2 GiB).
const DEFAULT_QUOTA: i64 = 2 << 30;

/// The database of the member that was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes of its file.
    pub size: i64,
    /// Bytes it may grow to.
    pub quota: i64,
    /// Whether the alarm NOSPACE is raised: nothing can be put.
    pub exhausted: bool,
}

impl Space {
    /// From what a member tells of itself.
    pub(crate) fn of(status: &StatusResponse) -> Self {
        let quota = if status.db_size_quota() > 0 { status.db_size_quota() } else { DEFAULT_QUOTA };
        let exhausted = status.errors().iter().any(|error| error.contains("NOSPACE"));
        Self { size: status.db_size(), quota, exhausted }
    }

    /// Whether there is room to take in new work.
    pub fn intake_open(&self) -> bool {
        !self.exhausted && self.size < self.quota / 100 * INTAKE_PERCENT
    }
}

/// Asks etcd at most every few seconds.
pub(crate) struct Gauge {
    last: Arc<Mutex<Option<(Millis, Space)>>>,
    asking: tokio::sync::Mutex<()>,
}

impl Gauge {
    pub(crate) fn new() -> Self {
        Self { last: Arc::default(), asking: tokio::sync::Mutex::new(()) }
    }

    /// The space, as of at most a few seconds ago.
    pub(crate) async fn space(&self, exchange: &Exchange, clock: Clock) -> Result<Space, Refusal> {
        if let Some(space) = self.fresh(clock.monotonic()) {
            return Ok(space);
        }
        let _asking = self.asking.lock().await;
        if let Some(space) = self.fresh(clock.monotonic()) {
            return Ok(space);
        }
        let status = exchange.status().await?;
        let space = Space::of(&status);
        *self.last.lock() = Some((clock.monotonic(), space));
        Ok(space)
    }

    /// The last answer, however old.
    pub(crate) fn last(&self) -> Option<Space> {
        self.last.lock().map(|(_, space)| space)
    }

    fn fresh(&self, now: Millis) -> Option<Space> {
        let last = *self.last.lock();
        last.filter(|(at, _)| now < at + FRESH).map(|(_, space)| space)
    }
}

/// Keeps the gauge fresh.
pub(crate) async fn refresh(gauge: &Gauge, exchange: &Exchange, clock: Clock) {
    loop {
        if let Err(why) = gauge.space(exchange, clock).await {
            tracing::debug!(?why, "etcd does not say how much space it has");
        }
        tokio::time::sleep(Duration::from_millis(FRESH)).await;
    }
}
