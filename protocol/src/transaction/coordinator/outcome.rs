//! What a coordinator's plans came to, and what it learns from that: a plan that did not hold has read why.

use super::{AGAIN, Coordinator, Effect, Failure, Refusal, State, Step};
use crate::{
    Answer, Key, Kind, Now, Record, SessionId,
    transaction::{Peers, Transaction},
};

impl Coordinator {
    /// Takes what a plan that held has made true.
    pub(super) fn held(&mut self, step: Step, answer: Answer) -> Vec<Effect> {
        let revision = answer.revision;
        match step {
            Step::Begin(record) => {
                // What came before belongs to an earlier transaction of the same id.
                self.answers.retain(|_, (at, _)| *at > revision);
                self.learn(record, revision);
                vec![Effect::Begun]
            }
            Step::Adopt(record) => {
                self.learn(record, revision);
                self.read_answers(&answer);
                vec![Effect::Begun]
            }
            // It was adopted, and that was not known.
            Step::Look => {
                self.read_answers(&answer);
                vec![Effect::Begun]
            }
            Step::Decide(record) => self.learn(record, revision),
            Step::Amend(record, heard) => {
                self.learn(record, revision);
                for (branch, at) in heard {
                    if let Some((revision, reply)) = self.answers.get_mut(&branch)
                        && *revision == at
                    {
                        *reply = None;
                    }
                }
                vec![Effect::Changed]
            }
            Step::Move(record) => {
                self.learn(record, revision);
                vec![Effect::Changed]
            }
            Step::Finish => self.over(Effect::Finished),
        }
    }

    /// Takes a record as remembered.
    fn learn(&mut self, record: Transaction, revision: i64) -> Vec<Effect> {
        let before = self.record.decision;
        self.record = record;
        self.revision = revision;
        self.record.decision.filter(|_| before.is_none()).map(Effect::Decided).into_iter().collect()
    }

    fn over(&mut self, effect: Effect) -> Vec<Effect> {
        self.state = State::Over;
        vec![effect]
    }

    fn read_answers(&mut self, answer: &Answer) {
        for entry in answer.reads.iter().flatten() {
            if let (Key::Answer { branch, .. }, Record::Answer(reply)) = (&entry.key, &entry.record) {
                let known = self.answers.get(branch).map_or(0, |(revision, _)| *revision);
                if entry.mod_revision > known {
                    self.answers.insert(branch.clone(), (entry.mod_revision, Some(reply.clone())));
                }
            }
        }
    }

    /// Learns from what was found why a plan did not hold, and makes the next one from it.
    pub(super) fn refused(
        &mut self,
        step: Step,
        needed: &[SessionId],
        answer: &Answer,
        peers: &Peers,
        now: Now,
    ) -> Vec<Effect> {
        let found = |key: &Key| answer.reads.iter().flatten().find(|entry| entry.key == *key);
        let missing: Vec<SessionId> = needed
            .iter()
            .filter(|session| found(&Key::Session((*session).clone())).is_none())
            .cloned()
            .collect();
        let mut effects = Vec::new();
        let mut news = !missing.is_empty();
        let transaction = found(&Key::Transaction(self.id.clone()));
        match (transaction.map(|entry| (entry, &entry.record)), &step) {
            (Some((entry, Record::Transaction(record))), _) => {
                let mine = record.coordinator.as_ref() == Some(&self.own);
                match step {
                    Step::Begin(_) if !mine => {
                        return self.over(Effect::Refused(Refusal::Exists(entry.clone())));
                    }
                    // Its fate was not known: it was applied.
                    Step::Begin(_) => {
                        self.answers.retain(|_, (at, _)| *at > entry.create_revision);
                        self.learn(record.clone(), entry.mod_revision);
                        return vec![Effect::Begun];
                    }
                    Step::Adopt(_) if mine || record.coordinator == self.record.coordinator => {}
                    _ if mine => {}
                    _ => return self.over(Effect::Lost),
                }
                // Something of it changed: a participant's sidecar moved an item.
                news |= self.revision != entry.mod_revision;
                effects.extend(self.learn(record.clone(), entry.mod_revision));
            }
            (_, Step::Begin(record)) => {
                if let Some(done) = found(&Key::Done(self.id.clone())) {
                    return self.over(Effect::Refused(Refusal::Exists(done.clone())));
                }
                let definition = Key::Definition { kind: Kind::Transaction, name: record.name.clone() };
                if found(&definition).is_none_or(|entry| entry.create_revision != record.definition) {
                    return self.over(Effect::Refused(Refusal::Definition));
                }
            }
            (_, Step::Finish) => return self.over(Effect::Finished),
            _ => return self.over(Effect::Lost),
        }
        if let Step::Move(record) = &step {
            // An item is not there when it was answered.
            self.read_answers(answer);
            news |=
                self.record.branches.iter().zip(&record.branches).any(|(branch, to)| {
                    branch.item != to.item && self.vote(&branch.participant.name).is_some()
                });
        }
        let own_ended = missing.contains(&self.own.1);
        self.gone.extend(missing);
        match step {
            Step::Begin(_) if own_ended => {
                return self.over(Effect::Refused(Refusal::Failed(Failure::SessionEnded)));
            }
            // Its coordinator lives after all, or this one does not.
            Step::Adopt(_) if !news => return self.over(Effect::Lost),
            _ if own_ended => return self.over(Effect::Lost),
            _ => {}
        }
        match step {
            _ if !news => effects.extend(self.rest(step)),
            Step::Begin(_) | Step::Adopt(_) => effects.extend(self.again(&step, peers, now)),
            _ => {}
        }
        effects
    }

    fn rest(&mut self, step: Step) -> Vec<Effect> {
        self.state = State::Resting(step);
        vec![Effect::Wait(AGAIN)]
    }

    /// Tries again. What became of a decision or later step is looked up first: answers to it may be there already.
    pub(super) fn again(&mut self, step: &Step, peers: &Peers, now: Now) -> Vec<Effect> {
        match step {
            Step::Begin(_) => self.commit_begin(peers, now),
            _ => self.commit_adopt(peers, now),
        }
    }

    /// Without an answer only a beginning, or a session that is over, is the end of it.
    pub(super) fn failed(&mut self, failure: Failure) -> Vec<Effect> {
        let State::Committing(step, _) = std::mem::replace(&mut self.state, State::Idle) else {
            return Vec::new();
        };
        match (&step, failure) {
            (Step::Begin(_), Failure::NotApplied | Failure::SessionEnded) => {
                self.over(Effect::Refused(Refusal::Failed(failure)))
            }
            (_, Failure::SessionEnded) => self.over(Effect::Lost),
            _ => self.rest(step),
        }
    }
}
