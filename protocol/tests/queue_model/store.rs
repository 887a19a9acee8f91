//! The model of etcd that plans land on.

use concordat_protocol::{
    App, Entry, Key, Lease, Plan, Range, Record, SessionId, Write,
    etcd::{Compare, Etcd, Event, Item, Op, OpAnswer, Relation, Target, Txn},
    plan::Answer,
    queue::delivery::Change,
    session::Session,
};

use crate::world::State;

pub(crate) type Store = Etcd<Key, Range, Record>;

pub(crate) fn entry((key, item): (&Key, &Item<Record>)) -> Entry {
    Entry {
        key: key.clone(),
        record: item.value.clone(),
        create_revision: item.create_revision,
        mod_revision: item.mod_revision,
        lease: item.lease,
    }
}

pub(crate) fn entries(etcd: &Store, range: &Range) -> Vec<Entry> {
    etcd.range(range).map(entry).collect()
}

pub(crate) fn change(event: &Event<Key, Record>) -> Change {
    match &event.item {
        Some(item) => Change::Put(entry((&event.key, item))),
        None => Change::Deleted(event.key.clone(), event.revision),
    }
}

impl State {
    pub(crate) fn open_session(&mut self) -> (SessionId, i64) {
        self.lives += 1;
        let session: SessionId = format!("s{}", self.lives).into();
        self.etcd.grant(self.lives).expect("space");
        let record = Session { pod: String::new(), app: App::from("a"), accepts: true };
        self.land(&Plan::new().put(Key::Session(session.clone()), record, Lease::Forever));
        (session, self.lives)
    }

    /// Runs a plan on etcd, lowered as the store lowers it, and lets the ledger see what it did.
    pub(crate) fn land(&mut self, plan: &Plan) -> Answer {
        let before = self.etcd.revision();
        let lease = |lease: &Lease| match lease {
            Lease::Session(session) => session.as_str()[1..].parse().expect("a number"),
            Lease::With(_, id) => *id,
            _ => 0,
        };
        let mut txn: Txn<Key, Range, Record> = Txn { compares: plan.compares.clone(), ..Txn::default() };
        for guard in plan.lease_guards().into_iter().filter(|guard| !matches!(guard, Key::Marker { .. })) {
            let (target, relation) = (Target::CreateRevision, Relation::Greater);
            txn.compares.push(Compare { key: guard, target, relation, value: 0 });
        }
        for write in &plan.writes {
            txn.then.push(match write {
                Write::Put(key @ Key::Session(session), value, _) => {
                    let lease = session.as_str()[1..].parse().expect("a number");
                    Op::Put { key: key.clone(), value: value.clone(), lease }
                }
                Write::Put(key, value, of) => {
                    Op::Put { key: key.clone(), value: value.clone(), lease: lease(of) }
                }
                Write::Delete(range) => Op::Delete(range.clone()),
            });
        }
        txn.then.extend(plan.reads.iter().cloned().map(Op::Get));
        txn.or_else.extend(plan.otherwise.iter().cloned().map(Op::Get));
        let answer = self.etcd.txn(&txn).expect("a well-formed plan");
        let reads = answer.answers.into_iter().filter_map(|answer| match answer {
            OpAnswer::Got(found) => Some(found.iter().map(|(key, item)| entry((key, item))).collect()),
            _ => None,
        });
        let answer = Answer { held: answer.held, revision: self.etcd.revision(), reads: reads.collect() };
        self.record(before);
        answer
    }

    fn record(&mut self, since: i64) {
        let changes: Vec<Change> = self.etcd.since(since, &Range::All).map(change).collect();
        if !changes.is_empty() {
            self.ledger.apply(self.etcd.revision(), &changes);
        }
    }

    pub(crate) fn end_lease(&mut self, lease: i64) {
        let before = self.etcd.revision();
        self.etcd.end_lease(lease);
        self.record(before);
    }
}
