//! The folder of manifests: what it holds, and when it changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use concordat_crds::{DistributedTransaction, Lock, Queue, names};
use concordat_operator::invalid::object_name;
use concordat_protocol::Kind;
use kube::{CustomResourceExt, Resource, ResourceExt};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::mpsc;

use super::schema;

/// An editor writes a file in several steps: what follows within this time is one change.
const SETTLE: Duration = Duration::from_millis(200);

/// An object of a file, as it is written there.
#[derive(Clone)]
pub(super) enum Object {
    Lock(Lock),
    Queue(Queue),
    Transaction(DistributedTransaction),
    /// One that a cluster would not take, and what to change.
    Refused(Kind, String, String),
}

/// What a folder holds.
#[derive(Default)]
pub(super) struct Found {
    pub(super) objects: Vec<Object>,
    /// Files that cannot be read, and why. Each counts as it was when it last could be.
    pub(super) malformed: BTreeMap<PathBuf, String>,
    /// Whether every object is known: a file that never could be read may hold any.
    pub(super) complete: bool,
}

/// A folder that is watched.
pub(super) struct Folder {
    path: PathBuf,
    namespace: String,
    /// The objects of each file when it could last be read.
    last: BTreeMap<PathBuf, Vec<Object>>,
    changes: mpsc::UnboundedReceiver<()>,
    _watcher: RecommendedWatcher,
}

impl Folder {
    /// Begins to watch. All objects are of one namespace.
    pub(super) fn watch(path: &Path, namespace: &str) -> Result<Self> {
        ensure!(path.is_dir(), "--manifests: {} is not a folder", path.display());
        let (changed, changes) = mpsc::unbounded_channel();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| !event.kind.is_access()) {
                let _ = changed.send(());
            }
        })?;
        watcher.watch(path, RecursiveMode::NonRecursive)?;
        let (path, namespace) = (path.to_owned(), namespace.to_owned());
        Ok(Self { path, namespace, last: BTreeMap::new(), changes, _watcher: watcher })
    }

    /// Waits until something in it has changed and stands still.
    pub(super) async fn changed(&mut self) -> Result<()> {
        self.changes.recv().await.context("the folder is no longer watched")?;
        while tokio::time::timeout(SETTLE, self.changes.recv()).await.is_ok_and(|change| change.is_some()) {}
        Ok(())
    }

    /// Reads all of it. What is wrong in one file disturbs no other.
    pub(super) fn read(&mut self) -> Result<Found> {
        let mut files: Vec<PathBuf> = std::fs::read_dir(&self.path)
            .with_context(|| format!("cannot read {}", self.path.display()))?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        files.retain(|file| {
            let extension = file.extension().and_then(|extension| extension.to_str());
            matches!(extension, Some("yaml" | "yml" | "json"))
        });
        files.sort();
        self.last.retain(|file, _| files.contains(file));
        let mut found = Found { complete: true, ..Found::default() };
        let mut names = BTreeSet::new();
        for file in files {
            match std::fs::read_to_string(&file).map_err(Into::into).and_then(|text| self.parse(&text)) {
                Ok(objects) => drop(self.last.insert(file.clone(), objects)),
                Err(error) => {
                    found.complete &= self.last.contains_key(&file);
                    found.malformed.insert(file.clone(), format!("{error:#}"));
                }
            }
            for object in self.last.get(&file).into_iter().flatten() {
                let (kind, name) = object.named();
                if names.insert((kind, name.clone())) {
                    found.objects.push(object.clone());
                } else {
                    let why = format!("{kind:?} {name} is in another file, too: remove one of them");
                    found.malformed.insert(file.clone(), why);
                }
            }
        }
        Ok(found)
    }

    /// The objects of a file. What is not Concordat's is left to others.
    fn parse(&self, text: &str) -> Result<Vec<Object>> {
        let mut objects = Vec::new();
        for document in serde_saphyr::from_multiple::<Value>(text)? {
            let version = document["apiVersion"].as_str().unwrap_or_default();
            if version.split('/').next() != Some(names::GROUP) {
                continue;
            }
            let known = format!("{}/{}", names::GROUP, names::VERSION);
            ensure!(version == known, "apiVersion {version} is not known: write {known}");
            objects.push(match document["kind"].as_str() {
                Some("Lock") => self.object(Kind::Lock, document, Object::Lock)?,
                Some("Queue") => self.object(Kind::Queue, document, Object::Queue)?,
                Some("DistributedTransaction") => {
                    self.object(Kind::Transaction, document, Object::Transaction)?
                }
                Some(kind) => bail!("kind {kind} is not known: write Lock, Queue or DistributedTransaction"),
                None => bail!("a document has no kind"),
            });
        }
        Ok(objects)
    }

    fn object<T>(&self, kind: Kind, document: Value, known: impl FnOnce(T) -> Object) -> Result<Object>
    where
        T: Resource<DynamicType = ()> + CustomResourceExt + DeserializeOwned,
    {
        let name = document["metadata"]["name"].as_str();
        let name = name.with_context(|| format!("a {} has no metadata.name", T::kind(&())))?.to_owned();
        Ok(match self.taken(document, &name) {
            Ok(object) => known(object),
            Err(error) => Object::Refused(kind, name, format!("{error:#}")),
        })
    }

    /// The object as a cluster would take it.
    fn taken<T>(&self, document: Value, name: &str) -> Result<T>
    where
        T: Resource<DynamicType = ()> + CustomResourceExt + DeserializeOwned,
    {
        object_name("metadata.name", name)?;
        schema::check(document.as_object().context("an object is a map")?, &T::crd())?;
        let object: T = serde_json::from_value(document)?;
        match object.namespace() {
            Some(other) if other != self.namespace => Err(anyhow!(
                "metadata.namespace is {other}, and this is {}: leave it out, or give --namespace {other}",
                self.namespace
            )),
            _ => Ok(object),
        }
    }
}

impl Object {
    fn named(&self) -> (Kind, String) {
        match self {
            Self::Lock(object) => (Kind::Lock, object.name_any()),
            Self::Queue(object) => (Kind::Queue, object.name_any()),
            Self::Transaction(object) => (Kind::Transaction, object.name_any()),
            Self::Refused(kind, name, _) => (*kind, name.clone()),
        }
    }
}
