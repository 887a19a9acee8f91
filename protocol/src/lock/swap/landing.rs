//! What follows when the plan under way has landed, and which plan goes next.

use super::{End, Grant, Phase, Swap, Waiter};
use crate::{
    Answer, Millis, Now,
    lock::{
        Caller, Effect, Failure, Fence, Holder, Mode, Rejected, Reply, Rival, Token,
        machine::RETRY,
        plans::{self, Delayed, Frees},
    },
};

impl Swap {
    pub(super) fn landed(
        &mut self,
        outcome: Result<Answer, Failure>,
        believed: Millis,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Rejected> {
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Trying { holder, ttl: _, since: _, over, waiter } => {
                self.tried((holder, over), waiter, outcome, believed, now, effects);
            }
            Phase::Freeing { revision, frees, token, callers, under_way: true } => match outcome {
                Ok(answer) => self.freed((revision, frees), token, callers, &answer, now, effects),
                Err(_) => {
                    self.retry_at = now.monotonic + RETRY;
                    self.phase = Phase::Freeing { revision, frees, token, callers, under_way: false };
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
                    Some(found) if found.holder.session == holder.session => {
                        self.free(found.revision, self.both(), None, Vec::new());
                    }
                    Some(found) => {
                        self.send_away(Rival { holder: found.holder, expires_in: None }, effects);
                    }
                    // Nobody held it: the session's lease or key was gone. The store makes new ones.
                    None if as_compared => self.failed(now, effects),
                    // A holder was lost, or somebody has waited for its lock-delay meanwhile.
                    None => {
                        if let Some(lost) = self.seen.rival(now) {
                            self.send_away(lost, effects);
                        }
                    }
                }
            }
            Err(Failure::NotApplied) => {
                self.stand_first(waiter);
                self.failed(now, effects);
            }
            Err(Failure::Unknown) => {
                self.doubt = Some(holder.session);
                let unknown = Err(Rejected::Unavailable { unknown: true });
                effects.extend(waiter.map(|waiter| Effect::Reply(waiter.request.caller, unknown)));
            }
            Err(Failure::SessionEnded) => {
                self.stand_first(waiter);
                self.lost(&holder.session, effects);
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
        let Some(Waiter { request, asked, .. }) = waiter else {
            return self.free(revision, self.both(), None, Vec::new());
        };
        let fence = Fence::new(revision, self.offset, 0);
        let (Some(fence), true) = (fence, now.monotonic < believed) else {
            effects.push(Effect::Reply(request.caller, Err(Rejected::Lost)));
            return self.free(revision, self.both(), None, Vec::new());
        };
        let after = |span: Millis| now.monotonic.saturating_add(span);
        let limit = if request.max_hold == 0 { Millis::MAX } else { after(request.max_hold) };
        let until = if request.renew { limit } else { after(request.ttl).min(limit) };
        let (caller, token, ttl) = (request.caller, request.token, request.ttl);
        let grant = Grant { caller, token, revision, holder, ttl, until, limit, believed };
        let expires_in = grant.end() - now.monotonic;
        let waited = now.monotonic.saturating_sub(asked);
        effects.push(Effect::Reply(caller, Ok(Reply::Granted { token, fence, expires_in, waited })));
        self.send_away(grant.rival(now), effects);
        self.phase = Phase::Held(grant);
    }

    fn freed(
        &mut self,
        (revision, frees): (i64, Frees),
        token: Option<Token>,
        callers: Vec<Caller>,
        answer: &Answer,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        self.retry_at = 0;
        // Refused, the grant was gone already: by an earlier try of this plan, or with its lease.
        let (found, left) = (plans::found_holder(answer), plans::found_shadow(answer));
        let stays = left.as_ref().is_some_and(|left| left.revision == revision);
        self.seen.all(answer.revision, found, left, now);
        if stays && frees == Frees::Both {
            // It was let go: nobody is to wait for it.
            return self.free(revision, Frees::Shadow, token, callers);
        }
        if let Some(token) = token {
            self.remember(token, End::Released);
        }
        effects.extend(callers.into_iter().map(|caller| Effect::Reply(caller, Ok(Reply::Released))));
    }

    fn stand_first(&mut self, waiter: Option<Waiter>) {
        if let Some(waiter) = waiter {
            self.line.push_front(waiter);
        }
    }

    /// Tells those who do not wait who is in the way.
    fn send_away(&mut self, rival: Rival, effects: &mut Vec<Effect>) {
        self.reject(&Rejected::Held(Box::new(rival)), effects, |request| request.wait == 0);
    }

    fn failed(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.retry_at = now.monotonic + RETRY;
        self.reject(&Rejected::Unavailable { unknown: false }, effects, |request| request.wait == 0);
    }

    /// When the next attempt is due: somebody waits and nobody is known to be in the way then.
    pub(super) fn tries_at(&self) -> Option<Millis> {
        let free_at = self.seen.free_at().filter(|_| !self.line.is_empty())?;
        Some(free_at.max(self.retry_at))
    }

    /// Sends the next plan, if one is due and none under way.
    pub(super) fn advance(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if let (Phase::Idle, Some(doubt), Some(found)) = (&self.phase, &self.doubt, self.seen.holder())
            && found.holder.session == *doubt
        {
            self.free(found.revision, self.both(), None, Vec::new());
        }
        if now.monotonic < self.retry_at {
            return;
        }
        if let Phase::Freeing { revision, frees, under_way, .. } = &mut self.phase
            && !*under_way
        {
            *under_way = true;
            effects.push(Effect::Commit(plans::release(&self.lock, &self.key, *revision, *frees)));
        }
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
        };
        let (created, ttl, over) = (request.definition, request.ttl, self.seen.shadow());
        let delayed = (self.mode == Mode::Lease).then_some(Delayed { over, delay: request.lock_delay });
        let plan = plans::acquire(&self.lock, &self.key, created, ttl, holder.clone(), delayed);
        effects.push(Effect::Commit(plan));
        self.phase = Phase::Trying { holder, ttl, since: now.monotonic, over, waiter: Some(waiter) };
    }
}
