//! L1 to L7 of a lock of mode [`Mode::FairQueue`](crate::lock::Mode::FairQueue), whose holders are the first of a line
//! and may share it.

use std::collections::{BTreeMap, BTreeSet};

use super::{Broken, Grant};
use crate::{
    Millis, SessionId,
    lock::{Fence, Share},
};

/// What is known of one key of a lock after a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Everybody who ever stood in the line, from a watch from revision 1.
    pub stood: Vec<Stood>,
    /// What callers were granted, in the order of the answers. Their sidecars and arrivals do not matter here.
    pub grants: Vec<Grant>,
    /// Fences of the writes that a fenced resource took, in its order.
    pub accepted: Vec<u64>,
    /// Calls that waited, in vain or not.
    pub waits: Vec<Wait>,
    /// Releases and renewals that were said to have succeeded with a token that was not the holder's.
    pub forged: Vec<String>,
}

/// One waiter's key. Instants are when the watch told of it, milliseconds of the recorder's monotonic clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stood {
    /// Create revision.
    pub revision: i64,
    /// The sidecar's session, and its counter.
    pub who: (SessionId, u64),
    /// Its place among those that were put with it.
    pub place: u32,
    /// How much of the lock it asked for.
    pub share: Share,
    /// When it was deleted.
    pub gone: Option<Millis>,
}

impl Stood {
    fn fence(&self, offset: i64) -> Option<u64> {
        Fence::new(self.revision, offset, u64::from(self.place)).map(Fence::get)
    }

    fn spot(&self) -> (i64, &(SessionId, u64)) {
        (self.revision, &self.who)
    }
}

/// A call that waited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Whose key stood in the line for it.
    pub who: (SessionId, u64),
    /// Since when.
    pub from: Millis,
    /// When it was answered.
    pub to: Millis,
}

impl History {
    /// Those who were granted, in the order of the line.
    fn granted(&self, offset: i64) -> Vec<(&Stood, &Grant)> {
        let grants: BTreeMap<u64, &Grant> = self.grants.iter().map(|grant| (grant.fence, grant)).collect();
        let grant = |stood: &Stood| grants.get(&stood.fence(offset)?).copied();
        let granted = self.line().into_iter().filter_map(|stood| Some((stood, grant(stood)?)));
        granted.collect()
    }

    /// Everybody in the order of the line.
    fn line(&self) -> Vec<&Stood> {
        let mut line: Vec<&Stood> = self.stood.iter().collect();
        line.sort_by_key(|stood| stood.spot());
        line
    }
}

/// L1: those who were told at one time that they hold the lock hold no more of it together than there is.
pub fn l1_exclusion(history: &History, offset: i64) -> Result<(), Broken> {
    let mut granted = history.granted(offset);
    granted.retain(|(_, grant)| grant.from < grant.to);
    granted.sort_by_key(|(_, grant)| grant.from);
    // Those who hold it at the time, by when they stop to.
    let mut holding: BTreeSet<(Millis, u64)> = BTreeSet::new();
    let mut taken = 0;
    let permits: BTreeMap<u64, u64> =
        granted.iter().map(|(stood, grant)| (grant.fence, u64::from(stood.share.permits))).collect();
    for (stood, grant) in granted {
        while let Some((to, fence)) = holding.first().copied()
            && to <= grant.from
        {
            holding.pop_first();
            taken -= permits[&fence];
        }
        if !stood.share.fits(taken) {
            return Err(format!("L1: {} was granted beside {taken} permits", grant.fence));
        }
        holding.insert((grant.to, grant.fence));
        taken += permits[&grant.fence];
    }
    Ok(())
}

/// L2: each grant is of one who stood in the line, no two of one, and fences rise strictly along the line.
pub fn l2_fencing(history: &History, offset: i64) -> Result<(), Broken> {
    let fences: Vec<u64> = history.line().into_iter().filter_map(|stood| stood.fence(offset)).collect();
    if let Some([first, second]) = fences.array_windows().find(|[first, second]| first >= second) {
        return Err(format!("L2: fence {second} stands behind {first}"));
    }
    let mut told: Vec<u64> = history.grants.iter().map(|grant| grant.fence).collect();
    told.sort_unstable();
    if let Some([twice, _]) = told.array_windows().find(|[first, second]| first == second) {
        return Err(format!("L2: {twice} was granted twice"));
    }
    match told.iter().find(|fence| fences.binary_search(fence).is_err()) {
        Some(fence) => Err(format!("L2: fence {fence} is of nobody who stood in the line")),
        None => Ok(()),
    }
}

/// L3: see [`super::l3_fenced_resource`]; of exclusive holders alone.
pub fn l3_fenced_resource(history: &History) -> Result<(), Broken> {
    match history.accepted.windows(2).find(|pair| pair[0] > pair[1]) {
        Some(pair) => Err(format!("L3: a write of {} was taken after one of {}", pair[1], pair[0])),
        None => Ok(()),
    }
}

/// L4: nobody was granted by a session that was dead or under a definition that was gone.
pub fn l4_local_truth(history: &History) -> Result<(), Broken> {
    if let Some(grant) = history.grants.iter().find(|grant| !grant.session_alive) {
        return Err(format!("L4: {} was granted to a dead session", grant.fence));
    }
    match history.grants.iter().find(|grant| !grant.definition_in_force) {
        Some(grant) => Err(format!("L4: {} was granted under a definition that was gone", grant.fence)),
        None => Ok(()),
    }
}

/// L5: whoever waits, waits for somebody: not for longer than `bound` was there room beside those before it.
pub fn l5_liveness(history: &History, bound: Millis) -> Result<(), Broken> {
    let line = history.line();
    let places: BTreeMap<&(SessionId, u64), usize> =
        line.iter().enumerate().map(|(place, stood)| (&stood.who, place)).collect();
    // When the last of those up to a place was gone: further ahead than one where that is past nobody mattered.
    let mut last = Some(0);
    let emptied: Vec<Option<Millis>> = line
        .iter()
        .map(|stood| {
            last = last.zip(stood.gone).map(|(last, gone)| last.max(gone));
            last
        })
        .collect();
    for wait in &history.waits {
        let Some(place) = places.get(&wait.who).copied() else { continue };
        let own = line[place];
        let mattered = (0..place).rev().take_while(|at| emptied[*at].is_none_or(|gone| gone > wait.from));
        let before: Vec<&Stood> = mattered.map(|at| line[at]).collect();
        let room_at = |at: Millis| {
            let stand = before.iter().filter(|stood| stood.gone.is_none_or(|gone| gone > at));
            own.share.fits(stand.map(|stood| u64::from(stood.share.permits)).sum())
        };
        let leaves = before.iter().filter_map(|stood| stood.gone).filter(|gone| *gone > wait.from);
        let room_since = leaves.chain([wait.from]).filter(|at| room_at(*at)).min();
        if room_since.is_some_and(|since| wait.to.saturating_sub(since) > bound) {
            return Err(format!("L5: {:?} waited from {} to {} for nobody", wait.who, wait.from, wait.to));
        }
    }
    Ok(())
}

/// L6: of two who leave each other no room, the first in the line is granted first, over all sidecars; those who were
/// never granted excepted.
pub fn l6_order(history: &History, offset: i64) -> Result<(), Broken> {
    // Of those further back, by what they asked for, the one that was granted first.
    let mut behind: BTreeMap<Share, &Grant> = BTreeMap::new();
    for (stood, grant) in history.granted(offset).into_iter().rev() {
        let clashes = |(share, _): &(&Share, &&Grant)| clash(stood.share, **share);
        if let Some((_, early)) = behind.iter().filter(clashes).find(|(_, early)| early.from < grant.from) {
            return Err(format!("L6: {} was granted before {}", early.fence, grant.fence));
        }
        let first = behind.entry(stood.share).or_insert(grant);
        if grant.from < first.from {
            *first = grant;
        }
    }
    Ok(())
}

/// Whether two leave each other no room.
fn clash(one: Share, other: Share) -> bool {
    !one.fits(u64::from(other.permits)) || !other.fits(u64::from(one.permits))
}

/// L7: a release or renewal with a token that is not the holder's changes nothing.
pub fn l7_wrong_token(history: &History) -> Result<(), Broken> {
    match history.forged.first() {
        Some(call) => Err(format!("L7: {call}")),
        None => Ok(()),
    }
}

/// See [`super::l7_nothing_taken`].
pub fn l7_nothing_taken(history: &History, offset: i64) -> Result<(), Broken> {
    for (stood, grant) in history.granted(offset) {
        if let Some(gone) = stood.gone.filter(|gone| *gone < grant.to) {
            return Err(format!("L7: {}, relied on until {}, was gone at {gone}", grant.fence, grant.to));
        }
    }
    Ok(())
}

/// All seven.
pub fn all(history: &History, offset: i64, bound: Millis) -> Result<(), Broken> {
    // The others know who was granted by its fence.
    l2_fencing(history, offset)?;
    l1_exclusion(history, offset)?;
    l3_fenced_resource(history)?;
    l4_local_truth(history)?;
    l5_liveness(history, bound)?;
    l6_order(history, offset)?;
    l7_wrong_token(history)
}
