//! The transactions of an object that is deleted.

use std::collections::BTreeSet;

use concordat_protocol::{
    Entry, Key, Name, Plan, Record, TransactionId,
    transaction::{BranchRecord, Stage},
};

/// How many ids are named.
const NAMED: usize = 5;

/// Transactions that must end before their object can go.
#[derive(Debug, Default)]
pub(super) struct Awaited {
    undecided: usize,
    applying: usize,
    stuck: Vec<String>,
}

impl Awaited {
    /// Takes one in, if it is of this object.
    pub(super) fn count(&mut self, name: &Name, entry: &Entry) {
        let (Key::Transaction(id), Record::Transaction(transaction)) = (&entry.key, &entry.record) else {
            return;
        };
        if transaction.name != *name {
            return;
        }
        if transaction.branches.iter().any(|branch| branch.stage == Stage::Stuck) {
            self.stuck.push(id.to_string());
        } else if transaction.decision.is_some() {
            self.applying += 1;
        } else {
            self.undecided += 1;
        }
    }

    /// What is awaited, in words.
    pub(super) fn text(&self) -> Option<String> {
        let mut parts = Vec::new();
        if self.undecided > 0 {
            parts.push(format!("{} undecided (their deadlines end that)", self.undecided));
        }
        if self.applying > 0 {
            parts.push(format!("{} not yet applied by every participant", self.applying));
        }
        if !self.stuck.is_empty() {
            let named = self.stuck.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
            parts.push(format!("{} stuck, which a person must retry or skip: {named}", self.stuck.len()));
        }
        (!parts.is_empty()).then(|| format!("transactions are awaited: {}", parts.join("; ")))
    }
}

/// Takes back a transaction that was handed over and that no sidecar ever took up: nobody was asked anything, so there
/// is nothing to decide. The compare loses against a sidecar that takes it up at the same time.
pub(super) fn withdraw(name: &Name, entry: &Entry) -> Option<Plan> {
    let (Key::Transaction(_), Record::Transaction(transaction)) = (&entry.key, &entry.record) else {
        return None;
    };
    let untouched =
        transaction.coordinator.is_none() && transaction.former.is_empty() && transaction.decision.is_none();
    (transaction.name == *name && untouched)
        .then(|| Plan::new().unchanged(entry.key.clone(), entry.mod_revision).delete(entry.key.clone()))
}

/// Transactions that nobody can end any more.
#[derive(Debug)]
pub(super) struct GivenUp<'a> {
    ids: BTreeSet<&'a TransactionId>,
    /// Each in words, for whoever must know what its participants have done: `7f (Commit: debit Applied, credit Stuck)`.
    pub(super) transactions: Vec<String>,
}

impl<'a> GivenUp<'a> {
    /// Those of an object.
    pub(super) fn of(name: &Name, entries: &'a [Entry]) -> Self {
        let mut given_up = Self { ids: BTreeSet::new(), transactions: Vec::new() };
        for entry in entries {
            let (Key::Transaction(id), Record::Transaction(transaction)) = (&entry.key, &entry.record) else {
                continue;
            };
            if transaction.name != *name {
                continue;
            }
            let decision =
                transaction.decision.map_or_else(|| "undecided".into(), |decision| format!("{decision:?}"));
            let branch = |branch: &BranchRecord| format!("{} {:?}", branch.participant.name, branch.stage);
            let branches: Vec<_> = transaction.branches.iter().map(branch).collect();
            given_up.ids.insert(id);
            given_up.transactions.push(format!("{id} ({decision}: {})", branches.join(", ")));
        }
        given_up
    }

    /// Of all keys of the namespace those of them: operations and answers, then the transactions.
    pub(super) fn keys(&self, all: impl Iterator<Item = Key>) -> Vec<Key> {
        let messages = all.filter(|key| match key {
            Key::Work { transaction, .. } | Key::Answer { transaction, .. } => self.ids.contains(transaction),
            _ => false,
        });
        messages.chain(self.ids.iter().map(|id| Key::Transaction((*id).clone()))).collect()
    }
}

#[cfg(test)]
mod tests {
    use concordat_protocol::{
        Now,
        definition::Backoff,
        transaction::{Decision, Participant, Protocol, Settings, Transaction, plans},
    };

    use super::*;

    fn transaction(name: &str) -> Transaction {
        let participant = Participant {
            name: "debit".into(),
            app: "accounts".into(),
            path: "/debit".into(),
            timeout: 1,
            retry: Backoff { initial: 1, max: 1, factor_milli: 1000 },
            attempts: 0,
            after: vec![],
            input: None,
        };
        let settings = Settings {
            protocol: Protocol::TwoPhaseCommit,
            participants: vec![participant],
            timeout: 1,
            once: false,
            retention: 1,
        };
        plans::new(name.into(), &settings, 1, "{}".into(), Now::default())
    }

    fn entry(id: &str, transaction: Transaction) -> Entry {
        Entry {
            key: Key::Transaction(id.into()),
            record: transaction.into(),
            create_revision: 1,
            mod_revision: 7,
            lease: 0,
        }
    }

    fn owned(name: &str, decision: Option<Decision>, stage: Stage) -> Transaction {
        let mut transaction = transaction(name);
        transaction.coordinator = Some(("accounts".into(), "s".into()));
        transaction.decision = decision;
        transaction.branches[0].stage = stage;
        transaction
    }

    #[test]
    fn what_must_end_first_is_named() {
        let mut awaited = Awaited::default();
        assert_eq!(awaited.text(), None);
        for (id, transaction) in [
            ("1", owned("pay", None, Stage::Preparing)),
            ("2", owned("pay", Some(Decision::Commit), Stage::Applying)),
            ("3", owned("pay", Some(Decision::Abort), Stage::Stuck)),
            ("4", owned("pay", Some(Decision::Commit), Stage::Stuck)),
            ("5", owned("other", None, Stage::Stuck)),
        ] {
            awaited.count(&"pay".into(), &entry(id, transaction));
        }
        assert_eq!(
            awaited.text().unwrap(),
            "transactions are awaited: 1 undecided (their deadlines end that); 1 not yet applied by every participant; \
             2 stuck, which a person must retry or skip: 3, 4"
        );
    }

    #[test]
    fn only_what_nobody_took_up_is_taken_back() {
        let name = "pay".into();
        let plan = withdraw(&name, &entry("1", transaction("pay"))).unwrap();
        let expected =
            Plan::new().unchanged(Key::Transaction("1".into()), 7).delete(Key::Transaction("1".into()));
        assert_eq!(plan, expected);
        let mut orphaned = transaction("pay");
        orphaned.former.push(("accounts".into(), "s".into()));
        for other in [owned("pay", None, Stage::Preparing), transaction("other"), orphaned] {
            assert_eq!(withdraw(&name, &entry("1", other)), None);
        }
    }
    #[test]
    fn what_is_given_up_goes_with_all_that_was_on_its_way_for_it() {
        let work = |id: &str| Key::Work {
            app: "accounts".into(),
            session: None,
            transaction: id.into(),
            branch: "debit".into(),
        };
        let entries = [
            entry("1", owned("pay", None, Stage::Preparing)),
            entry("2", owned("other", None, Stage::Preparing)),
            entry("3", owned("pay", Some(Decision::Commit), Stage::Stuck)),
        ];
        let given_up = GivenUp::of(&"pay".into(), &entries);
        assert_eq!(given_up.transactions, ["1 (undecided: debit Preparing)", "3 (Commit: debit Stuck)"]);
        let all = [work("1"), work("2"), Key::Transaction("1".into()), Key::Done("4".into())];
        let keys = given_up.keys(all.into_iter());
        assert_eq!(keys, [work("1"), Key::Transaction("1".into()), Key::Transaction("3".into())]);
    }
}
