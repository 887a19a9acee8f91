//! A participant's app that agrees to everything but what a path says that it does not.

use std::sync::Arc;

use anyhow::Result;
use axum::{
    Router,
    extract::State,
    http::{StatusCode, Uri},
};
use tokio::{net::TcpListener, sync::Notify};

/// Its votes are no.
pub(crate) const REFUSES: &str = "/refuses";
/// It does not commit what it voted yes for.
pub(crate) const BREAKS: &str = "/breaks";
/// It does not vote before [`App::votes`].
pub(crate) const HESITATES: &str = "/hesitates";

/// It serves until the process ends.
pub(crate) struct App {
    pub(crate) port: u16,
    votes: Arc<Notify>,
}

impl App {
    pub(crate) async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (port, votes) = (listener.local_addr()?.port(), Arc::<Notify>::default());
        let service = Router::new().fallback(answer).with_state(votes.clone());
        tokio::spawn(async { axum::serve(listener, service).await });
        Ok(Self { port, votes })
    }

    /// Lets go of what it hesitates to vote on.
    pub(crate) fn votes(&self) {
        self.votes.notify_waiters();
    }
}

async fn answer(State(votes): State<Arc<Notify>>, uri: Uri) -> StatusCode {
    match uri.path().rsplit_once('/') {
        Some((REFUSES, "prepare") | (BREAKS, "commit")) => StatusCode::CONFLICT,
        Some((HESITATES, "prepare")) => {
            votes.notified().await;
            StatusCode::OK
        }
        _ => StatusCode::OK,
    }
}
