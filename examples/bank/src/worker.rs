//! The worker: takes requests for statements from a queue, and writes each account's under its lock.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::{Json, Router, extract::State, http::StatusCode, response::Response, routing::get};
use serde_json::{Value, json};

use crate::{Service, database::Database, sidecar::Sidecar};

const SCHEMA: &str = "create table if not exists statement (
    account text primary key, fence integer not null, written integer not null)";

/// Serves and works until the process ends.
pub(crate) async fn serve(service: Service) -> Result<()> {
    let database = Database::open(&service.database, SCHEMA)?;
    let sidecar = Sidecar::new(&service)?;
    tokio::spawn(work(sidecar, database.clone()));
    crate::sidecar::listen(service.port, Router::new().route("/statements", get(list)).with_state(database))
        .await
}

async fn work(sidecar: Sidecar, database: Database) {
    loop {
        if let Err(error) = round(&sidecar, &database).await {
            // The sidecar may be starting: what was received comes again.
            eprintln!("worker: {error:#}");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

async fn round(sidecar: &Sidecar, database: &Database) -> Result<()> {
    let (status, body) = sidecar.call("/v1/queues/statements/receive?max=10&wait=10s").await?;
    if status == StatusCode::NO_CONTENT {
        return Ok(());
    }
    let messages =
        body["messages"].as_array().with_context(|| format!("receive answered {status}: {body}"))?;
    for message in messages {
        let receipts = json!({"receipts": [message["receipt"]]});
        match write(sidecar, database, &message["body"]).await {
            Ok(()) => sidecar.post("/v1/queues/statements/ack", &receipts).await?,
            Err(error) => {
                let mut receipts = receipts;
                receipts["reason"] = error.to_string().into();
                sidecar.post("/v1/queues/statements/nack", &receipts).await?
            }
        };
    }
    Ok(())
}

async fn write(sidecar: &Sidecar, database: &Database, request: &Value) -> Result<()> {
    let Some(account) = request["account"].as_str() else { bail!("no account in the request") };
    let lock = format!("/v1/locks/accounts/{account}");
    let (status, grant) = sidecar.post(&format!("{lock}?wait=10s"), &json!({"owner": "statement"})).await?;
    let (Some(token), Some(fence)) = (grant["token"].as_str(), grant["fence"].as_i64()) else {
        bail!("the lock answered {status}: {grant}")
    };
    let id = account.to_owned();
    // The fence goes into the row: a holder that was paused past its time writes nothing.
    let wrote = database
        .change(move |sql| {
            sql.execute(
                "insert into statement (account, fence, written) values (?1, ?2, 1)
                 on conflict (account) do update set fence = ?2, written = written + 1 where fence < ?2",
                (id, fence),
            )
        })
        .await;
    sidecar.release(&lock, token).await?;
    if wrote? == 0 {
        bail!("a later holder has written already")
    }
    Ok(())
}

async fn list(State(database): State<Database>) -> Response {
    let statements = database
        .change(|sql| {
            let mut statement =
                sql.prepare("select account, fence, written from statement order by account")?;
            let rows = statement.query_map([], |row| {
                Ok(json!({"account": row.get::<_, String>(0)?, "fence": row.get::<_, i64>(1)?,
                    "written": row.get::<_, i64>(2)?}))
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        })
        .await;
    crate::sidecar::answer(statements.map(Json))
}
