//! `concordat lock release`: taking a lock from the holder with a fence, and from no other.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;
use concordat_crds::{Lock, names::FORCE_RELEASE_ANNOTATION};
use concordat_operator::{
    kind::{Asked, Kind},
    lock::Locks,
};
use concordat_protocol::{Definition, Key, Lease, Range, Record};
use k8s_openapi::api::events::v1::Event;
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams},
    runtime::wait::await_condition,
};
use serde_json::json;

use crate::{
    cluster::Cluster,
    get::objects::Rebuilt,
    output::Format,
    reach::{Reached, Scope, Way},
};

/// How long the operator may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What `lock` is told.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Takes a key from its holder by force. The holder may still write until it is told: compare fences where it writes
    Release {
        /// Name of the Lock
        name: String,
        /// The key; - where the lock is taken without one
        #[arg(allow_hyphen_values = true)]
        key: String,
        /// The holder's fence, as `concordat describe lock` prints it: whoever holds the key later is not hit
        #[arg(long, value_name = "FENCE")]
        fence: u64,
        #[command(flatten)]
        scope: Scope,
        #[command(flatten)]
        format: Format,
    },
}

/// Does it, and prints what came of it.
pub(crate) fn run(options: Options) -> Result<()> {
    let What::Release { name, key, fence, scope, format } = options.what;
    crate::dev::runtime()?.block_on(async {
        let asked = format!("{key}={fence}");
        let (way, namespace) = scope.way().await?;
        let note = match way {
            Way::Cluster(cluster) => annotate(&cluster, &namespace, &name, &asked).await?,
            way @ Way::Etcd(_) => release(&Reached::by(way).await?, &namespace, &name, &asked).await?,
        };
        let released =
            json!({"namespace": namespace, "name": name, "key": key, "fence": fence, "note": note});
        format.print(&released, |_| format!("released: {note}\n"))
    })
}

/// Has the operator do it, by the annotation.
async fn annotate(cluster: &Cluster, namespace: &str, name: &str, asked: &str) -> Result<String> {
    let api: Api<Lock> = Api::namespaced(cluster.client.clone(), namespace);
    let lock = api.get(name).await.with_context(|| {
        format!("the Lock {name:?} in namespace {namespace:?}; --namespace names another")
    })?;
    if let Some(other) = lock.annotations().get(FORCE_RELEASE_ANNOTATION).filter(|other| *other != asked) {
        bail!("{other:?} is being released already: wait until the operator has removed that annotation");
    }
    ensure!(
        lock.metadata.deletion_timestamp.is_none(),
        "the Lock {name:?} is being deleted, and takes no release: delete the holder's pod"
    );
    let before = told(cluster, &lock).await?;
    let patch = json!({"metadata": {"annotations": {FORCE_RELEASE_ANNOTATION: asked}}});
    api.patch_metadata(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    let done = |lock: Option<&Lock>| {
        lock.is_none_or(|lock| !lock.annotations().contains_key(FORCE_RELEASE_ANNOTATION))
    };
    match tokio::time::timeout(PATIENCE, await_condition(api, name, done)).await {
        Ok(done) => done.context("waiting for the operator")?.context("the Lock was deleted meanwhile")?,
        Err(_) => bail!(
            "the operator has not released it within {PATIENCE:?}, and will once it runs (the annotation \
             {FORCE_RELEASE_ANNOTATION} stays until then): see concordat check"
        ),
    };
    // An Event comes before the annotation goes.
    let after = told(cluster, &lock).await?;
    let new =
        after.into_iter().find(|(id, told)| before.get(id).is_none_or(|before| before.times < told.times));
    match new {
        Some((_, Told { reason, note, .. })) if reason == "ForceReleased" => Ok(note),
        Some((_, Told { note, .. })) => bail!("{note}"),
        None => bail!(
            "the operator removed the annotation, and no Event tells what it did: see concordat describe lock {name}"
        ),
    }
}

/// What an Event told of a release.
struct Told {
    reason: String,
    note: String,
    times: i32,
}

async fn told(cluster: &Cluster, lock: &Lock) -> Result<BTreeMap<String, Told>> {
    let namespace = lock.namespace().unwrap_or_default();
    let api: Api<Event> = Api::namespaced(cluster.client.clone(), &namespace);
    let events = api.list(&ListParams::default()).await.context("the Events that tell what came of it")?;
    let of_the_lock = events.into_iter().filter(|event| {
        event.regarding.as_ref().is_some_and(|of| of.uid == lock.metadata.uid)
            && event.reason.as_ref().is_some_and(|reason| reason.starts_with("ForceRelease"))
    });
    let told = of_the_lock.map(|event| {
        let times = event.series.as_ref().map_or(1, |series| series.count);
        let id = event.name_any();
        (id, Told { reason: event.reason.unwrap_or_default(), note: event.note.unwrap_or_default(), times })
    });
    Ok(told.collect())
}

/// Does what the operator would: where there is none, as under `concordat dev`.
async fn release(reached: &Reached, namespace: &str, name: &str, asked: &str) -> Result<String> {
    let admin = &reached.admin;
    let at = Key::Definition { kind: Locks::KIND, name: name.into() };
    let found = admin.read(namespace, vec![Range::One(at.clone())]).await?;
    let Some((definition, created)) =
        found.reads.into_iter().flatten().find_map(|entry| match entry.record {
            Record::Definition(definition) => Some((definition, entry.create_revision)),
            _ => None,
        })
    else {
        bail!("there is no Lock {name:?} in namespace {namespace:?}; --namespace names another");
    };
    let mut lock = Lock::rebuild(namespace, name, &definition)?;
    lock.annotations_mut().insert(FORCE_RELEASE_ANNOTATION.into(), asked.into());
    let state = Locks::look(admin, namespace, &lock).await?;
    let Some(Asked { plan, .. }) = Locks::asked(&lock, &state) else { bail!("nothing was asked for") };
    let (plan, _, note) = plan.map_err(anyhow::Error::msg)?;
    // Written anew, the definition tells every sidecar to look again at what it holds.
    let anew: Definition = definition;
    let plan = plan.same_life(at.clone(), created).put(at, anew, Lease::Forever);
    let done = admin.write(namespace, plan).await.context("run it again: it hits nobody else")?;
    ensure!(done.held, "it changed meanwhile, and nothing was released: run it again");
    Ok(note)
}
