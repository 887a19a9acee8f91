//! What sidecars make of what they see, and what they ask of etcd.

use super::*;

impl World {
    pub(super) fn show(&mut self, scenario: &Scenario, pod: usize, key: Key) {
        let entry = self.entry(&key);
        let revision = self.etcd.revision();
        let sidecar = self.pods[pod].as_mut().unwrap();
        match &entry {
            Some(entry) => sidecar.shown.insert(key.clone(), entry.mod_revision),
            None => sidecar.shown.remove(&key),
        };
        match (key, entry.map(|entry| (entry.mod_revision, entry.record))) {
            (Key::Answer { branch, .. }, Some((at, Record::Answer(reply)))) => {
                let mut heard = vec![(branch, at, reply)];
                if scenario.bug == Some(Bug::FinishedWhileAnItemLives)
                    && heard[0].2.operation != Operation::Prepare
                {
                    let (_, at, reply) = heard[0].clone();
                    heard = self.history.branches.iter().map(|of| (of.clone(), at, reply.clone())).collect();
                }
                for (branch, at, reply) in heard {
                    self.coordinate(scenario, pod, coordinator::Input::Answered(branch, at, reply));
                }
            }
            (Key::Work { branch, app, .. }, Some((at, Record::Work(work)))) => {
                let session = sidecar.session.clone();
                sidecar
                    .cohorts
                    .entry(branch.clone())
                    .or_insert_with(|| Cohort::new(ID.into(), branch.clone(), app, session));
                self.take_part(scenario, pod, &branch, participant::Input::Item(at, work));
            }
            (Key::Work { branch, .. }, None) => {
                self.take_part(scenario, pod, &branch, participant::Input::Gone(revision));
            }
            _ => {}
        }
    }

    pub(super) fn look_after(&mut self, scenario: &Scenario, pod: usize, dead: &SessionId) {
        let sidecar = self.pods[pod].as_ref().unwrap();
        let left = self.left_by(scenario, pod, sidecar, dead);
        if left.is_empty() {
            self.pods[pod].as_mut().unwrap().dead.remove(dead);
        }
        for key in left {
            match key {
                Key::Transaction(_) => self.adopt(scenario, pod),
                key => self.relocate(scenario, pod, &key),
            }
        }
    }

    pub(super) fn relocate(&mut self, scenario: &Scenario, pod: usize, key: &Key) {
        let to = self.pods[pod].as_ref().unwrap().session.clone();
        let transaction = self.entry(&Key::Transaction(ID.into()));
        let plan = self.entry(key).and_then(|item| plans::relocate(&item, &to, transaction.as_ref()));
        if let Some(plan) = plan {
            self.send(scenario, pod, Owner::Move(key.clone()), plan);
        }
    }

    pub(super) fn adopt(&mut self, scenario: &Scenario, pod: usize) {
        let Some((revision, record)) = self.record() else { return };
        let record = record.clone();
        let now = self.now();
        let sidecar = self.pods[pod].as_mut().unwrap();
        let own = (sidecar.app.clone(), sidecar.session.clone());
        let (mut machine, effects) =
            Coordinator::adopt(ID.into(), record, revision, own, &sidecar.peers, now);
        scenario.room.inspect(|room| machine.set_room(*room));
        sidecar.coordinator = Some(machine);
        self.coordinator_effects(scenario, pod, effects);
    }

    pub(super) fn answer(&mut self, scenario: &Scenario, pod: usize, branch: &Branch, yes: bool) {
        let sidecar = self.pods[pod].as_mut().unwrap();
        let operation = sidecar.calls.remove(branch).unwrap().work.operation;
        self.history.calls.entry((branch.clone(), sidecar.number)).or_default().push(operation);
        // The app keeps a ledger with a barrier: each operation takes effect once, and none after it was aborted.
        let done = self.history.ledger.entry(branch.clone()).or_default();
        let refused = operation == Operation::Prepare && done.contains(&Operation::Abort);
        if yes && !refused && !done.contains(&operation) {
            done.push(operation);
        }
        let called = if yes && !refused { Called::Yes(String::new()) } else { Called::No("no".into()) };
        self.take_part(scenario, pod, branch, participant::Input::Called(called));
    }

    pub(super) fn coordinate(&mut self, scenario: &Scenario, pod: usize, input: coordinator::Input) {
        let now = self.now();
        let sidecar = self.pods[pod].as_mut().unwrap();
        let Some(machine) = &mut sidecar.coordinator else { return };
        let effects = machine.step(input, &sidecar.peers, now);
        self.coordinator_effects(scenario, pod, effects);
    }

    pub(super) fn coordinator_effects(
        &mut self,
        scenario: &Scenario,
        pod: usize,
        effects: Vec<coordinator::Effect>,
    ) {
        for effect in effects {
            match effect {
                coordinator::Effect::Commit(plan) => self.send(scenario, pod, Owner::Coordinator, plan),
                coordinator::Effect::Wait(wait) => self.wait(pod, None, wait),
                coordinator::Effect::Decided(decision) => {
                    self.history.told.insert(decision);
                }
                coordinator::Effect::Finished
                | coordinator::Effect::Lost
                | coordinator::Effect::Refused(_) => {
                    let sidecar = self.pods[pod].as_mut().unwrap();
                    sidecar.coordinator = None;
                    sidecar.waits.remove(&None);
                }
                coordinator::Effect::Begun | coordinator::Effect::Changed => {}
            }
        }
    }

    pub(super) fn take_part(
        &mut self,
        scenario: &Scenario,
        pod: usize,
        branch: &Branch,
        input: participant::Input,
    ) {
        let now = self.now();
        let sidecar = self.pods[pod].as_mut().unwrap();
        let Some(machine) = sidecar.cohorts.get_mut(branch) else { return };
        for effect in machine.step(input, now) {
            let sidecar = self.pods[pod].as_mut().unwrap();
            match effect {
                participant::Effect::Call(call) => {
                    let before = sidecar.calls.insert(branch.clone(), call);
                    assert_eq!(before, None, "two calls of one branch at a time");
                }
                participant::Effect::Wait(wait) => self.wait(pod, Some(branch.clone()), wait),
                participant::Effect::Commit(tag, plan) => {
                    self.send(scenario, pod, Owner::Cohort(branch.clone(), tag), plan);
                }
                participant::Effect::Forget => {
                    sidecar.cohorts.remove(branch);
                    sidecar.waits.remove(&Some(branch.clone()));
                }
            }
        }
    }

    pub(super) fn wait(&mut self, pod: usize, whose: Option<Branch>, wait: u64) {
        self.pods[pod].as_mut().unwrap().waits.insert(whose, (wait, false));
    }

    pub(super) fn send(&mut self, scenario: &Scenario, pod: usize, owner: Owner, mut plan: Plan) {
        let session = self.pods[pod].as_ref().unwrap().session.clone();
        let mut early = None;
        if let Some(bug) = scenario.bug {
            bug.plant(&mut plan, &session);
            if bug == Bug::ReadBeforeTheSwap && !plan.reads.is_empty() {
                let reads = Plan { reads: plan.reads.clone(), ..Plan::default() };
                early = Some(self.commit(&reads).reads);
            }
        }
        self.flights.push(Flight { pod, session, owner, plan, forsaken: false, early });
    }
}
