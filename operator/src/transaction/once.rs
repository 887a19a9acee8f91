//! The one transaction of an object with run `Once`.

use concordat_crds::DistributedTransaction;
use concordat_protocol::{
    Key, Kind, Lease, Millis, Name, Now, Plan, SessionId,
    session::{Stat, counter},
    transaction::{Settings, once_id, plans},
};

use super::compile::text;

/// What tells for ever, or until the object is gone, that its transaction was handed over: the operator's own count
/// for the object, in no session and under no lease.
pub(super) fn mark(name: &Name) -> Key {
    Key::Stat { kind: Kind::Transaction, name: name.clone(), session: SessionId::from("-") }
}

/// How long its outcome can be read at least, whatever `spec.retention` says, milliseconds: an operator that is away for
/// an hour still finds it. The finalizer removes it before.
const RETENTION: Millis = 3_600_000;

/// Hands the transaction of `object` to the sidecars: puts it without a coordinator, for the first one that finds it.
/// Nothing is put if it was ever handed over before, is there, or is remembered, nor under another definition than the
/// one created at revision `definition`. The operator takes no further part in it.
pub fn hand_over(object: &DistributedTransaction, settings: &Settings, definition: i64, now: Now) -> Plan {
    let name: Name = object.metadata.name.as_deref().unwrap_or_default().into();
    let id = once_id(object.metadata.uid.as_deref().unwrap_or_default());
    let input = object.spec.input.as_ref().map(text).unwrap_or_default();
    let settings = Settings { retention: settings.retention.max(RETENTION), ..settings.clone() };
    let transaction = plans::new(name.clone(), &settings, definition, input, now);
    plans::hand_over(&id, transaction).absent(mark(&name)).put(
        mark(&name),
        Stat { counters: vec![(counter::BEGUN.into(), 1)] },
        Lease::Forever,
    )
}

#[cfg(test)]
mod tests {
    use concordat_protocol::{
        Record, Write,
        etcd::{Etcd, Op, Txn},
        transaction::Stage,
    };
    use serde_json::json;

    use super::*;
    use crate::transaction::compile;

    type Model = Etcd<Key, concordat_protocol::Range, Record>;

    fn object() -> DistributedTransaction {
        let spec = json!({
            "protocol": "TwoPhaseCommit", "participants": [{ "name": "debit", "app": "accounts" }],
            "run": "Once", "input": { "amount": 10 }, "timeout": "7s", "retention": "8s",
        });
        let mut object = DistributedTransaction::new("pay", serde_json::from_value(spec).unwrap());
        object.metadata.uid = Some("u1".into());
        object
    }

    fn definition() -> Key {
        Key::Definition { kind: Kind::Transaction, name: "pay".into() }
    }

    fn run(etcd: &mut Model, plan: &Plan) -> bool {
        let then = plan
            .writes
            .iter()
            .map(|write| match write {
                Write::Put(key, record, _) => Op::Put { key: key.clone(), value: record.clone(), lease: 0 },
                Write::Delete(range) => Op::Delete(range.clone()),
            })
            .collect();
        etcd.txn(&Txn { compares: plan.compares.clone(), then, or_else: vec![] }).unwrap().held
    }

    fn defined() -> (Model, i64) {
        let mut etcd = Model::default();
        let settings = concordat_protocol::Settings::Transaction(compile(&object()).unwrap());
        let record = concordat_protocol::Definition { uid: "u1".into(), generation: 1, settings };
        assert!(run(&mut etcd, &Plan::new().put(definition(), record, Lease::Forever)));
        let revision = etcd.get(&definition()).unwrap().create_revision;
        (etcd, revision)
    }

    fn plan(definition: i64) -> Plan {
        hand_over(&object(), &compile(&object()).unwrap(), definition, Now { monotonic: 0, unix: 42 })
    }

    #[test]
    fn the_transaction_is_put_whole_and_unowned() {
        let (mut etcd, definition) = defined();
        assert!(run(&mut etcd, &plan(definition)));
        let Record::Transaction(put) = &etcd.get(&Key::Transaction("once-u1".into())).unwrap().value else {
            panic!("no transaction")
        };
        assert_eq!(
            (put.name.as_str(), put.definition, put.input.as_str()),
            ("pay", definition, r#"{"amount":10}"#)
        );
        assert_eq!((&put.coordinator, put.former.len(), put.decision), (&None, 0, None));
        assert_eq!((put.deadline, put.timeout, put.retention, put.began), (0, 7_000, RETENTION, 42));
        let branch = &put.branches[0];
        assert_eq!(
            (branch.participant.name.as_str(), &branch.item, branch.stage),
            ("debit", &None, Stage::Preparing)
        );
    }

    #[test]
    fn its_outcome_is_kept_as_long_as_asked_for_or_longer() {
        let settings = Settings { retention: 2 * RETENTION, ..compile(&object()).unwrap() };
        let plan = hand_over(&object(), &settings, 1, Now::default());
        let [Write::Put(_, Record::Transaction(put), _), ..] = &plan.writes[..] else {
            panic!("no transaction")
        };
        assert_eq!(put.retention, 2 * RETENTION);
    }

    #[test]
    fn it_is_never_handed_over_twice_even_when_all_of_it_is_forgotten() {
        let (mut etcd, definition) = defined();
        assert!(run(&mut etcd, &plan(definition)));
        assert!(!run(&mut etcd, &plan(definition)), "while it is there");
        assert!(run(&mut etcd, &Plan::new().delete(Key::Transaction("once-u1".into()))));
        assert!(!run(&mut etcd, &plan(definition)), "after it was finished and its retention ended");
    }

    #[test]
    fn each_guard_is_there_for_a_reason() {
        for (compare, spoil) in [
            (mark(&"pay".into()), mark(&"pay".into())),
            (Key::Transaction("once-u1".into()), Key::Transaction("once-u1".into())),
            (Key::Done("once-u1".into()), Key::Done("once-u1".into())),
        ] {
            let (mut etcd, definition) = defined();
            let record = Record::Stat(Stat::default());
            assert!(run(&mut etcd, &Plan::new().put(spoil, record, Lease::Forever)));
            assert!(!run(&mut etcd, &plan(definition)), "{compare:?}");
            let mut planted = plan(definition);
            planted.compares.retain(|of| of.key != compare);
            assert!(run(&mut etcd, &planted), "without the compare on {compare:?} it is begun again");
        }
    }

    #[test]
    fn an_object_that_was_made_anew_does_not_get_the_old_one_s_transaction() {
        let (mut etcd, old) = defined();
        assert!(run(&mut etcd, &Plan::new().delete(definition())));
        assert!(!run(&mut etcd, &plan(old)));
    }
}
