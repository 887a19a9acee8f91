//! What callers ask of the machine, and how they are sent away.

use super::{End, Phase, Swap, Waiter};
use crate::{
    Millis, Now,
    lock::{Caller, Effect, Rejected, Reply, Request, Rival, Token, machine::PATIENCE},
};

impl Swap {
    pub(super) fn acquire(&mut self, request: Request, now: Now) -> Result<(), Rejected> {
        let rival = self.rival(now);
        let nothing_here = self.line.is_empty() && matches!(self.phase, Phase::Idle | Phase::Staying(_));
        let free = nothing_here && rival.is_none();
        if request.wait == 0
            && let Some(rival) = rival
        {
            return Err(Rejected::Held(rival));
        }
        // Who takes what is free does not wait; whether it is, a try tells.
        if request.wait > 0 && !free && self.line.len() >= request.max_waiters {
            return Err(Rejected::Full);
        }
        if !self.watches() {
            self.seen.forget();
        }
        self.contended &= !self.line.is_empty();
        let wait = if request.wait == 0 { PATIENCE } else { request.wait };
        let deadline = now.monotonic.saturating_add(wait);
        self.line.push_back(Waiter { request, asked: now.monotonic, deadline });
        Ok(())
    }

    /// Who is known to be in the way at this moment.
    pub(super) fn rival(&self, now: Now) -> Option<Box<Rival>> {
        let rival = match &self.phase {
            Phase::Held(grant) if now.monotonic < grant.end() => Some(grant.rival(now)),
            Phase::Idle if self.watches() => self.in_the_way(now),
            _ => None,
        };
        rival.map(Box::new)
    }

    pub(super) fn cancel(&mut self, caller: Caller, now: Now, effects: &mut Vec<Effect>) {
        self.line.retain(|waiter| waiter.request.caller != caller);
        match &mut self.phase {
            Phase::Trying { waiter, .. } => {
                waiter.take_if(|waiter| waiter.request.caller == caller);
            }
            Phase::Held(grant) if grant.caller == caller => self.let_go(Vec::new(), now, effects),
            Phase::Freeing { callers, .. } => callers.retain(|other| *other != caller),
            Phase::Idle | Phase::Held(_) | Phase::Staying(_) => {}
        }
    }

    pub(super) fn renew(&mut self, token: Token, believed: Millis, now: Now) -> Result<Reply, Rejected> {
        let Phase::Held(grant) = &mut self.phase else { return Err(self.not_held(token)) };
        if grant.token != token {
            return Err(self.not_held(token));
        }
        let believed = grant.believes(believed);
        if now.monotonic >= grant.until.min(believed) {
            return Err(Rejected::Lost);
        }
        grant.believed = believed;
        grant.until = grant.until.max(now.monotonic.saturating_add(grant.ttl)).min(grant.limit);
        Ok(Reply::Renewed { expires_in: grant.end() - now.monotonic })
    }

    pub(super) fn release(
        &mut self,
        caller: Caller,
        token: Token,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Rejected> {
        match &mut self.phase {
            Phase::Held(grant) if grant.token == token => self.let_go(vec![caller], now, effects),
            Phase::Freeing { token: Some(freed), callers, .. } if *freed == token => callers.push(caller),
            _ if self.ended.contains(&(token, End::Released)) => {
                effects.push(Effect::Reply(caller, Ok(Reply::Released)));
            }
            _ => return Err(self.not_held(token)),
        }
        Ok(())
    }

    fn not_held(&self, token: Token) -> Rejected {
        if self.ended.contains(&(token, End::Lost)) { Rejected::Lost } else { Rejected::Mismatch }
    }

    pub(super) fn drain(&mut self, effects: &mut Vec<Effect>) {
        self.reject(&Rejected::Unavailable { unknown: false }, effects, |_| true);
        // What may yet land goes with the session, which ends.
        self.doubt = None;
        match &self.phase {
            Phase::Held(grant) => self.free(grant.freed(self.both()), Some(grant.token), Vec::new()),
            _ => self.give_up(),
        }
    }

    /// Sends away whoever waits and is meant, the one tried for too.
    pub(super) fn reject(
        &mut self,
        why: &Rejected,
        effects: &mut Vec<Effect>,
        meant: impl Fn(&Request) -> bool,
    ) {
        let mut reject = |request: &Request| {
            let meant = meant(request);
            if meant {
                effects.push(Effect::Reply(request.caller, Err(why.clone())));
            }
            meant
        };
        if let Phase::Trying { waiter, .. } = &mut self.phase {
            waiter.take_if(|waiter| reject(&waiter.request));
        }
        self.line.retain(|waiter| !reject(&waiter.request));
    }
}
