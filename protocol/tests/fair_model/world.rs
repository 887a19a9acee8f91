//! Callers, sidecars and an etcd: every order in which things can happen to one key of one fair lock.
//!
//! The sidecars run the product's machine, the plans run on the model of etcd. What the real parts promise is an
//! assumption here: a lease ends only when its sidecar has stopped believing in it, and whoever was told a time stops
//! by then; the watch tells every change, in order.

use concordat_protocol::{
    Entry, Key, Millis, Plan, Range, Record, Write,
    etcd::Etcd,
    lock::{Machine, Share, machine::PATIENCE},
};

use crate::state::{Client, Sidecar, State};

pub(crate) const TTL: Millis = 15_000_000;
pub(crate) const BELIEF: Millis = 10_000_000;
/// The lock-delay: more than any timer of the machine's.
pub(crate) const DELAY: Millis = 60_000;
pub(crate) const NEVER: Millis = 1_000_000_000;

/// Defects that others' locks have or had, as changes of what the real machine says or is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// Those who were put by one commit do not count against each other.
    RevisionsAlone,
    /// A caller's own key counts as seen when its plan has landed, whatever the watch has told.
    OrdersItself,
    /// The fence is the revision alone.
    FenceOfRevision,
    /// A release leaves its shadow.
    LeavesShadow,
    /// There are no shadows, so nobody knows a lost holder from one that let go.
    NoShadow,
    /// A deletion whose reply was lost counts as done.
    DeletesOnce,
    /// Readers do not see writers that wait.
    OverlooksWriters,
    /// A sidecar counts one permit too many.
    OneMorePermit,
    /// A waiter is granted after its session died (etcd#19597).
    GrantsToTheDead,
    /// A grant is believed after its session ended (etcd#11456).
    BelievesTooLong,
    /// A plan whose reply was lost counts as not applied.
    ForgetsDoubt,
}

impl Bug {
    /// The plan as a store with this bug would run it.
    pub(crate) fn plant(self, mut plan: Plan) -> Plan {
        let deletes = plan.deletes_only();
        match self {
            Self::LeavesShadow if deletes => {
                plan.writes.retain(|write| !matches!(write, Write::Delete(Range::One(Key::Shadow { .. }))));
            }
            Self::NoShadow => {
                plan.writes.retain(|write| !matches!(write, Write::Put(Key::Shadow { .. }, ..)));
            }
            Self::GrantsToTheDead => plan.compares.retain(|compare| !matches!(compare.key, Key::Session(_))),
            Self::FenceOfRevision => plan.writes.iter_mut().for_each(|write| {
                if let Write::Put(_, Record::Waiter(waiter), _) = write {
                    waiter.place = 0;
                }
            }),
            _ => {}
        }
        plan
    }

    /// An entry as a sidecar with this bug sees it.
    pub(crate) fn distort(self, etcd: &Etcd<Key, Range, Record>, mut entry: Entry) -> Entry {
        if let Record::Waiter(waiter) = &mut entry.record {
            let together = || {
                etcd.since(0, &Range::All).any(|event| {
                    event.revision == entry.mod_revision
                        && event.key > entry.key
                        && matches!(event.key, Key::Waiter { .. })
                })
            };
            let overlooked = match self {
                Self::RevisionsAlone => together(),
                Self::OverlooksWriters => {
                    waiter.share.is_exclusive()
                        && etcd.range(&line()).any(|(_, item)| item.create_revision < entry.create_revision)
                }
                _ => false,
            };
            if overlooked {
                waiter.share.permits = 0;
            }
            if self == Self::OneMorePermit {
                waiter.share.of += 1;
            }
        }
        entry
    }
}

/// How often each thing may happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    pub pauses: u8,
    pub restarts: u8,
    pub lost_replies: u8,
    pub hang_ups: u8,
}

/// One who calls.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub sidecar: usize,
    pub share: Share,
    pub calls: u8,
}

/// Who there is, whether the lock has a lock-delay, and what may happen.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub callers: Vec<Caller>,
    pub delay: bool,
    pub budget: Budget,
    pub bug: Option<Bug>,
}

/// Which of a sidecar's two plans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Slot {
    Join,
    Free,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    Acquire(usize),
    HangUp(usize),
    Release(usize),
    ReleaseOld(usize),
    Land(usize, Slot),
    LandLate(usize),
    Answer(usize, Slot),
    LoseReply(usize, Slot),
    Watch(usize),
    Tick(usize),
    Delay(usize),
    Pause(usize),
    Rejoin(usize),
    Restart(usize),
    EndSession(usize),
    EndLease(usize),
}

/// All there is of the key.
pub(crate) fn line() -> Range {
    Range::LockKey("orders".into(), "c42".into())
}

pub(crate) fn machine() -> Machine {
    Machine::new("orders".into(), "c42".into(), 0, concordat_protocol::lock::Mode::FairQueue)
}

impl World {
    pub(crate) fn start(&self) -> State {
        let mut state = State::new(self);
        let count = self.callers.iter().map(|caller| caller.sidecar + 1).max().unwrap_or(0);
        for _ in 0..count {
            let session = state.open_session();
            state.sidecars.push(Sidecar::new(session));
        }
        state
    }

    pub(crate) fn actions(&self, state: &State) -> Vec<Action> {
        let mut actions = Vec::new();
        for (at, client) in state.clients.iter().enumerate() {
            let sidecar = &state.sidecars[self.callers[at].sidecar];
            match client {
                Client::Idle { calls, old } => {
                    if *calls > 0 && sidecar.believes {
                        actions.push(Action::Acquire(at));
                    }
                    if old.is_some() {
                        actions.push(Action::ReleaseOld(at));
                    }
                }
                Client::Waiting { .. } if state.left.hang_ups > 0 => actions.push(Action::HangUp(at)),
                Client::Holding { .. } => actions.push(Action::Release(at)),
                Client::Waiting { .. } | Client::Releasing { .. } => {}
            }
        }
        for (at, sidecar) in state.sidecars.iter().enumerate() {
            for slot in [Slot::Join, Slot::Free] {
                if let Some(under_way) = sidecar.slot(slot) {
                    let landed = under_way.answer.is_some();
                    actions.push(if landed { Action::Answer(at, slot) } else { Action::Land(at, slot) });
                    if state.left.lost_replies > 0 {
                        actions.push(Action::LoseReply(at, slot));
                    }
                }
            }
            if sidecar.unseen(&state.etcd) {
                actions.push(Action::Watch(at));
            }
            match sidecar.machine.wake_at() {
                Some(wake) if wake <= sidecar.now + PATIENCE => actions.push(Action::Tick(at)),
                Some(wake) if wake <= sidecar.now + DELAY => actions.push(Action::Delay(at)),
                _ => {}
            }
            if sidecar.believes && state.left.pauses > 0 {
                actions.push(Action::Pause(at));
            }
            if !sidecar.believes {
                actions.push(Action::Rejoin(at));
            }
            if state.left.restarts > 0 {
                actions.push(Action::Restart(at));
            }
        }
        for (at, (session, alive, leased)) in state.sessions.iter().enumerate() {
            if !state.sidecars.iter().any(|sidecar| sidecar.session == *session && sidecar.believes) {
                if *alive {
                    actions.push(Action::EndSession(at));
                }
                if *leased {
                    actions.push(Action::EndLease(at));
                }
            }
        }
        actions.extend((0..state.late.len()).map(Action::LandLate));
        actions
    }
}
