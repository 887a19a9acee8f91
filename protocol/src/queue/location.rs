//! Where things of a queue are, and what names them outside: offsets and receipts.

use std::{fmt, str::FromStr};

use super::SegmentId;
use crate::{Key, Kind, Name, Range, SessionId};

/// No segment holds more messages: an offset has ten bits for the place.
pub const SEGMENT_MESSAGES: usize = 1 << 10;

/// A message's offset: strictly rising within a partition, not dense, below 2^53. Made of the revision of its segment
/// and its place in it.
pub fn offset(revision: i64, place: u32) -> u64 {
    ((revision as u64) << 10) | u64::from(place)
}

/// The key of a queue's definition.
pub fn definition(queue: &Name) -> Key {
    Key::Definition { kind: Kind::Queue, name: queue.clone() }
}

/// A segment's place in the order of its queue: no two segments of a partition share a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentAt {
    /// Revision at which it was published.
    pub revision: i64,
    /// Partition.
    pub partition: u32,
}

/// Where a segment is kept, and what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// The Queue.
    pub queue: Name,
    /// Partition.
    pub partition: u32,
    /// The segment.
    pub segment: SegmentId,
}

impl Location {
    /// Key of the segment.
    pub fn segment(&self) -> Key {
        let Self { queue, partition, segment } = self.clone();
        Key::Segment { queue, partition, segment }
    }
    /// Key of its progress.
    pub fn progress(&self) -> Key {
        let Self { queue, partition, segment } = self.clone();
        Key::Progress { queue, partition, segment }
    }
    /// Key of one claim on it.
    pub fn claim(&self, claim: &ClaimId) -> Key {
        let Self { queue, partition, segment } = self.clone();
        Key::Claim { queue, partition, segment, session: claim.session.clone(), number: claim.number }
    }
    /// All claims on it.
    pub fn claims(&self) -> Range {
        Range::ClaimsOf(self.queue.clone(), self.partition, self.segment.clone())
    }
    /// Key of the dead letter that one of its messages becomes.
    pub fn dead(&self, index: u32) -> Key {
        let Self { queue, partition, segment } = self.clone();
        Key::Dead { queue, partition, segment, index }
    }
    /// The key that no two appends to this partition may name in one commit, so that no two share a revision.
    pub fn lane(&self) -> Key {
        let none = SegmentId { session: "".into(), number: 0, messages: 0, bytes: 0 };
        Key::Segment { queue: self.queue.clone(), partition: self.partition, segment: none }
    }
}

/// A claim's name: never used twice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClaimId {
    /// The claiming sidecar.
    pub session: SessionId,
    /// The sidecar's own counter.
    pub number: u64,
}

/// What a consumer gives back: it names the message and the delivery, so that an old one can never settle a newer
/// delivery.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Receipt {
    /// The message's segment.
    pub segment: SegmentAt,
    /// The message's place in it.
    pub place: u32,
    /// Number of the delivery, from 1.
    pub delivery: u32,
    /// The claim by which it was handed out.
    pub claim: ClaimId,
}

/// What was given as a receipt is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a receipt")]
pub struct NotAReceipt;

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { segment, place, delivery, claim } = self;
        let (revision, partition) = (segment.revision, segment.partition);
        write!(f, "{partition:x}.{revision:x}.{place:x}.{delivery:x}.{:x}.{}", claim.number, claim.session)
    }
}

impl FromStr for Receipt {
    type Err = NotAReceipt;

    fn from_str(text: &str) -> Result<Self, NotAReceipt> {
        let mut parts = text.splitn(6, '.');
        let mut number = || {
            let part = parts.next().filter(|part| part.bytes().all(|byte| byte.is_ascii_hexdigit()));
            part.and_then(|part| u64::from_str_radix(part, 16).ok()).ok_or(NotAReceipt)
        };
        let (partition, revision, place) = (number()?, number()?, number()?);
        let (delivery, claim) = (number()?, number()?);
        let session = parts.next().filter(|session| !session.is_empty()).ok_or(NotAReceipt)?;
        Ok(Self {
            segment: SegmentAt {
                revision: i64::try_from(revision).map_err(|_| NotAReceipt)?,
                partition: u32::try_from(partition).map_err(|_| NotAReceipt)?,
            },
            place: u32::try_from(place).map_err(|_| NotAReceipt)?,
            delivery: u32::try_from(delivery).map_err(|_| NotAReceipt)?,
            claim: ClaimId { session: session.into(), number: claim },
        })
    }
}
