//! What may happen next.

use super::*;

impl World {
    pub(crate) fn actions(&self, scenario: &Scenario) -> Vec<Action> {
        let mut actions = Vec::new();
        for (index, flight) in self.flights.iter().enumerate() {
            let mine = self.sender(flight).is_some();
            actions.push(Action::Land(index));
            if mine && !flight.forsaken && self.freezes > 0 && !matches!(flight.owner, Owner::Move(_)) {
                actions.push(Action::Forsake(index));
            }
        }
        for (pod, sidecar) in self.pods.iter().enumerate() {
            let Some(sidecar) = sidecar else {
                actions.push(Action::Start(pod));
                continue;
            };
            self.actions_of(scenario, pod, sidecar, &mut actions);
        }
        if scenario.deadline && !self.late {
            actions.push(Action::Late);
        }
        for (key, _) in self.etcd.range(&Range::Sessions) {
            let Key::Session(session) = key else { continue };
            if !self.lives(session) || self.freezes > 0 {
                actions.push(Action::Expire(session.clone()));
            }
        }
        actions
    }

    pub(super) fn actions_of(
        &self,
        scenario: &Scenario,
        pod: usize,
        sidecar: &Sidecar,
        actions: &mut Vec<Action>,
    ) {
        if self.crashes > 0 {
            actions.push(Action::Crash(pod));
        }
        if self.etcd.get(&Key::Session(sidecar.session.clone())).is_none() {
            actions.push(Action::Start(pod));
        }
        for (key, revision) in self.inbox(sidecar) {
            if sidecar.shown.get(&key).copied().unwrap_or(0) != revision {
                actions.push(Action::Show(pod, key));
            }
        }
        let unclaimed = Range::InboxOf(sidecar.app.clone(), None);
        for (key, _) in self.etcd.range(&unclaimed) {
            if !self.moving(sidecar, key) {
                actions.push(Action::Claim(pod, key.clone()));
            }
        }
        for session in sidecar.peers.live() {
            if self.etcd.get(&Key::Session(session.clone())).is_none() && *session != sidecar.session {
                actions.push(Action::Learn(pod, session.clone()));
            }
        }
        for session in &sidecar.dead {
            let left = self.left_by(scenario, pod, sidecar, session);
            let busy = left.iter().any(|key| match key {
                Key::Transaction(_) => sidecar.coordinator.is_some(),
                key => self.moving(sidecar, key),
            });
            if !busy {
                actions.push(Action::LookAfter(pod, session.clone()));
            }
        }
        if self.unowned() && scenario.coordinators.contains(&pod) && sidecar.coordinator.is_none() {
            actions.push(Action::Find(pod));
        }
        for (branch, call) in &sidecar.calls {
            actions.push(Action::Answer(pod, branch.clone(), true));
            if scenario.no_votes && call.work.operation == Operation::Prepare {
                actions.push(Action::Answer(pod, branch.clone(), false));
            }
        }
        for (whose, (wait, changed)) in &sidecar.waits {
            let over = match wait {
                0 => true,
                &TIMEOUT => self.late,
                _ => *changed,
            };
            if over {
                actions.push(Action::Due(pod, whose.clone()));
            }
        }
    }

    /// Its inbox, with what it has shown of it that is gone since (as of revision 0).
    pub(super) fn inbox(&self, sidecar: &Sidecar) -> BTreeMap<Key, i64> {
        let mut keys: BTreeMap<Key, i64> = sidecar.shown.keys().map(|key| (key.clone(), 0)).collect();
        let range = Range::InboxOf(sidecar.app.clone(), Some(sidecar.session.clone()));
        keys.extend(self.etcd.range(&range).map(|(key, item)| (key.clone(), item.mod_revision)));
        keys
    }

    pub(super) fn moving(&self, sidecar: &Sidecar, key: &Key) -> bool {
        self.flights
            .iter()
            .any(|flight| flight.session == sidecar.session && flight.owner == Owner::Move(key.clone()))
    }

    pub(super) fn unowned(&self) -> bool {
        self.record().is_some_and(|(_, record)| record.coordinator.is_none())
    }

    pub(super) fn record(&self) -> Option<(i64, &Transaction)> {
        let item = self.etcd.get(&Key::Transaction(ID.into()))?;
        match &item.value {
            Record::Transaction(record) => Some((item.mod_revision, record)),
            _ => None,
        }
    }

    /// What a dead session left that this pod may look after.
    pub(super) fn left_by(
        &self,
        scenario: &Scenario,
        pod: usize,
        sidecar: &Sidecar,
        dead: &SessionId,
    ) -> Vec<Key> {
        let mut left: Vec<Key> = self
            .etcd
            .range(&Range::InboxOf(sidecar.app.clone(), Some(dead.clone())))
            .map(|(key, _)| key.clone())
            .filter(|key| matches!(key, Key::Work { .. }))
            .collect();
        let owned = self
            .record()
            .is_some_and(|(_, record)| record.coordinator.as_ref().is_some_and(|(_, owner)| owner == dead));
        if owned && scenario.coordinators.contains(&pod) {
            left.push(Key::Transaction(ID.into()));
        }
        left
    }

    /// Whether nothing can come of it any more: nobody waits for it, and one of its compares will never hold.
    pub(super) fn is_void(&self, flight: &Flight) -> bool {
        let awaited = !flight.forsaken && self.sender(flight).is_some();
        // No revision comes twice, and no session.
        let never = |compare: &Compare<Key>| {
            let is_of_one = compare.relation == Relation::Equal && compare.value > 0;
            (is_of_one || on_life(compare)) && !compare.holds(self.etcd.get(&compare.key))
        };
        !awaited && flight.plan.compares.iter().any(never)
    }
}
