//! `.status.conditions`: what is said now, merged into what was said before.

use concordat_crds::conditions::{READY, reason};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::Invalid;

/// Longest message that `metav1.Condition` takes, in characters.
const MESSAGE_LIMIT: usize = 32_768;

/// Where an object stands: what its condition `Ready` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Its definition is in force.
    Accepted,
    /// Its definition is written so that sidecars answer `mode-not-supported`; the text names what it asks for.
    NotSupported(String),
    /// It was not compiled; the definition in force, if any, is the one before.
    Invalid(Invalid),
    /// etcd could not be asked, or refused; the text says what it said.
    Unavailable(String),
    /// It is being deleted; the text says what is awaited.
    Deleting(String),
}

/// One condition as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Its type, a constant of [`concordat_crds::conditions`].
    pub type_: &'static str,
    /// Whether it holds; `None` where that cannot be known.
    pub holds: Option<bool>,
    /// Why, a constant of [`concordat_crds::conditions::reason`].
    pub reason: &'static str,
    /// Why, for people.
    pub message: String,
}

impl Fact {
    /// A condition that holds, or not.
    pub fn new(type_: &'static str, holds: bool, reason: &'static str, message: impl Into<String>) -> Self {
        Self { type_, holds: Some(holds), reason, message: message.into() }
    }
}

impl Standing {
    /// Whether sidecars serve the object by its present spec.
    pub fn accepted(&self) -> bool {
        *self == Self::Accepted
    }

    /// The condition `Ready`.
    pub fn fact(&self) -> Fact {
        let (reason, message) = match self {
            Self::Accepted => (reason::ACCEPTED, "the definition is in force".to_owned()),
            Self::NotSupported(what) => (reason::MODE_NOT_SUPPORTED, format!("{what} does not work yet")),
            Self::Invalid(invalid) => (reason::INVALID, invalid.to_string()),
            Self::Unavailable(what) => (reason::STORE_UNAVAILABLE, what.clone()),
            Self::Deleting(what) => (reason::DELETING, what.clone()),
        };
        Fact::new(READY, self.accepted(), reason, message)
    }
}

/// The conditions after `facts`, sorted by type. What no fact speaks of any more is gone; a transition time is that of
/// the last change of the condition's status, as Kubernetes' API conventions have it.
pub fn merge(previous: &[Condition], facts: Vec<Fact>, generation: i64, now: Timestamp) -> Vec<Condition> {
    let mut conditions: Vec<Condition> = facts
        .into_iter()
        .map(|fact| {
            let status = match fact.holds {
                Some(true) => "True",
                Some(false) => "False",
                None => "Unknown",
            };
            let unchanged =
                previous.iter().find(|before| before.type_ == fact.type_ && before.status == status);
            Condition {
                type_: fact.type_.into(),
                status: status.into(),
                reason: fact.reason.into(),
                message: fact.message.chars().take(MESSAGE_LIMIT).collect(),
                observed_generation: Some(generation),
                last_transition_time: unchanged
                    .map_or_else(|| Time(whole_second(now)), |before| before.last_transition_time.clone()),
            }
        })
        .collect();
    conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
    conditions
}

/// The instant as `metav1.Time` keeps it, so that what is read back equals what was written.
pub(crate) fn whole_second(now: Timestamp) -> Timestamp {
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn ready_says_where_the_object_stands() {
        for (standing, holds, reason, message) in [
            (Standing::Accepted, true, "Accepted", "the definition is in force"),
            (
                Standing::NotSupported("mode Log".into()),
                false,
                "ModeNotSupported",
                "mode Log does not work yet",
            ),
            (
                Standing::Invalid(Invalid::new("spec.ttl", "must be between 2s and 24h, not 1s")),
                false,
                "Invalid",
                "spec.ttl must be between 2s and 24h, not 1s",
            ),
            (Standing::Unavailable("no etcd".into()), false, "StoreUnavailable", "no etcd"),
            (Standing::Deleting("2 holders are awaited".into()), false, "Deleting", "2 holders are awaited"),
        ] {
            assert_eq!(
                standing.fact(),
                Fact { type_: "Ready", holds: Some(holds), reason, message: message.into() }
            );
        }
    }

    #[test]
    fn the_transition_time_moves_with_the_status_alone() {
        let first = merge(&[], vec![Fact::new("Ready", true, "Accepted", "a")], 1, at(10));
        assert_eq!(first[0].last_transition_time, Time(at(10)));
        assert_eq!(first[0].observed_generation, Some(1));

        let same = merge(&first, vec![Fact::new("Ready", true, "Other", "b")], 2, at(20));
        assert_eq!(same[0].last_transition_time, Time(at(10)));
        assert_eq!(
            (same[0].reason.as_str(), same[0].message.as_str(), same[0].observed_generation),
            ("Other", "b", Some(2))
        );

        let turned = merge(&same, vec![Fact::new("Ready", false, "Other", "b")], 2, at(30));
        assert_eq!((turned[0].status.as_str(), &turned[0].last_transition_time), ("False", &Time(at(30))));
    }

    #[test]
    fn what_is_no_longer_said_is_gone_and_the_order_is_fixed() {
        let facts = |types: [&'static str; 2]| {
            types.into_iter().map(|type_| Fact::new(type_, true, "Accepted", "")).collect()
        };
        let first = merge(&[], facts(["Ready", "Draining"]), 1, at(0));
        let types: Vec<&str> = first.iter().map(|condition| condition.type_.as_str()).collect();
        assert_eq!(types, ["Draining", "Ready"]);
        assert_eq!(first, merge(&[], facts(["Draining", "Ready"]), 1, at(0)));
        let second = merge(&first, vec![Fact::new("Ready", true, "Accepted", "")], 1, at(1));
        assert_eq!(second.len(), 1);
    }

    #[test]
    fn what_is_not_known_is_said_so() {
        let fact = Fact { type_: "Committed", holds: None, reason: "Undecided", message: String::new() };
        assert_eq!(merge(&[], vec![fact], 1, at(0))[0].status, "Unknown");
    }

    #[test]
    fn times_are_those_that_the_api_server_keeps() {
        let odd = Timestamp::from_millisecond(10_750).unwrap();
        let condition = &merge(&[], vec![Fact::new("Ready", true, "Accepted", "")], 1, odd)[0];
        let back: Condition = serde_json::from_value(serde_json::to_value(condition).unwrap()).unwrap();
        assert_eq!(&back, condition);
    }

    #[test]
    fn a_message_is_never_longer_than_the_api_server_takes() {
        let long = Standing::Unavailable("é".repeat(40_000));
        let condition = &merge(&[], vec![long.fact()], 1, at(0))[0];
        assert_eq!(condition.message.chars().count(), MESSAGE_LIMIT);
    }
}
