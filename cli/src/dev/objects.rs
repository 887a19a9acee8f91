//! What the operator does for a cluster's objects, for those of a folder: through its own functions.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use concordat_operator::{
    cleanup, etcd::Term, kind::Kind, lock::Locks, metrics::Metrics, queue::Queues, transaction::Transactions,
};
use concordat_protocol::{Definition, Key, Now, Range, Record};
use concordat_store::Admin;
use jiff::Timestamp;
use kube::{Resource, ResourceExt, api::ObjectMeta};

use super::manifests::Found;

/// How long to wait before what a deleted object left is looked at again.
const AGAIN: Duration = Duration::from_secs(1);

/// The objects in force, and those being removed.
pub(super) struct Objects {
    term: Term,
    namespace: String,
    leaving: BTreeMap<(concordat_protocol::Kind, String), ObjectMeta>,
}

impl Objects {
    /// Takes over from whoever defined objects here before.
    pub(super) async fn begin(admin: Admin, namespace: &str) -> Result<Self> {
        let term = Term::begin(admin, "concordat dev", Arc::new(Metrics::default())).await?;
        Ok(Self { term, namespace: namespace.into(), leaving: BTreeMap::new() })
    }

    /// Brings etcd to what the folder holds.
    pub(super) async fn apply(&mut self, found: Found) -> Result<()> {
        let mut defined = self.defined().await?;
        for object in found.locks {
            self.put::<Locks>(object, &mut defined).await?;
        }
        for object in found.queues {
            self.put::<Queues>(object, &mut defined).await?;
        }
        for object in found.transactions {
            self.put::<Transactions>(object, &mut defined).await?;
        }
        for ((kind, name), definition) in defined {
            println!("{:<9} {name}  removed", word(kind));
            let uid = Some(definition.uid);
            let metadata = ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(self.namespace.clone()),
                uid,
                ..ObjectMeta::default()
            };
            self.leaving.insert((kind, name), metadata);
        }
        self.collect().await
    }

    /// Waits until it is time to collect what deleted objects left; for ever when nothing is left.
    pub(super) async fn again(&self) {
        if self.leaving.is_empty() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(AGAIN).await;
    }

    /// Removes what deleted objects left, as far as it may go yet.
    pub(super) async fn collect(&mut self) -> Result<()> {
        for ((kind, name), metadata) in std::mem::take(&mut self.leaving) {
            let awaited = match kind {
                concordat_protocol::Kind::Lock => cleanup::pass::<Locks>(&self.term, &metadata).await?,
                concordat_protocol::Kind::Queue => cleanup::pass::<Queues>(&self.term, &metadata).await?,
                concordat_protocol::Kind::Transaction => {
                    cleanup::pass::<Transactions>(&self.term, &metadata).await?
                }
            };
            if awaited.is_some() {
                self.leaving.insert((kind, name), metadata);
            }
        }
        Ok(())
    }

    async fn defined(&self) -> Result<BTreeMap<(concordat_protocol::Kind, String), Definition>> {
        let found = self.term.admin().read(&self.namespace, vec![Range::Definitions]).await?;
        let definitions =
            found.reads.into_iter().flatten().filter_map(|entry| match (entry.key, entry.record) {
                (Key::Definition { kind, name }, Record::Definition(of)) => {
                    Some(((kind, name.to_string()), of))
                }
                _ => None,
            });
        Ok(definitions.collect())
    }

    /// Puts one object in force, and takes it off the list of what was defined before.
    async fn put<K: Kind>(
        &mut self,
        mut object: K::Object,
        defined: &mut BTreeMap<(concordat_protocol::Kind, String), Definition>,
    ) -> Result<()> {
        let name = object.name_any();
        let before = defined.remove(&(K::KIND, name.clone()));
        let settings = match K::compile(&object) {
            Ok(settings) => settings,
            Err(invalid) => {
                println!("{:<9} {name}  not in force: {invalid}", word(K::KIND));
                return Ok(());
            }
        };
        // An object that comes back is another one: what it left before goes first.
        if let Some(metadata) = self.leaving.remove(&(K::KIND, name.clone())) {
            let awaited = cleanup::pass::<K>(&self.term, &metadata).await?;
            if let Some(awaited) = awaited {
                println!("{:<9} {name}  not in force yet: {awaited}", word(K::KIND));
                self.leaving.insert((K::KIND, name), metadata);
                return Ok(());
            }
        }
        let (uid, generation) = match &before {
            Some(definition) if definition.settings == settings => {
                (definition.uid.clone(), definition.generation)
            }
            Some(definition) => (definition.uid.clone(), definition.generation + 1),
            None => (new_uid()?, 1),
        };
        let metadata = object.meta_mut();
        metadata.namespace = Some(self.namespace.clone());
        metadata.uid = Some(uid.clone());
        metadata.generation = Some(generation);
        let wanted = Definition { uid, generation, settings: settings.clone() };
        let revision = self
            .term
            .define(&self.namespace, K::KIND, &name.as_str().into(), wanted.clone())
            .await?
            .context("it was defined anew meanwhile")?;
        if before.as_ref() != Some(&wanted) {
            let standing = match K::unsupported(&object, &settings) {
                Some(what) => format!("ModeNotSupported: {what} does not work yet"),
                None => "ready".into(),
            };
            println!("{:<9} {name}  {standing}", word(K::KIND));
        }
        let state = K::look(self.term.admin(), &self.namespace, &object).await?;
        if let Some(plan) = K::begin(&object, &state, &settings, revision, now()) {
            ensure!(
                self.term.write(&self.namespace, plan).await.is_ok(),
                "{name} could not be handed to the sidecars"
            );
        }
        Ok(())
    }
}

fn word(kind: concordat_protocol::Kind) -> &'static str {
    match kind {
        concordat_protocol::Kind::Lock => "lock",
        concordat_protocol::Kind::Queue => "queue",
        concordat_protocol::Kind::Transaction => "tx",
    }
}

fn now() -> Now {
    let unix = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default();
    Now { monotonic: 0, unix }
}

/// What Kubernetes would have given it.
fn new_uid() -> Result<String> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}
