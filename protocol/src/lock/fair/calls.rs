//! What callers ask, and what ends their wait or their grant.

use super::{End, Fair, Leaving, Mine, Stage, line::Who};
use crate::{
    Now, SessionId,
    lock::{
        Caller, Effect, Rejected, Reply, Request, Token,
        machine::{PATIENCE, STALL},
    },
};

impl Fair {
    pub(super) fn acquire(&mut self, request: Request, now: Now) -> Result<(), Rejected> {
        // Unwatched, only what its own callers hold is known for certain.
        let certain = self.watched || self.mine.values().any(Mine::holds_all);
        if request.wait == 0
            && certain
            && !self.line.is_open_to(request.share)
            && let Some(rival) = self.rival(now)
        {
            return Err(Rejected::Held(rival));
        }
        // What is not known yet is asked again when it stands in the line.
        if self.watched
            && !self.line.is_open_to(request.share)
            && self.line.waiting() + self.coming.len() >= request.max_waiters
        {
            return Err(Rejected::Full);
        }
        let wait = if request.wait == 0 { PATIENCE } else { request.wait };
        let (number, timer) = (request.caller.0, now.monotonic.saturating_add(wait));
        self.beliefs.entry((request.session.clone(), request.ttl)).or_default();
        self.timers.insert((timer, number));
        self.coming.push_back(number);
        self.mine.insert(number, Mine { request, asked: now.monotonic, timer, stage: Stage::Coming });
        Ok(())
    }

    pub(super) fn cancel(&mut self, caller: Caller) {
        if let Some(mine) = self.take(caller.0) {
            let token = matches!(mine.stage, Stage::Held { .. }).then_some(mine.request.token);
            self.leave(&mine, Leaving { token, ..Leaving::default() });
        }
        for leaving in self.leaving.values_mut() {
            leaving.callers.retain(|other| *other != caller);
        }
    }

    pub(super) fn renew(&mut self, token: Token, now: Now) -> Result<Reply, Rejected> {
        let mine = self.tokens.get(&token).and_then(|number| self.mine.get(number));
        let Some((mine, Stage::Held { until, limit, .. })) = mine.map(|mine| (mine, mine.stage.clone()))
        else {
            return Err(self.not_held(token));
        };
        if now.monotonic >= self.end(mine, until) {
            return Err(Rejected::Lost);
        }
        let believed = self.believed(mine);
        let longer = until.max(now.monotonic.saturating_add(mine.request.ttl)).min(limit);
        if let Some(Mine { stage: Stage::Held { until, .. }, .. }) =
            self.tokens.get(&token).and_then(|number| self.mine.get_mut(number))
        {
            *until = longer;
        }
        Ok(Reply::Renewed { expires_in: longer.min(believed) - now.monotonic })
    }

    pub(super) fn release(
        &mut self,
        caller: Caller,
        token: Token,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Rejected> {
        if let Some(number) = self.tokens.get(&token).copied()
            && let Some(mine) = self.take(number)
        {
            self.leave(&mine, Leaving { lost: false, token: Some(token), callers: vec![caller] });
        } else if let Some(leaving) = self.leaving.values_mut().find(|leaving| leaving.token == Some(token)) {
            leaving.callers.push(caller);
        } else if self.ended.contains(&(token, End::Released)) {
            effects.push(Effect::Reply(caller, Ok(Reply::Released)));
        } else {
            return Err(self.not_held(token));
        }
        Ok(())
    }

    fn not_held(&self, token: Token) -> Rejected {
        if self.ended.contains(&(token, End::Lost)) { Rejected::Lost } else { Rejected::Mismatch }
    }

    /// As of `revision` the definition is the one created at `created`, or none.
    pub(super) fn defined(&mut self, created: Option<i64>, revision: i64, effects: &mut Vec<Effect>) {
        let why = if created.is_some() { Rejected::Replaced } else { Rejected::Deleted };
        self.reject(&why, effects, |request| {
            request.definition <= revision && Some(request.definition) != created
        });
    }

    /// A session is no longer believed: nobody is granted or holds under it any more.
    pub(super) fn lost(&mut self, session: &SessionId, now: Now, effects: &mut Vec<Effect>) {
        self.doubt.retain(|(of, _)| of != session);
        if let Some(joining) = self.joining.as_mut().filter(|joining| joining.session == *session) {
            joining.lost = true;
        }
        self.reject(&Rejected::Lost, effects, |request| request.session == *session);
        let held: Vec<u64> = self.tokens.values().copied().collect();
        for number in held {
            if self.mine.get(&number).is_some_and(|mine| mine.request.session == *session) {
                self.take_away(number, now, effects);
            }
        }
    }

    pub(super) fn drain(&mut self, effects: &mut Vec<Effect>) {
        // What may yet land goes with the session, which ends.
        self.doubt.clear();
        self.reject(&Rejected::Unavailable { unknown: false }, effects, |_| true);
        let held: Vec<u64> = self.tokens.values().copied().collect();
        for number in held {
            self.cancel(Caller(number));
        }
    }

    pub(super) fn tick(&mut self, now: Now, effects: &mut Vec<Effect>) {
        while let Some((at, number)) = self.timers.first().copied()
            && at <= now.monotonic
        {
            self.timers.pop_first();
            let Some(mine) = self.mine.get_mut(&number) else { continue };
            match mine.stage {
                Stage::Held { until, .. } if until > now.monotonic => {
                    mine.timer = until;
                    self.timers.insert((until, number));
                }
                Stage::Held { .. } => self.take_away(number, now, effects),
                _ => self.over(number, now, effects),
            }
        }
    }

    /// Whoever stands under a lease that is no longer believed has lost. Its key goes with the lease, if not before.
    pub(super) fn disbelieve(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if self.beliefs.values().all(|until| *until > now.monotonic) {
            return;
        }
        let over = |mine: &Mine| self.believed(mine) <= now.monotonic;
        let relies = self.tokens.values().chain(&self.queued).copied();
        let lost: Vec<u64> = relies.filter(|number| self.mine.get(number).is_some_and(over)).collect();
        for number in lost {
            if self.queued.contains(&number) {
                self.turn_away(number, Rejected::Lost, effects);
            } else {
                self.take_away(number, now, effects);
            }
        }
    }

    /// The wait of a caller is over.
    fn over(&mut self, number: u64, now: Now, effects: &mut Vec<Effect>) {
        let Some(mine) = self.mine.get(&number) else { return };
        let stalls = self.joining.as_ref().is_some_and(|joining| joining.since + STALL <= now.monotonic);
        let unanswered = stalls || self.retry_at > 0 || mine.request.wait == 0;
        let why = match mine.stage {
            Stage::Landed(_) | Stage::Queued if mine.request.wait == 0 => {
                self.rival(now).map_or(Rejected::Unavailable { unknown: false }, Rejected::Held)
            }
            Stage::Joining if unanswered => Rejected::Unavailable { unknown: true },
            Stage::Coming if unanswered => Rejected::Unavailable { unknown: false },
            _ => Rejected::TimedOut(self.rival(now)),
        };
        self.turn_away(number, why, effects);
    }

    /// Sends away whoever waits and is meant.
    pub(super) fn reject(
        &mut self,
        why: &Rejected,
        effects: &mut Vec<Effect>,
        meant: impl Fn(&Request) -> bool,
    ) {
        let waits = |mine: &&Mine| !matches!(mine.stage, Stage::Held { .. }) && meant(&mine.request);
        let meant: Vec<u64> = self.mine.values().filter(waits).map(|mine| mine.request.caller.0).collect();
        for number in meant {
            self.turn_away(number, why.clone(), effects);
        }
    }

    /// Sends away one that waits, and deletes its key if it has one.
    pub(super) fn turn_away(&mut self, number: u64, why: Rejected, effects: &mut Vec<Effect>) {
        let Some(mine) = self.take(number) else { return };
        effects.push(Effect::Reply(mine.request.caller, Err(why)));
        self.leave(&mine, Leaving::default());
    }

    /// The grant of a caller is over against its will, and nobody deletes its key unless this sidecar does: its lease
    /// may live on. Its shadow stays.
    fn take_away(&mut self, number: u64, now: Now, effects: &mut Vec<Effect>) {
        let Some(mine) = self.lose(number, effects) else { return };
        self.leave(&mine, Leaving { lost: true, ..Leaving::default() });
        self.line.lose(&mine.who(), now.monotonic);
    }

    /// The grant of a caller is over against its will. Its key is left to whoever took it away.
    fn lose(&mut self, number: u64, effects: &mut Vec<Effect>) -> Option<Mine> {
        let mine = self.take(number)?;
        self.remember(mine.request.token, End::Lost);
        effects.push(Effect::Lost(mine.request.token));
        Some(mine)
    }

    /// A key is gone from the line that nobody here deleted.
    pub(super) fn vanished(&mut self, (session, number): &Who, effects: &mut Vec<Effect>) {
        let Some(mine) = self.mine.get(number).filter(|mine| mine.request.session == *session) else {
            return;
        };
        match mine.stage {
            Stage::Held { .. } => drop(self.lose(*number, effects)),
            _ => self.turn_away(*number, Rejected::Lost, effects),
        }
    }

    /// A caller neither waits nor holds any more.
    fn take(&mut self, number: u64) -> Option<Mine> {
        let mine = self.mine.remove(&number)?;
        self.timers.remove(&(mine.timer, number));
        self.queued.remove(&number);
        self.tokens.remove(&mine.request.token);
        if mine.stage == Stage::Coming {
            self.coming.retain(|other| *other != number);
        }
        Some(mine)
    }

    /// Deletes the key of one that was taken out, unless it has none, or may get it yet.
    fn leave(&mut self, mine: &Mine, leaving: Leaving) {
        match mine.stage {
            // Of one whose plan is under way the key is deleted when it is known what became of that.
            Stage::Coming | Stage::Joining => {}
            Stage::Landed(_) | Stage::Queued | Stage::Held { .. } => self.let_go(mine.who(), leaving),
        }
    }

    /// Deletes a key.
    pub(super) fn let_go(&mut self, who: Who, leaving: Leaving) {
        if !leaving.lost {
            self.line.leave(&who);
        }
        self.free_at = 0;
        self.leaving.insert(who, leaving);
    }
}

impl Mine {
    fn holds_all(&self) -> bool {
        matches!(self.stage, Stage::Held { .. }) && self.request.share.is_exclusive()
    }
}
