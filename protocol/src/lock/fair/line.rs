//! The line of a key: who stands in it, as etcd orders them, and who of them holds the lock.
//!
//! Whoever comes stands behind all who are there, so those who hold the lock are always the first of the line: as many
//! as fit together. They only ever become more fitting, since those before somebody can only leave.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    Entry, Key, Millis, Record, SessionId,
    lock::{Fence, Holder, Share},
};

/// Who a waiter is: its sidecar's session and the sidecar's counter.
pub type Who = (SessionId, u64);

/// A place in the line: the create revision, and among those that were put together the session and its counter.
/// Revisions alone do not order it: those put by one commit share theirs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Spot {
    /// Revision at which the waiter came to be.
    pub revision: i64,
    /// Who stands there.
    pub who: Who,
}

/// Somebody in the line.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Standing {
    /// Who it is, for people.
    pub holder: Holder,
    /// How much of the lock it asks for.
    pub share: Share,
    /// Its place among those that were put with it; `None` of one that is lost.
    place: Option<u32>,
    /// Its lock-delay, if it has a shadow.
    shadow: Option<Millis>,
}

impl Standing {
    /// The fence of its grant; `offset` is what a restored etcd's revisions are raised by.
    pub fn fence(&self, spot: &Spot, offset: i64) -> Option<Fence> {
        Fence::new(spot.revision, offset, u64::from(self.place?))
    }
}

/// The line. See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Line {
    /// Revision as of which it is so.
    seen: i64,
    standing: BTreeMap<Spot, Standing>,
    spots: BTreeMap<Who, i64>,
    /// Whoever stands no further back than this holds the lock.
    through: Option<Spot>,
    /// The permits of those.
    taken: u64,
    holding: usize,
    /// Those of `standing` who held the lock, were lost, and keep others waiting until then, monotonic.
    lost: BTreeMap<Spot, Millis>,
    /// Those whose shadow keeps nobody waiting any more, or never did.
    spent: BTreeSet<Who>,
    /// What `lost` was before the line was forgotten.
    before: BTreeMap<Spot, Millis>,
}

impl Line {
    /// The line as somebody sees it who looks at it once, when all the entries of a key are these.
    pub fn of(revision: i64, entries: &[Entry]) -> Self {
        let mut line = Self::default();
        line.list(revision, entries, 0);
        line.advance(0);
        line
    }

    /// What is known of those who are lost outlives the line until the next listing, which tells whose shadows are
    /// left: whoever asks now and then comes to the end of a lock-delay too.
    pub fn forget(&mut self) {
        self.before.append(&mut self.lost);
        *self = Self {
            before: std::mem::take(&mut self.before),
            spent: std::mem::take(&mut self.spent),
            ..Self::default()
        };
    }

    /// The line of all the entries of a key as of `revision`, so far as it is not known better.
    pub fn list(&mut self, revision: i64, entries: &[Entry], now: Millis) {
        if revision < self.seen {
            return;
        }
        let before = std::mem::take(self);
        self.seen = revision;
        for entry in entries {
            if let (Key::Waiter { .. }, Record::Waiter(_)) = (&entry.key, &entry.record) {
                self.insert(entry);
            }
        }
        let mut shadows: Vec<(Spot, &crate::lock::Shadow)> = Vec::new();
        for entry in entries {
            let (Key::Shadow { .. }, Record::Shadow(shadow)) = (&entry.key, &entry.record) else { continue };
            self.insert(entry);
            if let Some(who) = who(&entry.key).filter(|who| !self.spots.contains_key(who)) {
                shadows.push((Spot { revision: entry.create_revision, who }, shadow));
            }
        }
        // A shadow alone: of one who held the lock, unless somebody who lives stands in its way still.
        for (spot, shadow) in shadows {
            if before.spent.contains(&spot.who) || !self.may_have_held(&spot, shadow.share) {
                self.spent.insert(spot.who);
                continue;
            }
            let until = before.lost.get(&spot).or(before.before.get(&spot)).copied();
            let until = until.unwrap_or(now.saturating_add(shadow.delay));
            self.spots.insert(spot.who.clone(), spot.revision);
            let standing = Standing {
                holder: shadow.holder.clone(),
                share: shadow.share,
                place: None,
                shadow: Some(shadow.delay),
            };
            self.standing.insert(spot.clone(), standing);
            self.lost.insert(spot, until);
        }
    }

    /// Takes in a record that was put; answers who came to stand in the line by it.
    pub fn put(&mut self, entry: &Entry) -> Option<Who> {
        if entry.mod_revision < self.seen {
            return None;
        }
        self.seen = entry.mod_revision;
        self.insert(entry)
    }

    fn insert(&mut self, entry: &Entry) -> Option<Who> {
        let who = who(&entry.key)?;
        let spot = Spot { revision: entry.create_revision, who: who.clone() };
        match &entry.record {
            Record::Waiter(waiter) => {
                let (holder, share) = (waiter.holder.clone(), waiter.share);
                let standing = Standing { holder, share, place: Some(waiter.place), shadow: None };
                self.spots.insert(who.clone(), spot.revision);
                self.standing.insert(spot, standing);
                Some(who)
            }
            // It is put with its waiter and after it.
            Record::Shadow(shadow) => {
                self.standing.get_mut(&spot)?.shadow = Some(shadow.delay);
                None
            }
            _ => None,
        }
    }

    /// Takes in that a key was deleted; answers who left the line, or was lost, by it.
    pub fn deleted(&mut self, key: &Key, revision: i64, now: Millis) -> Option<Who> {
        if revision < self.seen {
            return None;
        }
        self.seen = revision;
        let who = who(key)?;
        if matches!(key, Key::Waiter { .. }) {
            // Whoever leaves deletes its shadow first.
            return self.lose(&who, now).then_some(who);
        }
        self.spent.remove(&who);
        let spot = self.spot(&who)?;
        if self.lost.contains_key(&spot) {
            self.remove(&spot);
        } else {
            self.standing.get_mut(&spot)?.shadow = None;
        }
        None
    }

    /// Somebody is gone, without having deleted its shadow if it has one; false when it does not stand in the line.
    pub fn lose(&mut self, who: &Who, now: Millis) -> bool {
        let Some(spot) = self.spot(who) else { return false };
        let Some(Standing { share, shadow, .. }) = self.standing.get(&spot) else { return false };
        let (share, shadow) = (*share, *shadow);
        if let Some(delay) = shadow
            && self.may_have_held(&spot, share)
        {
            self.lost.entry(spot.clone()).or_insert(now.saturating_add(delay));
            self.standing.entry(spot).and_modify(|standing| standing.place = None);
            return true;
        }
        self.remove(&spot);
        if shadow.is_some() {
            self.spent.insert(who.clone());
        }
        true
    }

    /// Somebody leaves of its own will.
    pub fn leave(&mut self, who: &Who) {
        if let Some(spot) = self.spot(who) {
            self.remove(&spot);
        }
    }

    /// Those who have come to hold the lock since this was last asked.
    pub fn advance(&mut self, now: Millis) -> Vec<Spot> {
        let over: Vec<Spot> =
            self.lost.iter().filter(|(_, until)| **until <= now).map(|(spot, _)| spot.clone()).collect();
        for spot in over {
            self.remove(&spot);
            self.spent.insert(spot.who);
        }
        let mut come = Vec::new();
        while let Some((spot, standing)) = self.next()
            && (standing.share.fits(self.taken) || self.lost.contains_key(spot))
        {
            let (spot, permits) = (spot.clone(), standing.share.permits);
            self.taken += u64::from(permits);
            self.holding += 1;
            self.through = Some(spot.clone());
            come.push(spot);
        }
        come
    }

    /// Those whose shadow may be deleted now; they are not told of again.
    pub fn take_spent(&mut self) -> BTreeSet<Who> {
        std::mem::take(&mut self.spent)
    }

    /// Revision as of which it is so.
    pub fn seen(&self) -> i64 {
        self.seen
    }

    /// Where somebody stands.
    pub fn spot(&self, who: &Who) -> Option<Spot> {
        self.spots.get(who).map(|revision| Spot { revision: *revision, who: who.clone() })
    }

    /// Who stands there.
    pub fn at(&self, spot: &Spot) -> Option<&Standing> {
        self.standing.get(spot)
    }

    /// Those who hold the lock, and those who were lost while they did, in order.
    pub fn holders(&self) -> impl Iterator<Item = (&Spot, &Standing)> {
        self.standing.iter().take_while(|(spot, _)| Some(*spot) <= self.through.as_ref())
    }

    /// Those who hold the lock, in order.
    pub fn living_holders(&self) -> impl Iterator<Item = (&Spot, &Standing)> {
        self.holders().filter(|(spot, _)| !self.lost.contains_key(spot))
    }

    /// Those who wait, in order.
    pub fn waiters(&self) -> impl Iterator<Item = (&Spot, &Standing)> {
        self.standing.iter().skip_while(|(spot, _)| Some(*spot) <= self.through.as_ref())
    }

    /// Those who wait, in order, with nobody of another sidecar living before them: theirs may have granted them the lock
    /// already, and deletes the keys of those before them, or the shadows of the lost, only then.
    pub fn heirs(&self) -> impl Iterator<Item = (&Spot, &Standing)> {
        let mut living = self.living_holders().chain(self.waiters()).map(|(spot, _)| &spot.who.0);
        let session = living.next();
        let heirs = self.living_holders().all(|(spot, _)| Some(&spot.who.0) == session);
        self.waiters().take_while(move |(spot, _)| heirs && Some(&spot.who.0) == session)
    }

    /// Whether somebody who comes now would hold the lock.
    pub fn is_open_to(&self, share: Share) -> bool {
        self.waiting() == 0 && share.fits(self.taken)
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.standing.len() - self.holding
    }

    /// How many wait before somebody who waits.
    pub fn waiting_before(&self, spot: &Spot) -> usize {
        // Whoever asks has just come, and stands far back.
        self.waiting().saturating_sub(self.standing.range(spot..).count())
    }

    /// When the next lock-delay is over, monotonic milliseconds.
    pub fn wake_at(&self) -> Option<Millis> {
        self.lost.values().min().copied()
    }

    fn next(&self) -> Option<(&Spot, &Standing)> {
        use std::ops::Bound::{Excluded, Unbounded};
        match &self.through {
            Some(through) => self.standing.range((Excluded(through), Unbounded)).next(),
            None => self.standing.first_key_value(),
        }
    }

    /// Whether one who is gone may have held the lock: those who were lost before it do not count, for others may have
    /// seen them lost sooner.
    fn may_have_held(&self, spot: &Spot, share: Share) -> bool {
        let mut taken = 0;
        for (before, standing) in self.standing.range(..spot) {
            if self.lost.contains_key(before) {
                continue;
            }
            if !standing.share.fits(taken) {
                return false;
            }
            taken += u64::from(standing.share.permits);
        }
        share.fits(taken)
    }

    fn remove(&mut self, spot: &Spot) {
        let Some(standing) = self.standing.remove(spot) else { return };
        self.spots.remove(&spot.who);
        self.lost.remove(spot);
        if Some(spot) <= self.through.as_ref() {
            self.taken -= u64::from(standing.share.permits);
            self.holding -= 1;
        }
    }
}

/// Whose key it is.
pub fn who(key: &Key) -> Option<Who> {
    match key {
        Key::Waiter { session, number, .. } | Key::Shadow { session, number, .. } => {
            Some((session.clone(), *number))
        }
        _ => None,
    }
}
