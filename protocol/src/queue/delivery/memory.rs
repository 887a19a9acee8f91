//! What of the segments' bodies is in memory: all of a backlog might be more than there is.

use std::sync::Arc;

use super::{Delivery, Effect, Flight, segment::Kept};
use crate::{
    Entry, Plan, Record,
    queue::{Segment, location::SegmentAt},
};

/// Bytes of bodies kept in memory; those of further segments are read when they are taken. Every queue has so many.
const CACHED_BYTES: u64 = 8 << 20;
/// Segments read at a time before anything can be written about them.
pub(super) const LOADS: usize = 4;

impl Delivery {
    /// Takes over what a watch told of a segment, and keeps it if there is room.
    pub(super) fn told_body(&mut self, at: SegmentAt, body: Segment) {
        let Some(segment) = self.segments.get(&at) else { return };
        let room = self.cached + u64::from(segment.id.bytes) <= CACHED_BYTES;
        self.read(at, body, room);
    }

    /// Takes over what a plan read of a segment, and keeps it: it is wanted now.
    pub(super) fn keep_body(&mut self, at: SegmentAt, read: Option<&Vec<Entry>>) {
        let Some(Entry { record: Record::Segment(body), lease, .. }) = read.and_then(|found| found.first())
        else {
            return;
        };
        if let Some(segment) = self.segments.get_mut(&at) {
            segment.kept = Kept::Id(*lease);
        }
        self.read(at, body.clone(), true);
    }

    /// Takes over a segment's body.
    pub(super) fn read(&mut self, at: SegmentAt, body: Segment, keep: bool) {
        let Some(segment) = self.segments.get_mut(&at) else { return };
        segment.read(&body);
        if keep && segment.body.is_none() {
            self.cached += u64::from(segment.id.bytes);
            self.bodies.insert(at);
            segment.body = Some(Arc::new(body));
        }
    }

    /// Forgets bodies of the youngest segments as long as they are too many: they are read again when they are taken.
    pub(super) fn make_room(&mut self) {
        while self.cached > CACHED_BYTES {
            let rests = |at: &&SegmentAt| self.segments.get(at).is_some_and(|segment| !segment.busy);
            let Some(youngest) = self.bodies.iter().rev().find(rests).copied() else { return };
            self.forget_body(youngest);
        }
    }

    pub(super) fn forget_body(&mut self, at: SegmentAt) {
        if self.bodies.remove(&at)
            && let Some(segment) = self.segments.get_mut(&at)
        {
            self.cached -= u64::from(segment.id.bytes);
            segment.body = None;
        }
    }

    /// Reads segments that wait for it, the oldest first, and no more at a time than there is room for.
    pub(super) fn load(&mut self, effects: &mut Vec<Effect>) {
        let loads = self.flights.values().filter(|(_, flight)| *flight == Flight::Load).count();
        for _ in loads..LOADS {
            if self.cached > CACHED_BYTES {
                return;
            }
            let Some(at) = self.unread.pop_first() else { return };
            let Some(segment) = self.segments.get_mut(&at).filter(|segment| !segment.busy) else { continue };
            segment.busy = true;
            let location = segment.location(&self.queue, at);
            let plan = Plan::new().present(location.segment()).read(location.segment());
            effects.push(self.fly(at, Flight::Load, plan));
        }
    }
}
