//! What objects left that went without telling: deleted without their finalizer, or with all of Kubernetes' own etcd,
//! while no operator looked. Nothing names them any more but their definitions.

use std::{collections::HashSet, time::Duration};

use concordat_protocol::{Key, Range, Record};
use kube::{
    Api,
    api::{ListParams, ObjectMeta},
};
use tokio::time::sleep;

use crate::{
    cleanup,
    controller::{Error, Shared},
    kind::Kind,
    lock::Locks,
    queue::Queues,
    transaction::Transactions,
};

/// How long after one sweep the next one begins.
const EVERY: Duration = Duration::from_mins(5);
/// How soon, when something is left that could not be removed yet.
const AGAIN: Duration = Duration::from_secs(10);

/// A definition that is in force: its kind, namespace, name and its object's uid.
type Defined = (concordat_protocol::Kind, ObjectMeta);

/// Removes what has no object any more, at the start of a term and from time to time.
pub(crate) async fn run(shared: &Shared) {
    // Their definitions are gone first of all: only this tells then of what is left.
    let mut leaving = Vec::new();
    loop {
        let swept = pass(shared, &mut leaving).await;
        if let Err(error) = &swept {
            tracing::warn!(%error, "a sweep failed");
        }
        sleep(if swept.is_ok() && leaving.is_empty() { EVERY } else { AGAIN }).await;
    }
}

async fn pass(shared: &Shared, leaving: &mut Vec<Defined>) -> Result<(), Error> {
    // Definitions first: an object that is there before its definition cannot be missed.
    let defined = defined(shared).await?;
    leaving.extend(gone::<Locks>(shared, &defined).await?);
    leaving.extend(gone::<Queues>(shared, &defined).await?);
    leaving.extend(gone::<Transactions>(shared, &defined).await?);
    let Shared { client, term, .. } = shared;
    for place in (0..leaving.len()).rev() {
        let (kind, object) = &leaving[place];
        let awaited = match kind {
            concordat_protocol::Kind::Lock => cleanup::pass_in::<Locks>(client, term, object).await?,
            concordat_protocol::Kind::Queue => cleanup::pass_in::<Queues>(client, term, object).await?,
            concordat_protocol::Kind::Transaction => {
                cleanup::pass_in::<Transactions>(client, term, object).await?
            }
        };
        tracing::info!(
            ?kind,
            name = object.name,
            namespace = object.namespace,
            awaited,
            "its object is gone"
        );
        if awaited.is_none() {
            leaving.swap_remove(place);
        }
    }
    Ok(())
}

async fn defined(shared: &Shared) -> Result<Vec<Defined>, Error> {
    let admin = shared.term.admin();
    let namespaces = match &shared.namespace {
        Some(namespace) => vec![namespace.clone()],
        None => admin.namespaces().await?,
    };
    let mut defined = Vec::new();
    for namespace in namespaces {
        let found = admin.read(&namespace, vec![Range::Definitions]).await?;
        for entry in found.reads.into_iter().flatten() {
            if let (Key::Definition { kind, name }, Record::Definition(of)) = (entry.key, entry.record) {
                let (name, namespace) = (Some(name.to_string()), Some(namespace.clone()));
                defined
                    .push((kind, ObjectMeta { name, namespace, uid: Some(of.uid), ..ObjectMeta::default() }));
            }
        }
    }
    Ok(defined)
}

/// Those of a kind without an object. A uid is never used again: whose is not there now has no object for ever.
async fn gone<K: Kind>(shared: &Shared, defined: &[Defined]) -> Result<Vec<Defined>, Error> {
    let mut defined = defined.iter().filter(|(kind, _)| *kind == K::KIND).peekable();
    if defined.peek().is_none() {
        return Ok(Vec::new());
    }
    let api: Api<K::Object> = match &shared.namespace {
        Some(namespace) => Api::namespaced(shared.client.clone(), namespace),
        None => Api::all(shared.client.clone()),
    };
    let objects = api.list_metadata(&ListParams::default()).await?;
    let there: HashSet<String> = objects.items.into_iter().filter_map(|object| object.metadata.uid).collect();
    let gone = defined.filter(|(_, object)| object.uid.as_ref().is_some_and(|uid| !there.contains(uid)));
    Ok(gone.cloned().collect())
}
