//! What there is at one moment, and what it says of the run.

use std::collections::BTreeMap;

use concordat_protocol::{
    Answer, Definition, Key, Lease, Millis, Plan, Range, Record, SessionId, Settings,
    etcd::{Etcd, Op, Txn},
    lock::{
        Machine, Mode, Share, Sharing, Token,
        invariant::{
            Grant,
            line::{History, Stood, Wait},
        },
        machine::PATIENCE,
        plans,
    },
    record::Marker,
    session::Session,
};

use crate::{
    run::{leases, run},
    world::{BELIEF, Budget, DELAY, NEVER, Slot, TTL, World, line, machine},
};

/// Who a waiter is.
type Who = (SessionId, u64);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub etcd: Etcd<Key, Range, Record>,
    pub sidecars: Vec<Sidecar>,
    pub clients: Vec<Client>,
    /// Plans whose sidecar gave up on them: each may land yet.
    pub late: Vec<Plan>,
    pub grants: Vec<Told>,
    pub forged: bool,
    /// Whether nobody was granted before the lock-delay of a lost holder was over.
    pub delays_kept: bool,
    pub left: Budget,
    /// Sessions whose lease, and whose lease of the lock's ttl, have not ended.
    pub sessions: Vec<(SessionId, bool, bool)>,
    pub arrivals: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Sidecar {
    pub machine: Machine,
    pub session: SessionId,
    pub believes: bool,
    pub now: Millis,
    pub join: Option<UnderWay>,
    pub free: Option<UnderWay>,
    /// How many of the events were told.
    pub watched: Option<usize>,
    /// When it was told of a holder that was lost.
    pub losses: BTreeMap<Who, Millis>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct UnderWay {
    pub plan: Plan,
    pub answer: Option<Answer>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Client {
    Idle { calls: u8, old: Option<Token> },
    Waiting { calls: u8, number: u64 },
    Holding { calls: u8, token: Token, grant: usize },
    Releasing { calls: u8, token: Token },
}

/// A grant as it was told.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Told {
    pub who: Who,
    pub share: Share,
    pub fence: u64,
    /// How many grants had been told when its caller stopped believing in it.
    pub until: Option<usize>,
    /// Whether its caller let it go.
    pub let_go: bool,
    /// Whether its caller was told that it has.
    pub released: bool,
    pub session_alive: bool,
}

impl Sidecar {
    pub(crate) fn new(session: SessionId) -> Self {
        Self {
            machine: machine(),
            session,
            believes: true,
            now: 0,
            join: None,
            free: None,
            watched: None,
            losses: BTreeMap::new(),
        }
    }

    pub(crate) fn slot(&self, slot: Slot) -> Option<&UnderWay> {
        match slot {
            Slot::Join => self.join.as_ref(),
            Slot::Free => self.free.as_ref(),
        }
    }

    pub(crate) fn slot_mut(&mut self, slot: Slot) -> &mut Option<UnderWay> {
        match slot {
            Slot::Join => &mut self.join,
            Slot::Free => &mut self.free,
        }
    }

    /// Whether the watch has something to tell it.
    pub(crate) fn unseen(&self, etcd: &Etcd<Key, Range, Record>) -> bool {
        self.machine.watches() && self.watched.is_none_or(|seen| etcd.since(0, &line()).nth(seen).is_some())
    }

    pub(crate) fn believed(&self) -> Millis {
        if self.believes { self.now + BELIEF } else { self.now }
    }
}

impl State {
    pub(crate) fn new(world: &World) -> Self {
        let idle = world.callers.iter().map(|caller| Client::Idle { calls: caller.calls, old: None });
        let mut state = Self {
            etcd: Etcd::with_history(),
            sidecars: Vec::new(),
            clients: idle.collect(),
            late: Vec::new(),
            grants: Vec::new(),
            forged: false,
            delays_kept: true,
            left: world.budget,
            sessions: Vec::new(),
            arrivals: 0,
        };
        let settings = concordat_protocol::lock::Settings {
            mode: Mode::FairQueue,
            sharing: Sharing::Mutex,
            permits: 1,
            ttl: TTL,
            lock_delay: DELAY,
            max_hold: 0,
            max_wait: NEVER,
            max_waiters: 8,
            dapr_store: None,
        };
        let record = Definition { uid: String::new(), generation: 1, settings: Settings::Lock(settings) };
        let definition = plans::definition(&"orders".into());
        run(&mut state.etcd, &Plan::new().put(definition, record, Lease::Forever));
        state
    }

    pub(crate) fn definition(&self) -> i64 {
        let definition = plans::definition(&"orders".into());
        self.etcd.get(&definition).map_or(0, |item| item.create_revision)
    }

    pub(crate) fn open_session(&mut self) -> SessionId {
        let session = SessionId::from(self.sessions.len().to_string());
        let (life, ttl) = leases(&session);
        for lease in [life, ttl] {
            self.etcd.grant(lease).expect("there is space");
        }
        let record = Session { pod: String::new(), app: "app".into(), accepts: true };
        let lease = Lease::Ttl(session.clone(), TTL);
        let marker = lease.guard().expect("a ttl has a marker");
        for (key, value, lease) in
            [(Key::Session(session.clone()), record.into(), life), (marker, Marker.into(), ttl)]
        {
            let put =
                Txn { compares: Vec::new(), then: vec![Op::Put { key, value, lease }], or_else: Vec::new() };
            self.etcd.txn(&put).expect("its lease lives");
        }
        self.sessions.push((session.clone(), true, true));
        session
    }

    /// Whoever was granted under a session believes in it no more.
    pub(crate) fn disbelieve(&mut self, session: &SessionId) {
        let told = self.grants.len();
        let of = self.grants.iter_mut().filter(|grant| grant.who.0 == *session);
        of.for_each(|grant| grant.until = grant.until.or(Some(told)));
    }

    /// Those who were granted and are gone without having let go.
    pub(crate) fn lost_holders(&self) -> impl Iterator<Item = &Told> {
        self.grants.iter().filter(|told| !told.let_go && self.etcd.get(&waiter(&told.who)).is_none())
    }

    /// Whether a grant at a sidecar keeps the lock-delay of every holder that was lost and leaves it no room.
    pub(crate) fn keeps_delays(&self, at: usize, share: Share) -> bool {
        let sidecar = &self.sidecars[at];
        self.lost_holders().all(|lost| {
            let waited = sidecar.losses.get(&lost.who).is_some_and(|since| since + DELAY <= sidecar.now);
            waited || share.fits(u64::from(lost.share.permits)) || self.cleared(&lost.who)
        })
    }

    /// Whether a shadow there was is gone: somebody else has waited.
    fn cleared(&self, who: &Who) -> bool {
        let shadow = shadow(who);
        let ever = self.etcd.since(0, &shadow.clone().into()).next().is_some();
        ever && self.etcd.get(&shadow).is_none()
    }

    /// Whether somebody may have held the lock and was lost: it has left a shadow, and was not told that it has let go.
    fn delayed(&self) -> bool {
        let released = |who: &Who| self.grants.iter().any(|told| told.released && told.who == *who);
        self.etcd.range(&line()).any(|(key, _)| match key {
            Key::Shadow { session, number, .. } => {
                let who = (session.clone(), *number);
                self.etcd.get(&waiter(&who)).is_none() && !released(&who)
            }
            _ => false,
        })
    }

    /// Whether nothing can happen of itself any more, but for a lock-delay after nobody was lost.
    fn at_rest(&self) -> bool {
        let wait = if self.delayed() { DELAY } else { PATIENCE };
        self.late.is_empty()
            && self.sidecars.iter().all(|sidecar| {
                let due = sidecar.machine.wake_at().is_some_and(|wake| wake <= sidecar.now + wait);
                sidecar.believes
                    && sidecar.join.is_none()
                    && sidecar.free.is_none()
                    && !due
                    && !sidecar.unseen(&self.etcd)
            })
    }

    /// Whether a key of a live sidecar stands in the line for none of its callers.
    pub(crate) fn orphaned(&self) -> bool {
        let wanted = |number: u64| {
            self.clients.iter().any(|client| match client {
                Client::Waiting { number: of, .. } => *of == number,
                Client::Holding { grant, .. } => self.grants[*grant].who.1 == number,
                _ => false,
            })
        };
        self.at_rest()
            && self.etcd.range(&line()).any(|(key, _)| match key {
                Key::Waiter { session, number, .. } => {
                    self.sidecars.iter().any(|sidecar| sidecar.session == *session) && !wanted(*number)
                }
                _ => false,
            })
    }

    pub(crate) fn history(&self) -> History {
        let mut stood: Vec<Stood> = Vec::new();
        for event in self.etcd.since(0, &line()) {
            let Key::Waiter { session, number, .. } = &event.key else { continue };
            let who = (session.clone(), *number);
            match &event.item {
                Some(item) => {
                    let Record::Waiter(waiter) = &item.value else { continue };
                    let (revision, place, share) = (item.create_revision, waiter.place, waiter.share);
                    stood.push(Stood { revision, who, place, share, gone: None });
                }
                None => {
                    stood.iter_mut().filter(|other| other.who == who).for_each(|other| other.gone = Some(0));
                }
            }
        }
        let grants = self.grants.iter().enumerate().map(|(at, told)| Grant {
            caller: (told.who.0.to_string(), told.who.1),
            fence: told.fence,
            from: at as Millis,
            to: told.until.map_or(Millis::MAX, |until| until as Millis),
            session_alive: told.session_alive,
            definition_in_force: true,
        });
        let at_rest = self.at_rest();
        let waiting = self.clients.iter().filter(|_| at_rest).filter_map(|client| match client {
            Client::Waiting { number, .. } => stood.iter().find(|stood| stood.who.1 == *number),
            _ => None,
        });
        let waits = waiting.map(|own| Wait { who: own.who.clone(), from: 0, to: 1 });
        History {
            grants: grants.collect(),
            accepted: Vec::new(),
            waits: waits.collect(),
            forged: if self.forged { vec!["an old token changed a grant".into()] } else { Vec::new() },
            stood,
        }
    }
}

fn waiter((session, number): &Who) -> Key {
    Key::Waiter { lock: "orders".into(), key: "c42".into(), session: session.clone(), number: *number }
}

fn shadow((session, number): &Who) -> Key {
    Key::Shadow { lock: "orders".into(), key: "c42".into(), session: session.clone(), number: *number }
}
