//! What a sidecar does that has a lock: it keeps what its callers let go, grants it again without a commit, and lets go of
//! it, or tells that it is held, once another sidecar wants it.
//!
//! etcd is told who holds it when another wants to know and when a grant has lasted for a while. From then on the lock
//! does not stay: others know that it comes free when it is let go, and say nothing.

use super::{Aside, Freed, Grant, Phase, Swap, Waiter, landing::Stood};
use crate::{
    Answer, Millis, Now, SessionId,
    lock::{
        Caller, Effect, Failure, Holder, Mode, Request,
        fence::PLACES,
        machine::{STAY, TURNS, UNTOLD},
        plans::{self, Frees},
    },
};

/// How long after etcd was not told it is tried again, milliseconds: without space that may be long.
const RETRY_TELLING: Millis = 1_000;

/// What none of our callers has, and nobody else can have.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Stay {
    pub(super) revision: i64,
    /// Of the last grant.
    pub(super) holder: Holder,
    pub(super) definition: i64,
    pub(super) ttl: Millis,
    /// It is let go then, monotonic.
    pub(super) until: Millis,
}

impl Grant {
    /// What stays when it is let go.
    fn stay(&self, now: Now) -> Stay {
        Stay {
            revision: self.revision,
            holder: self.holder.clone(),
            definition: self.definition,
            ttl: self.ttl,
            until: now.monotonic.saturating_add(self.ttl.min(STAY)),
        }
    }
}

impl Swap {
    pub(in crate::lock) fn believe(&mut self, believed: impl Fn(&SessionId, Millis) -> Millis) {
        let has = matches!(self.phase, Phase::Held(_) | Phase::Staying(_));
        let lease = self.lease().filter(|_| has && self.mode == Mode::CompareAndSwap);
        self.believed = lease.map_or(0, |(session, ttl)| believed(&session, ttl));
    }

    pub(in crate::lock) fn hears(&mut self, until: Millis) {
        self.hears = until;
    }

    pub(in crate::lock) fn stays(&self) -> Option<i64> {
        match &self.phase {
            Phase::Staying(stay) => Some(stay.definition),
            _ => None,
        }
    }

    /// The holder lets go: the next caller here has it, or it stays, or it is freed; `callers` are told.
    pub(super) fn let_go(&mut self, callers: Vec<Caller>, now: Now, effects: &mut Vec<Effect>) {
        let Phase::Held(grant) = &self.phase else { return };
        let (token, told, contested) = (grant.token, grant.told, self.wanted == grant.revision);
        let (stay, turns) = (grant.stay(now), grant.turns + u32::from(contested));
        let fits = |waiter: &Waiter| self.fits(&stay, &waiter.request, now);
        if turns <= TURNS && self.line.front().is_some_and(fits) {
            self.released(token, callers, effects);
            self.regrant(stay, told, turns, now, effects);
        } else if self.line.is_empty() && !contested && self.may_stay(&stay, now) {
            self.released(token, callers, effects);
            self.phase = Phase::Staying(stay);
        } else {
            self.free(grant.freed(self.both()), Some(token), callers);
        }
    }

    fn may_stay(&self, stay: &Stay, now: Now) -> bool {
        let safe_until = stay.until.min(self.hears).min(self.believed);
        self.mode == Mode::CompareAndSwap && now.monotonic < safe_until
    }

    /// Whether what is here is what a caller asks for, and the fence has room.
    fn fits(&self, stay: &Stay, request: &Request, now: Now) -> bool {
        let same = request.session == stay.holder.session
            && request.definition == stay.definition
            && request.ttl == stay.ttl;
        same && u64::from(stay.holder.regrants) + 1 < PLACES && self.may_stay(stay, now)
    }

    /// Grants the first in line what is here.
    fn regrant(&mut self, stay: Stay, told: Option<u32>, turns: u32, now: Now, effects: &mut Vec<Effect>) {
        let Some(waiter) = self.line.pop_front() else { return };
        let holder = Holder {
            owner: waiter.request.owner.clone(),
            since: now.unix,
            regrants: stay.holder.regrants + 1,
            ..stay.holder
        };
        let (revision, believed) = (stay.revision, self.believed);
        self.hold(waiter, Stood { holder, revision, believed, told, turns }, now, effects);
    }

    /// Grants what stays to who asks for it here; what does not fit is let go first.
    pub(super) fn take_what_stays(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let (Phase::Staying(stay), Some(waiter)) = (&self.phase, self.line.front()) else { return };
        if self.fits(stay, &waiter.request, now) {
            self.regrant(stay.clone(), None, 0, now, effects);
        } else {
            self.give_up();
        }
    }

    /// Another wants what this sidecar has since a revision.
    pub(super) fn want(&mut self, life: i64) {
        self.wanted = self.wanted.max(life);
        if matches!(&self.phase, Phase::Staying(stay) if stay.revision == life) {
            self.give_up();
        }
    }

    /// Lets go of what stays.
    pub(super) fn give_up(&mut self) {
        if let Phase::Staying(Stay { revision, holder, .. }) = &self.phase {
            let (revision, session) = (*revision, holder.session.clone());
            self.free(Freed { revision, session, frees: Frees::Holder }, None, Vec::new());
        }
    }

    /// When etcd is to be told who holds it.
    pub(super) fn tells_at(&self) -> Option<Millis> {
        let Phase::Held(grant) = &self.phase else { return None };
        if self.mode != Mode::CompareAndSwap || self.aside.is_some() {
            return None;
        }
        let lasted = grant.since.saturating_add(UNTOLD);
        let at = match grant.told {
            None if self.wanted == grant.revision => 0,
            Some(told) if told == grant.holder.regrants => return None,
            _ => lasted,
        };
        Some(at.max(grant.tells_after))
    }

    /// Tells it, if it is time.
    pub(super) fn tell(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if self.tells_at().is_none_or(|at| now.monotonic < at) {
            return;
        }
        let Phase::Held(grant) = &mut self.phase else { return };
        grant.told = Some(grant.holder.regrants);
        grant.holder.stays = false;
        let (revision, ttl, record) = (grant.revision, grant.ttl, grant.holder.clone());
        // It may be told late: from here on it does not stay.
        self.wanted = self.wanted.max(revision);
        self.aside = Some(Aside::Telling(revision));
        effects.push(Effect::Commit(plans::tell(&self.lock, &self.key, revision, ttl, record)));
    }

    pub(super) fn told(
        &mut self,
        revision: i64,
        outcome: Result<Answer, Failure>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let Phase::Held(grant) = &mut self.phase else { return };
        if grant.revision != revision {
            return;
        }
        match outcome {
            Ok(answer) if answer.held => {}
            // Somebody took it from its holder, or its lease is over.
            Ok(_) => self.gone(effects),
            Err(Failure::SessionEnded) => {}
            Err(Failure::NotApplied | Failure::Unknown) => {
                grant.told = None;
                grant.tells_after = now.monotonic + RETRY_TELLING;
            }
        }
    }
}
