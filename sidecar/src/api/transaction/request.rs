//! What the routes of transactions take.

use std::{fmt::Write, time::Duration};

use concordat_protocol::{Name, TransactionId};
use http::HeaderMap;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use utoipa::{IntoParams, ToSchema};

use crate::{
    api::{duration::GoDuration, header},
    engine::transaction::{Filter, Outcome, State},
    problem::Problem,
};

/// A long poll ends so much before the stated wait.
const EARLY: Duration = Duration::from_millis(250);
/// An id has at most so many bytes.
const LONGEST_ID: usize = 128;
/// The longest `Idempotency-Key` in bytes.
const LONGEST_KEY: usize = 512;
/// Nobody waits longer.
const LONGEST_WAIT: u64 = 3_600_000;

/// A DistributedTransaction.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct Of {
    /// Name of the DistributedTransaction.
    pub(super) transaction: String,
}

/// One transaction.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct One {
    /// Name of the DistributedTransaction.
    pub(super) transaction: String,
    /// Id of the transaction.
    pub(super) id: String,
}

/// One branch of a transaction.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct OneBranch {
    /// Name of the DistributedTransaction.
    pub(super) transaction: String,
    /// Id of the transaction.
    pub(super) id: String,
    /// Name of the participant.
    pub(super) branch: String,
}

/// How long a call waits.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Wait {
    /// How long to wait for the decision; the answer comes 250 ms before.
    #[param(value_type = Option<String>, example = "30s")]
    pub(super) wait: Option<GoDuration>,
}

impl Wait {
    /// Until when, and until when at least for what has to be known to answer at all.
    pub(super) fn until(&self, least: Duration) -> Result<(Instant, Instant), Problem> {
        let wait = self.wait.unwrap_or_default().0;
        if wait > LONGEST_WAIT {
            return Err(Problem::invalid("wait: at most 1h"));
        }
        let (now, wait) = (Instant::now(), Duration::from_millis(wait).saturating_sub(EARLY));
        Ok((now + wait, now + if wait.is_zero() { least } else { wait }))
    }
}

/// Which transactions a list holds.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Page {
    /// Only those: `preparing`, `applying`, `stuck`, `finished`, `committed`, `aborted` or `undecided`.
    pub(super) state: Option<String>,
    /// At most so many, newest first.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    pub(super) limit: Option<usize>,
}

impl Page {
    pub(super) fn filter(&self) -> Result<(Filter, usize), Problem> {
        let limit = self.limit.unwrap_or(100);
        if !(1..=1_000).contains(&limit) {
            return Err(Problem::invalid("limit: from 1 to 1000"));
        }
        let of_state = |state| Filter { state: Some(state), ..Filter::default() };
        let of_outcome = |outcome| Filter { outcome: Some(outcome), ..Filter::default() };
        let filter = match self.state.as_deref() {
            None => Filter::default(),
            Some("preparing") => of_state(State::Preparing),
            Some("applying") => of_state(State::Applying),
            Some("stuck") => of_state(State::Stuck),
            Some("finished") => of_state(State::Finished),
            Some("committed") => of_outcome(Outcome::Committed),
            Some("aborted") => of_outcome(Outcome::Aborted),
            Some("undecided") => of_outcome(Outcome::Undecided),
            Some(_) => {
                return Err(Problem::invalid(
                    "state: preparing, applying, stuck, finished, committed, aborted or undecided",
                ));
            }
        };
        Ok((filter, limit))
    }
}

/// Why a branch is given up.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Skip {
    /// For those who read it later; 1 to 1024 bytes.
    #[schema(min_length = 1, max_length = 1024)]
    pub(super) reason: String,
}

impl Skip {
    pub(super) fn checked(self) -> Result<String, Problem> {
        match self.reason.len() {
            1..=1_024 => Ok(self.reason),
            _ => Err(Problem::invalid("reason: 1 to 1024 bytes")),
        }
    }
}

/// An id as it stands in a path or header.
pub(super) fn id(text: &str) -> Result<TransactionId, Problem> {
    match text.len() {
        1..=LONGEST_ID => Ok(text.into()),
        _ => Err(Problem::invalid(format!("a transaction's id has 1 to {LONGEST_ID} bytes"))),
    }
}

/// The id of a transaction that begins: the client's, or one made from its `Idempotency-Key`, or a new one.
pub(super) fn id_to_begin(name: &Name, headers: &HeaderMap) -> Result<TransactionId, Problem> {
    let given = header::text(headers, &header::TRANSACTION_ID)?;
    let key = header::text(headers, &header::IDEMPOTENCY_KEY)?;
    match (given, key) {
        (Some(_), Some(_)) => Err(Problem::invalid("give Transaction-Id or Idempotency-Key, not both")),
        (Some(given), None) => id(given),
        (None, Some(key)) if (1..=LONGEST_KEY).contains(&key.len()) => {
            let digest = Sha256::new().chain_update(name.as_str()).chain_update([0]).chain_update(key);
            Ok(format!("key-{}", hex(&digest.finalize()[..16])).into())
        }
        (None, Some(_)) => Err(Problem::invalid(format!("Idempotency-Key: 1 to {LONGEST_KEY} bytes"))),
        (None, None) => {
            let mut nonce = [0; 16];
            getrandom::fill(&mut nonce).map_err(|_| Problem::internal())?;
            Ok(hex(&nonce).into())
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn one_key_is_one_id_and_another_another() {
        let of = |name: &str, key: &str| id_to_begin(&name.into(), &headers(&[("idempotency-key", key)]));
        assert_eq!(of("a", "k").unwrap(), of("a", "k").unwrap());
        assert_ne!(of("a", "k").unwrap(), of("a", "l").unwrap());
        assert_ne!(of("a", "k").unwrap(), of("b", "k").unwrap());
        let both = headers(&[("idempotency-key", "k"), ("transaction-id", "t")]);
        assert!(id_to_begin(&"a".into(), &both).is_err());
        let none = HeaderMap::new();
        assert_ne!(id_to_begin(&"a".into(), &none).unwrap(), id_to_begin(&"a".into(), &none).unwrap());
    }

    #[test]
    fn ids_are_bounded() {
        assert!(id("").is_err());
        assert!(id(&"x".repeat(129)).is_err());
        assert!(id(&"é".repeat(64)).is_ok());
    }

    #[test]
    fn filters_are_known_or_refused() {
        let page = |state: &str, limit| Page { state: Some(state.into()), limit };
        assert!(page("stuck", None).filter().is_ok());
        assert!(page("Stuck", None).filter().is_err());
        assert!(page("stuck", Some(0)).filter().is_err());
        assert!(page("stuck", Some(1_001)).filter().is_err());
    }
}
