//! What there is at one moment, and what it says of the run.

use std::collections::{BTreeMap, BTreeSet};

use concordat_protocol::{
    Answer, Definition, Key, Lease, Millis, Plan, Range, Record, SessionId, Settings,
    etcd::{Etcd, Op, Txn},
    lock::{
        Caller, Machine, Mode, Sharing, Token,
        invariant::{Change, Grant, History, Loss, Wait},
        machine::PATIENCE,
    },
    record::Marker,
    session::Session,
};

use crate::{
    run::{leases, run},
    world::{Budget, DELAY, NEVER, TTL, all, definition, holder, shadow},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub etcd: Etcd<Key, Range, Record>,
    pub sidecars: Vec<Sidecar>,
    pub clients: Vec<Client>,
    /// Plans whose sidecar gave up on them: each may land yet.
    pub late: Vec<UnderWay>,
    pub grants: Vec<Told>,
    pub forged: bool,
    /// Whether what a sidecar came to have at a revision was taken under the definition in force.
    pub in_force: BTreeMap<i64, bool>,
    /// Grants that followed a lost one.
    pub losses: Vec<Loss>,
    /// Revisions of the grants whose key went with its lease.
    pub expired: BTreeSet<i64>,
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
    pub definition: Option<i64>,
    pub under_way: Option<UnderWay>,
    /// How many of the events were told.
    pub watched: Option<usize>,
    /// How many of the wants of others that were put for its session it was told.
    pub heard: usize,
    /// When it was told of a loss, by the revision of the grant that was lost.
    pub losses: BTreeMap<i64, Millis>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct UnderWay {
    pub plan: Plan,
    /// Whose store sends it.
    pub session: SessionId,
    pub answer: Option<Answer>,
    /// The losses that its sidecar knew of when it sent it, and for how long.
    pub known: BTreeMap<i64, Millis>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Client {
    Idle { old: Option<Token> },
    Waiting { caller: Caller },
    Holding { token: Token, grant: usize },
    Releasing { token: Token },
}

/// A grant as it was told.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Told {
    pub sidecar: usize,
    pub session: SessionId,
    pub caller: u64,
    /// Revision of the holder's key.
    pub revision: i64,
    pub fence: u64,
    pub believed: bool,
    pub session_alive: bool,
    pub in_force: bool,
    /// Whether its caller let it go.
    pub let_go: bool,
    /// Whether its caller was told that it has.
    pub released: bool,
}

impl Sidecar {
    pub(crate) fn new(mode: Mode, session: SessionId, definition: Option<i64>) -> Self {
        Self {
            machine: Machine::new(crate::world::lock(), crate::world::key(), 0, mode),
            session,
            believes: true,
            now: 0,
            definition,
            under_way: None,
            watched: None,
            heard: 0,
            losses: BTreeMap::new(),
        }
    }

    /// Whether the watch has something to tell it.
    pub(crate) fn unseen(&self, etcd: &Etcd<Key, Range, Record>) -> bool {
        self.machine.watches() && self.watched.is_none_or(|told| etcd.since(0, &all()).nth(told).is_some())
    }

    /// The next want of others that it was not told.
    pub(crate) fn unheard(&self, etcd: &Etcd<Key, Range, Record>) -> Option<i64> {
        let wants = Range::Wants(self.session.clone());
        let mut lives =
            etcd.since(0, &wants).filter_map(|event| match event.item.as_ref().map(|item| &item.value) {
                Some(Record::Want(want)) => Some(want.life),
                _ => None,
            });
        lives.nth(self.heard)
    }

    /// Whether its time has come, or comes when it has waited for so long. What it has in this session is not waited
    /// for: a grant is renewed and what stays is asked for again.
    pub(crate) fn is_due(&self, wait: Millis) -> bool {
        let lasts = self.has() && self.machine.lease().is_none_or(|(session, _)| session == self.session);
        !lasts && self.machine.wake_at().is_some_and(|wake| wake <= self.now + wait)
    }

    /// Whether it is to tell who holds what it has, or let go of what stays, before a grant ends.
    pub(crate) fn may_lapse(&self) -> bool {
        let end = self.machine.grant().map_or(Millis::MAX, |(_, end)| end);
        self.has() && self.machine.wake_at().is_some_and(|wake| wake < end)
    }

    /// Whether it has the lock.
    pub(crate) fn has(&self) -> bool {
        self.machine.grant().is_some() || self.machine.stays().is_some()
    }
}

impl State {
    pub(crate) fn define(&mut self, mode: Mode) {
        let settings = concordat_protocol::lock::Settings {
            mode,
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
        run(&mut self.etcd, &Plan::new().put(definition(), record, Lease::Forever));
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

    /// What a sidecar told its callers has run out.
    pub(crate) fn disbelieve_sidecar(&mut self, at: usize) {
        let session = &self.sidecars[at].session;
        self.grants.iter_mut().filter(|told| told.session == *session).for_each(|told| told.believed = false);
    }

    /// The grants that were lost as of a revision: gone without having been let go.
    pub(crate) fn lost(&self, as_of: i64) -> Vec<i64> {
        let holder = holder().into();
        let gone = |told: &&Told| {
            let next = self.etcd.since(told.revision, &holder).next();
            next.is_some_and(|event| event.revision <= as_of)
        };
        self.grants.iter().filter(|told| !told.let_go).filter(gone).map(|told| told.revision).collect()
    }

    /// A sidecar is told what there is as of a revision.
    pub(crate) fn note_losses(&mut self, at: usize, as_of: i64) {
        let lost = self.lost(as_of);
        let Sidecar { losses, now, .. } = &mut self.sidecars[at];
        for grant in lost {
            losses.entry(grant).or_insert(*now);
        }
    }

    /// A plan that was sent when these losses were known has landed at a revision.
    pub(crate) fn note_grant(&mut self, known: &BTreeMap<i64, Millis>, next: i64) {
        let holder = holder().into();
        let grants = self.etcd.since(0, &holder).filter(|event| event.item.is_some());
        let grants: Vec<i64> = grants.map(|event| event.revision).collect();
        let Some(at) = grants.iter().position(|grant| *grant == next) else { return };
        let last = at.checked_sub(1).map(|before| grants[before]);
        if let Some(lost) = last.filter(|last| self.lost(next).contains(last)) {
            self.losses.push(Loss { lost, next, delay: DELAY, known: known.get(&lost).copied() });
        }
    }

    /// The shadow that stands alone.
    fn alone(&self) -> Option<i64> {
        let shadow = self.etcd.get(&shadow()).map(|item| item.mod_revision);
        shadow.filter(|_| self.etcd.get(&holder()).is_none())
    }

    fn released(&self, revision: i64) -> bool {
        self.grants.iter().any(|told| told.revision == revision && told.released)
    }

    /// Whether a holder was lost and has left its shadow: it did not let go, or nobody was told yet that it has.
    fn delayed(&self) -> bool {
        self.alone().is_some_and(|alone| {
            let kept = |told: &Told| told.revision == alone && !told.let_go;
            !self.released(alone) && (self.expired.contains(&alone) || self.grants.iter().any(kept))
        })
    }

    /// Whether nothing can happen of itself any more, but for a lock-delay after nobody was lost.
    fn at_rest(&self) -> bool {
        let wait = if self.delayed() { DELAY } else { PATIENCE };
        self.late.is_empty()
            && self.sidecars.iter().all(|sidecar| {
                sidecar.believes
                    && sidecar.under_way.is_none()
                    && !sidecar.is_due(wait)
                    && !sidecar.unseen(&self.etcd)
                    && sidecar.unheard(&self.etcd).is_none()
            })
    }

    /// Whether somebody waits for what only stays with a sidecar.
    pub(crate) fn withheld(&self) -> bool {
        let waits = self.clients.iter().any(|client| matches!(client, Client::Waiting { .. }));
        waits && self.at_rest() && self.sidecars.iter().any(|sidecar| sidecar.machine.stays().is_some())
    }

    /// Whether a live sidecar wants, for none of its callers, what the one that it asks has not any more: one that has
    /// takes away what was asked when it lets go.
    fn wants_in_vain(&self) -> bool {
        let life = self.etcd.get(&holder()).map(|item| item.create_revision);
        self.at_rest()
            && self.sidecars.iter().filter(|sidecar| sidecar.machine.waiters() == 0).any(|sidecar| {
                self.etcd.range(&Range::All).any(|(key, item)| match (key, &item.value) {
                    (Key::Want { session, .. }, Record::Want(want)) => {
                        *session == sidecar.session && Some(want.life) != life
                    }
                    _ => false,
                })
            })
    }

    /// Whether a live sidecar keeps a lock that none of its callers has.
    pub(crate) fn orphaned(&self) -> bool {
        let Some(Record::Holder(holder)) = self.etcd.get(&holder()).map(|item| &item.value) else {
            return self.wants_in_vain();
        };
        let owner = self.sidecars.iter().find(|sidecar| sidecar.session == holder.session);
        self.at_rest() && owner.is_some_and(|owner| !owner.has()) || self.wants_in_vain()
    }

    pub(crate) fn history(&self) -> History {
        let range = holder().into();
        let changes = self.etcd.since(0, &range).map(|event| Change {
            revision: event.revision,
            at: 0,
            holder: event.item.as_ref().and_then(|item| match &item.value {
                Record::Holder(holder) => Some(holder.session.clone()),
                _ => None,
            }),
            told: event.item.as_ref().and_then(|item| match &item.value {
                Record::Holder(holder) if !holder.stays => Some(holder.regrants),
                _ => None,
            }),
        });
        let grants = self.grants.iter().zip(0..).map(|(told, place)| Grant {
            caller: (format!("{}/{}", told.sidecar, told.session), told.caller),
            fence: told.fence,
            from: place,
            to: if told.believed { Millis::MAX } else { place },
            session_alive: told.session_alive,
            definition_in_force: told.in_force,
        });
        let waiting = self.clients.iter().filter(|client| matches!(client, Client::Waiting { .. }));
        History {
            changes: changes.collect(),
            grants: grants.collect(),
            accepted: Vec::new(),
            waits: if self.at_rest() {
                waiting.map(|_| Wait { from: 0, to: 1 }).collect()
            } else {
                Vec::new()
            },
            forged: if self.forged { vec!["an old token changed a grant".into()] } else { Vec::new() },
            losses: self.losses.clone(),
            shadows: self.alone().filter(|alone| self.released(*alone)).into_iter().collect(),
        }
    }
}
