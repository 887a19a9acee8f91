//! What callers say.

use concordat_protocol::{
    Millis,
    lock::{Settings, Share, Sharing, Token},
};
use http::HeaderMap;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::{
    api::{duration::GoDuration, extract::UserKey, header},
    engine::lock::{Place, Terms},
    problem::Problem,
};

/// A wait ends this long before the stated time, so that a client whose time-out equals it still gets the answer.
const EARLY: Millis = 250;
/// The bounds of a ttl: etcd's leases are kept in seconds, and each distinct ttl has one.
const TTL: std::ops::RangeInclusive<Millis> = 2_000..=3_600_000;
/// The longest owner in bytes.
const LONGEST_OWNER: usize = 256;

/// Which key of which lock.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct Target {
    /// Name of the Lock.
    pub(super) lock: String,
    /// Any UTF-8 up to 512 bytes, percent-encoded.
    #[serde(default = "unkeyed")]
    #[param(value_type = String)]
    key: UserKey,
}

/// The key of a lock that is asked for without one.
pub(super) fn unkeyed() -> UserKey {
    UserKey("-".to_owned())
}

impl Target {
    pub(super) fn place(&self) -> Place {
        Place { lock: self.lock.as_str().into(), key: self.key.0.as_str().into() }
    }
}

#[derive(Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct AcquireParams {
    /// How long to wait, at most the Lock's `maxWait`; it ends 250 ms earlier. Without it the answer comes at once.
    #[param(value_type = Option<String>, example = "5s")]
    pub(super) wait: GoDuration,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct VerifyParams {
    /// The fence of the grant.
    pub(super) fence: u64,
}

#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub(super) struct AcquireBody {
    /// How long the grant lasts unless it is renewed: 2s to 1h, rounded up to a second. Default: the Lock's.
    #[schema(value_type = Option<String>, example = "15s")]
    pub(super) ttl: Option<GoDuration>,
    /// `exclusive`, which is the default, or `shared`: for a Lock of kind ReadWrite.
    pub(super) mode: Option<Mode>,
    /// How many permits, 1 to all there are: more than 1 for a Lock of kind Semaphore.
    pub(super) permits: Option<u32>,
    /// What the caller calls itself, for people: up to 256 bytes.
    pub(super) owner: String,
    /// Whether the sidecar renews it: as long as the app follows its events, and up to `maxHold`. When the stream of
    /// events ends, so does the grant; before the first is opened it lasts one ttl, or `maxHold` if that is given.
    pub(super) renew: bool,
    /// How long the grant lasts however often it is renewed, at most the Lock's `maxHold`.
    #[schema(value_type = Option<String>, example = "10m")]
    pub(super) max_hold: Option<GoDuration>,
}

#[derive(Clone, Copy, Deserialize, Serialize, PartialEq, Eq, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) enum Mode {
    Exclusive,
    Shared,
}

impl AcquireBody {
    /// How much of the lock is asked for.
    fn share(&self, settings: &Settings) -> Result<Share, Problem> {
        let (kind, shared) = (settings.sharing, self.mode == Some(Mode::Shared));
        if shared && kind != Sharing::ReadWrite {
            return Err(Problem::invalid(format!(
                "mode: \"shared\" needs a Lock of kind ReadWrite, this one is a {kind:?}: leave it out or write \"exclusive\""
            )));
        }
        let permits = self.permits.unwrap_or(1);
        match kind {
            Sharing::Semaphore if (1..=settings.permits).contains(&permits) => {
                Ok(Share::permits(permits, settings.permits))
            }
            Sharing::Semaphore => Err(Problem::invalid(format!(
                "permits: write 1 to {}, which is all there are",
                settings.permits
            ))),
            _ if permits != 1 => Err(Problem::invalid(format!(
                "permits: other than 1 needs a Lock of kind Semaphore, this one is a {kind:?}: leave it out or write 1"
            ))),
            _ if shared => Ok(Share::READER),
            _ => Ok(Share::EXCLUSIVE),
        }
    }

    /// What is asked for under a lock's settings; refused when the lock cannot give it.
    pub(super) fn terms(self, params: &AcquireParams, settings: &Settings) -> Result<Terms, Problem> {
        let share = self.share(settings)?;
        if self.owner.len() > LONGEST_OWNER {
            return Err(Problem::invalid(format!("owner: write at most {LONGEST_OWNER} bytes")));
        }
        let ttl = self.ttl.map_or(settings.ttl, |ttl| ttl.0);
        // A Lock may itself say more than callers may ask of another.
        if self.ttl.is_some() && !TTL.contains(&ttl) {
            return Err(Problem::invalid("ttl: write a duration from \"2s\" to \"1h\""));
        }
        let max_hold = self.max_hold.map_or(settings.max_hold, |asked| match settings.max_hold {
            0 => asked.0,
            most => most.min(asked.0),
        });
        if self.max_hold == Some(GoDuration(0)) {
            return Err(Problem::invalid("maxHold: write more than 0, or leave it out"));
        }
        Ok(Terms {
            share,
            owner: self.owner,
            wait: params.wait.0.min(settings.max_wait).saturating_sub(EARLY),
            ttl: ttl.div_ceil(1_000) * 1_000,
            max_hold,
            renew: self.renew,
        })
    }
}

/// The token of a call; `None` when it cannot be one of ours.
pub(super) fn token(headers: &HeaderMap) -> Result<Option<Token>, Problem> {
    let text = header::required(headers, &header::LOCK_TOKEN)?;
    if text.is_empty() {
        return Err(Problem::invalid("header Lock-Token is empty"));
    }
    let ours = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    Ok(ours.then(|| u128::from_str_radix(text, 16).ok()).flatten().map(Token))
}
