//! Several keys by one token.

use std::collections::BTreeSet;

use axum::extract::State;
use concordat_protocol::lock::Settings;
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Answer,
    answer::{refusal, shown},
    following::HeldKey,
    not_released, refuse_without_space,
    request::{AcquireBody, AcquireParams, Mode, token, unkeyed},
};
use crate::{
    api::{
        duration::GoDuration,
        extract::{Fields, Json, UserKey},
        idempotency,
    },
    context::Context,
    definitions::Defined,
    engine::lock::{Asked, GrantedSeveral, Place},
    problem::{Document, Problem},
};

/// How many keys one call may ask for: each is a commit of its own.
const MOST: usize = 32;

/// One key that is asked for.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Wanted {
    /// Name of the Lock.
    lock: String,
    /// Any UTF-8 up to 512 bytes; `-` when left out.
    #[serde(default = "unkeyed")]
    #[schema(value_type = Option<String>)]
    key: UserKey,
    /// As for a single key.
    mode: Option<Mode>,
    /// As for a single key.
    permits: Option<u32>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct SeveralBody {
    /// 1 to 32, none twice.
    #[schema(value_type = Vec<Wanted>)]
    locks: Vec<Fields<Wanted>>,
    /// How long to wait for all of them together, at most the shortest `maxWait`; it ends 250 ms earlier.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "5s")]
    wait: GoDuration,
    /// As for a single key; default: each Lock's own.
    #[schema(value_type = Option<String>, example = "15s")]
    ttl: Option<GoDuration>,
    /// As for a single key.
    #[serde(default)]
    owner: String,
    /// As for a single key: whoever follows the events of one of the keys follows all of them.
    #[serde(default)]
    renew: bool,
    /// As for a single key.
    #[schema(value_type = Option<String>, example = "10m")]
    max_hold: Option<GoDuration>,
}

/// A grant of several keys.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct AcquiredSeveral {
    /// Proof of the grant: opaque, shown once.
    token: String,
    /// The keys with their fences, in the order in which they were asked for.
    locks: Vec<HeldKey>,
    /// For how long it is safe to rely on all of them.
    expires_in_ms: u64,
    /// How long the call waited.
    waited_ms: u64,
}

impl From<GrantedSeveral> for AcquiredSeveral {
    fn from(granted: GrantedSeveral) -> Self {
        Self {
            token: shown(granted.token),
            locks: granted.keys.iter().map(HeldKey::from).collect(),
            expires_in_ms: granted.expires_in,
            waited_ms: granted.waited,
        }
    }
}

impl SeveralBody {
    /// What is asked for, under the settings of each lock as `definition` finds them.
    pub(super) fn asked(
        self,
        definition: impl Fn(&str) -> Result<Defined<Settings>, Problem>,
    ) -> Result<Vec<Asked>, Problem> {
        if !(1..=MOST).contains(&self.locks.len()) {
            return Err(Problem::invalid(format!("locks: write 1 to {MOST}")));
        }
        let mut places = BTreeSet::new();
        let params = AcquireParams { wait: self.wait };
        let each = self.locks.into_iter().map(|Fields(Wanted { lock, key, mode, permits })| {
            let place = Place { lock: lock.as_str().into(), key: key.0.as_str().into() };
            if !places.insert(place.clone()) {
                return Err(Problem::invalid(format!("locks: {lock:?} with key {:?} is there twice", key.0)));
            }
            let defined = definition(&lock)?;
            let (ttl, max_hold, owner) = (self.ttl, self.max_hold, self.owner.clone());
            let body = AcquireBody { ttl, mode, permits, owner, renew: self.renew, max_hold };
            let terms = body.terms(&params, &defined.settings)?;
            Ok(Asked { place, defined, terms })
        });
        each.collect()
    }
}

/// Takes several keys, all or none, by one token. Whoever asks in whatever order, no two callers wait for each other.
/// The token is one grant: renewed, released or followed at any of its keys, all are; when one is lost, all are.
#[utoipa::path(
    post,
    path = "/v1/locks:acquire",
    tag = "locks",
    params(("Idempotency-Key" = Option<String>, Header, description = idempotency::PROMISE)),
    request_body = SeveralBody,
    responses(
        (status = 200, body = AcquiredSeveral),
        (status = 404, body = Document, description = "no-such-lock"),
        (status = 409, body = Document, description = "lock-held, lock-wait-timeout; lock and key say which, and none is held"),
        (status = 410, body = Document, description = "lock-lost: while the others were waited for"),
        (status = 429, body = Document, description = "lock-queue-full"),
        (status = 501, body = Document, description = "mode-not-supported"),
        (status = 503, body = Document, description = "outcome says whether any may have been taken; if so it is freed again")
    )
)]
pub(super) async fn acquire_several(
    State(context): State<Context>,
    Json(body): Json<SeveralBody>,
) -> Answer<AcquiredSeveral> {
    let asked = body.asked(|lock| context.definitions.lock(lock))?;
    refuse_without_space(&context)?;
    let granted = context.locks.acquire_several(&asked).await.map_err(|(place, rejected)| {
        refusal(rejected).with("lock", place.lock.to_string()).with("key", place.key.to_string())
    })?;
    Ok(axum::Json(granted.into()))
}

/// Lets go of whatever a token holds, one key or several. May be repeated.
#[utoipa::path(
    post,
    path = "/v1/locks:release",
    tag = "locks",
    params(("Lock-Token" = String, Header, description = "What acquire answered")),
    responses(
        (status = 204),
        (status = 410, body = Document, description = "lock-lost: it was over before"),
        (status = 412, body = Document, description = "lock-token-mismatch"),
        (status = 503, body = Document, description = "etcd does not answer; it is let go as soon as it does")
    )
)]
pub(super) async fn release_several(
    State(context): State<Context>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    let token = token(&headers)?.ok_or_else(|| not_released(concordat_protocol::lock::Rejected::Mismatch))?;
    context.locks.release_all(token).await.map_err(not_released)?;
    Ok(StatusCode::NO_CONTENT)
}
