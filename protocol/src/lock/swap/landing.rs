//! What follows when the plan under way has landed, and which plan goes next.

use super::{End, Freed, Grant, Phase, Swap, Waiter};
use crate::{
    Answer, Millis, Now, Plan, Range,
    lock::{
        Caller, Effect, Failure, Fence, Found, Holder, Mode, Rejected, Reply, Rival, Token,
        machine::{RETRY, YIELD},
        plans::{self, Delayed, Frees},
    },
};

/// What this sidecar has and a caller comes to hold.
pub(super) struct Stood {
    pub(super) holder: Holder,
    pub(super) revision: i64,
    pub(super) believed: Millis,
    /// [`Grant::told`]
    pub(super) told: Option<u32>,
    /// [`Grant::turns`]
    pub(super) turns: u32,
}

impl Swap {
    pub(super) fn landed(
        &mut self,
        outcome: Result<Answer, Failure>,
        believed: Millis,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Rejected> {
        if let Some(aside) = self.aside.take() {
            self.landed_aside(aside, outcome, now, effects);
            return Ok(());
        }
        // The store sends nothing that touches what a plan of its session may write before the fate of that is known.
        let settles = outcome.is_ok();
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Trying { holder, ttl: _, since: _, over, waiter } => {
                self.doubt.take_if(|doubt| settles && *doubt == holder.session);
                self.tried((holder, over), waiter, outcome, believed, now, effects);
            }
            Phase::Freeing { freed, token, callers, under_way: true } => match outcome {
                Ok(answer) => {
                    self.doubt.take_if(|doubt| *doubt == freed.session);
                    self.freed(freed, token, callers, &answer, now, effects);
                }
                Err(_) => {
                    self.retry_at = now.monotonic + RETRY;
                    self.phase = Phase::Freeing { freed, token, callers, under_way: false };
                }
            },
            other => {
                self.phase = other;
                return Err(Rejected::NothingUnderWay);
            }
        }
        Ok(())
    }

    fn tried(
        &mut self,
        (holder, over): (Holder, i64),
        waiter: Option<Waiter>,
        outcome: Result<Answer, Failure>,
        believed: Millis,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        self.retry_at = 0;
        match outcome {
            Ok(answer) if answer.held => {
                self.seen.all(answer.revision, None, None, now);
                self.withdrawn();
                self.grant_to(waiter, holder, answer.revision, believed, now, effects);
            }
            Ok(answer) => {
                let (found, left) = (plans::found_holder(&answer), plans::found_shadow(&answer));
                let as_compared = left.as_ref().map_or(0, |left| left.revision) == over;
                self.seen.all(answer.revision, found.clone(), left, now);
                self.stand_first(waiter);
                self.defined(plans::found_definition(&answer), answer.revision, effects);
                match found {
                    // An earlier plan of ours whose outcome was unknown did land.
                    Some(found) if found.holder.session == holder.session => self.free_own(&found),
                    // Nobody held it: the session's lease or key was gone. The store makes new ones.
                    None if as_compared => self.failed(now, effects),
                    // Another holds it; or a holder was lost, or somebody has waited for its lock-delay meanwhile.
                    _ => {}
                }
            }
            Err(Failure::NotApplied) => {
                self.stand_first(waiter);
                self.failed(now, effects);
            }
            Err(Failure::Unknown) => {
                // What lands under a lease that is over goes with it.
                if now.monotonic < believed {
                    self.doubt = Some(holder.session);
                }
                let unknown = Err(Rejected::Unavailable { unknown: true });
                effects.extend(waiter.map(|waiter| Effect::Reply(waiter.request.caller, unknown)));
            }
            // Of one of its leases that is true while the session lives: what stands under the others stands.
            Err(Failure::SessionEnded) => {
                let lost = Err(Rejected::Lost);
                effects.extend(waiter.map(|waiter| Effect::Reply(waiter.request.caller, lost)));
            }
        }
    }

    fn grant_to(
        &mut self,
        waiter: Option<Waiter>,
        holder: Holder,
        revision: i64,
        believed: Millis,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let told = (!holder.stays).then_some(holder.regrants);
        if told.is_some() {
            self.wanted = self.wanted.max(revision);
        }
        let freed = Freed { revision, session: holder.session.clone(), frees: self.both() };
        let Some(waiter) = waiter else { return self.free(freed, None, Vec::new()) };
        if Fence::new(revision, self.offset, 0).is_none() || now.monotonic >= believed {
            effects.push(Effect::Reply(waiter.request.caller, Err(Rejected::Lost)));
            return self.free(freed, None, Vec::new());
        }
        self.hold(waiter, Stood { holder, revision, believed, told, turns: 0 }, now, effects);
    }

    /// Tells a caller that it holds what this sidecar has, whose fence is safe and lease believed.
    pub(super) fn hold(&mut self, waiter: Waiter, stood: Stood, now: Now, effects: &mut Vec<Effect>) {
        let Waiter { request, asked, .. } = waiter;
        let Stood { holder, revision, believed, told, turns } = stood;
        let after = |span: Millis| now.monotonic.saturating_add(span);
        let limit = if request.max_hold == 0 { Millis::MAX } else { after(request.max_hold) };
        let until = if request.renew { limit } else { after(request.ttl).min(limit) };
        let (caller, token, ttl, definition) =
            (request.caller, request.token, request.ttl, request.definition);
        let since = now.monotonic;
        let grant = Grant {
            caller,
            token,
            revision,
            holder,
            definition,
            ttl,
            since,
            told,
            turns,
            tells_after: 0,
            until,
            limit,
            believed,
        };
        let Some(fence) = grant.fence(self.offset) else { return };
        let expires_in = grant.end() - now.monotonic;
        let waited = now.monotonic.saturating_sub(asked);
        effects.push(Effect::Reply(caller, Ok(Reply::Granted { token, fence, expires_in, waited })));
        self.send_away(grant.rival(now), effects);
        self.contended = false;
        self.phase = Phase::Held(grant);
    }

    fn freed(
        &mut self,
        freed: Freed,
        token: Option<Token>,
        callers: Vec<Caller>,
        answer: &Answer,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        self.retry_at = 0;
        // Refused, the grant was gone already: by an earlier try of this plan, or with its lease.
        let (found, left) = (plans::found_holder(answer), plans::found_shadow(answer));
        let stays = left.as_ref().is_some_and(|left| left.revision == freed.revision);
        self.seen.all(answer.revision, found, left, now);
        if stays && freed.frees == Frees::Both {
            // It was let go: nobody is to wait for it.
            return self.free(Freed { frees: Frees::Shadow, ..freed }, token, callers);
        }
        if self.mode == Mode::CompareAndSwap && self.wanted == freed.revision {
            self.yields = now.monotonic.saturating_add(YIELD);
        }
        if let Some(token) = token {
            self.released(token, callers, effects);
        }
    }

    /// Remembers that a grant was let go, and tells who asked for it.
    pub(super) fn released(&mut self, token: Token, callers: Vec<Caller>, effects: &mut Vec<Effect>) {
        self.remember(token, End::Released);
        effects.extend(callers.into_iter().map(|caller| Effect::Reply(caller, Ok(Reply::Released))));
    }

    fn stand_first(&mut self, waiter: Option<Waiter>) {
        if let Some(waiter) = waiter {
            self.line.push_front(waiter);
        }
    }

    /// Tells those who do not wait who is in the way, and those who may not that somebody is.
    pub(super) fn send_away(&mut self, rival: Rival, effects: &mut Vec<Effect>) {
        self.reject(&Rejected::Held(Box::new(rival)), effects, |request| request.wait == 0);
        self.reject(&Rejected::Full, effects, |request| request.max_waiters == 0);
    }

    fn failed(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.retry_at = now.monotonic + RETRY;
        self.reject(&Rejected::Unavailable { unknown: false }, effects, |request| request.wait == 0);
    }

    /// When the next attempt is due: somebody waits and nobody is known to be in the way then.
    pub(super) fn tries_at(&self) -> Option<Millis> {
        let free_at = self.seen.free_at().filter(|_| !self.line.is_empty() && self.aside.is_none())?;
        Some(free_at.max(self.retry_at).max(self.yields))
    }

    /// Frees what is found under one of this sidecar's own sessions and is nobody's.
    fn free_own(&mut self, found: &Found) {
        let Found { revision, holder, .. } = found;
        let freed = Freed { revision: *revision, session: holder.session.clone(), frees: self.both() };
        self.free(freed, None, Vec::new());
    }

    /// Sends the next plan, if one is due and none under way.
    pub(super) fn advance(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if let (Phase::Idle, Some(doubt), Some(found)) = (&self.phase, &self.doubt, self.seen.holder())
            && found.holder.session == *doubt
        {
            self.free_own(&found.clone());
        }
        self.look_for_rivals(now, effects);
        self.take_what_stays(now, effects);
        if now.monotonic < self.retry_at || self.aside.is_some() {
            return;
        }
        if let Phase::Freeing { freed, under_way, .. } = &mut self.phase
            && !*under_way
        {
            *under_way = true;
            let plan = plans::release(&self.lock, &self.key, freed.revision, freed.frees);
            let wants = Range::WantsOf(freed.session.clone(), self.lock.clone(), self.key.clone());
            let wanted = self.mode == Mode::CompareAndSwap && self.wanted == freed.revision;
            effects.push(Effect::Commit(if wanted { plan.delete(wants) } else { plan }));
        }
        self.tell(now, effects);
        self.ask(now, effects);
        if matches!(self.phase, Phase::Idle)
            && self.tries_at().is_some_and(|at| at <= now.monotonic)
            && let Some(waiter) = self.line.pop_front()
        {
            self.try_for(waiter, now, effects);
        }
    }

    fn try_for(&mut self, waiter: Waiter, now: Now, effects: &mut Vec<Effect>) {
        let request = &waiter.request;
        let holder = Holder {
            session: request.session.clone(),
            pod: request.pod.clone(),
            owner: request.owner.clone(),
            since: now.unix,
            regrants: 0,
            stays: self.mode == Mode::CompareAndSwap && !self.contended,
        };
        let (created, ttl, over) = (request.definition, request.ttl, self.seen.shadow());
        let delayed = (self.mode == Mode::Lease).then_some(Delayed { over, delay: request.lock_delay });
        let plan = plans::acquire(&self.lock, &self.key, created, ttl, holder.clone(), delayed);
        let plan = self.wants.iter().cloned().fold(plan, Plan::delete);
        effects.push(Effect::Commit(plan));
        self.phase = Phase::Trying { holder, ttl, since: now.monotonic, over, waiter: Some(waiter) };
    }
}
