//! Dapr's lock API over HTTP.

use axum::{
    Router,
    extract::{Path, Request, State},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{Dapr, FENCE, Refusal, Subject, observe};
use crate::api::guard;

/// Paths that are asked without a token.
const HEALTH: [&str; 2] = ["/v1.0/healthz", "/v1.0/healthz/outbound"];

/// The routes as they are served.
pub fn router(dapr: Dapr) -> Router {
    let [health, outbound] = HEALTH;
    Router::new()
        .route("/v1.0-alpha1/lock/{store}", post(lock))
        .route("/v1.0-alpha1/unlock/{store}", post(unlock))
        .route("/v1.0/metadata", get(metadata))
        .route(health, get(healthz))
        .route(outbound, get(healthz))
        .fallback(no_such_method)
        .method_not_allowed_fallback(no_such_method)
        .layer(from_fn_with_state(dapr.clone(), admit))
        .layer(from_fn_with_state(dapr.clone(), observe))
        .with_state(dapr)
}

async fn admit(State(dapr): State<Dapr>, request: Request, next: Next) -> Response {
    if let Err(problem) = guard::admit_local(&request) {
        return problem.into_response();
    }
    if !HEALTH.contains(&request.uri().path()) && !dapr.admits(request.headers()) {
        return Refusal::token().into_response();
    }
    next.run(request).await
}

/// Dapr's clients leave out what is empty and may say more than is known here.
#[derive(Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[derive(Default)]
struct TryLock {
    resource_id: String,
    lock_owner: String,
    expiry_in_seconds: i32,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Unlock {
    resource_id: String,
    lock_owner: String,
}

fn read<T: DeserializeOwned>(body: &Bytes) -> Result<T, Refusal> {
    serde_json::from_slice(body)
        .map_err(|error| Refusal::malformed(format!("failed deserializing HTTP body: {error}")))
}

async fn lock(State(dapr): State<Dapr>, Path(store): Path<String>, body: Bytes) -> Result<Response, Refusal> {
    let TryLock { resource_id, lock_owner, expiry_in_seconds } = read(&body)?;
    let subject = Subject { store: &store, resource: &resource_id, owner: &lock_owner };
    let fence = dapr.try_lock(subject, expiry_in_seconds).await?;
    let mut response = axum::Json(json!({ "success": fence.is_some() })).into_response();
    if let Some(fence) = fence {
        response.headers_mut().insert(FENCE, HeaderValue::from(fence.get()));
    }
    Ok(response)
}

async fn unlock(
    State(dapr): State<Dapr>,
    Path(store): Path<String>,
    body: Bytes,
) -> Result<axum::Json<Value>, Refusal> {
    let Unlock { resource_id, lock_owner } = read(&body)?;
    let subject = Subject { store: &store, resource: &resource_id, owner: &lock_owner };
    let unlocked = dapr.unlock(subject).await?;
    Ok(axum::Json(json!({ "status": unlocked as i32 })))
}

async fn metadata(State(dapr): State<Dapr>) -> axum::Json<Value> {
    let component = |store: concordat_protocol::Name| json!({ "name": store.as_str(), "type": super::COMPONENT, "version": "v1", "capabilities": [] });
    axum::Json(json!({
        "id": dapr.context.identity.app.to_string(),
        "runtimeVersion": env!("CARGO_PKG_VERSION"),
        "components": dapr.stores().map(component).collect::<Vec<_>>(),
    }))
}

async fn healthz(State(dapr): State<Dapr>) -> Result<StatusCode, Refusal> {
    if dapr.context.definitions.synced() {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(Refusal::failed("ERR_HEALTH_NOT_READY", "dapr is not ready"))
}

async fn no_such_method() -> Refusal {
    Refusal {
        status: StatusCode::NOT_FOUND,
        code: "ERR_METHOD_NOT_FOUND",
        ..Refusal::malformed(
            "only Dapr's lock API is served here: lock and unlock of v1.0-alpha1, metadata and healthz of v1.0",
        )
    }
}
