//! What follows when the plan under way has landed, and which plan goes next.

use super::{End, Grant, Phase, Swap, Waiter};
use crate::{
    Answer, Millis, Now,
    lock::{Caller, Effect, Failure, Fence, Holder, Rejected, Reply, Rival, Token, machine::RETRY, plans},
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
            Phase::Trying { holder, ttl: _, since: _, waiter } => {
                self.tried(holder, waiter, outcome, believed, now, effects);
            }
            Phase::Freeing { revision, token, callers, under_way: true } => {
                self.freed(revision, token, callers, outcome, now, effects);
            }
            other => {
                self.phase = other;
                return Err(Rejected::NothingUnderWay);
            }
        }
        Ok(())
    }

    fn tried(
        &mut self,
        holder: Holder,
        waiter: Option<Waiter>,
        outcome: Result<Answer, Failure>,
        believed: Millis,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        self.retry_at = 0;
        match outcome {
            Ok(answer) if answer.held => {
                self.see(answer.revision, None);
                self.grant_to(waiter, holder, answer.revision, believed, now, effects);
            }
            Ok(answer) => {
                let found = plans::found_holder(&answer);
                self.see(answer.revision, found.clone());
                self.stand_first(waiter);
                self.defined(plans::found_definition(&answer), answer.revision, effects);
                match found {
                    // An earlier plan of ours whose outcome was unknown did land.
                    Some(found) if found.holder.session == holder.session => {
                        self.free(found.revision, None, Vec::new());
                    }
                    Some(found) => self.send_away(&found.holder, None, effects),
                    // Nobody held it: the session's lease or key was gone. The store makes new ones.
                    None => self.failed(now, effects),
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
            return self.free(revision, None, Vec::new());
        };
        let fence = Fence::new(revision, self.offset, 0);
        let (Some(fence), true) = (fence, now.monotonic < believed) else {
            effects.push(Effect::Reply(request.caller, Err(Rejected::Lost)));
            return self.free(revision, None, Vec::new());
        };
        let after = |span: Millis| now.monotonic.saturating_add(span);
        let limit = if request.max_hold == 0 { Millis::MAX } else { after(request.max_hold) };
        let until = if request.renew { limit } else { after(request.ttl).min(limit) };
        let (caller, token, ttl) = (request.caller, request.token, request.ttl);
        let grant = Grant { caller, token, revision, holder, ttl, until, limit, believed };
        let expires_in = grant.end() - now.monotonic;
        let waited = now.monotonic.saturating_sub(asked);
        effects.push(Effect::Reply(caller, Ok(Reply::Granted { token, fence, expires_in, waited })));
        self.send_away(&grant.holder, Some(expires_in), effects);
        self.phase = Phase::Held(grant);
    }

    fn freed(
        &mut self,
        revision: i64,
        token: Option<Token>,
        callers: Vec<Caller>,
        outcome: Result<Answer, Failure>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let Ok(answer) = outcome else {
            self.retry_at = now.monotonic + RETRY;
            self.phase = Phase::Freeing { revision, token, callers, under_way: false };
            return;
        };
        self.retry_at = 0;
        // Refused, the grant was gone already: by an earlier try of this plan, or with its lease.
        let found = if answer.held { None } else { plans::found_holder(&answer) };
        self.see(answer.revision, found);
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

    /// Tells those who do not wait who has the lock.
    fn send_away(&mut self, holder: &Holder, expires_in: Option<Millis>, effects: &mut Vec<Effect>) {
        let rival = Box::new(Rival { holder: holder.clone(), expires_in });
        self.reject(&Rejected::Held(rival), effects, |request| request.wait == 0);
    }

    fn failed(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.retry_at = now.monotonic + RETRY;
        self.reject(&Rejected::Unavailable { unknown: false }, effects, |request| request.wait == 0);
    }

    /// Whether somebody waits and nobody is known to hold the lock.
    pub(super) fn wants(&self) -> bool {
        !self.line.is_empty() && self.seen.1.is_none()
    }

    /// Sends the next plan, if one is due and none under way.
    pub(super) fn advance(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if let (Phase::Idle, Some(doubt), Some(found)) = (&self.phase, &self.doubt, &self.seen.1)
            && found.holder.session == *doubt
        {
            self.free(found.revision, None, Vec::new());
        }
        if now.monotonic < self.retry_at {
            return;
        }
        if let Phase::Freeing { revision, under_way, .. } = &mut self.phase
            && !*under_way
        {
            *under_way = true;
            effects.push(Effect::Commit(plans::release(&self.lock, &self.key, *revision)));
        }
        if matches!(self.phase, Phase::Idle)
            && self.wants()
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
        let (created, ttl) = (request.definition, request.ttl);
        let plan = plans::acquire(&self.lock, &self.key, created, ttl, holder.clone());
        effects.push(Effect::Commit(plan));
        self.phase = Phase::Trying { holder, ttl, since: now.monotonic, waiter: Some(waiter) };
    }
}
