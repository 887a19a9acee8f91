//! Two sidecars' group commits, a network that loses and delays, and the model of etcd.

#[path = "world/judge.rs"]
mod judge;

use std::collections::BTreeMap;

use concordat_protocol::{
    Answer, Key, Lease, Range, Record, SessionId,
    etcd::{Item, Op, Refused, Relation, Target, Txn},
    record,
};
use concordat_store::{
    CommitError, Refusal,
    batch::{Ask, BatchRules, Batcher, Change, FLUSHERS, LeaseId, Marker, Prepared, Settled, Told, lower},
};

use self::judge::tickets;
use crate::plans::{Choice, Model, Shown, leased};

type Request = Txn<Key, Range, Record>;

const SESSIONS: [&str; 2] = ["left", "right"];

fn session(client: usize) -> SessionId {
    SESSIONS[client].into()
}

fn session_lease(client: usize) -> i64 {
    100 + client as i64
}

fn ttl_lease(client: usize) -> i64 {
    200 + client as i64
}

fn ttl_guard(client: usize) -> Key {
    Key::Marker { session: session(client), name: "ttl-5".into() }
}

struct Submitted {
    client: usize,
    prepared: Prepared<Record>,
    number: u64,
    result: Option<Result<Answer, CommitError>>,
    executions: Vec<(usize, Shown)>,
    /// It only deletes, and went without a marker: it may be executed more than once, and late.
    repeatable: bool,
}

struct Message {
    client: usize,
    flusher: usize,
    ask: Ask<Record>,
    awaited: bool,
}

struct World {
    etcd: Model,
    /// What a serial execution, in the order of etcd's commits, makes of the same plans.
    serial: Model,
    clients: Vec<Batcher<Record, usize>>,
    rules: BatchRules,
    /// The next transaction that puts takes the last of etcd's space.
    fills: bool,
    flying: [[bool; FLUSHERS]; 2],
    submitted: Vec<Submitted>,
    messages: Vec<Message>,
    executions: usize,
}

/// Runs a history, then lets everything come to rest; an error says what no serial execution explains.
pub(crate) fn simulate(choices: &[Choice], rules: BatchRules) -> Result<(), String> {
    let mut world = World::new(rules);
    for choice in choices {
        world.step(*choice)?;
    }
    world.come_to_rest()?;
    world.judge()
}

impl World {
    fn new(rules: BatchRules) -> Self {
        let (mut etcd, mut serial) = (Model::with_history(), Model::default());
        let marker = || Record::Marker(record::Marker);
        let mut clients = Vec::new();
        for client in 0..SESSIONS.len() {
            let put = |key, lease| Op::Put { key, value: marker(), lease };
            let name = |name: String| Key::Marker { session: session(client), name: name.into() };
            let mut open = Request::default();
            open.then.push(put(Key::Session(session(client)), session_lease(client)));
            open.then.push(put(ttl_guard(client), ttl_lease(client)));
            open.then
                .extend((0..FLUSHERS).map(|flusher| put(name(flusher.to_string()), session_lease(client))));
            for etcd in [&mut etcd, &mut serial] {
                etcd.grant(session_lease(client)).unwrap();
                etcd.grant(ttl_lease(client)).unwrap();
                etcd.txn(&open).unwrap();
            }
            let revision = etcd.revision();
            let markers = std::array::from_fn(|flusher| Marker {
                key: name(flusher.to_string()),
                void: name(format!("{flusher}-void")),
                value: marker(),
                lease: session_lease(client),
                revision,
            });
            clients.push(Batcher::new(rules, markers));
        }
        Self {
            etcd,
            serial,
            clients,
            rules,
            fills: false,
            flying: Default::default(),
            submitted: Vec::new(),
            messages: Vec::new(),
            executions: 0,
        }
    }

    fn step(&mut self, choice: Choice) -> Result<(), String> {
        let [what, who, which, ..] = choice;
        let client = usize::from(who) % self.clients.len();
        let flusher = usize::from(who / 2) % FLUSHERS;
        match what {
            0..100 => self.submit(client, choice),
            100..150 => self.take(client, flusher)?,
            150..200 => self.deliver(usize::from(which), who < 170)?,
            200..220 => self.time_out(usize::from(which), who < 200),
            220..230 => self.not_sent(usize::from(which))?,
            230..236 => self.end_lease(ttl_lease(client)),
            236..239 => self.end_lease(session_lease(client)),
            239..242 => {
                let settled = self.clients[client].end();
                self.settle(settled);
            }
            242..246 => self.etcd.set_no_space(who % 3 == 0),
            246..248 => self.fills = true,
            _ => self.abandon(usize::from(which)),
        }
        Ok(())
    }

    fn submit(&mut self, client: usize, choice: Choice) {
        let leases =
            [Lease::Forever, Lease::Forever, Lease::Session(session(client)), Lease::Ttl(session(client), 5)];
        let ticket = self.submitted.len();
        // A compare that always holds tells which plan it is.
        let plan = leased([choice[3], choice[4], choice[5], choice[2], choice[1], choice[4]], &leases)
            .compare(
                Key::Transaction(format!("ticket-{ticket}").into()),
                Target::Version,
                Relation::Greater,
                -1,
            );
        let find = |lease: &Lease| {
            let (id, guard) = match lease {
                Lease::Forever | Lease::Retention(..) | Lease::With(..) => (0, None),
                Lease::Session(_) => (session_lease(client), lease.guard()),
                Lease::Ttl(..) => (ttl_lease(client), Some(ttl_guard(client))),
            };
            Some(LeaseId { id, guard })
        };
        let prepared = lower(plan, self.rules, find, |record| (record, 64)).unwrap();
        let Ok(number) = self.clients[client].submit(prepared.clone(), ticket) else { return };
        self.submitted.push(Submitted {
            client,
            prepared,
            number,
            result: None,
            executions: Vec::new(),
            repeatable: false,
        });
    }

    fn take(&mut self, client: usize, flusher: usize) -> Result<(), String> {
        if self.flying[client][flusher] {
            return Ok(());
        }
        match self.clients[client].take(flusher) {
            Some(ask) => self.send(client, flusher, ask),
            None => Ok(()),
        }
    }

    fn send(&mut self, client: usize, flusher: usize, ask: Ask<Record>) -> Result<(), String> {
        if let Ask::Commit { txn, .. } = &ask {
            let alone =
                tickets(txn).filter(|ticket| self.submitted[*ticket].prepared.footprint.alone.is_some());
            if self.rules.independent_inside && alone.count() > 1 {
                return Err("two plans that must be apart share a batch".into());
            }
        }
        self.flying[client][flusher] = true;
        self.messages.push(Message { client, flusher, ask, awaited: true });
        Ok(())
    }

    /// A message reaches etcd; its answer may get lost.
    fn deliver(&mut self, which: usize, answered: bool) -> Result<(), String> {
        if self.messages.is_empty() {
            return Ok(());
        }
        let message = self.messages.remove(which % self.messages.len());
        let told = self.run(&message.ask)?;
        if message.awaited {
            let lost = Told::Refused(Refusal::Unknown("the answer was lost".into()));
            self.told(message.client, message.flusher, if answered { told } else { lost })?;
        }
        Ok(())
    }

    /// The answer is no longer waited for; the message may still reach etcd.
    fn time_out(&mut self, which: usize, lands_later: bool) {
        if self.messages.is_empty() {
            return;
        }
        let at = which % self.messages.len();
        if !self.messages[at].awaited {
            return;
        }
        self.messages[at].awaited = false;
        let (client, flusher) = (self.messages[at].client, self.messages[at].flusher);
        if !lands_later {
            self.messages.remove(at);
        }
        let told = Told::Refused(Refusal::Unknown("no answer in time".into()));
        self.told(client, flusher, told).expect("a request for what became of it");
    }

    fn not_sent(&mut self, which: usize) -> Result<(), String> {
        if self.messages.is_empty() || !self.messages[which % self.messages.len()].awaited {
            return Ok(());
        }
        let message = self.messages.remove(which % self.messages.len());
        let told = Told::Refused(Refusal::NotSent("no connection".into()));
        self.told(message.client, message.flusher, told)
    }

    fn told(&mut self, client: usize, flusher: usize, told: Told) -> Result<(), String> {
        self.flying[client][flusher] = false;
        let step = self.clients[client].told(flusher, told);
        self.settle(step.settled);
        match step.ask {
            Some(ask) => self.send(client, flusher, ask),
            None => Ok(()),
        }
    }

    fn settle(&mut self, settled: Vec<Settled<usize>>) {
        for Settled { ticket, result, .. } in settled {
            if let Some(ticket) = ticket {
                let former = self.submitted[ticket].result.replace(result);
                assert!(former.is_none(), "plan {ticket} was answered twice");
            }
        }
    }

    fn abandon(&mut self, which: usize) {
        if self.submitted.is_empty() {
            return;
        }
        let at = which % self.submitted.len();
        let one = &mut self.submitted[at];
        if one.result.is_none() {
            one.result = Some(Err(match self.clients[one.client].abandon(one.number) {
                concordat_store::batch::Abandoned::Waiting => CommitError::NotApplied("abandoned".into()),
                _ => CommitError::Unknown("abandoned".into()),
            }));
        }
    }

    fn end_lease(&mut self, lease: i64) {
        self.etcd.end_lease(lease);
        self.serial.end_lease(lease);
    }

    /// etcd does what it is asked, and so does the serial execution, one plan after the other.
    fn run(&mut self, ask: &Ask<Record>) -> Result<Told, String> {
        Ok(match ask {
            Ask::Commit { txn, .. } => match self.etcd.txn(txn) {
                Ok(answer) => {
                    self.execute(txn, &answer);
                    self.filled(txn).unwrap_or_else(|| Told::Txn(answer, self.etcd.revision()))
                }
                Err(refused) => {
                    if refused != Refused::NoSpace {
                        return Err(format!("{refused:?} refused {} plans", tickets(txn).count()));
                    }
                    Told::Refused(Refusal::NoSpace)
                }
            },
            Ask::Void(txn) => match self.etcd.txn(txn) {
                Ok(answer) => self.filled(txn).unwrap_or_else(|| Told::Txn(answer, self.etcd.revision())),
                Err(_) => Told::Refused(Refusal::NoSpace),
            },
            Ask::History(keys, after) => Told::History(
                self.etcd
                    .since(*after, &Range::All)
                    .filter(|event| keys.contains(&event.key))
                    .map(|event| Change {
                        revision: event.revision,
                        key: event.key.clone(),
                        put: event.item.is_some(),
                    })
                    .collect(),
            ),
            Ask::ReadAt(ranges) => {
                Told::Read(ranges.iter().map(|(range, revision)| self.read_at(range, *revision)).collect())
            }
        })
    }

    /// What etcd says to a transaction that takes the last of its space: that there is none, though it has applied it
    /// (`quotaApplierV3` of `server/etcdserver/apply/quota.go`).
    fn filled(&mut self, txn: &Request) -> Option<Told> {
        let fills = self.fills && txn.puts();
        if fills {
            self.fills = false;
            self.etcd.set_no_space(true);
        }
        fills.then_some(Told::Refused(Refusal::NoSpace))
    }

    fn read_at(&self, range: &Range, revision: i64) -> Vec<(Key, Item<Record>)> {
        let mut items = BTreeMap::new();
        for event in self.etcd.since(0, range).take_while(|event| revision == 0 || event.revision <= revision)
        {
            match &event.item {
                Some(item) => drop(items.insert(event.key.clone(), item.clone())),
                None => drop(items.remove(&event.key)),
            }
        }
        items.into_iter().collect()
    }

    /// Everything is delivered and answered until nothing is left to do.
    fn come_to_rest(&mut self) -> Result<(), String> {
        self.fills = false;
        self.etcd.set_no_space(false);
        for _ in 0..10_000 {
            for client in 0..self.clients.len() {
                for flusher in 0..FLUSHERS {
                    self.take(client, flusher)?;
                }
            }
            if self.messages.is_empty() {
                let rests = self.clients.iter().all(Batcher::is_idle);
                return if rests { Ok(()) } else { Err("a plan waits for ever".into()) };
            }
            self.deliver(0, true)?;
        }
        Err("it does not come to rest".into())
    }
}
