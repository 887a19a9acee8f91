//! The key by which the outcome of a batch can be found out.

use concordat_protocol::{
    Key, Range,
    etcd::{Compare, Op, Relation, Target, Txn},
};

/// A flusher's marker: a key under the session's lease that every batch of the flusher changes, and compares.
#[derive(Clone, Debug)]
pub struct Marker<V> {
    /// The marker.
    pub key: Key,
    /// What is put beside it when a batch is made void.
    pub void: Key,
    /// The record of both.
    pub value: V,
    /// The session's lease.
    pub lease: i64,
    /// Revision of the marker's last known change.
    pub revision: i64,
}

impl<V: Clone> Marker<V> {
    /// Makes a transaction the batch after which the marker has changed.
    pub(super) fn mark(&self, txn: &mut Txn<Key, Range, V>) {
        txn.compares.push(self.unchanged());
        txn.then.push(self.put(&self.key));
        txn.or_else.push(Op::Get(Range::One(self.key.clone())));
    }

    /// The transaction after which no batch that is on its way can land any more. It tells itself from a batch by
    /// what it puts beside the marker.
    pub(super) fn void(&self) -> Txn<Key, Range, V> {
        Txn {
            compares: vec![self.unchanged()],
            then: vec![self.put(&self.key), self.put(&self.void)],
            or_else: vec![Op::Get(Range::One(self.key.clone())), Op::Get(Range::One(self.void.clone()))],
        }
    }

    fn unchanged(&self) -> Compare<Key> {
        Compare {
            key: self.key.clone(),
            target: Target::ModRevision,
            relation: Relation::Equal,
            value: self.revision,
        }
    }

    fn put(&self, key: &Key) -> Op<Key, Range, V> {
        Op::Put { key: key.clone(), value: self.value.clone(), lease: self.lease }
    }
}
