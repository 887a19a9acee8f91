//! Health and metrics, on a port that the kubelet can reach and that gives away nothing an app has stored.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU64, Ordering},
};

use axum::{
    Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use concordat_protocol::{Millis, SessionId};
use concordat_store::{SessionState, Store};
use http::{StatusCode, header};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{definitions::Definitions, metrics::Metrics};

/// etcd's watch tells of its progress far more often; silence for this long means that it may have stopped.
const LONGEST_SILENCE: Millis = 30_000;

/// What health is judged by.
#[derive(Clone)]
pub struct Health {
    metrics: Arc<Metrics>,
    ending: CancellationToken,
    running: Arc<OnceLock<(Store, Definitions)>>,
    /// Why there is nothing to be had of etcd yet.
    waits: Arc<Mutex<String>>,
    /// When the session was opened, milliseconds on the monotonic clock; `NONE` without one.
    opened: Arc<AtomicU64>,
}

const NONE: Millis = Millis::MAX;

impl Health {
    /// Not ready yet, and not ready any more once `ending` is cancelled.
    pub fn new(metrics: Arc<Metrics>, ending: CancellationToken) -> Self {
        let waits = Arc::new(Mutex::new("etcd has not been reached yet".to_owned()));
        Self { metrics, ending, running: Arc::default(), waits, opened: Arc::new(AtomicU64::new(NONE)) }
    }

    /// etcd cannot be used yet, and why.
    pub fn waits(&self, why: String) {
        *self.waits.lock() = why;
    }

    /// etcd has been reached.
    pub fn running(&self, store: Store, definitions: Definitions) {
        let (mut sessions, clock, opened) = (store.sessions(), store.clock(), self.opened.clone());
        let metrics = self.metrics.clone();
        let mut followed = Followed::new(store.session().id);
        tokio::spawn(async move {
            loop {
                let state = sessions.borrow_and_update().clone();
                let live = matches!(state, SessionState::Live(_));
                opened.store(if live { clock.monotonic() } else { NONE }, Ordering::Relaxed);
                metrics.session_losses.inc_by(followed.lost(&state));
                if sessions.changed().await.is_err() {
                    return;
                }
            }
        });
        // There is but one start.
        let _ = self.running.set((store, definitions));
    }

    /// How long there has been the present session, in seconds; 0 without one.
    fn session_age(&self) -> f64 {
        let now = self.running.get().map_or(0, |(store, _)| store.clock().monotonic());
        now.saturating_sub(self.opened.load(Ordering::Relaxed)) as f64 / 1000.0
    }

    /// Why requests should go elsewhere, empty when they need not.
    fn unready(&self) -> Vec<String> {
        let Some((store, definitions)) = self.running.get() else {
            return vec![self.waits.lock().clone()];
        };
        let silence = store.clock().now().monotonic.saturating_sub(definitions.heard());
        let live = matches!(*store.sessions().borrow(), SessionState::Live(_));
        [
            (self.ending.is_cancelled(), "the sidecar is about to end"),
            (!live, "there is no session in etcd"),
            (!definitions.synced(), "the custom resources have not been read from etcd yet"),
            (definitions.synced() && silence > LONGEST_SILENCE, "etcd's watch has not been heard of for 30s"),
        ]
        .into_iter()
        .filter(|(holds, _)| *holds)
        .map(|(_, why)| why.to_owned())
        .collect()
    }
}

/// The session that was heard of last.
struct Followed {
    session: SessionId,
    /// Whether its loss was counted.
    counted: bool,
}

impl Followed {
    fn new(session: SessionId) -> Self {
        Self { session, counted: false }
    }

    /// How many sessions were lost that were not counted. States come one after the other, but not every one is heard of.
    fn lost(&mut self, state: &SessionState) -> u64 {
        let (SessionState::Live(now) | SessionState::Lost(now)) = state;
        let replaced = *now != self.session && !self.counted;
        if *now != self.session {
            *self = Self::new(now.clone());
        }
        let lost = matches!(state, SessionState::Lost(_)) && !self.counted;
        self.counted |= lost;
        u64::from(replaced) + u64::from(lost)
    }
}

/// `/live`, `/ready` and `/metrics`.
pub fn router(health: Health) -> Router {
    Router::new()
        .route("/live", get("ok\n"))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(health)
}

async fn ready(State(health): State<Health>) -> (StatusCode, String) {
    match health.unready().as_slice() {
        [] => (StatusCode::OK, "ok\n".into()),
        reasons => (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n"),
    }
}

async fn metrics(State(health): State<Health>) -> Response {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    health.metrics.session_age.set(health.session_age());
    ([(header::CONTENT_TYPE, OPEN_METRICS)], health.metrics.encode()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_session_is_lost_once_whatever_is_not_heard_of() {
        let live = |session: &str| SessionState::Live(session.into());
        let lost = |session: &str| SessionState::Lost(session.into());
        for (heard, count) in [
            (vec![live("a")], 0),
            (vec![live("a"), lost("a"), live("b")], 1),
            (vec![live("a"), live("b")], 1),
            (vec![lost("a"), lost("b"), live("c")], 2),
            (vec![live("b"), lost("b"), lost("b")], 2),
        ] {
            let mut followed = Followed::new("a".into());
            assert_eq!(heard.iter().map(|state| followed.lost(state)).sum::<u64>(), count, "{heard:?}");
        }
    }
}
