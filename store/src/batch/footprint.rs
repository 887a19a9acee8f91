//! Which plans may be committed together.
//!
//! etcd evaluates every compare of a transaction, nested ones too, before it applies anything: two plans guarded by
//! "g is absent", one putting g, the other h, both succeed in one batch, and two deletes of one key both report
//! success. Plans that share a batch must therefore be independent; and so must plans of two batches in flight, since
//! one whose outcome is unknown may land at any time, or be sent again.

use std::collections::HashSet;

use concordat_protocol::{Key, Plan, Range, Write};

/// What a plan looks at and what it changes, in whichever branch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Compared or read.
    pub reads: Vec<Range>,
    /// Put or deleted.
    pub writes: Vec<Range>,
    /// [`Plan::alone`].
    pub alone: Option<Key>,
}

impl Footprint {
    /// Of a plan as it stands; the guards of its leases are added by who adds them to the plan.
    pub fn of(plan: &Plan) -> Self {
        let compared = plan.compares.iter().map(|compare| Range::One(compare.key.clone()));
        let writes = plan.writes.iter().map(|write| match write {
            Write::Put(key, ..) => Range::One(key.clone()),
            Write::Delete(range) => range.clone(),
        });
        Self {
            reads: compared.chain(plan.reads.iter().chain(&plan.otherwise).cloned()).collect(),
            writes: writes.collect(),
            alone: plan.alone.clone(),
        }
    }
}

/// The rule: neither looks at or changes what the other changes. Looking at the same is fine.
pub fn independent(a: &Footprint, b: &Footprint) -> bool {
    let meet = |some: &[Range], others: &[Range]| {
        some.iter().any(|one| others.iter().any(|other| one.overlaps(other)))
    };
    !meet(&a.writes, &b.writes) && !meet(&a.writes, &b.reads) && !meet(&a.reads, &b.writes)
}

/// Keys are looked up several times a plan: SipHash would cost more than all else that is done here. Whoever could
/// choose keys that collide slows down their own sidecar.
type Keys = HashSet<Key, foldhash::fast::RandomState>;

/// The footprints of many plans at once, so that one more is held against all of them in the time of a few look-ups.
#[derive(Clone, Debug, Default)]
pub struct Occupied {
    read: Keys,
    written: Keys,
    read_ranges: Vec<Range>,
    written_ranges: Vec<Range>,
    alone: Keys,
}

impl Occupied {
    /// Adds a plan's footprint.
    pub fn add(&mut self, footprint: &Footprint) {
        for range in &footprint.reads {
            match range {
                Range::One(key) => drop(self.read.insert(key.clone())),
                range => self.read_ranges.push(range.clone()),
            }
        }
        for range in &footprint.writes {
            match range {
                Range::One(key) => drop(self.written.insert(key.clone())),
                range => self.written_ranges.push(range.clone()),
            }
        }
        self.alone.extend(footprint.alone.clone());
    }

    /// Whether the footprint is independent of every one that was added.
    pub fn independent(&self, footprint: &Footprint) -> bool {
        !footprint.reads.iter().any(|range| self.writes(range))
            && !footprint.writes.iter().any(|range| self.writes(range) || self.reads(range))
    }

    /// Whether the footprint must not share a revision with one that was added.
    pub fn shares_alone(&self, footprint: &Footprint) -> bool {
        footprint.alone.as_ref().is_some_and(|key| self.alone.contains(key))
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.read.clear();
        self.written.clear();
        self.read_ranges.clear();
        self.written_ranges.clear();
        self.alone.clear();
    }

    fn reads(&self, range: &Range) -> bool {
        touches(&self.read, &self.read_ranges, range)
    }

    fn writes(&self, range: &Range) -> bool {
        touches(&self.written, &self.written_ranges, range)
    }
}

fn touches(keys: &Keys, ranges: &[Range], range: &Range) -> bool {
    let one = match range {
        Range::One(key) => keys.contains(key),
        range => keys.iter().any(|key| range.contains(key)),
    };
    one || ranges.iter().any(|other| other.overlaps(range))
}
