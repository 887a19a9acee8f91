//! What becomes of a grant, as server-sent events.

use std::{convert::Infallible, time::Duration};

use axum::{
    extract::State,
    response::{
        IntoResponse, Response,
        sse::{self, KeepAlive, Sse},
    },
};
use concordat_protocol::lock::Rejected;
use futures::stream;
use http::HeaderMap;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    answer::refusal,
    request::{Target, token},
};
use crate::{
    api::extract::Segments,
    context::Context,
    engine::lock::{Event, Following, Held},
    problem::{Document, Problem},
};

/// A comment is sent after so long a silence, so that either side notices when the other is gone.
const PING: Duration = Duration::from_secs(5);

/// One key of a grant.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct HeldKey {
    /// The Lock.
    lock: String,
    /// The key.
    key: String,
    /// Its fence.
    fence: u64,
}

impl From<&Held> for HeldKey {
    fn from(held: &Held) -> Self {
        Self { lock: held.place.lock.to_string(), key: held.place.key.to_string(), fence: held.fence.get() }
    }
}

/// What an event tells.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Told {
    /// The keys of the grant.
    locks: Vec<HeldKey>,
    /// For how long it is safe to rely on, unless it is renewed; not of what ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_in_ms: Option<u64>,
}

/// What becomes of a grant, as server-sent events: `granted` at once, and again when an end that was announced did not
/// come; `expiring` when a quarter of what the grant lasts is left; then `lost` or `released`, the last. `lost` comes no
/// later than the grant ends, and so before anybody else can hold the lock. A grant with `renew` is renewed as long as
/// this stream is open, and let go when it ends. Without a key: `/v1/locks/{lock}/-/events`.
#[utoipa::path(
    get,
    path = "/v1/locks/{lock}/{key}/events",
    operation_id = "follow_lock",
    tag = "locks",
    params(Target, ("Lock-Token" = String, Header, description = "What acquire answered")),
    responses(
        (status = 200, body = Told, content_type = "text/event-stream"),
        (status = 412, body = Document, description = "lock-token-mismatch")
    )
)]
pub(super) async fn events(
    State(context): State<Context>,
    Segments(target): Segments<Target>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let token = token(&headers)?.ok_or_else(|| refusal(Rejected::Mismatch))?;
    let following = context.locks.follow(&target.place(), token).map_err(refusal)?;
    let events = stream::unfold(following, async |mut following| {
        let event = following.next().await?;
        Some((Ok::<_, Infallible>(told(&following, event)), following))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(PING).text("ping")).into_response())
}

fn told(following: &Following, event: Event) -> sse::Event {
    let (name, expires_in_ms) = match event {
        Event::Granted(left) => ("granted", Some(left)),
        Event::Expiring(left) => ("expiring", Some(left)),
        Event::Lost => ("lost", None),
        Event::Released => ("released", None),
    };
    let told = Told { locks: following.keys.iter().map(HeldKey::from).collect(), expires_in_ms };
    let data = serde_json::to_string(&told).unwrap_or_default();
    sse::Event::default().event(name).data(data)
}
