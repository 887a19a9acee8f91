//! What people wish of a transaction that cannot go on without them.

use super::{Coordinator, Effect, MOST_FORMER, Step};
use crate::{
    Branch, Now, Range,
    transaction::{BranchRecord, Peers, Reply, Stage, Transaction, Verdict, note, plans},
};

impl Coordinator {
    /// Why it is to be rolled back, if somebody wants that.
    pub(super) fn rolled_back(&self) -> Option<String> {
        match self.answers.get(&Branch::everything()) {
            Some((_, Some(Reply { verdict: Verdict::Rollback(reason), .. }))) => {
                Some(format!("rolled back: {reason}"))
            }
            _ => None,
        }
    }

    /// Goes on with an undecided transaction that was stopped, as people wish.
    pub(super) fn resume(&mut self, peers: &Peers, now: Now) -> Vec<Effect> {
        let mut record = self.record.clone();
        let (mut heard, mut asked, mut left) = (Vec::new(), Vec::new(), false);
        for (index, branch) in record.branches.iter_mut().enumerate() {
            let Some((revision, Some(reply))) = self.answers.get(&branch.participant.name) else { continue };
            if heard.len() == self.most_heard() {
                left = true;
                continue;
            }
            if let Some(again) = self.help(branch, &reply.verdict, Stage::Preparing, peers) {
                asked.extend(again.then_some(index));
                heard.push((branch.participant.name.clone(), *revision));
            }
        }
        // What is asked again may have voted already, in the inbox of one that is gone.
        let crowded = !left
            && self.is_crowded()
            && record.branches.iter().all(|branch| branch.stage != Stage::Preparing);
        if heard.is_empty() && !crowded {
            return Vec::new();
        }
        record.deadline = now.unix + record.timeout;
        self.amend(record, &asked, heard, crowded)
    }

    /// Writes down what was heard, and forgets former coordinators that have become too many: what was answered to them
    /// has been read, and is in the record from here on.
    pub(super) fn amend(
        &mut self,
        mut record: Transaction,
        asked: &[usize],
        heard: Vec<(Branch, i64)>,
        crowded: bool,
    ) -> Vec<Effect> {
        let former = if crowded { std::mem::take(&mut record.former) } else { Vec::new() };
        let names: Vec<Branch> = heard.iter().map(|(branch, _)| branch.clone()).collect();
        let mut plan = plans::amend(&self.id, self.revision, record.clone(), asked, &names);
        for (app, session) in former {
            plan = plan.delete(Range::Answers(app, session, self.id.clone()));
        }
        self.commit(Step::Amend(record, heard), plan)
    }

    pub(super) fn is_crowded(&self) -> bool {
        self.record.former.len() > MOST_FORMER
    }

    /// Does to a stuck branch what a person wishes, and tells whether it is to be asked again, at `stage`; `None` when
    /// nothing was wished or it is not stuck.
    pub(super) fn help(
        &self,
        branch: &mut BranchRecord,
        wish: &Verdict,
        stage: Stage,
        peers: &Peers,
    ) -> Option<bool> {
        match wish {
            _ if branch.stage != Stage::Stuck => None,
            Verdict::Skip(reason) => {
                branch.stage = Stage::Skipped;
                branch.result.clone_from(reason);
                note(branch, format!("skipped: {reason}"));
                Some(false)
            }
            Verdict::Retry => {
                branch.stage = stage;
                branch.item = self.aim(&branch.participant.app, branch.item.as_ref(), peers);
                note(branch, format!("tried again after: {}", branch.result));
                Some(true)
            }
            _ => None,
        }
    }
}
