//! Locks over HTTP.

mod answer;
mod following;
#[cfg(test)]
mod fuzz;
mod request;
mod several;

use axum::extract::State;
use concordat_protocol::lock::Rejected;
use http::{HeaderMap, StatusCode};
use utoipa_axum::{router::OpenApiRouter, routes};

use self::{
    answer::{Acquired, Inspected, Renewed, Verified, refusal},
    request::{AcquireBody, AcquireParams, Target, VerifyParams, token},
};
use crate::{
    api::{
        extract::{OptionalJson, Params, Segments},
        header::LOCK_TOKEN,
        idempotency,
    },
    context::Context,
    problem::{Document, Outcome, Problem},
};

type Answer<T> = Result<axum::Json<T>, Problem>;

/// The routes.
pub fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new()
        .routes(routes!(acquire, renew, release, inspect))
        .routes(routes!(acquire_unkeyed, renew_unkeyed, release_unkeyed, inspect_unkeyed))
        .routes(routes!(verify))
        .routes(routes!(following::events))
        .routes(routes!(several::acquire_several))
        .routes(routes!(several::release_several))
}

/// Takes a key of a lock, waiting for it if asked to.
#[utoipa::path(
    post,
    path = "/v1/locks/{lock}/{key}",
    tag = "locks",
    params(Target, AcquireParams, ("Idempotency-Key" = Option<String>, Header, description = idempotency::PROMISE)),
    request_body = Option<AcquireBody>,
    responses(
        (status = 200, body = Acquired),
        (status = 400, body = Document, description = "invalid-request: also what the Lock's kind cannot give"),
        (status = 404, body = Document, description = "no-such-lock"),
        (status = 409, body = Document, description = "lock-held, lock-wait-timeout"),
        (status = 410, body = Document, description = "lock-lost: the sidecar's session, or the lock, was replaced while the call waited"),
        (status = 429, body = Document, description = "lock-queue-full"),
        (status = 501, body = Document, description = "mode-not-supported"),
        (status = 503, body = Document, description = "outcome says whether it may have been taken; if so it is freed again")
    )
)]
async fn acquire(
    State(context): State<Context>,
    Segments(target): Segments<Target>,
    Params(params): Params<AcquireParams>,
    headers: HeaderMap,
    OptionalJson(body): OptionalJson<AcquireBody>,
) -> Answer<Acquired> {
    let defined = context.definitions.lock(&target.lock)?;
    if headers.contains_key(&LOCK_TOKEN) {
        return Err(Problem::invalid(
            "header Lock-Token: a grant cannot be turned into another, as two readers that become writers would wait for each other; release it first",
        ));
    }
    let terms = body.terms(&params, &defined.settings)?;
    refuse_without_space(&context)?;
    let granted = context.locks.acquire(target.place(), &defined, terms).await.map_err(refusal)?;
    Ok(axum::Json(granted.into()))
}

fn refuse_without_space(context: &Context) -> Result<(), Problem> {
    if context.store.intake_open() {
        return Ok(());
    }
    let why = "etcd's space is nearly used up: nothing new is taken in until some is freed";
    Err(Problem::unavailable("out-of-space", why))
}

/// The same, of the key `-`.
#[utoipa::path(
    post,
    path = "/v1/locks/{lock}",
    tag = "locks",
    params(("lock" = String, Path, description = "Name of the Lock"), AcquireParams, ("Idempotency-Key" = Option<String>, Header, description = idempotency::PROMISE)),
    request_body = Option<AcquireBody>,
    responses((status = 200, body = Acquired))
)]
async fn acquire_unkeyed(
    context: State<Context>,
    target: Segments<Target>,
    params: Params<AcquireParams>,
    headers: HeaderMap,
    body: OptionalJson<AcquireBody>,
) -> Answer<Acquired> {
    acquire(context, target, params, headers, body).await
}

/// Holds for another ttl: all keys of the token, if it was given for several.
#[utoipa::path(
    put,
    path = "/v1/locks/{lock}/{key}",
    tag = "locks",
    params(Target, ("Lock-Token" = String, Header, description = "What acquire answered")),
    responses(
        (status = 200, body = Renewed),
        (status = 410, body = Document, description = "lock-lost"),
        (status = 412, body = Document, description = "lock-token-mismatch")
    )
)]
async fn renew(
    State(context): State<Context>,
    Segments(target): Segments<Target>,
    headers: HeaderMap,
) -> Answer<Renewed> {
    let token = token(&headers)?.ok_or_else(|| refusal(Rejected::Mismatch))?;
    let expires_in_ms = context.locks.renew(target.place(), token).await.map_err(refusal)?;
    Ok(axum::Json(Renewed { expires_in_ms }))
}

/// The same, of the key `-`.
#[utoipa::path(
    put,
    path = "/v1/locks/{lock}",
    tag = "locks",
    params(("lock" = String, Path, description = "Name of the Lock"), ("Lock-Token" = String, Header)),
    responses((status = 200, body = Renewed))
)]
async fn renew_unkeyed(
    context: State<Context>,
    target: Segments<Target>,
    headers: HeaderMap,
) -> Answer<Renewed> {
    renew(context, target, headers).await
}

/// Lets go: of all keys of the token, if it was given for several. May be repeated.
#[utoipa::path(
    delete,
    path = "/v1/locks/{lock}/{key}",
    tag = "locks",
    params(Target, ("Lock-Token" = String, Header, description = "What acquire answered")),
    responses(
        (status = 204),
        (status = 410, body = Document, description = "lock-lost: it was over before"),
        (status = 412, body = Document, description = "lock-token-mismatch"),
        (status = 503, body = Document, description = "etcd does not answer; it is let go as soon as it does")
    )
)]
async fn release(
    State(context): State<Context>,
    Segments(target): Segments<Target>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    let token = token(&headers)?.ok_or_else(|| refusal(Rejected::Mismatch))?;
    context.locks.release(target.place(), token).await.map_err(not_released)?;
    Ok(StatusCode::NO_CONTENT)
}

fn not_released(rejected: Rejected) -> Problem {
    match rejected {
        Rejected::Unavailable { .. } => Problem::unavailable(
            "outcome-unknown",
            "etcd does not answer; the lock is let go as soon as it does",
        )
        .outcome(Outcome::Unknown),
        rejected => refusal(rejected),
    }
}

/// The same, of the key `-`.
#[utoipa::path(
    delete,
    path = "/v1/locks/{lock}",
    tag = "locks",
    params(("lock" = String, Path, description = "Name of the Lock"), ("Lock-Token" = String, Header)),
    responses((status = 204))
)]
async fn release_unkeyed(
    context: State<Context>,
    target: Segments<Target>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    release(context, target, headers).await
}

/// Who holds a key, and how many wait for it: over all sidecars in mode FairQueue, else of this sidecar's callers.
#[utoipa::path(
    get,
    path = "/v1/locks/{lock}/{key}",
    tag = "locks",
    params(Target),
    responses((status = 200, body = Inspected), (status = 404, body = Document, description = "no-such-lock"))
)]
async fn inspect(State(context): State<Context>, Segments(target): Segments<Target>) -> Answer<Inspected> {
    let mode = context.definitions.lock(&target.lock)?.settings.mode;
    Ok(axum::Json(context.locks.inspect(&target.place(), mode).await?.into()))
}

/// The same, of the key `-`.
#[utoipa::path(
    get,
    path = "/v1/locks/{lock}",
    tag = "locks",
    params(("lock" = String, Path, description = "Name of the Lock")),
    responses((status = 200, body = Inspected))
)]
async fn inspect_unkeyed(context: State<Context>, target: Segments<Target>) -> Answer<Inspected> {
    inspect(context, target).await
}

/// Whether a fence is that of a present holder. Advice: the resource must still compare fences itself. Another sidecar
/// than the holder's may take a fence for current that is not any more, for as long as that one hands the lock on among
/// its own callers without letting go of its key.
#[utoipa::path(
    get,
    path = "/v1/locks/{lock}/{key}/verify",
    tag = "locks",
    params(Target, VerifyParams),
    responses(
        (status = 200, body = Verified),
        (status = 410, body = Document, description = "lock-superseded"),
        (status = 404, body = Document, description = "no-such-lock")
    )
)]
async fn verify(
    State(context): State<Context>,
    Segments(target): Segments<Target>,
    Params(params): Params<VerifyParams>,
) -> Answer<Verified> {
    let mode = context.definitions.lock(&target.lock)?.settings.mode;
    let inspection = context.locks.inspect(&target.place(), mode).await?;
    if inspection.is_current(params.fence) {
        return Ok(axum::Json(Verified { fence: params.fence }));
    }
    Err(Problem::new(StatusCode::GONE, "lock-superseded", "The grant is over")
        .detail("the fence is not that of a present holder: acquire anew"))
}
