//! A small world: an etcd, pods with a sidecar and an app each, one transaction, and what can go wrong.

use std::collections::{BTreeMap, BTreeSet};

use concordat_protocol::{
    Answer, App, Branch, Definition, Entry, Key, Kind, Lease, Now, Plan, Range, Record, SessionId, Write,
    definition::Backoff,
    etcd::{Compare, Etcd, Op, OpAnswer, Relation, Target, Txn},
    session::Session,
    transaction::{
        Cohort, Coordinator, Operation, Participant, Peers, Protocol, Settings, Transaction, Verdict,
        coordinator, invariant::History, participant, participant::Called, plans,
    },
};

use super::bug::Bug;

mod alike;
mod choices;
mod sidecars;
mod store;

pub(crate) use alike::alike_go_on_alike;
pub(crate) use store::on_life;

pub(crate) const ID: &str = "t";
const TIMEOUT: u64 = 1_000;

/// What a run may meet with.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    /// The app of each pod.
    pub(crate) pods: Vec<&'static str>,
    /// The app of each branch.
    pub(crate) branches: Vec<&'static str>,
    /// Pods that may coordinate; the first one begins.
    pub(crate) coordinators: Vec<usize>,
    /// How many sidecars may crash.
    pub(crate) crashes: u8,
    /// How many may freeze: lose their session and go on, or not learn what a plan came to, which lands late or never.
    pub(crate) freezes: u8,
    /// Whether the deadline may pass.
    pub(crate) deadline: bool,
    /// Whether an app may vote no.
    pub(crate) no_votes: bool,
    /// Handed over unowned instead of begun.
    pub(crate) once: bool,
    /// Whether a watch shows what there is at once, which leaves fewer orders to try.
    pub(crate) prompt: bool,
    /// Operations that the coordinator's plans have room for, if fewer than there are.
    pub(crate) room: Option<usize>,
    /// What is broken on purpose.
    pub(crate) bug: Option<Bug>,
}

/// A plan that was sent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Flight {
    pod: usize,
    session: SessionId,
    owner: Owner,
    pub(crate) plan: Plan,
    /// Whether its sender has given up on it.
    forsaken: bool,
    /// What was read too early, by a planted bug.
    early: Option<Vec<Vec<Entry>>>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Owner {
    Coordinator,
    Cohort(Branch, participant::Tag),
    Move(Key),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Sidecar {
    session: SessionId,
    number: usize,
    app: App,
    peers: Peers,
    coordinator: Option<Coordinator>,
    cohorts: BTreeMap<Branch, Cohort>,
    calls: BTreeMap<Branch, participant::Call>,
    /// Dead sessions it looks after until nothing of theirs is left.
    dead: BTreeSet<SessionId>,
    /// What the watch has shown of its inbox.
    shown: BTreeMap<Key, i64>,
    /// Waits, and whether anything has changed in etcd since they began.
    waits: BTreeMap<Option<Branch>, (u64, bool)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct World {
    pub(crate) etcd: Etcd<Key, Range, Record>,
    pods: Vec<Option<Sidecar>>,
    pub(crate) flights: Vec<Flight>,
    pub(crate) history: History,
    late: bool,
    crashes: u8,
    freezes: u8,
    sessions: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// A plan reaches etcd.
    Land(usize),
    /// Its sender does not learn what it came to.
    Forsake(usize),
    /// A watch shows a pod what became of a key in its inbox.
    Show(usize, Key),
    /// A sidecar claims work that is for the first to come.
    Claim(usize, Key),
    /// A sidecar learns that a session ended.
    Learn(usize, SessionId),
    /// A sidecar looks after what a dead session left.
    LookAfter(usize, SessionId),
    /// A sidecar finds the transaction unowned.
    Find(usize),
    /// An app answers a call.
    Answer(usize, Branch, bool),
    /// A wait ends.
    Due(usize, Option<Branch>),
    /// The deadline passes.
    Late,
    Crash(usize),
    /// A session runs out.
    Expire(SessionId),
    /// A pod starts, or goes on with a new session.
    Start(usize),
}

impl World {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        let mut world = Self {
            etcd: Etcd::default(),
            pods: vec![None; scenario.pods.len()],
            flights: Vec::new(),
            history: History::default(),
            late: false,
            crashes: scenario.crashes,
            freezes: scenario.freezes,
            sessions: 0,
        };
        let settings = settings(scenario);
        world.history.branches = settings.participants.iter().map(|of| of.name.clone()).collect();
        let definition = Definition {
            uid: "u".into(),
            generation: 1,
            settings: concordat_protocol::Settings::Transaction(settings.clone()),
        };
        let key = Key::Definition { kind: Kind::Transaction, name: "d".into() };
        world.commit(&Plan::new().put(key.clone(), definition, Lease::Forever));
        let created = world.etcd.get(&key).unwrap().create_revision;
        for pod in 0..scenario.pods.len() {
            world.start(scenario, pod);
        }
        let record = plans::new("d".into(), &settings, created, "{}".into(), Now::default());
        if scenario.once {
            world.commit(&plans::hand_over(&ID.into(), record));
        } else {
            let pod = scenario.coordinators[0];
            let sidecar = world.pods[pod].as_ref().unwrap();
            let own = (sidecar.app.clone(), sidecar.session.clone());
            let (mut machine, effects) =
                Coordinator::begin(ID.into(), record, own, &sidecar.peers, Now::default());
            scenario.room.inspect(|room| machine.set_room(*room));
            world.pods[pod].as_mut().unwrap().coordinator = Some(machine);
            world.coordinator_effects(scenario, pod, effects);
        }
        world
    }

    /// Whether a session belongs to a sidecar that runs.
    pub(crate) fn lives(&self, session: &SessionId) -> bool {
        self.pods.iter().flatten().any(|sidecar| sidecar.session == *session)
    }

    fn now(&self) -> Now {
        let unix = if self.late { TIMEOUT } else { 0 };
        Now { monotonic: unix, unix }
    }

    fn start(&mut self, scenario: &Scenario, pod: usize) {
        self.sessions += 1;
        let number = self.sessions;
        let session: SessionId = format!("s{number}").into();
        let app: App = scenario.pods[pod].into();
        let record = Session { pod: format!("pod{pod}"), app: app.clone(), accepts: true };
        self.etcd.grant(number as i64).unwrap();
        self.commit(&Plan::new().put(
            Key::Session(session.clone()),
            record.clone(),
            Lease::Session(session.clone()),
        ));
        let mut sidecar = Sidecar {
            session: session.clone(),
            number,
            app: app.clone(),
            peers: Peers::default(),
            coordinator: None,
            cohorts: BTreeMap::new(),
            calls: BTreeMap::new(),
            dead: BTreeSet::new(),
            shown: BTreeMap::new(),
            waits: BTreeMap::new(),
        };
        for (key, item) in self.etcd.range(&Range::Sessions) {
            if let (Key::Session(id), Record::Session(session)) = (key, &item.value) {
                sidecar.peers.put(id.clone(), session.clone());
            }
        }
        // Adoption looks at the state: whatever there is of sessions that do not live.
        if scenario.bug != Some(Bug::AdoptionOnTheEventAlone) {
            for (key, item) in self.etcd.range(&Range::All) {
                let owner = match (key, &item.value) {
                    (Key::Work { app: of, session: Some(owner), .. }, _) if *of == app => Some(owner),
                    (Key::Transaction(_), Record::Transaction(Transaction { coordinator, .. })) => {
                        coordinator.as_ref().map(|(_, owner)| owner)
                    }
                    _ => None,
                };
                sidecar.dead.extend(owner.filter(|owner| !sidecar.peers.is_live(owner)).cloned());
            }
        }
        for other in self.pods.iter_mut().flatten() {
            other.peers.put(session.clone(), record.clone());
        }
        self.pods[pod] = Some(sidecar);
    }

    fn sender(&self, flight: &Flight) -> Option<&Sidecar> {
        self.pods[flight.pod].as_ref().filter(|sidecar| sidecar.session == flight.session)
    }

    /// Does it, and what follows of itself.
    pub(crate) fn act(&mut self, scenario: &Scenario, action: Action) {
        self.take(scenario, action);
        if scenario.prompt {
            while let Some(action) = self.prompted(scenario) {
                self.take(scenario, action);
            }
        }
        let flights = std::mem::take(&mut self.flights);
        self.flights = flights.into_iter().filter(|flight| !self.is_void(flight)).collect();
        self.flights.sort_by(|a, b| {
            (a.pod, &a.session, &a.owner, &a.plan).cmp(&(b.pod, &b.session, &b.owner, &b.plan))
        });
    }

    fn take(&mut self, scenario: &Scenario, action: Action) {
        match action {
            Action::Land(index) => self.land(scenario, index),
            Action::Forsake(index) => {
                self.freezes -= 1;
                self.history.disturbed = true;
                self.flights[index].forsaken = true;
                let flight = self.flights[index].clone();
                let failure = coordinator::Failure::Unknown;
                let whose = match &flight.owner {
                    Owner::Cohort(branch, _) => Some(branch.clone()),
                    _ => None,
                };
                match flight.owner {
                    Owner::Coordinator => {
                        self.coordinate(scenario, flight.pod, coordinator::Input::Failed(failure));
                    }
                    Owner::Cohort(branch, tag) => {
                        self.take_part(
                            scenario,
                            flight.pod,
                            &branch,
                            participant::Input::Failed(tag, failure),
                        );
                    }
                    Owner::Move(_) => {}
                }
                // It tries again whether or not anything has happened since.
                if let Some(sidecar) = &mut self.pods[flight.pod]
                    && let Some((_, changed)) = sidecar.waits.get_mut(&whose)
                {
                    *changed = true;
                }
            }
            Action::Show(pod, key) => self.show(scenario, pod, key),
            Action::Claim(pod, key) => self.relocate(scenario, pod, &key),
            Action::Learn(pod, session) => {
                let sidecar = self.pods[pod].as_mut().unwrap();
                sidecar.peers.remove(&session);
                sidecar.dead.insert(session);
            }
            Action::LookAfter(pod, session) => self.look_after(scenario, pod, &session),
            Action::Find(pod) => self.adopt(scenario, pod),
            Action::Answer(pod, branch, yes) => self.answer(scenario, pod, &branch, yes),
            Action::Due(pod, whose) => {
                self.pods[pod].as_mut().unwrap().waits.remove(&whose);
                match whose {
                    None => self.coordinate(scenario, pod, coordinator::Input::Due),
                    Some(branch) => self.take_part(scenario, pod, &branch, participant::Input::Due),
                }
            }
            Action::Late => {
                self.late = true;
                self.history.disturbed = true;
            }
            Action::Crash(pod) => {
                self.crashes -= 1;
                self.history.disturbed = true;
                self.pods[pod] = None;
            }
            Action::Expire(session) => {
                if self.lives(&session) {
                    self.freezes -= 1;
                    self.history.disturbed = true;
                }
                let lease = session.as_str()[1..].parse().unwrap();
                let before = self.etcd.revision();
                self.etcd.end_lease(lease);
                self.wake(before);
            }
            Action::Start(pod) => self.start(scenario, pod),
        }
    }

    /// What a sidecar does by itself as soon as it can.
    fn prompted(&self, scenario: &Scenario) -> Option<Action> {
        let mut actions = Vec::new();
        for (pod, sidecar) in self.pods.iter().enumerate() {
            if let Some(sidecar) = sidecar {
                self.actions_of(scenario, pod, sidecar, &mut actions);
            }
        }
        actions.into_iter().find(|action| match action {
            Action::Show(..)
            | Action::Claim(..)
            | Action::Learn(..)
            | Action::LookAfter(..)
            | Action::Find(_) => true,
            Action::Due(pod, whose) => self.pods[*pod]
                .as_ref()
                .is_some_and(|sidecar| sidecar.waits.get(whose).is_some_and(|of| of.0 == 0)),
            _ => false,
        })
    }

    /// Whether nothing more will happen but what costs a fault, or a plan that lands late.
    pub(crate) fn at_its_end(&self, scenario: &Scenario) -> bool {
        self.flights.iter().all(|flight| flight.forsaken || self.sender(flight).is_none())
            && self.actions(scenario).iter().all(|action| match action {
                Action::Crash(_) | Action::Late | Action::Land(_) => true,
                Action::Expire(session) => self.lives(session),
                _ => false,
            })
    }

    fn land(&mut self, scenario: &Scenario, index: usize) {
        let flight = self.flights.remove(index);
        let mut answer = self.commit(&flight.plan);
        if let (true, Some(early)) = (answer.held, &flight.early) {
            answer.reads.clone_from(early);
        }
        if flight.forsaken || self.sender(&flight).is_none() {
            return;
        }
        match flight.owner {
            Owner::Coordinator => {
                self.coordinate(scenario, flight.pod, coordinator::Input::Committed(answer));
            }
            Owner::Cohort(branch, tag) => {
                self.take_part(scenario, flight.pod, &branch, participant::Input::Committed(tag, answer));
            }
            Owner::Move(_) => {}
        }
    }
}

fn settings(scenario: &Scenario) -> Settings {
    Settings {
        protocol: Protocol::TwoPhaseCommit,
        participants: scenario
            .branches
            .iter()
            .enumerate()
            .map(|(index, app)| Participant {
                name: format!("b{index}").into(),
                app: (*app).into(),
                path: "/".into(),
                timeout: 1,
                retry: Backoff { initial: 1, max: 1, factor_milli: 1000 },
                attempts: 0,
                after: Vec::new(),
                input: None,
            })
            .collect(),
        timeout: TIMEOUT,
        once: scenario.once,
        retention: 1,
    }
}
