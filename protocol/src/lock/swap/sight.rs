//! What is seen of a key: who holds it, and who was lost while it did.

use crate::{
    Millis, Now,
    lock::{Found, Rival, plans::Left},
};

/// What was seen of a key, as of one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Sight {
    revision: i64,
    holder: Option<Found>,
    /// Mode Lease only.
    shadow: Option<Left>,
    /// The shadow that was seen last without a holder: its revision, and since when it was seen so, monotonic. It
    /// outlives what is seen, so that whoever asks now and then comes to the end of a lock-delay too.
    alone: Option<(i64, Millis)>,
}

impl Sight {
    /// All there is as of a revision, so far as it is not known better.
    pub(super) fn all(&mut self, revision: i64, holder: Option<Found>, shadow: Option<Left>, now: Now) {
        if revision >= self.revision {
            (self.revision, self.holder, self.shadow) = (revision, holder, shadow);
            self.look(now);
        }
    }

    /// The holder's key has changed.
    pub(super) fn holder_is(&mut self, revision: i64, holder: Option<Found>, now: Now) {
        if revision >= self.revision {
            (self.revision, self.holder) = (revision, holder);
            self.look(now);
        }
    }

    /// The shadow has changed.
    pub(super) fn shadow_is(&mut self, revision: i64, shadow: Option<Left>, now: Now) {
        if revision >= self.revision {
            (self.revision, self.shadow) = (revision, shadow);
            self.look(now);
        }
    }

    /// It may have changed unnoticed: that it is free is found out by trying.
    pub(super) fn forget(&mut self) {
        (self.holder, self.shadow) = (None, None);
    }

    fn look(&mut self, now: Now) {
        // Each grant has a shadow of its own, so a revision tells one loss from the next.
        if let (None, Some(left)) = (&self.holder, &self.shadow)
            && self.alone.is_none_or(|(revision, _)| revision != left.revision)
        {
            self.alone = Some((left.revision, now.monotonic));
        }
    }

    /// Who is known to hold the lock.
    pub(super) fn holder(&self) -> Option<&Found> {
        self.holder.as_ref()
    }

    /// Mod revision of the shadow that an acquisition must find; 0: none.
    pub(super) fn shadow(&self) -> i64 {
        self.shadow.as_ref().map_or(0, |left| left.revision)
    }

    /// From when on nobody is known to be in the way, monotonic; `None` while somebody holds the lock.
    pub(super) fn free_at(&self) -> Option<Millis> {
        match (&self.holder, &self.shadow, self.alone) {
            (Some(_), ..) => None,
            (None, Some(left), Some((_, since))) => Some(since.saturating_add(left.shadow.delay)),
            (None, ..) => Some(0),
        }
    }

    /// Who is known to be in the way at this moment.
    pub(super) fn rival(&self, now: Now) -> Option<Rival> {
        if let Some(found) = &self.holder {
            return Some(Rival { holder: found.holder.clone(), expires_in: None });
        }
        let left = self.free_at()?.checked_sub(now.monotonic).filter(|left| *left > 0)?;
        let holder = self.shadow.as_ref()?.shadow.holder.clone();
        Some(Rival { holder, expires_in: Some(left) })
    }
}
