//! What callers are told.

use concordat_protocol::lock::{Fence, Rejected, Rival, Token};
use http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    engine::lock::{Granted, Inspection},
    problem::{Outcome, Problem},
};

/// A grant.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Acquired {
    /// Proof of the grant, for renewing and releasing: opaque, shown once.
    token: String,
    /// Below 2^53 and strictly rising a key: what the resource keeps beside its data.
    fence: u64,
    /// For how long it is safe to rely on: counted from when the sidecar sent its last successful renewal.
    expires_in_ms: u64,
    /// How long the call waited.
    waited_ms: u64,
}

impl From<Granted> for Acquired {
    fn from(granted: Granted) -> Self {
        Self {
            token: shown(granted.token),
            fence: granted.fence.get(),
            expires_in_ms: granted.expires_in,
            waited_ms: granted.waited,
        }
    }
}

/// A token as callers know it.
pub(super) fn shown(token: Token) -> String {
    format!("{:032x}", token.0)
}

/// A renewed grant.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Renewed {
    /// For how long it is safe to rely on.
    pub(super) expires_in_ms: u64,
}

/// A fence that is still the holder's.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Verified {
    /// The fence that was asked about.
    pub(super) fence: u64,
}

/// What there is to know of a key.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Inspected {
    /// Who holds it.
    holders: Vec<Holding>,
    /// How many wait for it: over all sidecars in mode FairQueue, else of this sidecar's callers.
    waiters: usize,
    /// The fence of the grant; none when nobody holds it, or several do.
    fence: Option<u64>,
    /// When that grant ends unless it is renewed: told by the holder's own sidecar only.
    expires_in_ms: Option<u64>,
}

/// One holder.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Holding {
    /// What it calls itself.
    owner: String,
    /// Its pod.
    pod: String,
    /// Its fence.
    fence: Option<u64>,
    /// Since when, RFC 3339; in mode FairQueue since when it stands in the line.
    since: String,
}

impl From<Inspection> for Inspected {
    fn from(Inspection { holders, waiters, .. }: Inspection) -> Self {
        let (fence, expires_in_ms) = match holders.as_slice() {
            [only] => (only.fence.map(Fence::get), only.expires_in),
            _ => (None, None),
        };
        let holders = holders.into_iter().map(|held| Holding {
            since: instant(held.holder.since),
            owner: held.holder.owner,
            pod: held.holder.pod,
            fence: held.fence.map(Fence::get),
        });
        Self { holders: holders.collect(), waiters, fence, expires_in_ms }
    }
}

fn instant(unix: u64) -> String {
    jiff::Timestamp::from_millisecond(unix as i64).map_or_else(|_| String::new(), |at| at.to_string())
}

/// Why a call did not get what it wanted.
pub(super) fn refusal(rejected: Rejected) -> Problem {
    let lost = |why| Problem::new(StatusCode::GONE, "lock-lost", "The lock was lost").detail(why);
    match rejected {
        Rejected::Held(rival) => {
            let problem = Problem::new(StatusCode::CONFLICT, "lock-held", "Another holds the lock");
            held(problem.detail("ask again later, or with ?wait="), Some(*rival))
        }
        Rejected::TimedOut(rival) => {
            let problem = Problem::new(StatusCode::CONFLICT, "lock-wait-timeout", "The wait is over");
            held(problem.detail("the lock did not come free within the wait"), rival.map(|rival| *rival))
        }
        Rejected::Full => {
            Problem::new(StatusCode::TOO_MANY_REQUESTS, "lock-queue-full", "Too many wait for the lock")
                .detail("as many callers wait as the Lock's maxWaiters allows")
        }
        Rejected::Deleted => Problem::new(StatusCode::NOT_FOUND, "no-such-lock", "There is no such object")
            .detail("the Lock was deleted while the call waited"),
        Rejected::Replaced => lost("the Lock was deleted and made anew while the call waited: ask again"),
        Rejected::Lost => {
            lost("it was not renewed in time, or the sidecar lost its session in etcd: acquire anew")
        }
        Rejected::Mismatch => Problem::new(
            StatusCode::PRECONDITION_FAILED,
            "lock-token-mismatch",
            "The token does not hold the lock",
        )
        .detail("use the token that acquire answered, and only until it is released"),
        Rejected::Unavailable { unknown: false } => {
            Problem::unavailable("not-committed", "etcd does not answer, or the sidecar is about to end")
        }
        Rejected::Unavailable { unknown: true } => Problem::unavailable(
            "outcome-unknown",
            "etcd did not answer in time: if the lock was taken for this call, it is freed again",
        )
        .outcome(Outcome::Unknown),
        Rejected::NothingUnderWay => Problem::internal(),
    }
}

fn held(problem: Problem, rival: Option<Rival>) -> Problem {
    let Some(Rival { holder, expires_in }) = rival else { return problem.retry_after(1) };
    problem
        .with("owner", holder.owner)
        .with("pod", holder.pod)
        .with("since", instant(holder.since))
        .retry_after(expires_in.map_or(1, |expires_in| expires_in.div_ceil(1_000)))
}
