//! What a sidecar writes for a lock.

use super::Holder;
use crate::{Answer, Entry, Key, Kind, Lease, Millis, Name, Plan, Record};

/// Who was found to hold a key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Found {
    /// Mod revision of the record: which grant it is.
    pub revision: i64,
    /// The record.
    pub holder: Holder,
}

impl Found {
    /// Reads it from an entry of [`Key::Holder`].
    pub fn read(entry: &Entry) -> Option<Self> {
        match &entry.record {
            Record::Holder(holder) => Some(Self { revision: entry.mod_revision, holder: holder.clone() }),
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

/// Takes the key if nobody holds it, the lock's definition is still the one created at `created`, and the holder's
/// session lives. It stays as long as the session's lease of this ttl does. Refused, it reads who holds it.
pub fn acquire(lock: &Name, key: &Name, created: i64, ttl: Millis, record: Holder) -> Plan {
    let session = record.session.clone();
    Plan::new()
        .absent(holder(lock, key))
        .same_life(definition(lock), created)
        .present(Key::Session(session.clone()))
        .put(holder(lock, key), record, Lease::Ttl(session, ttl))
        .otherwise(holder(lock, key))
        .otherwise(definition(lock))
}

/// Frees the grant made at `revision`, and no other. Refused, it reads who holds the key instead.
pub fn release(lock: &Name, key: &Name, revision: i64) -> Plan {
    Plan::new().unchanged(holder(lock, key), revision).delete(holder(lock, key)).otherwise(holder(lock, key))
}

/// What a refused plan found: who holds the key.
pub fn found_holder(answer: &Answer) -> Option<Found> {
    answer.reads.first()?.first().and_then(Found::read)
}

/// What a refused [`acquire`] found: create revision of the lock's definition, `None` when it is deleted.
pub fn found_definition(answer: &Answer) -> Option<i64> {
    Some(answer.reads.get(1)?.first()?.create_revision)
}
