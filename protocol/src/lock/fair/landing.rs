//! What follows when a plan has landed, and which go next.

use super::{End, Fair, Joining, Leaving, Stage, TOGETHER};
use crate::{
    Answer, Now,
    lock::{
        Effect, Failure, Holder, Rejected, Reply, Waiter,
        machine::RETRY,
        plans::{self, Come},
    },
};

impl Fair {
    /// The plan that puts waiters.
    pub(super) fn landed(
        &mut self,
        outcome: Result<Answer, Failure>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Rejected> {
        let Some(joining) = self.joining.take() else { return Err(Rejected::NothingUnderWay) };
        self.retry_at = 0;
        match outcome {
            Ok(answer) if answer.held => self.joined(joining, answer, now, effects),
            Ok(answer) => {
                self.stand_first(joining);
                self.defined(plans::joined_definition(&answer), answer.revision, effects);
                // Else the session's lease or key was gone. The store makes new ones.
                self.failed(now, effects);
            }
            Err(Failure::NotApplied) => {
                self.stand_first(joining);
                self.failed(now, effects);
            }
            Err(Failure::Unknown) => {
                for who in joining.whos() {
                    let caller = self.mine.get(&who.1).map(|mine| mine.request.caller);
                    if !joining.lost {
                        self.doubt.insert(who);
                    }
                    if let Some(caller) = caller {
                        self.turn_away(caller.0, Rejected::Unavailable { unknown: true }, effects);
                    }
                }
            }
            // Of one of its leases that is true while the session lives: what stands under the others stands.
            Err(Failure::SessionEnded) => {
                for number in joining.numbers {
                    self.turn_away(number, Rejected::Lost, effects);
                }
            }
        }
        Ok(())
    }

    fn joined(&mut self, joining: Joining, answer: Answer, now: Now, effects: &mut Vec<Effect>) {
        let Answer { revision, mut reads, .. } = answer;
        for who in joining.whos() {
            match self.mine.get_mut(&who.1) {
                Some(mine) => {
                    mine.stage = Stage::Landed(revision);
                    self.queued.insert(who.1);
                }
                None => self.let_go(who, Leaving::default()),
            }
        }
        if let Some(entries) = reads.pop() {
            self.list(revision, entries, now, effects);
        }
    }

    /// Puts those of a plan that was not applied back to the head of those who come.
    fn stand_first(&mut self, joining: Joining) {
        for number in joining.numbers.into_iter().rev() {
            if let Some(mine) = self.mine.get_mut(&number) {
                mine.stage = Stage::Coming;
                self.coming.push_front(number);
            }
        }
    }

    fn failed(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.retry_at = now.monotonic + RETRY;
        self.reject_coming(&Rejected::Unavailable { unknown: false }, effects);
    }

    /// Tells those who do not wait that nothing can be done now.
    fn reject_coming(&mut self, why: &Rejected, effects: &mut Vec<Effect>) {
        let coming: Vec<u64> = self.coming.iter().copied().collect();
        for number in coming {
            if self.mine.get(&number).is_some_and(|mine| mine.request.wait == 0) {
                self.turn_away(number, why.clone(), effects);
            }
        }
    }

    /// The plan that deletes those who left.
    pub(super) fn freed(
        &mut self,
        outcome: Result<Answer, Failure>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Rejected> {
        if self.freeing.is_empty() {
            return Err(Rejected::NothingUnderWay);
        }
        let freeing = std::mem::take(&mut self.freeing);
        // Not known, it is sent again: keys are never used again, so deleting twice does no harm.
        let Ok(answer) = outcome else {
            self.free_at = now.monotonic + RETRY;
            return Ok(());
        };
        for (who, lost) in freeing {
            self.gone.insert(who.clone(), (answer.revision, lost));
            // Its shadow may be spent meanwhile: then that is to be deleted too.
            if self.leaving.get(&who).is_none_or(|leaving| leaving.lost != lost) {
                continue;
            }
            let Some(Leaving { token, callers, .. }) = self.leaving.remove(&who) else { continue };
            if let Some(token) = token {
                self.remember(token, End::Released);
            }
            effects.extend(callers.into_iter().map(|caller| Effect::Reply(caller, Ok(Reply::Released))));
        }
        self.forget_gone();
        Ok(())
    }

    /// Grants to whose turn it is, and sends the plans that are due.
    pub(super) fn advance(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.disbelieve(now, effects);
        self.take_turns(now, effects);
        if self.joining.is_none() && now.monotonic >= self.join_at() {
            self.join(now, effects);
        }
        if self.freeing.is_empty() && !self.leaving.is_empty() && now.monotonic >= self.free_at {
            let first = self.leaving.iter().take(TOGETHER);
            self.freeing = first.map(|(who, leaving)| (who.clone(), leaving.lost)).collect();
            let leaving =
                self.freeing.iter().map(|((session, number), lost)| (session.clone(), *number, *lost));
            effects.push(Effect::Free(plans::leave(&self.lock, &self.key, leaving)));
        }
    }

    /// Puts those who come: as many of the first as ask alike.
    fn join(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let Some(first) = self.coming.front().and_then(|number| self.mine.get(number)) else { return };
        let (session, created) = (first.request.session.clone(), first.request.definition);
        let mut come = Vec::new();
        let mut numbers = Vec::new();
        while numbers.len() < TOGETHER
            && let Some(number) = self.coming.front().copied()
            && let Some(mine) = self.mine.get_mut(&number)
            && (&mine.request.session, mine.request.definition) == (&session, created)
        {
            self.coming.pop_front();
            mine.stage = Stage::Joining;
            let request = &mine.request;
            let holder = Holder {
                session: session.clone(),
                pod: request.pod.clone(),
                owner: request.owner.clone(),
                since: now.unix,
                regrants: 0,
                stays: false,
            };
            let waiter = Waiter { holder, share: request.share, place: numbers.len() as u32 };
            come.push(Come { number, ttl: request.ttl, delay: request.lock_delay, waiter });
            numbers.push(number);
        }
        let plan = plans::join(&self.lock, &self.key, &session, created, come, !self.watched);
        effects.push(Effect::Commit(plan));
        self.joining = Some(Joining { session, numbers, lost: false, since: now.monotonic });
    }
}
