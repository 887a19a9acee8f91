//! What a sidecar writes for a lock.

use super::{Holder, Shadow, Share, Waiter, Want};
use crate::{Answer, Entry, Key, Kind, Lease, Millis, Name, Plan, Range, Record, SessionId};

/// Who was found to hold a key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Found {
    /// Create revision of the record: since when its sidecar has it, and nobody else.
    pub revision: i64,
    /// Mod revision of the record: when its sidecar told last who holds it.
    pub told: i64,
    /// The record.
    pub holder: Holder,
}

impl Found {
    /// Reads it from an entry of [`Key::Holder`].
    pub fn read(entry: &Entry) -> Option<Self> {
        match &entry.record {
            Record::Holder(holder) => Some(Self {
                revision: entry.create_revision,
                told: entry.mod_revision,
                holder: holder.clone(),
            }),
            _ => None,
        }
    }
}

/// The key that tells who holds `key` of `lock`.
pub fn holder(lock: &Name, key: &Name) -> Key {
    Key::Holder { lock: lock.clone(), key: key.clone() }
}

/// The key of a lock's settings.
pub fn definition(lock: &Name) -> Key {
    Key::Definition { kind: Kind::Lock, name: lock.clone() }
}

/// What a holder of mode [`Mode::Lease`](super::Mode::Lease) leaves when it is lost.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Left {
    /// Mod revision of the record: that of the grant.
    pub revision: i64,
    /// The record.
    pub shadow: Shadow,
}

impl Left {
    /// Reads it from an entry of [`shadow`].
    pub fn read(entry: &Entry) -> Option<Self> {
        match &entry.record {
            Record::Shadow(shadow) => Some(Self { revision: entry.mod_revision, shadow: shadow.clone() }),
            _ => None,
        }
    }
}

/// The key of the one shadow that a key of a lock of mode [`Mode::Lease`](super::Mode::Lease) has.
pub fn shadow(lock: &Name, key: &Name) -> Key {
    shadow_key(lock, key, &SessionId::from(""), 0)
}

/// What mode [`Mode::Lease`](super::Mode::Lease) adds to [`acquire`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Delayed {
    /// Mod revision of the shadow whose lock-delay is over; 0: there is none.
    pub over: i64,
    /// The lock-delay after this grant, should its holder be lost, milliseconds; 0: it gets no shadow.
    pub delay: Millis,
}

/// Takes the key if nobody holds it, the lock's definition is still the one created at `created`, and the holder's
/// session lives. It stays as long as the session's lease of this ttl does. Refused, it reads who holds it.
pub fn acquire(
    lock: &Name,
    key: &Name,
    created: i64,
    ttl: Millis,
    record: Holder,
    delayed: Option<Delayed>,
) -> Plan {
    let session = record.session.clone();
    let delayed = delayed.map(|delayed| (delayed, record.clone()));
    let plan = Plan::new()
        .absent(holder(lock, key))
        .same_life(definition(lock), created)
        .present(Key::Session(session.clone()))
        .put(holder(lock, key), record, Lease::Ttl(session, ttl))
        .otherwise(holder(lock, key))
        .otherwise(definition(lock));
    let Some((Delayed { over, delay }, record)) = delayed else { return plan };
    let at = shadow(lock, key);
    let plan = plan.unchanged(at.clone(), over).otherwise(at.clone());
    match (delay, over) {
        (0, 0) => plan,
        (0, _) => plan.delete(at),
        // After the holder: one that is seen without a holder is of one that was lost.
        (delay, _) => {
            let shadow = Shadow { holder: record, share: Share::EXCLUSIVE, delay };
            plan.put(at, shadow, Lease::Forever)
        }
    }
}

/// What of a grant is freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Frees {
    /// The holder's key: there is no shadow, or it is to stay, since the holder was lost.
    Holder,
    /// Both, as mode [`Mode::Lease`](super::Mode::Lease) does after a clean release.
    Both,
    /// The shadow alone, the holder's key having gone with its lease before it could be freed.
    Shadow,
}

/// Frees what was put at `revision`, and nothing else. Refused, it reads who holds the key instead.
pub fn release(lock: &Name, key: &Name, revision: i64, frees: Frees) -> Plan {
    let (of, at) = (holder(lock, key), shadow(lock, key));
    let plan = Plan::new().otherwise(of.clone());
    match frees {
        Frees::Holder => plan.same_life(of.clone(), revision).delete(of),
        // The shadow goes first: one that is seen without a holder is of one that was lost.
        Frees::Both => plan.same_life(of.clone(), revision).delete(at.clone()).delete(of).otherwise(at),
        Frees::Shadow => plan.unchanged(at.clone(), revision).delete(at.clone()).otherwise(at),
    }
}

/// The key by which `session` says that it wants what `holder` has.
pub fn want_key(lock: &Name, key: &Name, holder: &SessionId, session: &SessionId) -> Key {
    Key::Want { holder: holder.clone(), lock: lock.clone(), key: key.clone(), session: session.clone() }
}

/// Says to the sidecar of whoever was found that `session` wants the key, so long as that one has it. Refused, it reads
/// who holds the key instead.
pub fn want(lock: &Name, key: &Name, found: &Found, session: &SessionId) -> Plan {
    let at = want_key(lock, key, &found.holder.session, session);
    let want = Want { life: found.revision };
    let of = holder(lock, key);
    let lease = Lease::Session(session.clone());
    Plan::new().same_life(of.clone(), found.revision).put(at, want, lease).otherwise(of)
}

/// Tells who holds what was put at `revision`: to people, and to whoever wants it. Refused, it reads who holds the key
/// instead.
pub fn tell(lock: &Name, key: &Name, revision: i64, ttl: Millis, record: Holder) -> Plan {
    let (of, session) = (holder(lock, key), record.session.clone());
    Plan::new()
        .same_life(of.clone(), revision)
        .put(of.clone(), record, Lease::Ttl(session.clone(), ttl))
        .delete(Range::WantsOf(session, lock.clone(), key.clone()))
        .otherwise(of)
}

/// What a refused plan found: who holds the key.
pub fn found_holder(answer: &Answer) -> Option<Found> {
    answer.reads.first()?.first().and_then(Found::read)
}

/// What a refused plan found of a shadow.
pub fn found_shadow(answer: &Answer) -> Option<Left> {
    answer.reads.iter().flatten().find_map(Left::read)
}

/// What a refused [`acquire`] found: create revision of the lock's definition, `None` when it is deleted.
pub fn found_definition(answer: &Answer) -> Option<i64> {
    Some(answer.reads.get(1)?.first()?.create_revision)
}

/// Somebody who comes to stand in the line of a fair lock.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Come {
    /// The sidecar's counter.
    pub number: u64,
    /// Its key stays as long as the session's lease of this ttl does, milliseconds.
    pub ttl: Millis,
    /// The Lock's `lockDelay`, milliseconds: unless it is 0 a shadow is put too.
    pub delay: Millis,
    /// The record.
    pub waiter: Waiter,
}

/// Puts those who come into the line of a key, in their order, if the lock's definition is still the one created at
/// `created` and their session lives. Done, it reads all there is of the key if asked to; refused, the definition.
pub fn join(
    lock: &Name,
    key: &Name,
    session: &SessionId,
    created: i64,
    come: Vec<Come>,
    reads: bool,
) -> Plan {
    let mut plan = Plan::new()
        .same_life(definition(lock), created)
        .present(Key::Session(session.clone()))
        .otherwise(definition(lock));
    for Come { number, ttl, delay, waiter } in come {
        let shadow = Shadow { holder: waiter.holder.clone(), share: waiter.share, delay };
        plan = plan.put(waiter_key(lock, key, session, number), waiter, Lease::Ttl(session.clone(), ttl));
        if delay > 0 {
            plan = plan.put(shadow_key(lock, key, session, number), shadow, Lease::Forever);
        }
    }
    if reads { plan.read(Range::LockKey(lock.clone(), key.clone())) } else { plan }
}

/// Takes those who leave out of the line of a key: sessions, their counters, and whether they were lost, so that their
/// shadow stays. A shadow goes first: one that is seen without its key is of somebody who was lost. No compares: these
/// keys are never used again.
pub fn leave(lock: &Name, key: &Name, leaving: impl IntoIterator<Item = (SessionId, u64, bool)>) -> Plan {
    leaving.into_iter().fold(Plan::new(), |plan, (session, number, lost)| {
        let plan = if lost { plan } else { plan.delete(shadow_key(lock, key, &session, number)) };
        plan.delete(waiter_key(lock, key, &session, number))
    })
}

/// What a refused [`join`] found: create revision of the lock's definition, `None` when it is deleted.
pub fn joined_definition(answer: &Answer) -> Option<i64> {
    Some(answer.reads.first()?.first()?.create_revision)
}

pub(super) fn waiter_key(lock: &Name, key: &Name, session: &SessionId, number: u64) -> Key {
    Key::Waiter { lock: lock.clone(), key: key.clone(), session: session.clone(), number }
}

pub(super) fn shadow_key(lock: &Name, key: &Name, session: &SessionId, number: u64) -> Key {
    Key::Shadow { lock: lock.clone(), key: key.clone(), session: session.clone(), number }
}
