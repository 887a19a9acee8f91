//! `concordat describe`: one lock, queue or transaction, with all that etcd and its sidecars tell of it.

mod lock;
mod queue;
mod transaction;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use concordat_operator::kind::Kind;
use concordat_protocol::{Definition, Entry, Key, Range, Record, SessionId};
use serde_json::{Value, json};

use crate::{
    output::Format,
    reach::{Reached, Scope},
};

/// What `describe` is told.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// A lock: who holds it, and who waits for it
    #[command(alias = "locks")]
    Lock {
        /// Name of the Lock
        name: String,
        /// One key of it: also what may only stay with a sidecar is asked for then
        key: Option<String>,
        #[command(flatten)]
        scope: Scope,
        #[command(flatten)]
        format: Format,
    },
    /// A queue: its messages by where they stand, its consumers and its dead letters
    #[command(alias = "queues")]
    Queue {
        /// Name of the Queue
        name: String,
        /// At most so many dead letters, the oldest first
        #[arg(long, value_name = "NUMBER", default_value_t = 20)]
        #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
        max: u32,
        #[command(flatten)]
        scope: Scope,
        #[command(flatten)]
        format: Format,
    },
    /// Transactions of one kind, or one of them: its branches, and what kept each from going on
    #[command(visible_alias = "tx", alias = "transactions")]
    Transaction {
        /// Name of the DistributedTransaction
        name: String,
        /// Id of one transaction
        id: Option<String>,
        /// Of all, only those: preparing, applying, stuck, finished, committed, aborted or undecided
        #[arg(long, value_name = "STATE", conflicts_with = "id")]
        state: Option<String>,
        /// Of all, at most so many, the newest first
        #[arg(long, value_name = "NUMBER", default_value_t = 20, conflicts_with = "id")]
        #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
        max: u32,
        #[command(flatten)]
        scope: Scope,
        #[command(flatten)]
        format: Format,
    },
}

/// Prints it.
pub(crate) fn run(options: Options) -> Result<()> {
    crate::dev::runtime()?.block_on(async {
        match options.what {
            What::Lock { name, key: None, scope, format } => {
                lock::all(&scope.reach().await?, &name, &format).await
            }
            What::Lock { name, key: Some(key), scope, format } => {
                lock::one(&scope.reach().await?, &name, &key, &format).await
            }
            What::Queue { name, max, scope, format } => {
                queue::describe(&scope.reach().await?, &name, max, &format).await
            }
            What::Transaction { name, id: None, state, max, scope, format } => {
                transaction::all(&scope.reach().await?, &name, state.as_deref(), max, &format).await
            }
            What::Transaction { name, id: Some(id), scope, format, .. } => {
                transaction::one(&scope.reach().await?, &name, &id, &format).await
            }
        }
    })
}

pub(crate) use transaction::shown as transaction_shown;

/// The definition of an object, or what to write instead.
async fn definition<K: Kind>(reached: &Reached, name: &str) -> Result<Definition> {
    let found = reached.admin.read(&reached.namespace, vec![Range::Definitions]).await?;
    let mut others = Vec::new();
    for entry in found.reads.into_iter().flatten() {
        if let (Key::Definition { kind, name: of }, Record::Definition(definition)) =
            (entry.key, entry.record)
            && kind == K::KIND
        {
            if of.as_str() == name {
                return Ok(definition);
            }
            others.push(of.to_string());
        }
    }
    let there = if others.is_empty() { "none".to_owned() } else { others.join(", ") };
    bail!(
        "there is no {} {name:?} in namespace {:?}; --namespace names another (there: {there})",
        K::NAME,
        reached.namespace
    )
}

/// App and pod of a session, among the entries that hold it.
fn sidecar(sessions: &[Entry], id: &SessionId) -> Value {
    let found = sessions.iter().find_map(|entry| match (&entry.key, &entry.record) {
        (Key::Session(of), Record::Session(session)) if of == id => Some(session),
        _ => None,
    });
    found.map_or_else(|| json!({}), |session| json!({"app": session.app.as_str(), "pod": session.pod}))
}

/// An instant of etcd's records as people read it.
fn instant(millis: u64) -> String {
    let at = i64::try_from(millis).ok().and_then(|millis| jiff::Timestamp::from_millisecond(millis).ok());
    at.map_or_else(String::new, |at| at.to_string())
}

/// A document with members added to it.
fn with(mut document: Value, members: Value) -> Result<Value> {
    let into = document.as_object_mut().context("it was answered no document")?;
    if let Value::Object(members) = members {
        into.extend(members);
    }
    Ok(document)
}
