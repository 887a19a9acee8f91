//! A participant's app that agrees to everything but what a path says that it does not.

use std::sync::Arc;

use anyhow::Result;
use axum::{
    Router,
    extract::State,
    http::{StatusCode, Uri},
};
use tokio::{net::TcpListener, sync::Notify};

/// Its votes are no, and not given before [`App::votes`].
pub(crate) const REFUSES: &str = "/refuses";
/// It does not commit what it voted yes for.
pub(crate) const BREAKS: &str = "/breaks";
/// It does not vote before [`App::votes`].
pub(crate) const HESITATES: &str = "/hesitates";

/// It serves until the process ends.
pub(crate) struct App {
    pub(crate) port: u16,
    hesitation: Arc<Hesitation>,
}

#[derive(Default)]
struct Hesitation {
    begun: Notify,
    over: Notify,
}

impl App {
    pub(crate) async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (port, hesitation) = (listener.local_addr()?.port(), Arc::<Hesitation>::default());
        let service = Router::new().fallback(answer).with_state(hesitation.clone());
        tokio::spawn(async { axum::serve(listener, service).await });
        Ok(Self { port, hesitation })
    }

    /// Waits until it is asked for a vote that it hesitates to give.
    pub(crate) async fn hesitates(&self) {
        self.hesitation.begun.notified().await;
    }

    /// Lets go of what it hesitates to vote on.
    pub(crate) fn votes(&self) {
        self.hesitation.over.notify_waiters();
    }
}

async fn answer(State(hesitation): State<Arc<Hesitation>>, uri: Uri) -> StatusCode {
    match uri.path().rsplit_once('/') {
        Some((path @ (HESITATES | REFUSES), "prepare")) => {
            let over = hesitation.over.notified();
            hesitation.begun.notify_one();
            over.await;
            if path == REFUSES { StatusCode::CONFLICT } else { StatusCode::OK }
        }
        Some((BREAKS, "commit")) => StatusCode::CONFLICT,
        _ => StatusCode::OK,
    }
}
