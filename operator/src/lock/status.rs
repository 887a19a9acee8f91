//! What is seen of a `Lock` becomes its status.

use std::collections::BTreeMap;

use concordat_crds::{
    Lock, LockStatus,
    conditions::{CONTENDED, reason},
    lock::LockHolder,
};
use concordat_protocol::{
    Answer, Entry, Key, Kind, Millis, Name, Range, Record,
    lock::{Fence, Holder, fair::line::Line},
    session::counter,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::{
    age,
    conditions::{Fact, Standing, merge, whole_second},
    metrics::Measure,
};

/// How many holders a status shows.
const SHOWN: usize = 10;

/// What is remembered of a Lock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Who holds which key, in key order, and what may only stay with a sidecar ([`Holder::stays`]).
    pub holders: Vec<Held>,
    /// Callers that wait, over all sidecars.
    pub waiters: u64,
    /// Since when the longest of them waits, milliseconds since the Unix epoch.
    pub waiting_since: Option<Millis>,
    /// What revisions are raised by before a fence is made of them.
    pub offset: i64,
}

/// A held key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The record that says so.
    pub at: Key,
    /// The key.
    pub key: String,
    /// Its holder.
    pub holder: Holder,
    /// The fence of this grant, as far as it is told.
    pub fence: u64,
    /// Mod revision of the record.
    pub revision: i64,
}

impl State {
    /// What to read of the Lock of this name, for [`State::of`].
    pub fn ranges(name: &Name) -> Vec<Range> {
        vec![Key::Timeline.into(), Range::Lock(name.clone()), Range::Stats(Kind::Lock, name.clone())]
    }

    /// From an answer to [`State::ranges`].
    pub fn of(answer: &Answer) -> Self {
        let offset = answer.reads.iter().flatten().find_map(offset).unwrap_or_default();
        let mut state = Self { offset, ..Self::default() };
        let mut lines: BTreeMap<(&Name, &Name), Vec<Entry>> = BTreeMap::new();
        for entry in answer.reads.iter().flatten() {
            match (&entry.key, &entry.record) {
                (Key::Holder { key, .. }, Record::Holder(holder)) => state.holders.push(Held {
                    at: entry.key.clone(),
                    key: key.to_string(),
                    holder: holder.clone(),
                    fence: Fence::new(entry.create_revision, state.offset, u64::from(holder.regrants))
                        .map_or(0, Fence::get),
                    revision: entry.mod_revision,
                }),
                (Key::Waiter { lock, key, .. } | Key::Shadow { lock, key, .. }, _) => {
                    lines.entry((lock, key)).or_default().push(entry.clone());
                }
                (_, Record::Stat(stat)) => {
                    state.waiters += stat.get(counter::WAITERS);
                    let since = Some(stat.get(counter::WAITING_SINCE)).filter(|since| *since != 0);
                    state.waiting_since = state.waiting_since.into_iter().chain(since).min();
                }
                _ => {}
            }
        }
        for ((lock, key), entries) in lines {
            let line = Line::of(answer.revision, &entries);
            state.holders.extend(line.living_holders().map(|(spot, standing)| Held {
                at: Key::Waiter {
                    lock: lock.clone(),
                    key: key.clone(),
                    session: spot.who.0.clone(),
                    number: spot.who.1,
                },
                key: key.to_string(),
                holder: standing.holder.clone(),
                fence: standing.fence(spot, state.offset).map_or(0, Fence::get),
                revision: spot.revision,
            }));
        }
        state
    }

    /// What metrics tell of the lock.
    pub fn measures(&self) -> Vec<Measure> {
        let waiting_since = self.waiting_since.filter(|_| self.waiters > 0);
        vec![
            Measure::count("lock_held", "Keys that are known to be held", self.held().count() as u64),
            Measure::count("lock_waiters", "Callers that wait, over all sidecars", self.waiters),
            Measure::since("lock_oldest_wait", "For how long the first of them waits", waiting_since),
        ]
    }

    /// What is known to be held. What may only stay with a sidecar is told of once it is: within seconds, if it lasts.
    fn held(&self) -> impl Iterator<Item = &Held> {
        self.holders.iter().filter(|held| !held.holder.stays)
    }
}

fn offset(entry: &Entry) -> Option<i64> {
    match &entry.record {
        Record::Timeline(timeline) => Some(timeline.offset),
        _ => None,
    }
}

/// The status after `object.status`, given where the object stands and what was read (`None`: nothing could be).
pub fn status(object: &Lock, standing: &Standing, state: Option<&State>, now: Timestamp) -> LockStatus {
    let previous = object.status.clone().unwrap_or_default();
    let generation = object.metadata.generation.unwrap_or_default();
    let mut status = state.map_or_else(|| previous.clone(), |state| counts(state, now));
    let contended = if status.waiters > 0 {
        Fact::new(CONTENDED, true, reason::WAITERS, "callers wait for a key that is held")
    } else {
        Fact::new(CONTENDED, false, reason::NO_WAITERS, "nobody waits")
    };
    status.observed_generation = Some(generation);
    status.conditions = merge(&previous.conditions, vec![standing.fact(), contended], generation, now);
    status
}

fn counts(state: &State, now: Timestamp) -> LockStatus {
    let mut longest: Vec<&Held> = state.held().collect();
    longest.sort_by_key(|held| (held.holder.since, &held.key));
    let now = now.as_millisecond() as Millis;
    LockStatus {
        held: longest.len() as u64,
        waiters: state.waiters,
        oldest_wait: state
            .waiting_since
            .filter(|_| state.waiters > 0)
            .map(|since| age::shown(now.saturating_sub(since))),
        holders: longest.into_iter().take(SHOWN).map(shown).collect(),
        ..LockStatus::default()
    }
}

fn shown(held: &Held) -> LockHolder {
    LockHolder {
        key: held.key.clone(),
        pod: held.holder.pod.clone(),
        owner: held.holder.owner.clone(),
        fence: held.fence,
        since: Time(whole_second(Timestamp::from_millisecond(held.holder.since as i64).unwrap_or_default())),
    }
}

#[cfg(test)]
mod tests {
    use concordat_crds::lock::LockSpec;
    use concordat_protocol::{
        lock::{Shadow, Share, Waiter, plans},
        session::Stat,
    };
    use serde_json::json;

    use super::*;
    use crate::metrics::Value;

    fn lock() -> Lock {
        let spec: LockSpec = serde_json::from_value(json!({ "mode": "CompareAndSwap" })).unwrap();
        let mut lock = Lock::new("orders", spec);
        lock.metadata.generation = Some(3);
        lock
    }

    fn holder(key: &str, since: Millis, mod_revision: i64) -> Entry {
        Entry {
            key: Key::Holder { lock: "orders".into(), key: key.into() },
            record: Holder {
                session: "s".into(),
                pod: format!("pod-{key}"),
                owner: format!("owner of {key}"),
                since,
                regrants: 0,
                stays: false,
            }
            .into(),
            create_revision: mod_revision,
            mod_revision,
            lease: 0,
        }
    }

    fn stat(session: &str, counters: &[(&str, u64)]) -> Entry {
        Entry {
            key: Key::Stat { kind: Kind::Lock, name: "orders".into(), session: session.into() },
            record: Stat {
                counters: counters.iter().map(|(name, value)| ((*name).into(), *value)).collect(),
            }
            .into(),
            create_revision: 1,
            mod_revision: 1,
            lease: 0,
        }
    }

    fn state(holders: Vec<Entry>, stats: Vec<Entry>) -> State {
        State::of(&Answer { held: true, revision: 9, reads: vec![holders, stats] })
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn measured(state: &State) -> Vec<Value> {
        state.measures().into_iter().map(|measure| measure.value).collect()
    }

    fn json_of(status: &LockStatus) -> serde_json::Value {
        serde_json::to_value(status).unwrap()
    }

    #[test]
    fn every_field_comes_from_what_was_read() {
        let state = state(
            vec![holder("a", 95_500, 41), holder("b", 90_000, 42)],
            vec![
                stat("s1", &[("waiters", 2), ("waitingSince", 94_000)]),
                stat("s2", &[("waiters", 1), ("waitingSince", 60_000)]),
                stat("s3", &[("granted", 8)]),
            ],
        );
        assert_eq!(measured(&state), [Value::Count(2), Value::Count(3), Value::Since(Some(60_000))]);
        let status = status(&lock(), &Standing::Accepted, Some(&state), at(100));
        assert_eq!(
            json_of(&status),
            json!({
                "observedGeneration": 3,
                "held": 2,
                "waiters": 3,
                "oldestWait": "30s",
                "holders": [
                    { "key": "b", "pod": "pod-b", "owner": "owner of b", "fence": 42 << 10, "since": "1970-01-01T00:01:30Z" },
                    { "key": "a", "pod": "pod-a", "owner": "owner of a", "fence": 41 << 10, "since": "1970-01-01T00:01:35Z" },
                ],
                "conditions": [
                    { "type": "Contended", "status": "True", "reason": "Waiters", "observedGeneration": 3,
                      "message": "callers wait for a key that is held", "lastTransitionTime": "1970-01-01T00:01:40Z" },
                    { "type": "Ready", "status": "True", "reason": "Accepted", "observedGeneration": 3,
                      "message": "the definition is in force", "lastTransitionTime": "1970-01-01T00:01:40Z" },
                ],
            })
        );
    }

    #[test]
    fn the_first_of_a_line_hold_as_many_as_fit() {
        let stands = |key: &str, number, permits, revision| {
            let (holder, share) = (held_by(&number), Share::permits(permits, 3));
            let key = Key::Waiter { lock: "orders".into(), key: key.into(), session: "s".into(), number };
            let record = Waiter { holder, share, place: 1 }.into();
            Entry { key, record, create_revision: revision, mod_revision: revision, lease: 0 }
        };
        // Of one that was lost its shadow is left, and it holds nothing any more.
        let key = Key::Shadow { lock: "orders".into(), key: "a".into(), session: "s".into(), number: 1 };
        let record = Shadow { holder: held_by(&1), share: Share::permits(1, 3), delay: 5_000 }.into();
        let lost = Entry { key, record, create_revision: 40, mod_revision: 40, lease: 0 };
        let line = vec![lost, stands("a", 2, 1, 41), stands("a", 3, 2, 42), stands("b", 4, 3, 43)];
        let state = state(line, vec![stat("s1", &[("waiters", 1), ("waitingSince", 94_000)])]);
        let held: Vec<_> = state
            .holders
            .iter()
            .map(|held| (held.key.as_str(), held.holder.owner.as_str(), held.fence))
            .collect();
        assert_eq!(held, [("a", "2", (41 << 10) + 1), ("b", "4", (43 << 10) + 1)]);
        assert_eq!(state.waiters, 1);
    }

    #[test]
    fn what_may_only_stay_with_a_sidecar_is_no_holder_and_a_local_grant_has_its_own_fence() {
        let changed = |mut entry: Entry, change: fn(&mut Holder)| {
            if let Record::Holder(holder) = &mut entry.record {
                change(holder);
            }
            entry
        };
        let stays = changed(holder("a", 95_000, 41), |holder| holder.stays = true);
        let mut granted_anew = changed(holder("b", 95_000, 42), |holder| holder.regrants = 7);
        granted_anew.mod_revision = 50;
        let state = state(vec![stays, granted_anew], vec![]);
        assert_eq!(state.holders.len(), 2, "it is wiped when both are gone");
        let status = status(&lock(), &Standing::Accepted, Some(&state), at(100));
        assert_eq!(status.held, 1);
        assert_eq!(measured(&state), [Value::Count(1), Value::Count(0), Value::Since(None)]);
        assert_eq!((status.holders[0].key.as_str(), status.holders[0].fence), ("b", (42 << 10) + 7));
    }

    #[test]
    fn a_shadow_of_mode_lease_is_no_holder() {
        let left = |key: &str, revision| {
            let at = plans::shadow(&"orders".into(), &key.into());
            let record = Shadow { holder: held_by(&1), share: Share::EXCLUSIVE, delay: 5_000 }.into();
            Entry { key: at, record, create_revision: revision, mod_revision: revision, lease: 0 }
        };
        let state = state(vec![holder("a", 95_000, 41), left("a", 41), left("b", 42)], vec![]);
        let held: Vec<_> = state.holders.iter().map(|held| (held.key.as_str(), held.fence)).collect();
        assert_eq!(held, [("a", 41 << 10)], "beside its holder, or alone");
    }

    fn held_by(number: &u64) -> Holder {
        Holder {
            session: "s".into(),
            pod: "pod".into(),
            owner: number.to_string(),
            since: 90_000,
            regrants: 0,
            stays: false,
        }
    }

    #[test]
    fn the_ten_longest_holders_are_shown_and_all_counted() {
        let holders = (0..12).map(|n| holder(&format!("k{n:02}"), 50_000 - n, 1)).collect();
        let status = status(&lock(), &Standing::Accepted, Some(&state(holders, vec![])), at(100));
        assert_eq!(status.held, 12);
        let keys: Vec<&str> = status.holders.iter().map(|holder| holder.key.as_str()).collect();
        assert_eq!(keys, ["k11", "k10", "k09", "k08", "k07", "k06", "k05", "k04", "k03", "k02"]);
        assert_eq!((status.waiters, status.oldest_wait), (0, None));
    }

    #[test]
    fn the_same_state_seen_again_is_the_same_status() {
        let state = state(vec![holder("a", 95_000, 41)], vec![]);
        let mut lock = lock();
        let first = status(&lock, &Standing::Accepted, Some(&state), at(100));
        lock.status = Some(first.clone());
        assert_eq!(status(&lock, &Standing::Accepted, Some(&state), at(500)), first);
    }

    #[test]
    fn what_cannot_be_read_stays_as_it_was_and_is_not_ready() {
        let mut lock = lock();
        let seen = state(vec![holder("a", 95_000, 41)], vec![stat("s", &[("waiters", 4)])]);
        lock.status = Some(status(&lock, &Standing::Accepted, Some(&seen), at(100)));
        let blind = status(&lock, &Standing::Unavailable("no leader".into()), None, at(200));
        assert_eq!((blind.held, blind.waiters, blind.holders.len()), (1, 4, 1));
        let conditions: Vec<(&str, &str, &str)> = blind
            .conditions
            .iter()
            .map(|condition| (condition.type_.as_str(), condition.status.as_str(), condition.reason.as_str()))
            .collect();
        assert_eq!(conditions, [("Contended", "True", "Waiters"), ("Ready", "False", "StoreUnavailable")]);
    }
}
