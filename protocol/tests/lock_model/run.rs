//! Runs plans on the model of etcd as the store runs them on etcd, and tells changes as its watch does.

use concordat_protocol::{
    Answer, Entry, Key, Lease, Plan, Range, Record, SessionId, Write,
    etcd::{Compare, Etcd, Event, Item, Op, OpAnswer, Relation, Target, Txn},
    lock::Seen,
};

/// The lease of a session and that of its grants.
pub(crate) fn leases(session: &SessionId) -> (i64, i64) {
    let number: i64 = session.as_str().parse().expect("sessions are numbers");
    (2 * number + 1, 2 * number + 2)
}

fn lease_id(lease: &Lease) -> i64 {
    match lease {
        Lease::Forever => 0,
        Lease::Session(session) | Lease::Retention(session, _) => leases(session).0,
        Lease::Ttl(session, _) => leases(session).1,
        Lease::With(_, id) => *id,
    }
}

/// Runs a plan.
pub(crate) fn run(etcd: &mut Etcd<Key, Range, Record>, plan: &Plan) -> Answer {
    let guard = |key| Compare { key, target: Target::CreateRevision, relation: Relation::Greater, value: 0 };
    let mut txn = Txn {
        compares: plan.compares.iter().cloned().chain(plan.lease_guards().into_iter().map(guard)).collect(),
        then: Vec::new(),
        or_else: plan.otherwise.iter().cloned().map(Op::Get).collect(),
    };
    txn.then.extend(plan.writes.iter().map(|write| match write {
        Write::Put(key, record, lease) => {
            Op::Put { key: key.clone(), value: record.clone(), lease: lease_id(lease) }
        }
        Write::Delete(range) => Op::Delete(range.clone()),
    }));
    txn.then.extend(plan.reads.iter().cloned().map(Op::Get));
    let answer = etcd.txn(&txn).expect("guarded plans are never refused whole");
    let reads = answer.answers.into_iter().filter_map(|answer| match answer {
        OpAnswer::Got(items) => Some(items.into_iter().map(|(key, item)| entry(&key, &item)).collect()),
        _ => None,
    });
    Answer { held: answer.held, reads: reads.collect(), revision: etcd.revision() }
}

/// What stands under a key.
pub(crate) fn entry(key: &Key, item: &Item<Record>) -> Entry {
    Entry {
        key: key.clone(),
        record: item.value.clone(),
        create_revision: item.create_revision,
        mod_revision: item.mod_revision,
        lease: item.lease,
    }
}

/// What a watch tells of a change.
pub(crate) fn seen(event: &Event<Key, Record>) -> Seen {
    match &event.item {
        Some(item) => Seen::Put(entry(&event.key, item)),
        None => Seen::Deleted { key: event.key.clone(), revision: event.revision },
    }
}
