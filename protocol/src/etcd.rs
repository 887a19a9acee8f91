//! etcd's semantics as a value: requests, and a model that runs them.
//!
//! The model is what plans run on in model checking. It is held to the real etcd by a differential test: the same
//! random requests to both, the same answers and revisions (etcd API v3, "KV API guarantees"; `server/etcdserver/txn`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    hash::Hash,
};

/// What a compare looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// Revision at which the key came to be; 0 when absent.
    CreateRevision,
    /// Revision of the last change; 0 when absent.
    ModRevision,
    /// Number of changes since it came to be; 0 when absent.
    Version,
}

/// How the target must relate to the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Relation {
    /// Target = value.
    Equal,
    /// Target ≠ value.
    NotEqual,
    /// Target > value.
    Greater,
    /// Target < value.
    Less,
}

/// One condition of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Compare<K> {
    /// The key it looks at.
    pub key: K,
    /// What of the key.
    pub target: Target,
    /// How.
    pub relation: Relation,
    /// With what.
    pub value: i64,
}

impl<K> Compare<K> {
    /// Whether it holds of what is under its key.
    pub fn holds<V>(&self, item: Option<&Item<V>>) -> bool {
        let actual = match self.target {
            Target::CreateRevision => item.map_or(0, |item| item.create_revision),
            Target::ModRevision => item.map_or(0, |item| item.mod_revision),
            Target::Version => item.map_or(0, |item| item.version),
        };
        match self.relation {
            Relation::Equal => actual == self.value,
            Relation::NotEqual => actual != self.value,
            Relation::Greater => actual > self.value,
            Relation::Less => actual < self.value,
        }
    }
}

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Op<K, R, V> {
    /// Puts a value; under a lease unless `lease` is 0.
    Put {
        /// Key.
        key: K,
        /// Value.
        value: V,
        /// Lease id, 0 for none.
        lease: i64,
    },
    /// Deletes a range.
    Delete(R),
    /// Reads a range.
    Get(R),
    /// A transaction inside.
    Txn(Txn<K, R, V>),
}

/// Compares, and what is done when all hold or not.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Txn<K, R, V> {
    /// Conditions, all of which must hold.
    pub compares: Vec<Compare<K>>,
    /// Done when they hold.
    pub then: Vec<Op<K, R, V>>,
    /// Done when one does not.
    pub or_else: Vec<Op<K, R, V>>,
}

impl<K, R, V> Default for Txn<K, R, V> {
    fn default() -> Self {
        Self { compares: Vec::new(), then: Vec::new(), or_else: Vec::new() }
    }
}

impl<K, R, V> Txn<K, R, V> {
    /// Whether it puts anything, in whichever branch: etcd takes it for what needs space.
    pub fn puts(&self) -> bool {
        self.then.iter().chain(&self.or_else).any(|op| match op {
            Op::Put { .. } => true,
            Op::Txn(inside) => inside.puts(),
            Op::Delete(_) | Op::Get(_) => false,
        })
    }
}

/// A set of keys.
pub trait Scope<K> {
    /// Whether the key is in it.
    fn contains(&self, key: &K) -> bool;
}

impl Scope<crate::Key> for crate::Range {
    fn contains(&self, key: &crate::Key) -> bool {
        self.contains(key)
    }
}

/// A key's value and revisions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Item<V> {
    /// Value.
    pub value: V,
    /// Revision at which the key came to be.
    pub create_revision: i64,
    /// Revision of its last change.
    pub mod_revision: i64,
    /// Number of changes since it came to be.
    pub version: i64,
    /// Its lease, 0 for none.
    pub lease: i64,
}

/// Answer to one operation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum OpAnswer<K, V> {
    /// The put was made.
    Put,
    /// How many keys were deleted.
    Deleted(i64),
    /// What was read, in key order.
    Got(Vec<(K, Item<V>)>),
    /// What the transaction inside came to.
    Txn(TxnAnswer<K, V>),
}

/// Answer to a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TxnAnswer<K, V> {
    /// Whether the compares held.
    pub held: bool,
    /// Answers of the branch that was done.
    pub answers: Vec<OpAnswer<K, V>>,
}

/// Why etcd refuses a request whole, with nothing applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refused {
    /// `etcdserver: duplicate key given in txn request`.
    DuplicateKey,
    /// `etcdserver: requested lease not found`.
    LeaseNotFound,
    /// `etcdserver: mvcc: database space exceeded`.
    NoSpace,
}

/// One change that a watch reports.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Event<K, V> {
    /// Revision of the change.
    pub revision: i64,
    /// The key.
    pub key: K,
    /// What it is now; `None` when it was deleted.
    pub item: Option<Item<V>>,
}

/// A whole etcd.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Etcd<K: Ord, R, V> {
    items: BTreeMap<K, Item<V>>,
    revision: i64,
    leases: BTreeSet<i64>,
    no_space: bool,
    history: Option<Vec<Event<K, V>>>,
    scope: std::marker::PhantomData<R>,
}

impl<K, R, V> Default for Etcd<K, R, V>
where
    K: Ord + Clone + Debug + Hash,
    R: Scope<K> + Clone,
    V: Clone,
{
    fn default() -> Self {
        Self {
            items: BTreeMap::new(),
            revision: 1,
            leases: BTreeSet::new(),
            no_space: false,
            history: None,
            scope: std::marker::PhantomData,
        }
    }
}

impl<K, R, V> Etcd<K, R, V>
where
    K: Ord + Clone + Debug + Hash,
    R: Scope<K> + Clone,
    V: Clone,
{
    /// An empty etcd at revision 1, as a new one is, that keeps every event for [`Etcd::since`].
    pub fn with_history() -> Self {
        Self { history: Some(Vec::new()), ..Self::default() }
    }

    /// The revision of the last change.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// A key's item.
    pub fn get(&self, key: &K) -> Option<&Item<V>> {
        self.items.get(key)
    }

    /// The items of a range, in key order.
    pub fn range<'a>(&'a self, range: &'a R) -> impl Iterator<Item = (&'a K, &'a Item<V>)> + 'a {
        self.items.iter().filter(move |(key, _)| range.contains(key))
    }

    /// Raises or clears the NOSPACE alarm.
    pub fn set_no_space(&mut self, on: bool) {
        self.no_space = on;
    }

    /// Grants a lease under an id of the caller's.
    pub fn grant(&mut self, lease: i64) -> Result<(), Refused> {
        if self.no_space {
            return Err(Refused::NoSpace);
        }
        self.leases.insert(lease);
        Ok(())
    }

    /// Whether a lease lives.
    pub fn leased(&self, lease: i64) -> bool {
        self.leases.contains(&lease)
    }

    /// Ends a lease, by revocation or because it ran out: all its keys go in one revision.
    pub fn end_lease(&mut self, lease: i64) {
        if !self.leases.remove(&lease) {
            return;
        }
        let keys: Vec<K> =
            self.items.iter().filter(|(_, item)| item.lease == lease).map(|(key, _)| key.clone()).collect();
        if keys.is_empty() {
            return;
        }
        self.revision += 1;
        for key in keys {
            self.items.remove(&key);
            self.record(key, None);
        }
    }

    /// Every event after `revision` in a range, oldest first. Empty without history.
    pub fn since<'a>(&'a self, revision: i64, range: &'a R) -> impl Iterator<Item = &'a Event<K, V>> + 'a {
        self.history
            .iter()
            .flatten()
            .filter(move |event| event.revision > revision && range.contains(&event.key))
    }

    /// Runs a transaction: all compares first, those of the transactions inside too, then the operations in order.
    pub fn txn(&mut self, txn: &Txn<K, R, V>) -> Result<TxnAnswer<K, V>, Refused> {
        Touched::of(&txn.then)?;
        Touched::of(&txn.or_else)?;
        if self.no_space && txn.puts() {
            return Err(Refused::NoSpace);
        }
        let path = self.path(txn);
        self.check_leases(txn, &path)?;
        let revision = self.revision + 1;
        let mut changed = false;
        let answer = self.apply(txn, &path, revision, &mut changed);
        if changed {
            self.revision = revision;
        }
        Ok(answer)
    }

    fn path(&self, txn: &Txn<K, R, V>) -> Path {
        let held = txn.compares.iter().all(|compare| compare.holds(self.items.get(&compare.key)));
        let ops = if held { &txn.then } else { &txn.or_else };
        let inside = ops
            .iter()
            .map(|op| match op {
                Op::Txn(txn) => Some(self.path(txn)),
                _ => None,
            })
            .collect();
        Path { held, inside }
    }

    fn check_leases(&self, txn: &Txn<K, R, V>, path: &Path) -> Result<(), Refused> {
        for (op, inside) in txn.branch(path.held).iter().zip(&path.inside) {
            match (op, inside) {
                (Op::Put { lease, .. }, _) if *lease != 0 && !self.leases.contains(lease) => {
                    return Err(Refused::LeaseNotFound);
                }
                (Op::Txn(txn), Some(path)) => self.check_leases(txn, path)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn apply(
        &mut self,
        txn: &Txn<K, R, V>,
        path: &Path,
        revision: i64,
        changed: &mut bool,
    ) -> TxnAnswer<K, V> {
        let mut answers = Vec::new();
        for (op, inside) in txn.branch(path.held).iter().zip(&path.inside) {
            answers.push(match (op, inside) {
                (Op::Put { key, value, lease }, _) => {
                    *changed = true;
                    self.put(key, value, *lease, revision);
                    OpAnswer::Put
                }
                (Op::Delete(range), _) => {
                    let keys: Vec<K> = self.range(range).map(|(key, _)| key.clone()).collect();
                    *changed |= !keys.is_empty();
                    let count = keys.len();
                    for key in keys {
                        self.items.remove(&key);
                        self.record_at(revision, key, None);
                    }
                    OpAnswer::Deleted(count as i64)
                }
                (Op::Get(range), _) => {
                    OpAnswer::Got(self.range(range).map(|(key, item)| (key.clone(), item.clone())).collect())
                }
                (Op::Txn(txn), Some(path)) => OpAnswer::Txn(self.apply(txn, path, revision, changed)),
                (Op::Txn(_), None) => continue,
            });
        }
        TxnAnswer { held: path.held, answers }
    }

    fn put(&mut self, key: &K, value: &V, lease: i64, revision: i64) {
        let old = self.items.get(key);
        let item = Item {
            value: value.clone(),
            create_revision: old.map_or(revision, |old| old.create_revision),
            mod_revision: revision,
            version: old.map_or(1, |old| old.version + 1),
            lease,
        };
        self.items.insert(key.clone(), item.clone());
        self.record_at(revision, key.clone(), Some(item));
    }

    fn record(&mut self, key: K, item: Option<Item<V>>) {
        self.record_at(self.revision, key, item);
    }

    fn record_at(&mut self, revision: i64, key: K, item: Option<Item<V>>) {
        if let Some(history) = &mut self.history {
            history.push(Event { revision, key, item });
        }
    }
}

impl<K, R, V> Txn<K, R, V> {
    fn branch(&self, held: bool) -> &[Op<K, R, V>] {
        if held { &self.then } else { &self.or_else }
    }
}

/// Which branch each transaction takes, settled before anything is applied.
struct Path {
    held: bool,
    inside: Vec<Option<Path>>,
}

/// What a branch would write, whichever branches the transactions inside it take: etcd refuses a request in which a key
/// is put twice, or put where it is deleted (`checkIntervals` of `server/etcdserver/api/v3rpc/key.go`).
struct Touched<'a, K, R> {
    puts: BTreeSet<&'a K>,
    deletes: Vec<&'a R>,
}

impl<'a, K: Ord, R: Scope<K>> Touched<'a, K, R> {
    fn of<V>(ops: &'a [Op<K, R, V>]) -> Result<Self, Refused> {
        let deletes = ops.iter().filter_map(|op| match op {
            Op::Delete(range) => Some(range),
            _ => None,
        });
        let mut all = Self { puts: BTreeSet::new(), deletes: deletes.collect() };
        // Then the transactions inside, one after the other: a put is held against the deletes of the transactions
        // before it, but a delete not against their puts. That is how etcd is.
        for op in ops {
            let Op::Txn(txn) = op else { continue };
            let (then, or_else) = (Self::of(&txn.then)?, Self::of(&txn.or_else)?);
            // The two branches never both run: neither counts against the other.
            for key in then.puts.iter().chain(&or_else.puts) {
                all.clash(key)?;
            }
            for branch in [then, or_else] {
                all.puts.extend(branch.puts);
                all.deletes.extend(branch.deletes);
            }
        }
        for op in ops {
            if let Op::Put { key, .. } = op {
                all.clash(key)?;
                all.puts.insert(key);
            }
        }
        Ok(all)
    }

    fn clash(&self, key: &K) -> Result<(), Refused> {
        let clash = self.puts.contains(key) || self.deletes.iter().any(|range| range.contains(key));
        if clash { Err(Refused::DuplicateKey) } else { Ok(()) }
    }
}
