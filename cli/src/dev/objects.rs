//! What the operator does for a cluster's objects, for those of a folder: through its own functions.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use concordat_operator::{
    cleanup,
    etcd::{self, Term},
    immutable,
    kind::Kind,
    lock::Locks,
    metrics::Metrics,
    queue::Queues,
    transaction::Transactions,
};
use concordat_protocol::{Definition, Key, Now, Range, Record};
use concordat_store::Admin;
use jiff::Timestamp;
use kube::{Resource, ResourceExt, api::ObjectMeta};

use super::manifests::{Folder, Found, Object};

/// How long to wait before what a deleted object left is looked at again.
const AGAIN: Duration = Duration::from_secs(1);

type Id = (concordat_protocol::Kind, String);
type Defined = BTreeMap<Id, Definition>;

/// A deleted object of which something is left.
struct Leaving {
    metadata: ObjectMeta,
    /// What its removal waits for, in words.
    awaited: String,
}

/// The objects in force, and those being removed.
pub(super) struct Objects {
    term: Term,
    namespace: String,
    leaving: BTreeMap<Id, Leaving>,
    /// Whether etcd is what the folder was when it was last read.
    applied: bool,
    /// What was last said of each object, and of each malformed file.
    said: BTreeMap<Id, String>,
    malformed: BTreeMap<PathBuf, String>,
}

impl Objects {
    /// Takes over from whoever defined objects here before.
    pub(super) async fn begin(admin: Admin, namespace: &str) -> Result<Self> {
        let term = Term::begin(admin, "concordat dev", Arc::new(Metrics::default())).await?;
        let namespace = namespace.to_owned();
        let (leaving, said, malformed) = Default::default();
        Ok(Self { term, namespace, leaving, applied: true, said, malformed })
    }

    /// Brings etcd to what the folder holds. When etcd cannot be asked that is said and tried again; an error is an end.
    pub(super) async fn follow(&mut self, folder: &mut Folder) -> Result<()> {
        let applied = match folder.read() {
            Ok(found) => self.apply(found).await,
            Err(error) => Err(error),
        };
        self.applied = applied.is_ok();
        match applied {
            Err(error) if matches!(error.downcast_ref(), Some(etcd::Error::Superseded)) => {
                Err(error.context("the objects here are another's now, a `concordat dev`'s or an operator's"))
            }
            Err(error) => {
                eprintln!("manifests {error:#}; trying again");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    async fn apply(&mut self, found: Found) -> Result<()> {
        for (file, why) in &found.malformed {
            if self.malformed.get(file) != Some(why) {
                println!("manifest  {}  not taken: {why}", file.display());
            }
        }
        self.malformed = found.malformed;
        self.collect().await?;
        let mut defined = self.defined().await?;
        let mut there = BTreeSet::new();
        for object in found.objects {
            there.insert(match object {
                Object::Lock(object) => self.put::<Locks>(object, &mut defined).await?,
                Object::Queue(object) => self.put::<Queues>(object, &mut defined).await?,
                Object::Transaction(object) => self.put::<Transactions>(object, &mut defined).await?,
                Object::Refused(kind, name, why) => {
                    let id = (kind, name);
                    self.not_in_force(&id, defined.remove(&id).is_some(), &why);
                    id
                }
            });
        }
        self.said.retain(|id, _| there.contains(id));
        if found.complete {
            self.remove(defined).await?;
        }
        Ok(())
    }

    async fn remove(&mut self, defined: Defined) -> Result<()> {
        for ((kind, name), definition) in defined {
            println!("{:<9} {name}  removed", word(kind));
            let metadata = ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(self.namespace.clone()),
                uid: Some(definition.uid),
                ..ObjectMeta::default()
            };
            let id = (kind, name);
            self.leaving.insert(id.clone(), Leaving { metadata, awaited: String::new() });
            self.clear(&id).await?;
        }
        Ok(())
    }

    /// Says how an object stands, once.
    fn say(&mut self, id: &Id, standing: String) {
        if self.said.get(id) != Some(&standing) {
            println!("{:<9} {}  {standing}", word(id.0), id.1);
            self.said.insert(id.clone(), standing);
        }
    }

    fn not_in_force(&mut self, id: &Id, runs: bool, why: &str) {
        let stays = if runs { "; what runs stays as it was" } else { "" };
        self.say(id, format!("not in force: {why}{stays}"));
    }

    /// Waits until it is time to apply the folder again: what deleted objects left is not removed yet, or etcd could not
    /// be asked. For ever when there is no need to.
    pub(super) async fn again(&self) {
        if self.applied && self.leaving.is_empty() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(AGAIN).await;
    }

    /// Removes what deleted objects left, as far as it may go yet: before anything that came back is put in force, so
    /// that whatever still awaits its going is looked at again.
    async fn collect(&mut self) -> Result<()> {
        let leaving: Vec<Id> = self.leaving.keys().cloned().collect();
        for id in leaving {
            self.clear(&id).await?;
        }
        Ok(())
    }

    /// One pass of removing what one deleted object left.
    async fn clear(&mut self, id: &Id) -> Result<()> {
        let Some(leaving) = self.leaving.get_mut(id) else { return Ok(()) };
        let (term, metadata) = (&self.term, &leaving.metadata);
        let awaited = match id.0 {
            concordat_protocol::Kind::Lock => cleanup::pass::<Locks>(term, metadata).await?,
            concordat_protocol::Kind::Queue => cleanup::pass::<Queues>(term, metadata).await?,
            concordat_protocol::Kind::Transaction => cleanup::pass::<Transactions>(term, metadata).await?,
        };
        match awaited {
            Some(awaited) => leaving.awaited = awaited,
            None => drop(self.leaving.remove(id)),
        }
        Ok(())
    }

    async fn defined(&self) -> Result<Defined> {
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
    async fn put<K: Kind>(&mut self, mut object: K::Object, defined: &mut Defined) -> Result<Id> {
        let id = (K::KIND, object.name_any());
        let before = defined.remove(&id);
        let compiled = K::compile(&object).and_then(|settings| match &before {
            Some(before) => immutable::keeps(&before.settings, &settings).map(|()| settings),
            None => Ok(settings),
        });
        let settings = match compiled {
            Ok(settings) => settings,
            Err(invalid) => {
                self.not_in_force(&id, before.is_some(), &invalid.to_string());
                return Ok(id);
            }
        };
        // An object that comes back is another one: what it left before goes first.
        if let Some(Leaving { awaited, .. }) = self.leaving.get(&id) {
            let standing = format!("not in force yet: {awaited}");
            self.say(&id, standing);
            return Ok(id);
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
            .define(&self.namespace, K::KIND, &id.1.as_str().into(), wanted)
            .await?
            .context("it was defined anew meanwhile")?;
        let standing = match K::unsupported(&object, &settings) {
            Some(what) => format!("ModeNotSupported: {what} does not work yet"),
            None => "ready".into(),
        };
        self.say(&id, if generation > 1 { format!("{standing}, generation {generation}") } else { standing });
        let state = K::look(self.term.admin(), &self.namespace, &object).await?;
        if let Some(plan) = K::begin(&object, &state, &settings, revision, now()) {
            self.term.write(&self.namespace, plan).await?;
        }
        Ok(id)
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
