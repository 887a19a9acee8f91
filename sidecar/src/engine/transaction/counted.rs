//! What is counted over all transactions, for Prometheus.

use std::time::Duration;

use concordat_protocol::{
    Millis,
    transaction::{Decision, Operation, Transaction, participant::Called},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
};

use crate::{
    callback::name,
    metrics::{Metrics, latencies},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Decided {
    decision: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    operation: &'static str,
    answer: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    operation: &'static str,
}

/// See the module.
pub(super) struct Counted {
    decisions: Family<Decided, Counter>,
    seconds: Histogram,
    calls: Family<Answered, Counter>,
    call_seconds: Family<Of, Histogram>,
}

impl Counted {
    pub(super) fn register(metrics: &Metrics) -> Self {
        let counted = Self {
            decisions: Family::default(),
            seconds: latencies(),
            calls: Family::default(),
            call_seconds: Family::new_with_constructor(latencies),
        };
        // What is rare is seen to rise from 0.
        for decision in [Decision::Commit, Decision::Abort] {
            let _ = counted.decisions.get_or_create(&Decided { decision: word(decision) });
        }
        for operation in [Operation::Prepare, Operation::Commit, Operation::Abort].map(name) {
            for answer in ["yes", "no", "again"] {
                let _ = counted.calls.get_or_create(&Answered { operation, answer });
            }
            let _ = counted.call_seconds.get_or_create(&Of { operation });
        }
        metrics.register("transaction_decisions", "Transactions decided here", counted.decisions.clone());
        metrics.register_seconds(
            "transaction_decision",
            "Time from the begin of a transaction to its decision here",
            counted.seconds.clone(),
        );
        metrics.register("callbacks", "Calls to the app as a participant", counted.calls.clone());
        metrics.register_seconds("callback", "Time that such a call takes", counted.call_seconds.clone());
        counted
    }

    /// A transaction was decided, at a time in milliseconds since the Unix epoch.
    pub(super) fn decided(&self, transaction: &Transaction, decision: Decision, now: Millis) {
        self.decisions.get_or_create(&Decided { decision: word(decision) }).inc();
        self.seconds.observe(now.saturating_sub(transaction.began) as f64 / 1e3);
    }

    /// The app was called.
    pub(super) fn called(&self, operation: Operation, called: &Called, took: Duration) {
        let operation = name(operation);
        let answer = match called {
            Called::Yes(_) => "yes",
            Called::No(_) => "no",
            Called::Again(_) => "again",
            Called::NotMade => return,
        };
        self.calls.get_or_create(&Answered { operation, answer }).inc();
        self.call_seconds.get_or_create(&Of { operation }).observe(took.as_secs_f64());
    }
}

fn word(decision: Decision) -> &'static str {
    match decision {
        Decision::Commit => "commit",
        Decision::Abort => "abort",
    }
}
