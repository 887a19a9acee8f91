//! The folder of manifests: what it holds, and when it changes.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use concordat_crds::{DistributedTransaction, Lock, Queue, names};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::mpsc;

/// An editor writes a file in several steps: what follows within this time is one change.
const SETTLE: Duration = Duration::from_millis(200);

/// The objects of a folder.
#[derive(Default)]
pub(super) struct Found {
    pub(super) transactions: Vec<DistributedTransaction>,
    pub(super) locks: Vec<Lock>,
    pub(super) queues: Vec<Queue>,
}

/// A folder that is watched.
pub(super) struct Folder {
    path: PathBuf,
    changes: mpsc::UnboundedReceiver<()>,
    _watcher: RecommendedWatcher,
}

impl Folder {
    /// Begins to watch.
    pub(super) fn watch(path: &Path) -> Result<Self> {
        ensure!(path.is_dir(), "--manifests: {} is not a folder", path.display());
        let (changed, changes) = mpsc::unbounded_channel();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| !event.kind.is_access()) {
                let _ = changed.send(());
            }
        })?;
        watcher.watch(path, RecursiveMode::NonRecursive)?;
        Ok(Self { path: path.into(), changes, _watcher: watcher })
    }

    /// Waits until something in it has changed and stands still.
    pub(super) async fn changed(&mut self) -> Result<()> {
        self.changes.recv().await.context("the folder is no longer watched")?;
        while tokio::time::timeout(SETTLE, self.changes.recv()).await.is_ok_and(|change| change.is_some()) {}
        Ok(())
    }

    /// Reads all of it. A file that is wrong is said with its name, and nothing of the folder is taken.
    pub(super) fn read(&self) -> Result<Found> {
        let mut files: Vec<PathBuf> = std::fs::read_dir(&self.path)
            .with_context(|| format!("cannot read {}", self.path.display()))?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        files.retain(|file| {
            let extension = file.extension().and_then(|extension| extension.to_str());
            matches!(extension, Some("yaml" | "yml" | "json"))
        });
        files.sort();
        let mut found = Found::default();
        for file in files {
            add(&file, &mut found).with_context(|| file.display().to_string())?;
        }
        found.check_names()?;
        Ok(found)
    }
}

impl Found {
    fn check_names(&self) -> Result<()> {
        fn unique<'a>(kind: &str, names: impl Iterator<Item = Option<&'a String>>) -> Result<()> {
            let mut seen = BTreeSet::new();
            for name in names {
                let name = name.with_context(|| format!("a {kind} has no metadata.name"))?;
                ensure!(seen.insert(name), "there are two objects {kind} {name}");
            }
            Ok(())
        }
        unique("Lock", self.locks.iter().map(|object| object.metadata.name.as_ref()))?;
        unique("Queue", self.queues.iter().map(|object| object.metadata.name.as_ref()))?;
        let transactions = self.transactions.iter().map(|object| object.metadata.name.as_ref());
        unique("DistributedTransaction", transactions)
    }
}

fn add(file: &Path, found: &mut Found) -> Result<()> {
    let text = std::fs::read_to_string(file)?;
    for document in serde_saphyr::from_multiple::<Value>(&text)? {
        let version = document["apiVersion"].as_str().unwrap_or_default();
        if version.split('/').next() != Some(names::GROUP) {
            continue;
        }
        ensure!(
            version == format!("{}/{}", names::GROUP, names::VERSION),
            "apiVersion {version} is not known: write {}/{}",
            names::GROUP,
            names::VERSION
        );
        match document["kind"].as_str() {
            Some("Lock") => found.locks.push(parse(document)?),
            Some("Queue") => found.queues.push(parse(document)?),
            Some("DistributedTransaction") => found.transactions.push(parse(document)?),
            Some(kind) => bail!("kind {kind} is not known"),
            None => bail!("a document has no kind"),
        }
    }
    Ok(())
}

fn parse<T: DeserializeOwned>(document: Value) -> Result<T> {
    let name = document["metadata"]["name"].as_str().unwrap_or("without a name").to_owned();
    serde_json::from_value(document).with_context(|| format!("object {name}"))
}
