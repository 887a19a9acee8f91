//! One branch at one sidecar alone: what the model has no room for.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

#[path = "coordinator/record.rs"]
#[expect(dead_code, reason = "the tests of coordinators need more of it")]
mod record;

use concordat_protocol::{
    Now, Record, Write,
    transaction::{
        Operation, Participant, Reply, Verdict, Work,
        participant::{Called, Cohort, Effect, Input},
    },
};

const NOW: Now = Now { monotonic: 0, unix: 1 };

/// A branch that has been asked to prepare, and is given up after so many attempts.
fn asked(attempts: u32) -> Cohort {
    let participant = record::settings(["debit"]).participants.remove(0);
    let work = Work {
        operation: Operation::Prepare,
        participant: Participant { attempts, ..participant },
        input: Some("{}".into()),
        coordinator: ("c".into(), "c1".into()),
        transaction: 5,
        attempts: 0,
        last_error: String::new(),
        traceparent: String::new(),
    };
    let mut cohort = Cohort::new("t1".into(), "debit".into(), "debit".into(), "p1".into());
    let effects = cohort.step(Input::Item(7, work), NOW);
    assert!(matches!(&effects[..], [Effect::Call(_)]), "{effects:?}");
    cohort
}

fn called(cohort: &mut Cohort, called: Called) -> Vec<Effect> {
    cohort.step(Input::Called(called), NOW)
}

fn calls_again(cohort: &mut Cohort) -> u32 {
    let effects = cohort.step(Input::Due, NOW);
    let [Effect::Call(call)] = &effects[..] else { panic!("{effects:?}") };
    call.attempt
}

/// The app has its attempts when etcd answers again.
#[test]
fn what_was_not_asked_is_no_attempt() {
    let mut cohort = asked(2);
    for _ in 0..5 {
        let effects = called(&mut cohort, Called::NotMade);
        assert!(matches!(&effects[..], [Effect::Wait(_)]), "{effects:?}");
        assert_eq!(calls_again(&mut cohort), 1);
    }
    called(&mut cohort, Called::Again("503".into()));
    assert_eq!(calls_again(&mut cohort), 2);
    let effects = called(&mut cohort, Called::Again("503".into()));
    let [Effect::Commit(_, plan)] = &effects[..] else { panic!("{effects:?}") };
    let reply = plan.writes.iter().find_map(|write| match write {
        Write::Put(_, Record::Answer(reply), _) => Some(reply.clone()),
        _ => None,
    });
    let given_up = Verdict::No("given up after 2 attempts: 503".into());
    assert_eq!(reply, Some(Reply { operation: Operation::Prepare, verdict: given_up, attempts: 2 }));
}
