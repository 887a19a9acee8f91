//! An app that takes part: it keeps a ledger as a database would, and answers as a test tells it to.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use anyhow::{Context, Result};
use axum::{
    Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    routing::post,
};
use concordat_protocol::transaction::Operation;
use parking_lot::Mutex;
use tokio::{net::TcpListener, sync::Notify};

/// What the app does with a call.
#[derive(Clone)]
pub(crate) enum Behaviour {
    /// Answers this status; 2xx takes effect, nothing else does.
    Answer(u16),
    /// Answers 204 once it is told to.
    Await(Arc<Notify>),
}

/// A call as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) transaction: String,
    pub(crate) branch: String,
    pub(crate) operation: String,
    pub(crate) attempt: u32,
    pub(crate) epoch: i64,
    pub(crate) traceparent: String,
    pub(crate) body: String,
}

#[derive(Default)]
struct Kept {
    calls: Vec<Call>,
    /// What took effect, in order.
    ledger: HashMap<(String, String), Vec<Operation>>,
    behaviours: HashMap<String, VecDeque<Behaviour>>,
}

/// One app, shared by its pods as a database is.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) port: u16,
    kept: Arc<Mutex<Kept>>,
}

impl App {
    pub(crate) async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let app = Self { port: listener.local_addr()?.port(), kept: Arc::default() };
        let router = Router::new().route("/{*path}", post(called)).with_state(app.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(app)
    }

    /// The next calls of an operation of a branch meet with these, later ones with 204.
    pub(crate) fn behave(
        &self,
        branch: &str,
        operation: &str,
        behaviours: impl IntoIterator<Item = Behaviour>,
    ) {
        let key = format!("{branch}/{operation}");
        self.kept.lock().behaviours.entry(key).or_default().extend(behaviours);
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.kept.lock().calls.clone()
    }

    /// What took effect for a branch of a transaction.
    pub(crate) fn ledger(&self, transaction: &str, branch: &str) -> Vec<Operation> {
        let kept = self.kept.lock();
        kept.ledger.get(&(transaction.to_owned(), branch.to_owned())).cloned().unwrap_or_default()
    }
}

async fn called(
    State(app): State<App>,
    Path(path): Path<String>,
    headers: HeaderMap,
    body: String,
) -> Result<StatusCode, (StatusCode, String)> {
    let call = read(&headers, body).map_err(|error| (StatusCode::IM_A_TEAPOT, format!("{error:#}")))?;
    assert!(path.ends_with(&call.operation), "{path} is not for {}", call.operation);
    let behaviour = {
        let mut kept = app.kept.lock();
        kept.calls.push(call.clone());
        let waiting = kept.behaviours.get_mut(&format!("{}/{}", call.branch, call.operation));
        waiting.and_then(VecDeque::pop_front).unwrap_or(Behaviour::Answer(204))
    };
    let status = match behaviour {
        Behaviour::Answer(status) => status,
        Behaviour::Await(go) => {
            go.notified().await;
            204
        }
    };
    let status = StatusCode::from_u16(status)
        .map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    if status.is_success() {
        take_effect(&app, &call)?;
    }
    Ok(status)
}

/// Each operation takes effect once, and nothing is prepared any more once it was aborted: the barrier that the docs ask
/// an app for.
fn take_effect(app: &App, call: &Call) -> Result<(), (StatusCode, String)> {
    let operation = match call.operation.as_str() {
        "prepare" => Operation::Prepare,
        "commit" => Operation::Commit,
        _ => Operation::Abort,
    };
    let mut kept = app.kept.lock();
    let done = kept.ledger.entry((call.transaction.clone(), call.branch.clone())).or_default();
    if operation == Operation::Prepare && done.contains(&Operation::Abort) {
        return Err((StatusCode::CONFLICT, "aborted before".into()));
    }
    if !done.contains(&operation) {
        done.push(operation);
    }
    Ok(())
}

fn read(headers: &HeaderMap, body: String) -> Result<Call> {
    let header = |name: &str| -> Result<String> {
        let value = headers.get(name).with_context(|| format!("no header {name}"))?;
        Ok(String::from_utf8(value.as_bytes().to_vec())?)
    };
    Ok(Call {
        transaction: header("concordat-transaction")?,
        branch: header("concordat-branch")?,
        operation: header("concordat-operation")?,
        attempt: header("concordat-attempt")?.parse()?,
        epoch: header("concordat-epoch")?.parse()?,
        traceparent: header("traceparent").unwrap_or_default(),
        body,
    })
}
