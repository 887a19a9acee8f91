//! Random requests, on few keys so that they meet.

use concordat_protocol::etcd::{Compare, Op, Relation, Scope, Target};
use rand::{Rng, RngExt as _, seq::IndexedRandom as _};

use crate::Bytes;

/// A set of keys as etcd's requests name it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Keys {
    /// One key.
    One(Bytes),
    /// From the first, inclusive, to the second, exclusive.
    Span(Bytes, Bytes),
}

impl Keys {
    /// All keys that [`random`] names.
    pub(crate) fn all() -> Self {
        Self::Span(vec![0], vec![0xff])
    }
}

impl Scope<Bytes> for Keys {
    fn contains(&self, key: &Bytes) -> bool {
        match self {
            Self::One(one) => one == key,
            Self::Span(start, end) => key >= start && key < end,
        }
    }
}

pub(crate) type Txn = concordat_protocol::etcd::Txn<Bytes, Keys, Bytes>;

/// One request.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    /// A transaction; one of a single operation and no compares goes by that operation's own call.
    Txn(Txn),
    /// A lease of this id.
    Grant(i64),
    /// Ends a lease.
    Revoke(i64),
    /// Raises or clears the NOSPACE alarm.
    NoSpace(bool),
    /// What happened after a revision.
    Watch {
        /// After which.
        after: i64,
        /// To which keys.
        keys: Keys,
    },
}

const KEYS: [&str; 14] = ["a", "aa", "a/", "a/1", "a/10", "a0", "b", "b/1", "b/2", "c", "c/1", "d", "é", "z"];
/// Leases from 1 on come and go; this one never was.
const DEAD: i64 = 1_000;
const LEASES: std::ops::RangeInclusive<i64> = 1..=4;

/// A random request to an etcd that is at `revision`.
pub(crate) fn random(random: &mut impl Rng, revision: i64) -> Request {
    match random.random_range(0..1_000) {
        0..80 => Request::Grant(random.random_range(LEASES)),
        80..130 => Request::Revoke(random.random_range(LEASES)),
        130..140 => Request::NoSpace(true),
        140..180 => Request::NoSpace(false),
        180..200 => {
            let after = random.random_range(revision.saturating_sub(50).max(0)..=revision);
            Request::Watch { after, keys: keys(random) }
        }
        200..400 => Request::Txn(Txn {
            compares: Vec::new(),
            then: vec![op(random, revision, 0)],
            or_else: Vec::new(),
        }),
        _ => Request::Txn(txn(random, revision, 3)),
    }
}

/// The transaction with each of its operations, those inside too, replaced.
pub(crate) fn map<F>(txn: Txn, change: &mut F) -> Txn
where
    F: FnMut(Op<Bytes, Keys, Bytes>) -> Op<Bytes, Keys, Bytes>,
{
    let mut branch = |ops: Vec<_>| {
        let each = |op| match op {
            Op::Txn(txn) => Op::Txn(map(txn, change)),
            op => change(op),
        };
        ops.into_iter().map(each).collect()
    };
    Txn { compares: txn.compares, then: branch(txn.then), or_else: branch(txn.or_else) }
}

fn txn(random: &mut impl Rng, revision: i64, depth: u32) -> Txn {
    let compares = (0..random.random_range(0..3)).map(|_| compare(random, revision)).collect();
    let mut branch = || (0..random.random_range(0..4)).map(|_| op(random, revision, depth)).collect();
    Txn { compares, then: branch(), or_else: branch() }
}

fn op(random: &mut impl Rng, revision: i64, depth: u32) -> Op<Bytes, Keys, Bytes> {
    match random.random_range(0..10) {
        0..4 => Op::Put {
            key: key(random),
            value: vec![random.random()],
            lease: match random.random_range(0..40) {
                0 => DEAD,
                1..12 => random.random_range(LEASES),
                _ => 0,
            },
        },
        4..6 => Op::Delete(keys(random)),
        6..8 => Op::Get(keys(random)),
        _ if depth > 0 => Op::Txn(txn(random, revision, depth - 1)),
        _ => Op::Get(keys(random)),
    }
}

fn compare(random: &mut impl Rng, revision: i64) -> Compare<Bytes> {
    let target = match random.random_range(0..3) {
        0 => Target::CreateRevision,
        1 => Target::ModRevision,
        _ => Target::Version,
    };
    let relation = match random.random_range(0..4) {
        0 => Relation::Equal,
        1 => Relation::NotEqual,
        2 => Relation::Greater,
        _ => Relation::Less,
    };
    let value = match target {
        Target::Version => random.random_range(0..4),
        _ if random.random() => 0,
        _ => random.random_range(revision.saturating_sub(20).max(0)..=revision + 1),
    };
    Compare { key: key(random), target, relation, value }
}

fn key(random: &mut impl Rng) -> Bytes {
    KEYS.choose(random).map_or_else(Vec::new, |key| (*key).into())
}

fn keys(random: &mut impl Rng) -> Keys {
    if random.random_range(0..3) > 0 {
        return Keys::One(key(random));
    }
    let (one, other) = (key(random), key(random));
    match one.cmp(&other) {
        std::cmp::Ordering::Less => Keys::Span(one, other),
        std::cmp::Ordering::Equal => Keys::One(one),
        std::cmp::Ordering::Greater => Keys::Span(other, one),
    }
}
