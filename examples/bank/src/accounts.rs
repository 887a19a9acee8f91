//! Accounts: balances, and what of them is promised to transfers under way.

use anyhow::Result;
use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use rusqlite::{OptionalExtension, Transaction};
use serde_json::{Value, json};

use crate::{
    Service,
    database::Database,
    participant::{self, Part, Transfer},
    sidecar::Sidecar,
};

const SCHEMA: &str = "create table if not exists account (id text primary key, balance integer not null)";

#[derive(Clone)]
struct Accounts;

impl Part for Accounts {
    fn prepare(sql: &Transaction<'_>, transfer: &Transfer) -> rusqlite::Result<Option<String>> {
        if transfer.amount <= 0 {
            return Ok(Some("the amount must be positive".into()));
        }
        let balance = |id: &str| -> rusqlite::Result<Option<i64>> {
            sql.query_row("select balance from account where id = ?1", [id], |row| row.get(0)).optional()
        };
        let promised: i64 = sql.query_row(
            "select coalesce(sum(amount), 0) from part where payer = ?1 and state = 'prepared'",
            [&transfer.from],
            |row| row.get(0),
        )?;
        Ok(match (balance(&transfer.from)?, balance(&transfer.to)?) {
            (Some(balance), Some(_)) if balance - promised >= transfer.amount => None,
            (Some(_), Some(_)) => Some("not enough money".into()),
            _ => Some("no such account".into()),
        })
    }

    fn commit(sql: &Transaction<'_>, _id: &str, transfer: &Transfer) -> rusqlite::Result<()> {
        sql.execute(
            "update account set balance = balance - ?2 where id = ?1",
            (&transfer.from, transfer.amount),
        )?;
        sql.execute(
            "update account set balance = balance + ?2 where id = ?1",
            (&transfer.to, transfer.amount),
        )?;
        Ok(())
    }
}

/// Serves until the process ends.
pub(crate) async fn serve(service: Service) -> Result<()> {
    let database = Database::open(&service.database, &format!("{SCHEMA};{}", participant::SCHEMA))?;
    let own = Router::new()
        .route("/accounts", get(list))
        .route("/accounts/{id}", put(open))
        .route("/transfers/{id}", get(state))
        .with_state(database.clone())
        .route("/transfers", post(transfer))
        .with_state(Sidecar::new(&service)?);
    let app = own.merge(participant::routes::<Accounts>("/transfer", database));
    crate::sidecar::listen(service.port, app).await
}

async fn open(
    State(database): State<Database>,
    Path(id): Path<String>,
    Json(balance): Json<i64>,
) -> Response {
    let opened = database
        .change(move |sql| {
            sql.execute("insert or ignore into account (id, balance) values (?1, ?2)", (id, balance))
        })
        .await;
    crate::sidecar::answer(opened.map(|_| StatusCode::CREATED))
}

async fn list(State(database): State<Database>) -> Response {
    let balances = database
        .change(|sql| {
            let mut balances = serde_json::Map::new();
            let mut statement = sql.prepare("select id, balance from account order by id")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                balances.insert(row.get(0)?, json!(row.get::<_, i64>(1)?));
            }
            Ok(Value::Object(balances))
        })
        .await;
    crate::sidecar::answer(balances.map(Json))
}

async fn state(State(database): State<Database>, Path(id): Path<String>) -> Response {
    let state = database.change(move |sql| participant::state(sql, &id)).await;
    crate::sidecar::answer(state.map(|state| Json(json!({"state": state}))))
}

/// Asks for a transfer as a customer would: the sidecar's answer is handed on as it is.
async fn transfer(State(sidecar): State<Sidecar>, Json(transfer): Json<Value>) -> Response {
    match sidecar.post("/v1/transactions/transfer?wait=20s", &transfer).await {
        Ok((status, body)) => (status, Json(body)).into_response(),
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}
