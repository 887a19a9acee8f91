//! What can happen next.

use concordat_protocol::{
    Key, Plan,
    plan::Answer,
    queue::{
        Outcome,
        delivery::{self, Change, Verdict},
        invariant,
        location::{Receipt, definition},
    },
};
use stateright::{Model, Property};

use crate::{
    store::change,
    world::{LONG, MOMENT, Planted, Sent, State, World, queue},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// A publisher's or consumer's plan reaches etcd.
    LandPublish(usize, u64),
    Land(usize, u64),
    /// The machine hears of it.
    AnswerPublish(usize, u64),
    Answer(usize, u64),
    /// The answer is lost; the plan may land later, or never.
    LosePublish(usize, u64),
    Lose(usize, u64),
    LandAdrift(usize),
    Repeat(usize),
    Watch(usize),
    Receive(usize),
    HangUp(usize),
    Ack(usize, usize),
    Nack(usize, usize),
    AckOld(usize, Receipt, u8),
    TimeOut(usize),
    /// The lease of a consumer's session ends in etcd; its sidecar does not know yet.
    EndLease(usize),
    /// It learns of it and goes on with a new session.
    Notice(usize),
    Crash(usize),
    Undefine,
}

/// Lands what of a plan is still to land; the first part's answer counts.
fn landed(state: &mut State, plans: &[Plan]) -> Answer {
    let mut plans = plans.iter();
    let first = plans.next().expect("a plan");
    let answer = state.land(first);
    // Parts of a split plan are apart: the second is one more plan on its way.
    if answer.held {
        state.adrift.extend(plans.cloned());
    }
    answer
}

impl Model for World {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.start()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let (bounds, spent) = (&self.bounds, &state.spent);
        for (index, producer) in state.producers.iter().enumerate() {
            for (tag, sent) in &producer.sent {
                match sent {
                    Sent::Flying(_) => {
                        actions.push(Action::LandPublish(index, *tag));
                        if spent.late < bounds.late {
                            actions.push(Action::LosePublish(index, *tag));
                        }
                    }
                    Sent::Landed(_) => actions.push(Action::AnswerPublish(index, *tag)),
                }
            }
            if spent.repeats < bounds.repeats && producer.machine.idle() {
                actions.push(Action::Repeat(index));
            }
        }
        for (index, consumer) in state.consumers.iter().enumerate() {
            for (tag, sent) in &consumer.sent {
                match sent {
                    Sent::Flying(_) => {
                        actions.push(Action::Land(index, *tag));
                        if spent.late < bounds.late {
                            actions.push(Action::Lose(index, *tag));
                        }
                    }
                    Sent::Landed(_) => actions.push(Action::Answer(index, *tag)),
                }
            }
            if consumer.seen < state.etcd.revision() {
                actions.push(Action::Watch(index));
            }
            if !consumer.waiting && spent.receives < bounds.receives {
                actions.push(Action::Receive(index));
            }
            if consumer.waiting && spent.hang_ups < bounds.hang_ups {
                actions.push(Action::HangUp(index));
            }
            for (place, _) in consumer.open.iter().enumerate() {
                actions.push(Action::Ack(index, place));
                if spent.nacks < bounds.nacks {
                    actions.push(Action::Nack(index, place));
                }
            }
            for (receipt, body) in &consumer.old {
                actions.push(Action::AckOld(index, receipt.clone(), *body));
            }
            if !consumer.open.is_empty() && spent.timeouts < bounds.timeouts {
                actions.push(Action::TimeOut(index));
            }
            if state.etcd.leased(consumer.lease) {
                if spent.losses < bounds.losses {
                    actions.push(Action::EndLease(index));
                }
            } else {
                actions.push(Action::Notice(index));
            }
            if spent.crashes < bounds.crashes {
                actions.push(Action::Crash(index));
            }
        }
        for index in 0..state.adrift.len() {
            actions.push(Action::LandAdrift(index));
        }
        if spent.undefined < bounds.undefined {
            actions.push(Action::Undefine);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        self.take(&mut state, action)?;
        while let Some(action) = self.prompted(&state) {
            self.take(&mut state, action)?;
        }
        state.adrift.sort();
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("q1 to q8", |world: &World, state: &State| {
                invariant::all(&state.history, &state.ledger, &queue(), world.bounds.max_deliveries).is_ok()
            }),
            Property::always("no consumer waits while a message is ready", |_, state: &State| {
                !(0..state.consumers.len()).any(|consumer| state.starved(consumer))
            }),
            Property::sometimes("all is acknowledged", |_, state: &State| {
                let account = state.ledger.account(&queue());
                account.published > 0 && account.acknowledged == account.published
            }),
        ]
    }
}

impl World {
    /// Does it.
    fn take(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::LandPublish(index, tag) => {
                let Some(Sent::Flying(plans)) = state.producers[index].sent.remove(&tag) else { return None };
                let answer = landed(state, &plans);
                state.producers[index].sent.insert(tag, Sent::Landed(answer));
            }
            Action::Land(index, tag) => {
                let Some(Sent::Flying(plans)) = state.consumers[index].sent.remove(&tag) else { return None };
                let answer = landed(state, &plans);
                state.consumers[index].sent.insert(tag, Sent::Landed(answer));
            }
            Action::AnswerPublish(index, tag) => {
                let Some(Sent::Landed(answer)) = state.producers[index].sent.remove(&tag) else {
                    return None;
                };
                self.answered(state, index, tag, Outcome::Answered(answer));
            }
            Action::Answer(index, tag) => {
                let Some(Sent::Landed(answer)) = state.consumers[index].sent.remove(&tag) else {
                    return None;
                };
                self.consumed(state, index, delivery::Input::Done(tag, Outcome::Answered(answer)));
            }
            Action::LosePublish(index, tag) => {
                let Some(Sent::Flying(plans)) = state.producers[index].sent.remove(&tag) else { return None };
                state.adrift.extend(plans);
                state.spent.late += 1;
                self.answered(state, index, tag, Outcome::Unknown);
            }
            Action::Lose(index, tag) => {
                let Some(Sent::Flying(plans)) = state.consumers[index].sent.remove(&tag) else { return None };
                state.adrift.extend(plans);
                state.spent.late += 1;
                self.consumed(state, index, delivery::Input::Done(tag, Outcome::Unknown));
            }
            Action::LandAdrift(index) => {
                let plan = state.adrift.remove(index);
                state.land(&plan);
            }
            Action::Repeat(index) => {
                state.spent.repeats += 1;
                self.offer(state, index);
            }
            Action::Watch(index) => {
                let consumer = &state.consumers[index];
                let range = consumer.machine.range();
                let mut changes: Vec<Change> = state.etcd.since(consumer.seen, &range).map(change).collect();
                if self.planted == Planted::DeafToClaims {
                    changes.retain(|change| !matches!(change, Change::Deleted(Key::Claim { .. }, _)));
                }
                state.consumers[index].seen = state.etcd.revision();
                self.consumed(state, index, delivery::Input::Changed(changes));
            }
            Action::Receive(index) => self.receive(state, index),
            Action::HangUp(index) => {
                state.spent.hang_ups += 1;
                state.consumers[index].waiting = false;
                self.consumed(state, index, delivery::Input::GiveUp(index as u64));
            }
            Action::Ack(index, place) => {
                let open = state.consumers[index].open.remove(place);
                self.settle(state, index, open, Verdict::Ack);
            }
            Action::Nack(index, place) => {
                state.spent.nacks += 1;
                let open = state.consumers[index].open.remove(place);
                state.consumers[index].old.insert(open.clone());
                let reason = String::new();
                let verdict = Verdict::Nack { delay: None, reason, dead_letter: false };
                self.settle(state, index, open, verdict);
            }
            Action::AckOld(index, receipt, body) => {
                state.consumers[index].old.remove(&(receipt.clone(), body));
                self.settle(state, index, (receipt, body), Verdict::Ack);
            }
            Action::TimeOut(index) => {
                state.spent.timeouts += 1;
                let open = std::mem::take(&mut state.consumers[index].open);
                state.consumers[index].old.extend(open);
                state.consumers[index].clock += LONG;
                self.consumed(state, index, delivery::Input::Pump);
            }
            Action::EndLease(index) => {
                state.spent.losses += 1;
                state.end_lease(state.consumers[index].lease);
            }
            Action::Notice(index) => {
                let (session, lease) = state.open_session();
                let consumer = &mut state.consumers[index];
                (consumer.session, consumer.lease) = (session.clone(), lease);
                let open = std::mem::take(&mut consumer.open);
                consumer.old.extend(open);
                let input = delivery::Input::Session(Some((session, u64::MAX)));
                self.consumed(state, index, input);
            }
            Action::Crash(index) => {
                state.spent.crashes += 1;
                let fresh = self.consumer(state);
                let old = std::mem::replace(&mut state.consumers[index], fresh);
                for sent in old.sent.into_values() {
                    if let Sent::Flying(plans) = sent {
                        state.adrift.extend(plans);
                    }
                }
                // Its consumer may still answer, to the sidecar that came instead.
                state.consumers[index].old.extend(old.open);
                state.end_lease(old.lease);
            }
            Action::Undefine => {
                state.spent.undefined += 1;
                let plan = Plan::new().delete(definition(&queue()));
                state.land(&plan);
            }
        }
        Some(())
    }

    /// What follows at once, where it does.
    fn prompted(&self, state: &State) -> Option<Action> {
        let mut actions = Vec::new();
        if self.bounds.prompt {
            self.actions(state, &mut actions);
        }
        actions.into_iter().find(|action| {
            matches!(action, Action::AnswerPublish(..) | Action::Answer(..) | Action::Watch(_))
        })
    }
}

impl State {
    /// Whether a consumer waits for what it should have been given: nothing is under way for it or will be.
    fn starved(&self, index: usize) -> bool {
        let consumer = &self.consumers[index];
        let current = consumer.seen == self.etcd.revision() && self.etcd.leased(consumer.lease);
        let sent =
            !consumer.sent.is_empty() || self.producers.get(index).is_some_and(|of| !of.direct.is_empty());
        let resting = !sent && consumer.machine.wake().is_none_or(|wake| wake > consumer.clock + MOMENT);
        let defined = self.etcd.get(&definition(&queue())).is_some();
        current && resting && defined && consumer.waiting && self.ledger.account(&queue()).ready > 0
    }
}
