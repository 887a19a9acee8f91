//! Plans by chance, and what must be the same of their answers.

use std::collections::BTreeMap;

use concordat_protocol::{
    Key, Lease, Plan, Range, Record,
    etcd::{self, OpAnswer, Refused, TxnAnswer},
    record,
};
use concordat_store::batch::{BatchRules, LeaseId, Prepared, lower};

/// What chance decides in one step: numbers, each read as the step needs it.
pub(crate) type Choice = [u8; 6];

/// The model of etcd.
pub(crate) type Model = etcd::Etcd<Key, Range, Record>;

fn key(choice: u8) -> Key {
    Key::Transaction(["a", "b", "c"][usize::from(choice) % 3].into())
}

/// A plan of one to three parts over three keys, without leases.
pub(crate) fn plan(choice: Choice) -> Plan {
    leased(choice, &[Lease::Forever])
}

/// The same under one of these leases.
pub(crate) fn leased([compares, on, writes, at, reads, lease]: Choice, leases: &[Lease]) -> Plan {
    let lease = leases[usize::from(lease) % leases.len()].clone();
    let mut plan = Plan::new();
    plan = match compares % 5 {
        0 => plan.absent(key(on)),
        1 => plan.present(key(on)),
        2 => plan.absent(key(on)).present(key(on / 3)),
        _ => plan,
    };
    let value = || Record::Epoch(record::Epoch { holder: format!("{on}.{writes}.{at}.{reads}") });
    plan = match writes % 7 {
        0 | 1 => plan.put(key(at), value(), lease),
        2 if key(at) != key(at / 3) => plan.put(key(at), value(), lease).delete(key(at / 3)),
        3 | 4 => plan.delete(key(at)),
        5 => plan.delete(Range::Transactions),
        _ => plan,
    };
    plan = match reads % 6 {
        0 => plan.read(key(reads / 6)),
        1 => plan.read(Range::Transactions).otherwise(key(reads / 6)),
        2 => plan.otherwise(Range::Transactions),
        _ => plan,
    };
    if reads > 230 {
        plan.alone = Some(Key::Done("alone".into()));
    }
    plan
}

/// A plan without leases as a transaction.
pub(crate) fn lowered(plan: Plan) -> Prepared<Record> {
    let none = |_: &Lease| Some(LeaseId { id: 0, guard: None });
    lower(plan, BatchRules::default(), none, |record| (record, 64)).unwrap()
}

/// Whether it held, and the keys and records that were read: what must be the same in a serial execution.
pub(crate) type Shown = (bool, Vec<Vec<(Key, Record)>>);

/// The answer to a transaction as far as it must be the same.
pub(crate) fn shown(answer: Result<TxnAnswer<Key, Record>, Refused>) -> Shown {
    show(answer.unwrap())
}

/// The answers to the transactions inside one.
pub(crate) fn inside(answer: Result<TxnAnswer<Key, Record>, Refused>) -> Vec<Shown> {
    let answers = answer.unwrap().answers.into_iter();
    answers
        .filter_map(|answer| match answer {
            OpAnswer::Txn(answer) => Some(show(answer)),
            _ => None,
        })
        .collect()
}

fn show(answer: TxnAnswer<Key, Record>) -> Shown {
    let reads = answer.answers.into_iter().filter_map(|answer| match answer {
        OpAnswer::Got(items) => Some(items.into_iter().map(|(key, item)| (key, item.value)).collect()),
        _ => None,
    });
    (answer.held, reads.collect())
}

/// Keys, records and leases, but for markers, which a serial execution does not have.
pub(crate) fn contents(etcd: &Model) -> BTreeMap<Key, (Record, i64)> {
    etcd.range(&Range::Transactions)
        .map(|(key, item)| (key.clone(), (item.value.clone(), item.lease)))
        .collect()
}
