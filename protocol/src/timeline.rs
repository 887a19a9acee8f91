//! Whether etcd still is what it was, or was put back to an older state, and how fences go on rising all the same.
//!
//! A fence is made of etcd's revision, and a restored etcd gives revisions anew that it gave before. So each namespace
//! has a [`Timeline`], which says of which etcd it is and what its revisions are raised by; [`judge`] tells from it, from
//! what etcd says of itself and from what somebody outside etcd remembers, whether etcd was restored. Then nothing is
//! served until [`raise`] has begun the next epoch. (PostgreSQL calls what follows a restore a timeline, too.)

use crate::{
    Key, Lease, Millis, Plan, Range,
    lock::fence::{LIMIT, PLACES},
};

/// By how much an epoch is above the last revision that the snapshot knows, where no clock tells: what may have been
/// written since the snapshot was taken. 2³⁴ are 19 days of 10,000 writes a second.
pub const STEP: i64 = 1 << 34;

/// From here no fence is safe.
const END: i64 = (LIMIT / PLACES) as i64;

/// Writes a second that [`floor`] counts on: etcd makes fewer.
const WRITES_A_SECOND: i64 = 10_000;

/// 2026-01-01T00:00:00Z, before which there was no Concordat, milliseconds since the Unix epoch.
const BEGINNING: i64 = 1_767_225_600_000;

/// A namespace's stretch of history without a restore.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timeline {
    /// How often it was raised.
    pub epoch: u64,
    /// etcd's cluster id in this epoch.
    pub cluster: u64,
    /// An index of etcd's Raft log that had been committed by then; kept to within half of what it is.
    pub index: u64,
    /// What revisions are raised by, in this epoch.
    pub offset: i64,
    /// That etcd was found restored, and nothing is to be served: what somebody who remembered had seen.
    pub lost: Option<Lost>,
}

/// What a restored etcd lost, as far as is known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lost {
    /// How it was noticed, for people.
    pub why: String,
    /// The last raised revision that somebody remembers, 0 when nobody does.
    pub raised: i64,
}

/// What etcd says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Observed {
    /// Its cluster id.
    pub cluster: u64,
    /// The index up to which the member that was asked knows its Raft log to be committed, asked after the timeline was
    /// read from it; `None` when it cannot be told that the same member answered both.
    pub index: Option<u64>,
    /// Its revision, read linearizably.
    pub revision: i64,
}

/// What is remembered outside etcd by somebody who used it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Remembered {
    /// The epoch; `None` by whoever looks after all namespaces, and tells each of them at once what he finds.
    pub epoch: Option<u64>,
    /// Its cluster id.
    pub cluster: u64,
    /// The last revision that it was known to have.
    pub revision: i64,
    /// What revisions were raised by.
    pub offset: i64,
}

impl Remembered {
    /// Why `observed` cannot be what is remembered with more written to it, if so.
    pub fn contradicts(&self, observed: &Observed) -> Option<String> {
        if self.cluster != observed.cluster {
            return Some(format!("etcd's cluster id was {:x} and is {:x}", self.cluster, observed.cluster));
        }
        (observed.revision < self.revision)
            .then(|| format!("etcd had revision {} and is at {}", self.revision, observed.revision))
    }

    fn raised(&self) -> i64 {
        self.revision.saturating_add(self.offset)
    }
}

/// What is to be thought of an etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is what it was; with the record as it should be, if that is to be brought up to date.
    Fine(Option<Timeline>),
    /// It was restored: nothing is to be believed of it until its epoch is raised.
    Restored(Lost),
}

/// Judges an etcd in which `recorded` was found.
pub fn judge(recorded: Option<&Timeline>, observed: &Observed, remembered: Option<&Remembered>) -> Verdict {
    let epoch = recorded.map_or(0, |recorded| recorded.epoch);
    // Whoever remembers an earlier epoch was told of nothing since: it has been raised.
    let remembered = remembered.filter(|memory| memory.epoch.is_none_or(|known| known >= epoch));
    let raised = remembered.map_or(0, Remembered::raised);
    if let Some(lost) = recorded.and_then(|recorded| recorded.lost.as_ref()) {
        return Verdict::Restored(Lost { why: lost.why.clone(), raised: raised.max(lost.raised) });
    }
    if let Some(why) = remembered.and_then(|memory| {
        let known = memory.epoch.filter(|known| *known > epoch);
        let forgotten = known.map(|known| format!("epoch {known} had begun and etcd is in epoch {epoch}"));
        forgotten.or_else(|| memory.contradicts(observed))
    }) {
        return Verdict::Restored(Lost { why, raised });
    }
    let index = observed.index.unwrap_or_default();
    let Some(recorded) = recorded else {
        let new = Timeline { epoch, cluster: observed.cluster, index, offset: 0, lost: None };
        return Verdict::Fine(Some(new));
    };
    if recorded.cluster != observed.cluster {
        let why = format!(
            "the namespace is of the cluster {:x} and etcd is the cluster {:x}",
            recorded.cluster, observed.cluster
        );
        return Verdict::Restored(Lost { why, raised });
    }
    if let Some(index) = observed.index
        && index < recorded.index
    {
        let why = format!("etcd's log had {} entries and has {index}", recorded.index);
        return Verdict::Restored(Lost { why, raised });
    }
    let grown = index / 2 > recorded.index;
    Verdict::Fine(grown.then(|| Timeline { index, ..recorded.clone() }))
}

/// There is no room for another epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("fences would pass 2^53, up to which every JSON parser reads them exactly")]
pub struct NoRoom;

/// The epoch after `recorded`: each of its fences is above every fence made of a raised revision up to `floor`, and of one
/// that is remembered as lost. A floor that the snapshot itself is above says nothing of what came after it: then the
/// epoch begins a [`STEP`] above the snapshot.
///
/// # Errors
/// When fences would not be safe, or not for long.
pub fn raise(recorded: Option<&Timeline>, observed: &Observed, floor: i64) -> Result<Timeline, NoRoom> {
    let (epoch, offset) = recorded.map_or((0, 0), |recorded| (recorded.epoch, recorded.offset));
    let lost = recorded.and_then(|recorded| recorded.lost.as_ref()).map_or(0, |lost| lost.raised);
    let least = |raised: i64| raised.saturating_sub(observed.revision);
    // Never a step above a floor: the second restore of a snapshot would begin where the first one did.
    let next = if least(floor) > offset { least(floor) } else { offset.saturating_add(STEP) };
    let offset = next.max(least(lost));
    if offset.saturating_add(observed.revision).saturating_add(STEP) >= END {
        return Err(NoRoom);
    }
    Ok(Timeline {
        epoch: epoch + 1,
        cluster: observed.cluster,
        index: observed.index.unwrap_or_default(),
        offset,
        lost: None,
    })
}

/// A raised revision that no etcd had before `now` (milliseconds since the Unix epoch) that made fewer than 10,000
/// writes a second: so the second restore of one snapshot begins above the first, of which the snapshot knows nothing. A
/// clock that is decades ahead is not followed.
pub fn floor(now: Millis) -> i64 {
    let since = i64::try_from(now).unwrap_or(i64::MAX).saturating_sub(BEGINNING).max(0);
    let floor = since.saturating_mul(WRITES_A_SECOND / 1_000);
    if floor < END / 2 { floor } else { 0 }
}

/// The raised revision above every one of which `fence` can have been made.
pub fn above(fence: u64) -> i64 {
    (fence / PLACES).saturating_add(1).try_into().unwrap_or(i64::MAX)
}

/// Writes down that etcd was found restored, if the timeline is still as it was found at `revision` (0: not at all), so
/// that those know it who remember nothing.
pub fn tell(recorded: Option<&Timeline>, revision: i64, observed: &Observed, lost: Lost) -> Plan {
    let recorded = recorded.cloned().unwrap_or(Timeline {
        epoch: 0,
        cluster: observed.cluster,
        index: 0,
        offset: 0,
        lost: None,
    });
    let record = Timeline { lost: Some(lost), ..recorded };
    Plan::new().unchanged(Key::Timeline, revision).put(Key::Timeline, record, Lease::Forever)
}

/// Begins an epoch, if the timeline is still as it was found at `revision` (0: not at all). Every session of an earlier
/// one ends by it, in the same moment: what is put under a session compares its key, so from here on nothing is granted
/// by the earlier offset. Holders stay until their leases run out, as those may believe in them who do not know yet.
pub fn begin(revision: i64, timeline: Timeline) -> Plan {
    Plan::new()
        .unchanged(Key::Timeline, revision)
        .put(Key::Timeline, timeline, Lease::Forever)
        .delete(Range::Sessions)
        .delete(Range::Markers)
}
