//! A resource that a lock protects. The lock keeps its holders apart as far as anyone can from outside; that a holder
//! which slept too long does no harm, only the resource can see to: it keeps the highest fence it has seen beside what
//! it protects, and refuses a lower one in the very statement that writes.

use std::{path::Path, sync::Arc};

use anyhow::Result;
use axum::{
    Router,
    extract::{Path as Segment, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::put,
};
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension};

const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS documents
    (name TEXT PRIMARY KEY, text TEXT NOT NULL, fence INTEGER NOT NULL) STRICT";
/// Equal is let through: one holder may write more than once.
const WRITE: &str = "INSERT INTO documents VALUES (?1, ?2, ?3) ON CONFLICT (name) DO UPDATE
    SET text = excluded.text, fence = excluded.fence WHERE excluded.fence >= documents.fence";
const READ: &str = "SELECT text, fence FROM documents WHERE name = ?1";

type Database = Arc<Mutex<Connection>>;

/// Serves `PUT` (with the header `Fence`) and `GET /documents/{name}`.
pub(crate) async fn serve(port: u16, database: &Path) -> Result<()> {
    let connection = Connection::open(database)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.execute_batch(SCHEMA)?;
    let app = Router::new()
        .route("/documents/{name}", put(write).get(read))
        .with_state(Arc::new(Mutex::new(connection)));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    println!("keeping documents at http://{}", listener.local_addr()?);
    Ok(axum::serve(listener, app).await?)
}

async fn write(
    State(database): State<Database>,
    Segment(name): Segment<String>,
    headers: HeaderMap,
    text: String,
) -> Response {
    let fence = headers.get("fence").and_then(|fence| fence.to_str().ok()?.parse::<i64>().ok());
    let Some(fence) = fence else {
        return (StatusCode::BAD_REQUEST, "header Fence: the fence of your grant").into_response();
    };
    let written = database.lock().execute(WRITE, (&name, &text, fence));
    match written {
        Ok(0) => (StatusCode::PRECONDITION_FAILED, "somebody with a later fence was here").into_response(),
        Ok(_) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn read(State(database): State<Database>, Segment(name): Segment<String>) -> Response {
    let found = database.lock().query_row(READ, [&name], |row| Ok((row.get::<_, String>(0)?, row.get(1)?)));
    match found.optional() {
        Ok(Some((text, fence))) => {
            let fence: i64 = fence;
            ([("fence", fence.to_string())], text).into_response()
        }
        Ok(None) => StatusCode::NOT_FOUND.into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
