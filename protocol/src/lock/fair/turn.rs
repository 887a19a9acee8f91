//! Whose turn it is.

use super::{Fair, Leaving, Mine, Stage, line::Spot};
use crate::{
    Millis, Now,
    lock::{Effect, Rejected, Reply},
};

impl Fair {
    /// Grants to those callers whose turn has come, and sends those away who do not wait, or are too many.
    pub(super) fn take_turns(&mut self, now: Now, effects: &mut Vec<Effect>) {
        loop {
            let come = self.line.advance(now.monotonic);
            let fresh = std::mem::take(&mut self.fresh);
            if come.is_empty() && fresh.is_empty() {
                return;
            }
            for spot in &come {
                self.grant(spot, now, effects);
            }
            for number in fresh {
                self.look_at(number, now, effects);
            }
        }
    }

    /// One who has just come to stand in the line goes again if it may not wait there.
    fn look_at(&mut self, number: u64, now: Now, effects: &mut Vec<Effect>) {
        let Some(mine) = self.mine.get(&number).filter(|mine| mine.stage == Stage::Queued) else { return };
        let Some(spot) = self.line.spot(&mine.who()) else { return };
        if mine.request.wait == 0 {
            let why = self.rival(now).map_or(Rejected::Unavailable { unknown: false }, Rejected::Held);
            self.turn_away(number, why, effects);
        } else if self.line.waiting_before(&spot) >= mine.request.max_waiters {
            self.turn_away(number, Rejected::Full, effects);
        }
    }

    /// Tells whoever stands there that it holds the lock, if it is a caller of this sidecar and not told yet.
    fn grant(&mut self, spot: &Spot, now: Now, effects: &mut Vec<Effect>) {
        let (session, number) = (&spot.who.0, spot.who.1);
        let fence = self.line.at(spot).and_then(|standing| standing.fence(spot, self.offset));
        let mine = self.mine.get(&number).filter(|mine| mine.request.session == *session);
        let Some(mine) = mine.filter(|mine| mine.stage == Stage::Queued) else { return };
        let believed = self.believed(mine);
        let (Some(fence), true) = (fence, now.monotonic < believed) else {
            return self.turn_away(number, Rejected::Lost, effects);
        };
        let after = |span: Millis| now.monotonic.saturating_add(span);
        let request = &mine.request;
        let limit = if request.max_hold == 0 { Millis::MAX } else { after(request.max_hold) };
        let until = if request.renew { limit } else { after(request.ttl).min(limit) };
        let (caller, token) = (request.caller, request.token);
        let waited = now.monotonic.saturating_sub(mine.asked);
        let timer = (mine.timer, number);
        if let Some(Mine { stage, timer, .. }) = self.mine.get_mut(&number) {
            *stage = Stage::Held { fence, until, limit };
            *timer = until;
        }
        self.queued.remove(&number);
        self.timers.remove(&timer);
        self.timers.insert((until, number));
        self.tokens.insert(token, number);
        let expires_in = until.min(believed) - now.monotonic;
        effects.push(Effect::Reply(caller, Ok(Reply::Granted { token, fence, expires_in, waited })));
        // Whoever is granted clears away what those leave who were lost before.
        for who in self.line.take_spent() {
            self.let_go(who, Leaving::default());
        }
    }
}
