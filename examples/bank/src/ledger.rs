//! The ledger: one entry for each transfer that happened.

use std::time::Duration;

use anyhow::Result;
use axum::{
    Json, Router,
    extract::{Path, State},
    response::Response,
    routing::get,
};
use rusqlite::Transaction;
use serde_json::json;

use crate::{
    Service,
    database::Database,
    participant::{self, Part, Transfer},
};

const SCHEMA: &str =
    "create table if not exists entry (id text primary key, payer text, payee text, amount integer not null)";

#[derive(Clone)]
struct Ledger;

impl Part for Ledger {
    fn prepare(_sql: &Transaction<'_>, _transfer: &Transfer) -> rusqlite::Result<Option<String>> {
        Ok(None)
    }

    fn commit(sql: &Transaction<'_>, id: &str, transfer: &Transfer) -> rusqlite::Result<()> {
        sql.execute(
            "insert into entry (id, payer, payee, amount) values (?1, ?2, ?3, ?4)",
            (id, &transfer.from, &transfer.to, transfer.amount),
        )?;
        Ok(())
    }

    fn delay(transfer: &Transfer) -> Duration {
        Duration::from_millis(transfer.ledger_delay_ms)
    }
}

/// Serves until the process ends.
pub(crate) async fn serve(service: Service) -> Result<()> {
    let database = Database::open(&service.database, &format!("{SCHEMA};{}", participant::SCHEMA))?;
    let own = Router::new()
        .route("/entries", get(list))
        .route("/transfers/{id}", get(state))
        .with_state(database.clone());
    crate::sidecar::listen(service.port, own.merge(participant::routes::<Ledger>("/entry", database))).await
}

async fn list(State(database): State<Database>) -> Response {
    let entries = database
        .change(|sql| {
            let mut statement = sql.prepare("select id, payer, payee, amount from entry order by rowid")?;
            let rows = statement.query_map([], |row| {
                Ok(json!({"id": row.get::<_, String>(0)?, "from": row.get::<_, String>(1)?,
                    "to": row.get::<_, String>(2)?, "amount": row.get::<_, i64>(3)?}))
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        })
        .await;
    crate::sidecar::answer(entries.map(Json))
}

async fn state(State(database): State<Database>, Path(id): Path<String>) -> Response {
    let state = database.change(move |sql| participant::state(sql, &id)).await;
    crate::sidecar::answer(state.map(|state| Json(json!({"state": state}))))
}
