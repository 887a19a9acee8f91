//! Dapr's lock API (alpha1), for apps that were written for it: over HTTP and gRPC, on Dapr's own ports.
//!
//! A store is the Lock that gives its name as `spec.daprStore`, a resource is a key. Dapr's calls carry no token: whoever
//! knows the owner's name lets go. So the sidecar keeps the token of each grant it made by this API, and only it can let
//! go of that grant.

mod grants;
pub mod grpc;
pub mod http;
mod refusal;

use std::{panic::AssertUnwindSafe, sync::Arc};

use ::http::{HeaderMap, StatusCode};
use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use concordat_protocol::{
    Millis, Name,
    lock::{Fence, Rejected, Settings, Share},
};
use futures::FutureExt;
use tokio::time::Instant;
use tonic::Code;

use self::grants::Grants;
pub use self::refusal::Refusal;
use crate::{
    api::{guard::Token, trace},
    context::Context,
    definitions::Defined,
    engine::lock::{Place, Terms},
    problem::Problem,
};

/// The header, and the entry of gRPC metadata, that tells the fence of a grant.
pub const FENCE: &str = "concordat-fence";
/// The header, and the entry of gRPC metadata, that shows the token.
const TOKEN: &str = "dapr-api-token";
/// The bounds of a lease's time to live, as on the localhost API.
const TTL: std::ops::RangeInclusive<Millis> = 2_000..=3_600_000;
/// The longest resource id and owner in bytes, as on the localhost API.
const LONGEST_RESOURCE: usize = 512;
const LONGEST_OWNER: usize = 256;
/// The type of component that a store is.
const COMPONENT: &str = "lock.concordat";
/// What Dapr joins the parts of a key with.
const SEPARATOR: &str = "||";

/// Serves Dapr's lock API. Cheap to clone.
#[derive(Clone)]
pub struct Dapr {
    context: Context,
    token: Option<Token>,
    grants: Arc<Grants>,
}

/// Who means what.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Dapr's name of the Lock.
    pub store: &'a str,
    /// The key.
    pub resource: &'a str,
    /// What the caller calls itself: all it needs to know to let go.
    pub owner: &'a str,
}

/// What became of an unlock, as Dapr numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unlocked {
    /// It was let go.
    Success = 0,
    /// Nobody holds it.
    NoSuchLock = 1,
    /// Another holds it, or the same owner by another sidecar or the localhost API.
    OfOthers = 2,
}

impl Dapr {
    /// On the parts of a running sidecar; callers must show `token` where there is one.
    pub fn new(context: &Context, token: Option<Token>) -> Self {
        Self { context: context.clone(), token, grants: Arc::default() }
    }

    /// Takes a resource for `expiry` seconds unless it is held, by the same owner too: `None` then.
    ///
    /// # Errors
    /// [`Refusal`]: nothing was taken, or it is freed again.
    pub async fn try_lock(&self, subject: Subject<'_>, expiry: i32) -> Result<Option<Fence>, Refusal> {
        if expiry <= 0 {
            return Err(Refusal::malformed("expiryInSeconds is not positive"));
        }
        let expiry = Millis::from(expiry.unsigned_abs()) * 1_000;
        let (place, defined) = self.find(subject, Refusal::try_lock)?;
        let max_hold = defined.settings.max_hold;
        if max_hold != 0 && expiry > max_hold {
            let why = format!("expiryInSeconds is more than the maxHold of the Lock, {max_hold} ms");
            return Err(Refusal::malformed(why));
        }
        if !self.context.store.intake_open() {
            return Err(Refusal::try_lock("etcd's space is nearly used up"));
        }
        match self.context.locks.acquire(place.clone(), &defined, terms(subject.owner, expiry)).await {
            Ok(granted) => {
                let now = self.context.store.clock().now().monotonic;
                self.grants.keep(place, subject.owner, granted.token, now, now.saturating_add(expiry));
                Ok(Some(granted.fence))
            }
            Err(Rejected::Held(_) | Rejected::TimedOut(_) | Rejected::Full) => Ok(None),
            Err(rejected) => Err(Refusal::try_lock(rejected)),
        }
    }

    /// Lets go of what this sidecar granted this owner.
    ///
    /// # Errors
    /// [`Refusal`]: when etcd does not answer, it is let go as soon as it does.
    pub async fn unlock(&self, subject: Subject<'_>) -> Result<Unlocked, Refusal> {
        let (place, defined) = self.find(subject, Refusal::unlock)?;
        if let Some(token) = self.grants.token(&place, subject.owner) {
            let released = self.context.locks.release(place.clone(), token).await;
            match &released {
                Ok(()) | Err(Rejected::Lost | Rejected::Mismatch) => self.grants.forget(&place, token),
                Err(_) => {}
            }
            match released {
                Ok(()) => return Ok(Unlocked::Success),
                // It was over before: another may have it by now.
                Err(Rejected::Lost | Rejected::Mismatch) => {}
                Err(rejected) => return Err(Refusal::unlock(rejected)),
            }
        }
        let inspection = self.context.locks.inspect(&place, defined.settings.mode).await;
        let holders = inspection.map_err(Refusal::unlock)?.holders;
        Ok(if holders.is_empty() { Unlocked::NoSuchLock } else { Unlocked::OfOthers })
    }

    /// The stores there are.
    fn stores(&self) -> impl Iterator<Item = Name> {
        self.context.definitions.dapr_stores().into_iter()
    }

    /// Which key of which Lock is meant. `failed` is the refusal of this call for reasons of the sidecar's own.
    fn find(
        &self,
        Subject { store, resource, owner }: Subject<'_>,
        failed: impl Fn(String) -> Refusal,
    ) -> Result<(Place, Defined<Settings>), Refusal> {
        let found =
            self.context.definitions.lock_of_store(store).map_err(|problem| failed(problem.detail))?;
        if found.is_none() && self.stores().next().is_none() {
            return Err(Refusal {
                status: StatusCode::INTERNAL_SERVER_ERROR,
                grpc: Code::FailedPrecondition,
                code: "ERR_LOCK_STORE_NOT_CONFIGURED",
                message: "lock store is not configured: no Lock of this namespace has a daprStore".to_owned(),
            });
        }
        within("resourceId", resource, LONGEST_RESOURCE)?;
        within("lockOwner", owner, LONGEST_OWNER)?;
        let Some((lock, defined)) = found else {
            return Err(Refusal {
                status: StatusCode::BAD_REQUEST,
                grpc: Code::InvalidArgument,
                code: "ERR_LOCK_STORE_NOT_FOUND",
                message: format!(
                    "lock store {store} not found: no Lock of this namespace has it as daprStore"
                ),
            });
        };
        if resource.contains(SEPARATOR) {
            return Err(failed(format!("a resourceId may not contain {SEPARATOR:?}")));
        }
        Ok((Place { lock, key: resource.into() }, defined))
    }

    /// Whether the token is shown, where there is one.
    fn admits(&self, headers: &HeaderMap) -> bool {
        let shown = headers.get(TOKEN).map(::http::HeaderValue::as_bytes);
        self.token.as_ref().is_none_or(|token| shown.is_some_and(|shown| token.admits(shown)))
    }
}

/// Counts a request and how it was answered, and answers for a handler that panicked.
async fn observe(State(dapr): State<Dapr>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = trace::name(request.method());
    let route =
        request.extensions().get::<MatchedPath>().map_or(trace::UNMATCHED, MatchedPath::as_str).into();
    let (mut traced, parent) = trace::request(request.headers(), method, &route);
    // The panic hook has told and counted it.
    let panicked = |_| Problem::internal().into_response();
    let run = AssertUnwindSafe(trace::within(parent, next.run(request)));
    let response = run.catch_unwind().await.unwrap_or_else(panicked);
    trace::answered(&mut traced, &response);
    dapr.context.metrics.answered(route, method, &response, started.elapsed());
    response
}

/// A grant for exactly `expiry` ms that outlives the sidecar's death where a lease can be that long: Dapr's apps rely on
/// what they were told, and cannot renew.
fn terms(owner: &str, expiry: Millis) -> Terms {
    let ttl = expiry.clamp(*TTL.start(), *TTL.end());
    Terms {
        owner: owner.to_owned(),
        share: Share::EXCLUSIVE,
        wait: 0,
        ttl,
        max_hold: expiry,
        renew: expiry > ttl,
    }
}

fn within(field: &str, text: &str, longest: usize) -> Result<(), Refusal> {
    match text.len() {
        0 => Err(Refusal::malformed(format!("{field} is empty"))),
        length if length > longest => {
            Err(Refusal::malformed(format!("{field} has at most {longest} bytes, this one {length}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_ends_when_its_caller_was_told_and_renews_only_what_no_lease_can_be() {
        for (expiry, ttl, renew) in [
            (1_000, 2_000, false),
            (2_000, 2_000, false),
            (60_000, 60_000, false),
            (3_600_000, 3_600_000, false),
            (3_601_000, 3_600_000, true),
            (Millis::from(i32::MAX.unsigned_abs()) * 1_000, 3_600_000, true),
        ] {
            let terms = terms("a", expiry);
            assert_eq!((terms.ttl, terms.renew, terms.max_hold), (ttl, renew, expiry), "{expiry}");
            assert_eq!((terms.wait, terms.owner.as_str()), (0, "a"));
        }
    }
}
