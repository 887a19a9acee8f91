//! The kind `DistributedTransaction`.

mod compile;
mod end;
mod once;
mod status;
mod totals;

use concordat_crds::{DistributedTransaction, DistributedTransactionStatus};
use concordat_protocol::{Key, Name, Now, Plan, Range, Settings, transaction::once_id};
use concordat_store::{Admin, CommitError};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;

pub use compile::compile;
pub use once::hand_over;
pub use status::{State, status};
pub use totals::Totals;

use crate::{
    Invalid, Standing,
    etcd::{self, Term},
    kind::Kind,
    metrics::Measure,
};

/// The kind, for the pipeline.
pub struct Transactions;

/// Reads what is remembered of a DistributedTransaction.
pub async fn look(
    admin: &Admin,
    namespace: &str,
    object: &DistributedTransaction,
) -> Result<State, CommitError> {
    let name = object.name_any().into();
    let mut entries = entries(admin, namespace, State::ranges(object)).await?;
    let items = State::of(&name, entries.clone()).items(object);
    if !items.is_empty() {
        entries.extend(self::entries(admin, namespace, items).await?);
    }
    Ok(State::of(&name, entries))
}

async fn entries(
    admin: &Admin,
    namespace: &str,
    ranges: Vec<Range>,
) -> Result<Vec<concordat_protocol::Entry>, CommitError> {
    Ok(admin.read(namespace, ranges).await?.reads.into_iter().flatten().collect())
}

impl Kind for Transactions {
    type Object = DistributedTransaction;
    type Status = DistributedTransactionStatus;
    type State = State;
    type Memory = Totals;

    const KIND: concordat_protocol::Kind = concordat_protocol::Kind::Transaction;
    const NAME: &'static str = "transaction";

    fn compile(object: &DistributedTransaction) -> Result<Settings, Invalid> {
        compile(object).map(Settings::Transaction)
    }

    fn unsupported(object: &DistributedTransaction, settings: &Settings) -> Option<String> {
        let Settings::Transaction(settings) = settings else { return None };
        (!settings.supported()).then(|| format!("protocol {:?}", object.spec.protocol))
    }

    async fn look(
        admin: &Admin,
        namespace: &str,
        object: &DistributedTransaction,
    ) -> Result<State, CommitError> {
        look(admin, namespace, object).await
    }

    fn begin(
        object: &DistributedTransaction,
        state: &State,
        settings: &Settings,
        definition: i64,
        now: Now,
    ) -> Option<Plan> {
        let Settings::Transaction(settings) = settings else { return None };
        // What Kubernetes has seen of it is remembered when etcd is put back to before it was handed over.
        let seen = object.status.as_ref().is_some_and(|status| status.id.is_some());
        (settings.once && !state.handed_over && !seen).then(|| hand_over(object, settings, definition, now))
    }

    fn status(
        object: &DistributedTransaction,
        standing: &Standing,
        state: Option<&State>,
        memory: &mut Totals,
        now: Timestamp,
    ) -> DistributedTransactionStatus {
        status(object, standing, state, memory, now)
    }

    fn conditions(status: &DistributedTransactionStatus) -> &[Condition] {
        &status.conditions
    }

    fn measures(state: &State) -> Vec<Measure> {
        state.measures()
    }

    fn moves(_: &DistributedTransactionStatus) -> bool {
        false
    }

    async fn awaited(
        term: &Term,
        namespace: &str,
        name: &Name,
        _: &str,
    ) -> Result<Option<String>, etcd::Error> {
        let mut awaited = end::Awaited::default();
        for entry in entries(term.admin(), namespace, vec![Range::Transactions]).await? {
            let withdrawn = match end::withdraw(name, &entry) {
                Some(plan) => term.write(namespace, plan).await?.held,
                None => false,
            };
            if !withdrawn {
                awaited.count(name, &entry);
            }
        }
        Ok(awaited.text())
    }

    async fn give_up(term: &Term, namespace: &str, name: &Name) -> Result<Vec<Key>, etcd::Error> {
        let transactions = entries(term.admin(), namespace, vec![Range::Transactions]).await?;
        let given_up = end::GivenUp::of(name, &transactions);
        for transaction in &given_up.transactions {
            tracing::warn!(
                namespace,
                name = %name,
                %transaction,
                "given up: its namespace is deleted, and no sidecar is left in it to end the transaction"
            );
        }
        // What was on its way for it goes first: as long as the record is there, the rest is found again.
        let (keys, _) = term.admin().list_keys(namespace, Range::All).await?;
        Ok(given_up.keys(keys.into_iter().map(|(key, ..)| key)))
    }

    fn left(name: &Name, uid: &str) -> Vec<Range> {
        vec![Key::Done(once_id(uid)).into(), Range::Stats(Self::KIND, name.clone())]
    }
}
