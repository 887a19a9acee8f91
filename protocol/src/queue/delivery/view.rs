//! What a watch tells of a queue.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Change, Delivery, Effect,
    segment::{Kept, State},
};
use crate::{
    Entry, Key, Record,
    queue::{
        Segment, SegmentId,
        location::{ClaimId, SegmentAt},
    },
};

impl Delivery {
    /// Takes over all of the queue's keys at a revision.
    pub(super) fn snapshot(&mut self, revision: i64, entries: Vec<Entry>, effects: &mut Vec<Effect>) {
        let there: BTreeSet<SegmentAt> = entries.iter().filter_map(at).collect();
        // What this sidecar stored itself may be newer than the listing.
        let gone: Vec<SegmentAt> = self
            .segments
            .keys()
            .filter(|at| at.revision <= revision && !there.contains(at))
            .copied()
            .collect();
        for at in gone {
            self.finish(at, Vec::new(), effects);
        }
        let mut parts: BTreeMap<SegmentAt, (Option<Entry>, Vec<Entry>)> =
            there.iter().map(|at| (*at, Default::default())).collect();
        let (segments, others): (Vec<Entry>, Vec<Entry>) =
            entries.into_iter().partition(|entry| matches!(entry.record, Record::Segment(_)));
        for entry in segments {
            self.appeared(entry);
        }
        for entry in others {
            let found = of(&entry.key).and_then(|of| self.index.get(&of)).and_then(|at| parts.get_mut(at));
            match (found, &entry.record) {
                (Some((progress, _)), Record::Progress(_)) => *progress = Some(entry),
                (Some((_, claims)), Record::Claim(_)) => claims.push(entry),
                _ => {}
            }
        }
        for (at, (progress, claims)) in parts {
            if let Some(segment) = self.segments.get_mut(&at) {
                segment.replace(progress.as_ref(), &claims, revision);
                self.dirty.insert(at);
            }
        }
        self.seen = self.seen.max(revision);
        self.synced = true;
        for (ticket, receipt, verdict) in std::mem::take(&mut self.early) {
            self.settle(ticket, receipt, verdict, effects);
        }
    }

    /// Takes over changes: whole revisions, in their order.
    pub(super) fn changed(&mut self, changes: Vec<Change>, effects: &mut Vec<Effect>) {
        // A progress may come in the revision of its segment, and before it: segments first.
        let (segments, others): (Vec<Change>, Vec<Change>) = changes
            .into_iter()
            .partition(|change| matches!(change, Change::Put(Entry { record: Record::Segment(_), .. })));
        for change in segments {
            if let Change::Put(entry) = change {
                self.seen = self.seen.max(entry.mod_revision);
                self.appeared(entry);
            }
        }
        for change in others {
            let (key, revision) = match &change {
                Change::Put(entry) => (&entry.key, entry.mod_revision),
                Change::Deleted(key, revision) => (key, *revision),
            };
            self.seen = self.seen.max(revision);
            let Some(at) = of(key).and_then(|of| self.index.get(&of)).copied() else { continue };
            let Some(segment) = self.segments.get_mut(&at) else { continue };
            match (&change, key) {
                (Change::Put(entry), _) => {
                    if !segment.changed(entry) {
                        continue;
                    }
                }
                (Change::Deleted(..), Key::Segment { .. }) if segment.busy => segment.gone = true,
                (Change::Deleted(..), Key::Segment { .. }) => {
                    self.finish(at, Vec::new(), effects);
                    continue;
                }
                (Change::Deleted(..), Key::Claim { session, number, .. }) => {
                    let claim = ClaimId { session: session.clone(), number: *number };
                    segment.claims.remove(&claim);
                    if segment.busy {
                        segment.lost.insert(claim);
                    }
                }
                (Change::Deleted(..), _) => {}
            }
            self.dirty.insert(at);
        }
    }

    fn appeared(&mut self, entry: Entry) {
        if let (Some(at), Some((_, id)), Record::Segment(body)) = (at(&entry), of(&entry.key), entry.record) {
            // A listing has keys alone.
            let told = !body.messages.is_empty();
            self.appear(at, id, body);
            if told && let Some(segment) = self.segments.get_mut(&at) {
                segment.kept = Kept::Id(entry.lease);
            }
        }
    }

    /// Takes over a segment that was not known before.
    pub(super) fn appear(&mut self, at: SegmentAt, id: SegmentId, body: Segment) {
        // What is older than the definition is left of an earlier queue of this name.
        if at.revision < self.definition || self.segments.contains_key(&at) || self.finished.contains_key(&at)
        {
            return;
        }
        let of = (at.partition, id.clone());
        let mut segment = State::new(id, at.revision - 1);
        segment.busy = self.directly(&of);
        self.segments.insert(at, segment);
        self.index.insert(of, at);
        self.dirty.insert(at);
        if !body.messages.is_empty() {
            self.told_body(at, body);
        }
    }
}

/// Where a segment's entry stands.
fn at(entry: &Entry) -> Option<SegmentAt> {
    match &entry.key {
        Key::Segment { partition, .. } => {
            Some(SegmentAt { revision: entry.create_revision, partition: *partition })
        }
        _ => None,
    }
}

/// The segment that a key belongs to.
fn of(key: &Key) -> Option<(u32, SegmentId)> {
    match key {
        Key::Segment { partition, segment, .. }
        | Key::Progress { partition, segment, .. }
        | Key::Claim { partition, segment, .. } => Some((*partition, segment.clone())),
        _ => None,
    }
}
