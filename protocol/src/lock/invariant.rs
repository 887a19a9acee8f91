//! What must be true of any run of a lock, L1 to L7 and the lock-delay, as functions over what was recorded of one key:
//! by the model checker in each state, by the fault tests over a whole run. Here of a lock that one holds at a time;
//! [`line`] has those of a fair one.

pub mod line;

use std::collections::{BTreeMap, BTreeSet};

use super::{fence::PLACES, machine::TURNS};
use crate::{Millis, SessionId};

/// What is known of one key of a lock after a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Every change of the holder's key, from a watch from revision 1, oldest first.
    pub changes: Vec<Change>,
    /// What callers were granted, in the order of the answers.
    pub grants: Vec<Grant>,
    /// Fences of the writes that a fenced resource took, in its order.
    pub accepted: Vec<u64>,
    /// Calls that waited, in vain or not.
    pub waits: Vec<Wait>,
    /// Releases and renewals that were said to have succeeded with a token that was not the holder's.
    pub forged: Vec<String>,
    /// Grants after a holder that was lost, in mode Lease.
    pub losses: Vec<Loss>,
    /// Mod revisions of the shadows that stand although their holder was told that it has let go.
    pub shadows: Vec<i64>,
}

/// A grant that followed one whose holder was lost.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Loss {
    /// Revision of the lost grant.
    pub lost: i64,
    /// Revision of the grant that followed.
    pub next: i64,
    /// The lock-delay that the lost one asked for.
    pub delay: Millis,
    /// How long the sidecar of the next one had known of the loss when it tried; `None`: it did not.
    pub known: Option<Millis>,
}

/// One change of the holder's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// etcd's revision.
    pub revision: i64,
    /// When the watch told of it: milliseconds of the recorder's monotonic clock.
    pub at: Millis,
    /// The holder's session; `None`: deleted.
    pub holder: Option<SessionId>,
    /// How often its sidecar had granted it anew, of a holder's record that says that it does not stay: others may wait.
    pub told: Option<u32>,
}

/// One grant, as its caller knows it; instants are milliseconds of one monotonic clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The sidecar that answered, and the caller's place among its callers by arrival.
    pub caller: (String, u64),
    /// The fence.
    pub fence: u64,
    /// When the answer came.
    pub from: Millis,
    /// When the caller stopped believing it: it let go, or `expiresInMs` was over.
    pub to: Millis,
    /// Whether the session that the caller waited under was alive when etcd granted.
    pub session_alive: bool,
    /// Whether the definition it was asked under was in force when etcd granted.
    pub definition_in_force: bool,
}

/// A call that waited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// When it was made.
    pub from: Millis,
    /// When it was answered.
    pub to: Millis,
}

/// A broken invariant: which, and how.
pub type Broken = String;

/// L1: the holder's key is put only when absent, or by the sidecar that has it, so that only one has it at a time.
pub fn l1_exclusion(history: &History) -> Result<(), Broken> {
    let mut holder: Option<&SessionId> = None;
    for change in &history.changes {
        if change.holder.is_some() && holder.is_some_and(|holder| Some(holder) != change.holder.as_ref()) {
            return Err(format!("L1: a grant at {} while another stood", change.revision));
        }
        holder = change.holder.as_ref();
    }
    Ok(())
}

/// L2: each grant is of one time that a sidecar came to have the key, no two have one fence, and one that came when
/// another was over has the higher.
pub fn l2_fencing(history: &History, offset: i64) -> Result<(), Broken> {
    let mut taken = BTreeSet::new();
    let mut held = false;
    for change in &history.changes {
        if change.holder.is_some() && !held {
            taken.insert(change.revision);
        }
        held = change.holder.is_some();
    }
    let mut seen = BTreeSet::new();
    for Grant { fence, .. } in &history.grants {
        if !taken.contains(&((fence / PLACES) as i64 - offset)) {
            return Err(format!("L2: fence {fence} is of no grant that etcd knows"));
        }
        if !seen.insert(fence) {
            return Err(format!("L2: two grants have the fence {fence}"));
        }
    }
    let mut by_start: Vec<&Grant> = history.grants.iter().collect();
    by_start.sort_by_key(|grant| grant.from);
    let mut by_end: Vec<&Grant> = history.grants.iter().collect();
    by_end.sort_by_key(|grant| grant.to);
    let (mut ended, mut highest) = (by_end.into_iter().peekable(), None);
    for grant in by_start {
        while let Some(over) = ended.next_if(|over| over.to < grant.from) {
            highest = highest.max(Some(over.fence));
        }
        if let Some(highest) = highest.filter(|highest| *highest >= grant.fence) {
            return Err(format!("L2: fence {} came after {highest}", grant.fence));
        }
    }
    Ok(())
}

/// A bound of staying: once a sidecar has told that others may wait, it hands the key on among its own callers at most
/// [`TURNS`] times before it lets go.
pub fn turns(history: &History, offset: i64) -> Result<(), Broken> {
    let (mut life, mut first_told) = (None, BTreeMap::new());
    for change in &history.changes {
        life = change.holder.as_ref().map(|_| life.unwrap_or(change.revision));
        if let (Some(life), Some(told)) = (life, change.told) {
            first_told.entry(life).or_insert(u64::from(told));
        }
    }
    let late = |grant: &&Grant| {
        let told = first_told.get(&((grant.fence / PLACES) as i64 - offset));
        told.is_some_and(|told| grant.fence % PLACES > told + u64::from(TURNS))
    };
    match history.grants.iter().find(late) {
        Some(grant) => Err(format!("turns: {} was granted although others had waited long", grant.fence)),
        None => Ok(()),
    }
}

/// L3: a fenced resource never took a write of a grant after one of a later grant.
pub fn l3_fenced_resource(history: &History) -> Result<(), Broken> {
    match history.accepted.windows(2).find(|pair| pair[0] > pair[1]) {
        Some(pair) => Err(format!("L3: a write of {} was taken after one of {}", pair[1], pair[0])),
        None => Ok(()),
    }
}

/// L4: no two callers were ever told at one time that they hold it; and none was granted by a session that was dead
/// or under a definition that was gone.
pub fn l4_local_truth(history: &History) -> Result<(), Broken> {
    let mut by_time: Vec<&Grant> = history.grants.iter().collect();
    by_time.sort_by_key(|grant| (grant.from, grant.to));
    if let Some(pair) = by_time.windows(2).find(|pair| pair[1].from < pair[0].to) {
        return Err(format!("L4: {} and {} were believed at one time", pair[0].fence, pair[1].fence));
    }
    if let Some(grant) = by_time.iter().find(|grant| !grant.session_alive) {
        return Err(format!("L4: {} was granted to a dead session", grant.fence));
    }
    match by_time.iter().find(|grant| !grant.definition_in_force) {
        Some(grant) => Err(format!("L4: {} was granted under a definition that was gone", grant.fence)),
        None => Ok(()),
    }
}

/// L5: whoever waits, waits for somebody: at no time while it waited was the key free for longer than `bound`.
pub fn l5_liveness(history: &History, bound: Millis) -> Result<(), Broken> {
    for wait in &history.waits {
        // Until the first change within the wait, the key is as the last change before it left it.
        let first = history.changes.partition_point(|change| change.at <= wait.from);
        let before = first.checked_sub(1).map(|last| &history.changes[last]);
        let mut free_since = before.is_none_or(|change| change.holder.is_none()).then_some(wait.from);
        let within = history.changes[first..].iter().take_while(|change| change.at <= wait.to);
        for (at, held) in within.map(|change| (change.at, change.holder.is_some())).chain([(wait.to, true)]) {
            if free_since.is_some_and(|since| at - since > bound) {
                return Err(format!("L5: a call waited from {} to {} for nobody", wait.from, wait.to));
            }
            free_since = (!held).then_some(at);
        }
    }
    Ok(())
}

/// L6: callers of one sidecar that waited are granted in the order in which they came. Among sidecars this mode keeps
/// no order.
pub fn l6_order(history: &History) -> Result<(), Broken> {
    let mut last: BTreeMap<&str, u64> = BTreeMap::new();
    for Grant { caller: (sidecar, place), .. } in &history.grants {
        if last.insert(sidecar, *place).is_some_and(|before| before >= *place) {
            return Err(format!("L6: {sidecar} granted its caller {place} out of turn"));
        }
    }
    Ok(())
}

/// L7: a release or renewal with a token that is not the holder's changes nothing.
pub fn l7_wrong_token(history: &History) -> Result<(), Broken> {
    match history.forged.first() {
        Some(call) => Err(format!("L7: {call}")),
        None => Ok(()),
    }
}

/// Lock-delay: nobody is granted before the lock-delay of a lost holder has run since the granting sidecar saw the loss,
/// and who lets go leaves nothing that another would wait for.
pub fn lock_delay(history: &History) -> Result<(), Broken> {
    let early = |loss: &&Loss| loss.known.is_none_or(|known| known < loss.delay);
    if let Some(Loss { lost, next, delay, known }) = history.losses.iter().find(early) {
        return Err(format!("lock-delay: {next} was granted {known:?} of {delay} ms after {lost} was lost"));
    }
    match history.shadows.first() {
        Some(shadow) => Err(format!("lock-delay: {shadow} was released and left its shadow")),
        None => Ok(()),
    }
}

/// L7, of recorded runs, whose instants are of one clock: nobody's key is gone while its holder was told that it may
/// rely on it. The watch tells of a change after it was made, so what it told before `to` was before `to`.
pub fn l7_nothing_taken(history: &History, offset: i64) -> Result<(), Broken> {
    for Grant { fence, to, .. } in &history.grants {
        let revision = (fence / PLACES) as i64 - offset;
        let first = history.changes.partition_point(|change| change.revision < revision);
        let mut later = history.changes[first..].iter();
        let holder = later.next().and_then(|taken| taken.holder.as_ref());
        let later = later.find(|change| change.holder.as_ref() != holder);
        if let Some(change) = later.filter(|change| change.at < *to) {
            return Err(format!("L7: {fence}, relied on until {to}, was gone at {}", change.at));
        }
    }
    Ok(())
}

/// All of them.
pub fn all(history: &History, offset: i64, bound: Millis) -> Result<(), Broken> {
    l1_exclusion(history)?;
    l2_fencing(history, offset)?;
    turns(history, offset)?;
    l3_fenced_resource(history)?;
    l4_local_truth(history)?;
    l5_liveness(history, bound)?;
    l6_order(history)?;
    l7_wrong_token(history)?;
    lock_delay(history)
}
