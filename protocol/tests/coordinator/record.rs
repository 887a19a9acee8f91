//! What the tests of one coordinator begin with.

use concordat_protocol::{
    Plan, Record, Write,
    definition::Backoff,
    transaction::{Participant, Protocol, Settings, Transaction},
};

/// Two-phase commit, each participant of which is an app of its own.
pub(crate) fn settings<'a>(participants: impl IntoIterator<Item = &'a str>) -> Settings {
    let participant = |name: &str| Participant {
        name: name.into(),
        app: name.into(),
        path: String::new(),
        timeout: 1_000,
        retry: Backoff { initial: 100, max: 100, factor_milli: 1_000 },
        attempts: 0,
        after: vec![],
        input: None,
    };
    Settings {
        protocol: Protocol::TwoPhaseCommit,
        participants: participants.into_iter().map(participant).collect(),
        timeout: 5_000,
        once: false,
        retention: 60_000,
    }
}

/// The record as a plan puts it.
pub(crate) fn put(plan: &Plan) -> Transaction {
    let record = plan.writes.iter().find_map(|write| match write {
        Write::Put(_, Record::Transaction(record), _) => Some(record.clone()),
        _ => None,
    });
    record.unwrap()
}
