//! What a coordinator commits on its way to the decision.

use super::{Coordinator, Effect, State, Step};
use crate::{
    App, Key, Now, Plan, SessionId,
    etcd::Relation,
    transaction::{Decision, Peers, Reply, Stage, Transaction, Verdict, plans},
};

impl Coordinator {
    /// Where a branch's next item goes: where it is, or else to another sidecar of the app, or to the first to come.
    pub(super) fn aim(&self, app: &App, item: Option<&SessionId>, peers: &Peers) -> Option<SessionId> {
        match item {
            Some(session) if peers.is_live(session) && !self.gone.contains(session) => Some(session.clone()),
            _ => peers.choose(app, &self.id, &self.gone),
        }
    }

    /// How many items one plan may move: each is deleted in one place and put in another.
    fn most_moved(&self) -> usize {
        (self.room / 2).max(1)
    }

    pub(super) fn commit(&mut self, step: Step, plan: Plan) -> Vec<Effect> {
        let needed = plan.compares.iter().filter(|compare| compare.relation == Relation::Greater);
        let needed = needed.filter_map(|compare| match &compare.key {
            Key::Session(session) => Some(session.clone()),
            _ => None,
        });
        self.state = State::Committing(step, needed.collect());
        vec![Effect::Commit(plan)]
    }

    pub(super) fn commit_begin(&mut self, peers: &Peers, now: Now) -> Vec<Effect> {
        let mut record = self.record.clone();
        self.first_coordinator(&mut record, peers, now);
        self.commit(Step::Begin(record.clone()), plans::begin(&self.id, record))
    }

    fn first_coordinator(&self, record: &mut Transaction, peers: &Peers, now: Now) {
        record.coordinator = Some(self.own.clone());
        record.deadline = now.unix + record.timeout;
        for branch in &mut record.branches {
            branch.item = peers.choose(&branch.participant.app, &self.id, &self.gone);
        }
    }

    pub(super) fn commit_adopt(&mut self, peers: &Peers, now: Now) -> Vec<Effect> {
        if self.record.coordinator.as_ref() == Some(&self.own) {
            let plan = plans::look(&self.id, self.revision, &self.record);
            return self.commit(Step::Look, plan);
        }
        let mut record = self.record.clone();
        let unowned = record.coordinator.is_none();
        match record.coordinator.replace(self.own.clone()) {
            Some(former) => record.former.push(former),
            None => self.first_coordinator(&mut record, peers, now),
        }
        let plan = plans::adopt(&self.id, self.revision, record.clone(), unowned);
        self.commit(Step::Adopt(record), plan)
    }

    pub(super) fn commit_decide(&mut self, decision: Decision, reason: String, peers: &Peers) -> Vec<Effect> {
        let mut record = self.record.clone();
        record.decision = Some(decision);
        record.reason = reason;
        let mut moved = Vec::new();
        for branch in record.branches.iter_mut().filter(|branch| branch.stage != Stage::Skipped) {
            let vote = self.vote(&branch.participant.name);
            let old = self.record.item(&self.id, branch);
            // Unclaimed work stays for the first to come.
            let unclaimed = branch.item.is_none() && vote.is_none();
            if !unclaimed {
                let to = self.aim(&branch.participant.app, branch.item.as_ref(), peers);
                // One that is stuck has no item.
                if to != branch.item && vote.is_none() && branch.stage == Stage::Preparing {
                    moved.push(old);
                }
                branch.item = to;
            }
            if let Some(Reply { verdict: Verdict::Yes(result) | Verdict::No(result), attempts, .. }) = vote {
                branch.result.clone_from(result);
                branch.attempts = *attempts;
            }
            branch.stage = Stage::Applying;
        }
        if moved.len() > self.most_moved() {
            return self.commit_move(peers);
        }
        // Nothing comes any more to a coordinator that is gone, and what came goes with this. The votes that came here are
        // overwritten by the acknowledgements.
        let former = std::mem::take(&mut record.former);
        let plan = plans::decide(&self.id, self.revision, record.clone(), &former, moved);
        self.commit(Step::Decide(record), plan)
    }

    /// Moves items that stand where nobody lives any more, as many as one plan may; the decision, which has an item to put
    /// for every branch, moves the others.
    fn commit_move(&mut self, peers: &Peers) -> Vec<Effect> {
        let mut record = self.record.clone();
        let (mut asked, mut moved) = (Vec::new(), Vec::new());
        for (index, branch) in record.branches.iter_mut().enumerate() {
            let there = branch.item.is_some() && branch.stage == Stage::Preparing;
            if !there || self.vote(&branch.participant.name).is_some() || asked.len() == self.most_moved() {
                continue;
            }
            let to = self.aim(&branch.participant.app, branch.item.as_ref(), peers);
            if to != branch.item {
                moved.push(self.record.item(&self.id, branch));
                branch.item = to;
                asked.push(index);
            }
        }
        let plan = plans::move_items(&self.id, self.revision, record.clone(), &asked, moved);
        self.commit(Step::Move(record), plan)
    }
}
