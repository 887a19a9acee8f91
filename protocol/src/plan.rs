//! A plan: what a machine wants remembered, all of it or nothing, if what it knows is still so.

use crate::{
    Key, Millis, Range, Record, SessionId,
    etcd::{Compare, Relation, Target},
};

/// How long what is put stays without being deleted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lease {
    /// Until it is deleted.
    Forever,
    /// As long as the session lives.
    Session(SessionId),
    /// As long as the session lives, by a lease of its own with this time to live, in milliseconds.
    Ttl(SessionId, Millis),
    /// This many milliseconds and at most a quarter more, whatever becomes of the session (whose name is only needed
    /// to find the lease that it shares among what it puts).
    Retention(SessionId, Millis),
    /// As long as a key that is there, by that key's own lease, whose id in etcd this is.
    With(Key, i64),
}

/// One change of a plan.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Write {
    /// Puts a record.
    Put(Key, Record, Lease),
    /// Deletes all there is in a range.
    Delete(Range),
}

/// Compares, and what is done when all of them hold; nothing is written when one does not. A range may be read in
/// either case.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Plan {
    /// What must hold.
    pub compares: Vec<Compare<Key>>,
    /// What is written when it holds.
    pub writes: Vec<Write>,
    /// What is read, after the writes, when it holds: [`Answer::reads`] in this order.
    pub reads: Vec<Range>,
    /// What is read when it does not hold: [`Answer::reads`] in this order.
    pub otherwise: Vec<Range>,
    /// A key written by nobody that no two plans of one commit may name: keeps apart plans that must not share a
    /// revision.
    pub alone: Option<Key>,
}

impl Plan {
    /// An empty plan, to be filled by the methods below.
    pub fn new() -> Self {
        Self::default()
    }
    /// Holds if the key is absent.
    #[must_use]
    pub fn absent(self, key: Key) -> Self {
        self.compare(key, Target::CreateRevision, Relation::Equal, 0)
    }
    /// Holds if the key is present.
    #[must_use]
    pub fn present(self, key: Key) -> Self {
        self.compare(key, Target::CreateRevision, Relation::Greater, 0)
    }
    /// Holds if the key was last changed at `revision` (0: it is absent).
    #[must_use]
    pub fn unchanged(self, key: Key, revision: i64) -> Self {
        self.compare(key, Target::ModRevision, Relation::Equal, revision)
    }
    /// Holds if the key was created at `revision` and not deleted since.
    #[must_use]
    pub fn same_life(self, key: Key, revision: i64) -> Self {
        self.compare(key, Target::CreateRevision, Relation::Equal, revision)
    }
    /// Adds any compare.
    #[must_use]
    pub fn compare(mut self, key: Key, target: Target, relation: Relation, value: i64) -> Self {
        self.compares.push(Compare { key, target, relation, value });
        self
    }
    /// Puts a record.
    #[must_use]
    pub fn put(mut self, key: Key, record: impl Into<Record>, lease: Lease) -> Self {
        self.writes.push(Write::Put(key, record.into(), lease));
        self
    }
    /// Deletes a key or a range.
    #[must_use]
    pub fn delete(mut self, range: impl Into<Range>) -> Self {
        self.writes.push(Write::Delete(range.into()));
        self
    }
    /// Reads a key or a range when the compares hold.
    #[must_use]
    pub fn read(mut self, range: impl Into<Range>) -> Self {
        self.reads.push(range.into());
        self
    }
    /// Reads a key or a range when they do not.
    #[must_use]
    pub fn otherwise(mut self, range: impl Into<Range>) -> Self {
        self.otherwise.push(range.into());
        self
    }

    /// The keys whose presence keeps this plan's leased puts from failing everybody else's in the same commit: each
    /// must be compared as present (etcd refuses a whole Txn for one dead lease).
    pub fn lease_guards(&self) -> Vec<Key> {
        let mut guards: Vec<Key> = self
            .writes
            .iter()
            .filter_map(|write| match write {
                Write::Put(_, _, lease) => lease.guard(),
                Write::Delete(_) => None,
            })
            .collect();
        guards.sort();
        guards.dedup();
        guards
    }

    /// Whether it writes by deleting alone: such a plan may go when etcd has no space, and may be sent twice.
    pub fn deletes_only(&self) -> bool {
        !self.writes.is_empty() && self.writes.iter().all(|write| matches!(write, Write::Delete(_)))
    }
}

impl Lease {
    /// The key under this lease that tells whether it lives. For [`Lease::Retention`] the store appends which of its
    /// successive leases it is.
    pub fn guard(&self) -> Option<Key> {
        match self {
            Self::Forever => None,
            Self::Session(session) => Some(Key::Session(session.clone())),
            Self::Ttl(session, ttl) => {
                Some(Key::Marker { session: session.clone(), name: format!("ttl-{ttl}").into() })
            }
            Self::Retention(session, ttl) => {
                Some(Key::Marker { session: session.clone(), name: format!("retention-{ttl}").into() })
            }
            Self::With(key, _) => Some(key.clone()),
        }
    }
}

/// A record and where it stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Its key.
    pub key: Key,
    /// The record.
    pub record: Record,
    /// Revision at which the key last came to be.
    pub create_revision: i64,
    /// Revision of its last change.
    pub mod_revision: i64,
    /// Its lease in etcd, 0 for none.
    pub lease: i64,
}

/// What a plan came to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Answer {
    /// Whether the compares held, so that the writes were made.
    pub held: bool,
    /// etcd's revision after it; when it held and wrote, the revision of its writes.
    pub revision: i64,
    /// What each of [`Plan::reads`] (or [`Plan::otherwise`]) found, in key order.
    pub reads: Vec<Vec<Entry>>,
}
