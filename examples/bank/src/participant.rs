//! A participant's side of two-phase commit: three routes, each of which may be called more than once.
//!
//! One row a transaction is the whole protocol: it makes every operation repeatable, and an `abort` that comes
//! before its `prepare` leaves a row that refuses the latecomer (the "barrier" of the guarantees page).

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use rusqlite::{OptionalExtension, Transaction};
use serde::Deserialize;
use serde_json::json;

use crate::database::Database;

/// The table that [`Participant::routes`] needs.
pub(crate) const SCHEMA: &str = "
    create table if not exists part (
        id text primary key, state text not null, payer text not null default '', payee text not null default '',
        amount integer not null default 0)";

/// A transfer as a transaction's input.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Transfer {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) amount: i64,
    /// For the demonstration: how long the ledger thinks before it votes.
    #[serde(default)]
    pub(crate) ledger_delay_ms: u64,
}

/// What a service does in each phase, inside the transaction that changes its row.
pub(crate) trait Part: Clone + Send + Sync + 'static {
    /// May the transfer happen? `Some` says why not.
    fn prepare(transaction: &Transaction<'_>, transfer: &Transfer) -> rusqlite::Result<Option<String>>;
    /// Makes it happen.
    fn commit(transaction: &Transaction<'_>, id: &str, transfer: &Transfer) -> rusqlite::Result<()>;
    /// How long to think before voting.
    fn delay(_transfer: &Transfer) -> std::time::Duration {
        std::time::Duration::ZERO
    }
}

/// The three operations of `part` under `path`.
pub(crate) fn routes<P: Part>(path: &str, database: Database) -> Router {
    Router::new().route(&format!("{path}/{{operation}}"), post(operate::<P>)).with_state(database)
}

async fn operate<P: Part>(
    State(database): State<Database>,
    Path(operation): Path<String>,
    headers: HeaderMap,
    Json(transfer): Json<Transfer>,
) -> Response {
    let Some(id) = headers.get("concordat-transaction").and_then(|id| id.to_str().ok()).map(str::to_owned)
    else {
        return refuse("Concordat-Transaction is missing: only a sidecar calls this");
    };
    if operation == "prepare" {
        tokio::time::sleep(P::delay(&transfer)).await;
    }
    let done = database
        .change(move |sql| match operation.as_str() {
            "prepare" => prepare::<P>(sql, &id, &transfer),
            "commit" => commit::<P>(sql, &id),
            "abort" => abort(sql, &id),
            _ => Ok(Err("no such operation".into())),
        })
        .await;
    match done {
        Ok(Ok(())) => StatusCode::OK.into_response(),
        Ok(Err(reason)) => refuse(&reason),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// A definite no.
fn refuse(reason: &str) -> Response {
    (StatusCode::CONFLICT, Json(json!({"reason": reason}))).into_response()
}

fn prepare<P: Part>(
    sql: &Transaction<'_>,
    id: &str,
    transfer: &Transfer,
) -> rusqlite::Result<Result<(), String>> {
    match state(sql, id)?.as_deref() {
        Some("aborted") => return Ok(Err("aborted before it was prepared".into())),
        Some(_) => return Ok(Ok(())),
        None => {}
    }
    if let Some(reason) = P::prepare(sql, transfer)? {
        return Ok(Err(reason));
    }
    sql.execute(
        "insert into part (id, state, payer, payee, amount) values (?1, 'prepared', ?2, ?3, ?4)",
        (id, &transfer.from, &transfer.to, transfer.amount),
    )?;
    Ok(Ok(()))
}

fn commit<P: Part>(sql: &Transaction<'_>, id: &str) -> rusqlite::Result<Result<(), String>> {
    match state(sql, id)?.as_deref() {
        Some("committed") => Ok(Ok(())),
        Some("prepared") => {
            let transfer =
                sql.query_row("select payer, payee, amount from part where id = ?1", [id], |row| {
                    Ok(Transfer {
                        from: row.get(0)?,
                        to: row.get(1)?,
                        amount: row.get(2)?,
                        ledger_delay_ms: 0,
                    })
                })?;
            P::commit(sql, id, &transfer)?;
            sql.execute("update part set state = 'committed' where id = ?1", [id])?;
            Ok(Ok(()))
        }
        _ => Ok(Err("never prepared here".into())),
    }
}

fn abort(sql: &Transaction<'_>, id: &str) -> rusqlite::Result<Result<(), String>> {
    match state(sql, id)?.as_deref() {
        Some("committed") => Ok(Err("already committed".into())),
        _ => {
            sql.execute(
                "insert into part (id, state) values (?1, 'aborted') on conflict (id) do update set state = 'aborted'",
                [id],
            )?;
            Ok(Ok(()))
        }
    }
}

/// How far a transfer is here: `prepared`, `committed`, `aborted`, or unknown.
pub(crate) fn state(sql: &Transaction<'_>, id: &str) -> rusqlite::Result<Option<String>> {
    sql.query_row("select state from part where id = ?1", [id], |row| row.get(0)).optional()
}
