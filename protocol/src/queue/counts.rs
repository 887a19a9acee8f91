//! How many messages a queue holds, from what is remembered of it: bodies are not needed.

use std::collections::BTreeMap;

use super::{Fate, SegmentId, Stage};
use crate::{Entry, Key, Millis, Record};

/// Messages of a queue by where they stand; each counts once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Counts {
    /// Those that a consumer could have now.
    pub ready: u64,
    /// Those that a consumer has.
    pub in_flight: u64,
    /// Those that wait for their time.
    pub delayed: u64,
    /// Dead letters kept beside the queue.
    pub dead: u64,
    /// Bytes of all segments, finished messages in them too.
    pub bytes: u64,
}

#[derive(Default)]
struct Part<'a> {
    fates: &'a [Fate],
    claims: Vec<(u32, u32)>,
}

impl Counts {
    /// Of the keys of segments and dead letters and the records of progress and claims, all of one revision, at a time
    /// in milliseconds since the Unix epoch.
    pub fn of<'a>(
        keys: impl IntoIterator<Item = &'a Key>,
        records: impl IntoIterator<Item = &'a Entry>,
        now: Millis,
    ) -> Self {
        let mut counts = Self::default();
        let mut parts: BTreeMap<(u32, &SegmentId), Part<'_>> = BTreeMap::new();
        for key in keys {
            match key {
                Key::Segment { partition, segment, .. } => {
                    counts.bytes += u64::from(segment.bytes);
                    parts.insert((*partition, segment), Part::default());
                }
                Key::Dead { .. } => counts.dead += 1,
                _ => {}
            }
        }
        for entry in records {
            match (&entry.key, &entry.record) {
                (Key::Progress { partition, segment, .. }, Record::Progress(progress)) => {
                    if let Some(part) = parts.get_mut(&(*partition, segment)) {
                        part.fates = &progress.fates;
                    }
                }
                (Key::Claim { partition, segment, .. }, Record::Claim(claim)) => {
                    if let Some(part) = parts.get_mut(&(*partition, segment)) {
                        part.claims.extend(&claim.places);
                    }
                }
                _ => {}
            }
        }
        for ((_, segment), part) in parts {
            counts.add(segment, &part, now);
        }
        counts
    }

    fn add(&mut self, segment: &SegmentId, part: &Part<'_>, now: Millis) {
        // A claim of which a delivery has ended otherwise names one that is over.
        let delivered = |(place, delivery): &&(u32, u32)| {
            let fate = part.fates.get(*place as usize);
            fate.is_some_and(|fate| fate.stage == Stage::Delivered && fate.deliveries == *delivery)
        };
        let in_flight = part.claims.iter().filter(delivered).count() as u64;
        let finished = part.fates.iter().filter(|fate| fate.finished()).count() as u64;
        let waits = |fate: &&Fate| fate.stage == Stage::Waiting && fate.not_before > now;
        let delayed = part.fates.iter().filter(waits).count() as u64;
        self.in_flight += in_flight;
        self.delayed += delayed;
        self.ready += u64::from(segment.messages).saturating_sub(in_flight + finished + delayed);
    }
}
