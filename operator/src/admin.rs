//! `/live`, `/ready` and `/metrics`, on every replica whether it leads or not.

use std::{
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::TcpListener;

use crate::metrics::Metrics;

/// What makes an operator ready: that it could take over at once.
#[derive(Default)]
pub struct Health {
    /// etcd answered when last asked.
    pub etcd: AtomicBool,
    /// The Kubernetes API answered when last asked about who leads.
    pub kubernetes: AtomicBool,
    /// It serves a webhook, and has no certificate for it that is good now.
    pub uncertified: AtomicBool,
    /// It is about to end.
    pub ending: AtomicBool,
}

impl Health {
    /// What stands in the way of being ready.
    fn missing(&self) -> Option<&'static str> {
        if self.ending.load(Ordering::Relaxed) {
            Some("ending")
        } else if self.uncertified.load(Ordering::Relaxed) {
            Some("the webhook has no certificate")
        } else if !self.etcd.load(Ordering::Relaxed) {
            Some("etcd does not answer")
        } else if !self.kubernetes.load(Ordering::Relaxed) {
            Some("the Kubernetes API does not answer")
        } else {
            None
        }
    }
}

/// Serves until `end`.
pub async fn serve(
    listener: TcpListener,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    end: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = Router::new()
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(move || async move { ready(&health) }))
        .route("/metrics", get(move || async move { text(&metrics) }));
    axum::serve(listener, router).with_graceful_shutdown(end).await
}

fn ready(health: &Health) -> Response {
    match health.missing() {
        None => "ready\n".into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

fn text(metrics: &Metrics) -> Response {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match metrics.text() {
        Ok(text) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ready_when_it_could_take_over() {
        let health = Health::default();
        assert_eq!(health.missing(), Some("etcd does not answer"));
        health.etcd.store(true, Ordering::Relaxed);
        assert_eq!(health.missing(), Some("the Kubernetes API does not answer"));
        health.kubernetes.store(true, Ordering::Relaxed);
        assert_eq!(health.missing(), None);
        health.uncertified.store(true, Ordering::Relaxed);
        assert_eq!(health.missing(), Some("the webhook has no certificate"));
        health.uncertified.store(false, Ordering::Relaxed);
        health.ending.store(true, Ordering::Relaxed);
        assert_eq!(health.missing(), Some("ending"));
    }
}
