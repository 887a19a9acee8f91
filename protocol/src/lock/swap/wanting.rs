//! What a sidecar does that wants a lock which another has: it asks that one, unless etcd says that it is held and will be
//! freed.

use super::{Aside, Phase, Swap, Waiter};
use crate::{
    Answer, Key, Millis, Now, Plan, SessionId,
    lock::{
        Effect, Failure, Found, Mode, Rival,
        machine::{ANSWER, RETRY},
        plans,
    },
};

/// What was asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Asked {
    /// Since which revision the other sidecar has it.
    life: i64,
    /// When, monotonic.
    at: Millis,
    /// At which revision; 0 before that is known.
    revision: i64,
}

impl Swap {
    /// Who is known to be in the way at this moment, and does not merely keep what nobody holds.
    pub(super) fn in_the_way(&self, now: Now) -> Option<Rival> {
        match self.seen.holder() {
            Some(found) if found.holder.stays && !self.unanswered(found, now) => None,
            _ => self.seen.rival(now),
        }
    }

    /// Whether the holder's sidecar was asked and has had its time to answer.
    fn unanswered(&self, found: &Found, now: Now) -> bool {
        self.asked.as_ref().is_some_and(|asked| {
            asked.life == found.revision && asked.at.saturating_add(ANSWER) <= now.monotonic
        })
    }

    /// Takes in whom the watch, or a plan that was refused, shows.
    pub(super) fn look_for_rivals(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if !matches!(self.phase, Phase::Idle) {
            return;
        }
        if let Some(found) = self.seen.holder() {
            let stays = found.holder.stays;
            if !stays && self.asked.as_ref().is_some_and(|asked| asked.answered_by(found)) {
                // What told it has taken away what asked for it.
                let of = found.holder.session.clone();
                self.wants.retain(|want| !matches!(want, Key::Want { holder, .. } if *holder == of));
            }
            self.yields = 0;
            self.contended |= !stays && !self.line.is_empty();
        }
        if let Some(rival) = self.in_the_way(now) {
            self.send_away(rival, effects);
        }
    }

    /// Whom to ask: a sidecar with which it may stay, and who asks.
    fn askable(&self) -> Option<(&Found, &SessionId)> {
        let found = self.seen.holder().filter(|found| found.holder.stays)?;
        let session = &self.line.front()?.request.session;
        let asked = self.asked.as_ref().is_some_and(|asked| asked.life == found.revision);
        let asks = self.mode == Mode::CompareAndSwap && !asked && found.holder.session != *session;
        asks.then_some((found, session))
    }

    /// When something is to be done about what others have, or have been asked.
    pub(super) fn asks_at(&self) -> Option<Millis> {
        if self.aside.is_some() {
            return None;
        }
        if self.askable().is_some() || self.line.is_empty() && !self.wants.is_empty() {
            return Some(self.retry_at);
        }
        let hurry =
            self.line.iter().any(|Waiter { request, .. }| request.wait == 0 || request.max_waiters == 0);
        let (asked, found) = (self.asked.as_ref()?, self.seen.holder()?);
        (hurry && asked.life == found.revision).then(|| asked.at.saturating_add(ANSWER))
    }

    /// Asks, or takes back what was asked when nobody waits here any more.
    pub(super) fn ask(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if !matches!(self.phase, Phase::Idle) {
            return;
        }
        let plan = if let Some((found, session)) = self.askable() {
            let key = plans::want_key(&self.lock, &self.key, &found.holder.session, session);
            let plan = plans::want(&self.lock, &self.key, found, session);
            let others = self.wants.iter().filter(|other| **other != key).cloned();
            let plan = others.fold(plan, Plan::delete);
            let (life, session, new) = (found.revision, session.clone(), self.wants.insert(key.clone()));
            self.asked = Some(Asked { life, at: now.monotonic, revision: 0 });
            self.aside = Some(Aside::Asking { life, key, session, new });
            plan
        } else if self.line.is_empty() && !self.wants.is_empty() {
            self.aside = Some(Aside::Withdrawing);
            self.wants.iter().cloned().fold(Plan::new(), Plan::delete)
        } else {
            return;
        };
        effects.push(Effect::Commit(plan));
    }

    pub(super) fn landed_aside(
        &mut self,
        aside: Aside,
        outcome: Result<Answer, Failure>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        match aside {
            Aside::Telling(revision) => self.told(revision, outcome, now, effects),
            Aside::Withdrawing => match outcome {
                Ok(_) | Err(Failure::SessionEnded) => self.withdrawn(),
                Err(_) => self.retry_at = now.monotonic + RETRY,
            },
            Aside::Asking { life, key, session, new } => {
                self.retry_at = 0;
                let may_stand = !new || matches!(outcome, Err(Failure::Unknown));
                match outcome {
                    Ok(answer) if answer.held => {
                        self.wants.retain(|want| *want == key);
                        if let Some(asked) = self.asked.as_mut().filter(|asked| asked.life == life) {
                            asked.revision = answer.revision;
                        }
                        return;
                    }
                    Ok(answer) => self.seen.all(answer.revision, plans::found_holder(&answer), None, now),
                    Err(Failure::SessionEnded) => self.lost(&session, effects),
                    Err(Failure::NotApplied | Failure::Unknown) => self.retry_at = now.monotonic + RETRY,
                }
                self.asked = None;
                if !may_stand {
                    self.wants.remove(&key);
                }
            }
        }
    }

    /// Nothing is asked any more.
    pub(super) fn withdrawn(&mut self) {
        self.wants.clear();
        self.asked = None;
    }

    /// A session of ours is over, and with it what it asked.
    pub(super) fn forget_wants(&mut self, of: &SessionId) {
        self.wants.retain(|want| !matches!(want, Key::Want { session, .. } if session == of));
        self.asked = None;
    }
}

impl Asked {
    /// Whether who was asked has told since then that somebody holds it.
    fn answered_by(&self, found: &Found) -> bool {
        self.life == found.revision && self.revision != 0 && found.told > self.revision
    }
}
