use concordat_protocol::{
    App,
    session::counter,
    transaction::{FinishedBranch, Operation, Settings},
};
use serde_json::{Value, json};

use super::*;
use crate::{metrics, transaction::compile};

fn object(run: &str) -> DistributedTransaction {
    let mut spec = json!({
        "protocol": "TwoPhaseCommit", "run": run,
        "participants": [{ "name": "debit", "app": "accounts" }, { "name": "credit", "app": "ledger" }],
    });
    if run == "Once" {
        spec["input"] = json!({});
    }
    let mut object = DistributedTransaction::new("pay", serde_json::from_value(spec).unwrap());
    object.metadata.uid = Some("u1".into());
    object.metadata.generation = Some(4);
    object
}

fn settings() -> Settings {
    compile(&object("Once")).unwrap()
}

fn coordinator() -> (App, SessionId) {
    ("accounts".into(), "s1".into())
}

fn transaction(name: &str, decision: Option<Decision>, stages: [Stage; 2]) -> Transaction {
    let branches = settings()
        .participants
        .into_iter()
        .zip(stages)
        .map(|(participant, stage)| BranchRecord {
            participant,
            item: Some("s2".into()),
            stage,
            result: "what it answered".into(),
            attempts: 2,
            notes: vec![],
        })
        .collect();
    Transaction {
        name: name.into(),
        definition: 1,
        input: "{}".into(),
        coordinator: Some(coordinator()),
        former: vec![],
        deadline: 1,
        timeout: 1,
        retention: 1,
        began: 1,
        decision,
        reason: String::new(),
        branches,
        traceparent: String::new(),
    }
}

fn entry(key: Key, record: impl Into<Record>) -> Entry {
    Entry { key, record: record.into(), create_revision: 1, mod_revision: 1, lease: 0 }
}

fn live(id: &str, transaction: Transaction) -> Entry {
    entry(Key::Transaction(id.into()), transaction)
}

fn stat(session: &str, counters: &[(&str, u64)]) -> Entry {
    let counters = counters.iter().map(|(name, value)| ((*name).into(), *value)).collect();
    entry(
        Key::Stat { kind: Kind::Transaction, name: "pay".into(), session: session.into() },
        Stat { counters },
    )
}

fn handed_over() -> Entry {
    stat("-", &[(counter::BEGUN, 1)])
}

fn finished(decision: Decision, reason: &str) -> Entry {
    let branch = |name: &str, stage| FinishedBranch {
        name: name.into(),
        stage,
        result: "what it answered".into(),
        attempts: 3,
        notes: vec![],
    };
    let record = Finished {
        name: "pay".into(),
        input_digest: 0,
        decision,
        reason: reason.into(),
        began: 1,
        finished: 2,
        branches: vec![branch("debit", Stage::Applied), branch("credit", Stage::Skipped)],
    };
    entry(Key::Done("once-u1".into()), record)
}

fn work(branch: &str, attempts: u32, last_error: &str) -> Entry {
    let participant = settings().participants.into_iter().find(|of| of.name.as_str() == branch).unwrap();
    let key = Key::Work {
        app: participant.app.clone(),
        session: Some("s2".into()),
        transaction: "once-u1".into(),
        branch: branch.into(),
    };
    let record = Work {
        operation: Operation::Commit,
        participant,
        input: None,
        coordinator: coordinator(),
        transaction: 0,
        attempts,
        last_error: last_error.into(),
        traceparent: String::new(),
    };
    entry(key, record)
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn see(object: &DistributedTransaction, entries: Vec<Entry>) -> DistributedTransactionStatus {
    let state = State::of(&"pay".into(), entries);
    status(object, &Standing::Accepted, Some(&state), &mut Totals::default(), at(100))
}

/// Type, status and reason of each condition.
fn conditions(status: &DistributedTransactionStatus) -> Vec<String> {
    status
        .conditions
        .iter()
        .map(|condition| format!("{}={}/{}", condition.type_, condition.status, condition.reason))
        .collect()
}

fn without_conditions(status: &DistributedTransactionStatus) -> Value {
    let mut value = serde_json::to_value(status).unwrap();
    value.as_object_mut().unwrap().remove("conditions");
    value
}

#[test]
fn on_demand_counts_what_is_under_way_and_what_sidecars_finished() {
    use Stage::{Applied, Applying, Preparing, Stuck};
    let status = see(
        &object("OnDemand"),
        vec![
            live("1", transaction("pay", None, [Preparing, Preparing])),
            live("2", transaction("pay", Some(Decision::Commit), [Applied, Stuck])),
            live("3", transaction("pay", Some(Decision::Abort), [Applying, Stuck])),
            live("4", transaction("other", Some(Decision::Commit), [Stuck, Stuck])),
            stat("a", &[(counter::COMMITTED, 5), (counter::ABORTED, 1)]),
            stat("b", &[(counter::COMMITTED, 2)]),
        ],
    );
    assert_eq!(
        without_conditions(&status),
        json!({ "observedGeneration": 4, "active": 3, "committed": 7, "aborted": 1, "stuck": 2 })
    );
    assert_eq!(conditions(&status), ["Ready=True/Accepted", "Stuck=True/ParticipantRefused"]);
    assert!(status.conditions[1].message.starts_with("2 cannot go on"), "{}", status.conditions[1].message);

    let quiet = see(&object("OnDemand"), vec![]);
    assert_eq!(conditions(&quiet), ["Ready=True/Accepted", "Stuck=False/Progressing"]);
    assert_eq!((quiet.id, quiet.outcome, quiet.branches.len()), (None, None, 0));
}

#[test]
fn what_is_under_way_is_measured_and_nothing_is_nought() {
    use Stage::{Applying, Preparing, Stuck};
    let began = |at, of: Transaction| Transaction { began: at, ..of };
    let measured = |entries| {
        let state = State::of(&"pay".into(), entries);
        state.measures().into_iter().map(|of| (of.name, of.value)).collect::<Vec<_>>()
    };
    let entries = vec![
        live("1", began(7_000, transaction("pay", None, [Preparing, Preparing]))),
        live("2", began(5_000, transaction("pay", Some(Decision::Commit), [Applying, Stuck]))),
        live("3", began(9_000, transaction("pay", Some(Decision::Abort), [Applying, Applying]))),
        live("4", began(1_000, transaction("other", None, [Stuck, Stuck]))),
    ];
    assert_eq!(
        measured(entries),
        [
            ("transactions_active", metrics::Value::Count(3)),
            ("transactions_undecided", metrics::Value::Count(1)),
            ("transactions_stuck", metrics::Value::Count(1)),
            ("transactions_oldest", metrics::Value::Since(Some(5_000))),
        ]
    );
    let nothing: Vec<_> = measured(vec![]).into_iter().map(|(_, value)| value).collect();
    let none = metrics::Value::Count(0);
    assert_eq!(nothing, [none, none, none, metrics::Value::Since(None)]);
}

#[test]
fn once_follows_its_transaction_from_the_hand_over_to_the_end() {
    use Stage::{Applied, Applying, Preparing, Stuck};
    let branch = |name: &str, state: &str, attempts: u64| json!({ "name": name, "state": state, "attempts": attempts });
    let not_handed = see(&object("Once"), vec![]);
    assert_eq!(without_conditions(&not_handed), json!({ "observedGeneration": 4 }));
    assert_eq!(
        conditions(&not_handed),
        [
            "Aborted=False/Undecided",
            "Committed=False/Undecided",
            "Ready=True/Accepted",
            "Stuck=False/Progressing"
        ]
    );

    let unowned = Transaction { coordinator: None, ..transaction("pay", None, [Preparing, Preparing]) };
    let mut failing = branch("credit", "applying", 7);
    failing["message"] = json!("connection refused");
    let mut refused = branch("credit", "stuck", 2);
    refused["message"] = json!("what it answered");
    let mut skipped = branch("credit", "skipped", 3);
    skipped["message"] = json!("what it answered");
    let undecided = [
        "Aborted=False/Undecided",
        "Committed=False/Undecided",
        "Ready=True/Accepted",
        "Stuck=False/Progressing",
    ];
    let committed =
        ["Aborted=False/Decided", "Committed=True/Decided", "Ready=True/Accepted", "Stuck=False/Progressing"];
    let aborted =
        ["Aborted=True/Decided", "Committed=False/Decided", "Ready=True/Accepted", "Stuck=False/Progressing"];
    let stuck = [
        "Aborted=False/Decided",
        "Committed=True/Decided",
        "Ready=True/Accepted",
        "Stuck=True/ParticipantRefused",
    ];
    for (entries, outcome, branches, expected) in [
        (
            vec![live("once-u1", unowned), handed_over()],
            "undecided",
            vec![branch("debit", "preparing", 2), branch("credit", "preparing", 2)],
            undecided,
        ),
        (
            vec![live("once-u1", transaction("pay", None, [Preparing, Preparing])), handed_over()],
            "undecided",
            vec![branch("debit", "preparing", 2), branch("credit", "preparing", 2)],
            undecided,
        ),
        (
            vec![
                live("once-u1", transaction("pay", Some(Decision::Commit), [Applied, Applying])),
                work("credit", 7, "connection refused"),
            ],
            "committed",
            vec![branch("debit", "applied", 2), failing],
            committed,
        ),
        (
            vec![live("once-u1", transaction("pay", Some(Decision::Commit), [Applied, Stuck]))],
            "committed",
            vec![branch("debit", "applied", 2), refused],
            stuck,
        ),
        (
            vec![finished(Decision::Commit, ""), handed_over()],
            "committed",
            vec![branch("debit", "applied", 3), skipped.clone()],
            committed,
        ),
        (
            vec![finished(Decision::Abort, "the time was up"), handed_over()],
            "aborted",
            vec![branch("debit", "applied", 3), skipped],
            aborted,
        ),
    ] {
        let status = see(&object("Once"), entries);
        assert_eq!(
            without_conditions(&status),
            json!({ "observedGeneration": 4, "id": "once-u1", "outcome": outcome, "branches": branches })
        );
        assert_eq!(conditions(&status), expected);
    }
}

#[test]
fn why_it_was_aborted_is_said() {
    let status = see(&object("Once"), vec![finished(Decision::Abort, "credit said no")]);
    assert_eq!(status.conditions[0].message, "credit said no");
}

#[test]
fn an_outcome_that_was_seen_stays_after_etcd_forgot_it() {
    let mut object = object("Once");
    let seen = see(&object, vec![finished(Decision::Commit, ""), handed_over()]);
    object.status = Some(seen.clone());
    assert_eq!(see(&object, vec![handed_over()]), seen);
    assert_eq!(see(&object, vec![]), seen);
}

#[test]
fn an_outcome_that_nobody_saw_is_not_guessed() {
    let mut object = object("Once");
    object.status =
        Some(see(&object, vec![live("once-u1", transaction("pay", None, [Stage::Preparing; 2]))]));
    let status = see(&object, vec![handed_over()]);
    assert_eq!(status.outcome, Some(Outcome::Undecided));
    assert_eq!(
        conditions(&status),
        [
            "Aborted=Unknown/Undecided",
            "Committed=Unknown/Undecided",
            "Ready=True/Accepted",
            "Stuck=False/Progressing"
        ]
    );
}

#[test]
fn what_cannot_be_read_stays_as_it_was() {
    for (run, entries) in [
        (
            "Once",
            vec![live("once-u1", transaction("pay", Some(Decision::Commit), [Stage::Applied, Stage::Stuck]))],
        ),
        (
            "OnDemand",
            vec![live("7", transaction("pay", None, [Stage::Preparing; 2])), stat("a", &[("committed", 3)])],
        ),
    ] {
        let mut object = object(run);
        let before = see(&object, entries);
        object.status = Some(before.clone());
        let unavailable = Standing::Unavailable("no leader".into());
        let blind = status(&object, &unavailable, None, &mut Totals::default(), at(200));
        assert_eq!(without_conditions(&blind), without_conditions(&before));
        let but_ready = |status: &DistributedTransactionStatus| -> Vec<_> {
            status.conditions.iter().filter(|condition| condition.type_ != "Ready").cloned().collect()
        };
        assert_eq!(but_ready(&blind), but_ready(&before));
        assert!(conditions(&blind).contains(&"Ready=False/StoreUnavailable".to_owned()));
    }
}

#[test]
fn the_items_read_are_where_the_record_says_they_are() {
    let object = object("Once");
    let moved = transaction("pay", None, [Stage::Preparing; 2]);
    let state = State::of(&"pay".into(), vec![live("once-u1", moved)]);
    let items = state.items(&object);
    assert!(
        items.contains(&work("debit", 0, "").key.into()) && items.contains(&work("credit", 0, "").key.into())
    );
    assert_eq!(items.len(), 2);
}
