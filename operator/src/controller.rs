//! The pipeline that every kind goes through: compile → definition → status → patch; or, for a deleted object, cleanup.

mod status;

use std::{collections::HashMap, sync::Arc, time::Duration};

use concordat_crds::names::FINALIZER;
use concordat_protocol::{Definition, Key, Lease, Now, Plan};
use concordat_store::Restored;
use futures::{
    Stream, StreamExt, TryStreamExt,
    future::{self, BoxFuture},
    stream,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ObjectMeta, Patch, PatchParams},
    core::DeserializeGuard,
    runtime::{
        WatchStreamExt,
        controller::{self, Action},
        events::{EventType, Recorder},
        reflector::{self, ObjectRef},
        watcher,
    },
};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::status::{tell, unreadable};
use crate::{
    Standing, cleanup,
    etcd::{self, Term},
    events,
    kind::{Asked, Kind},
    metrics::Metrics,
    wake::{Named, Namespaces},
};

/// An object is looked at, and its status written, at most this often.
const PACE: Duration = Duration::from_secs(2);
/// How soon an object is looked at again whose status changes as time passes.
const SOON: Duration = Duration::from_secs(5);
/// How soon a failed pass is repeated, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));
/// Objects of one kind that are worked on at a time.
const CONCURRENCY: u16 = 8;

type Guarded<K> = DeserializeGuard<<K as Kind>::Object>;

/// Why a pass failed; it is repeated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// etcd.
    #[error("etcd: {0}")]
    Etcd(#[from] etcd::Error),
    /// The Kubernetes API.
    #[error("Kubernetes: {0}")]
    Kubernetes(#[from] kube::Error),
}

impl From<concordat_store::CommitError> for Error {
    fn from(error: concordat_store::CommitError) -> Self {
        Self::Etcd(error.into())
    }
}

/// What all kinds share.
#[derive(Clone)]
pub struct Shared {
    /// Kubernetes.
    pub client: Client,
    /// etcd.
    pub term: Arc<Term>,
    /// For events.
    pub recorder: Recorder,
    /// For counting.
    pub metrics: Arc<Metrics>,
    /// etcd's addresses, for people.
    pub etcd: Vec<String>,
    /// The one namespace that is watched, or all.
    pub namespace: Option<String>,
    /// Those in which there are objects.
    pub namespaces: Arc<Namespaces>,
}

struct Context<K: Kind> {
    shared: Shared,
    /// By uid.
    known: Mutex<HashMap<String, Known<K>>>,
}

/// What is known of an object besides what the API server says.
struct Known<K: Kind> {
    memory: K::Memory,
    /// The status written last: what the watch shows may be older.
    status: Option<K::Status>,
    /// When it was written.
    wrote: Option<Instant>,
    /// When the object was looked at, and at which generation.
    looked: Option<(Instant, Option<i64>)>,
    failures: u32,
    /// Conditions of a malformed object of which the API server takes no status: an event has told of them.
    told: Option<Vec<Condition>>,
}

impl<K: Kind> Default for Known<K> {
    fn default() -> Self {
        Self {
            memory: K::Memory::default(),
            status: None,
            wrote: None,
            looked: None,
            failures: 0,
            told: None,
        }
    }
}

/// Runs one kind's pipeline until `end`. `changed` names objects of which something was written in etcd: namespace and
/// name.
pub async fn run<K: Kind>(
    shared: Shared,
    changed: impl Stream<Item = Named> + Send + 'static,
    end: CancellationToken,
) {
    let api: Api<Guarded<K>> = match &shared.namespace {
        Some(namespace) => Api::namespaced(shared.client.clone(), namespace),
        None => Api::all(shared.client.clone()),
    };
    let (reader, writer) = reflector::store();
    let objects = watcher(api, watcher::Config::default())
        .default_backoff()
        .reflect(writer)
        .touched_objects()
        .map_ok(|object| ObjectRef::from_obj(&object));
    let changed = changed.map(|(namespace, name)| Ok(ObjectRef::new(&name).within(&namespace)));
    let queue = stream::select(objects, changed).take_until(end.cancelled_owned());
    let metrics = shared.metrics.clone();
    let context = Arc::new(Context::<K> { shared, known: Mutex::default() });
    let config = controller::Config::default().concurrency(CONCURRENCY);
    controller::applier(pass_boxed::<K>, retry::<K>, context, reader, queue.boxed(), config)
        .for_each(|result| {
            match result {
                Ok(_) => {}
                // An object that is gone by the time its turn comes.
                Err(controller::Error::ObjectNotFound(object)) => {
                    metrics.gone(K::NAME, object.namespace.as_deref().unwrap_or_default(), &object.name);
                }
                Err(error) => tracing::warn!(kind = K::NAME, %error, "a pass failed"),
            }
            future::ready(())
        })
        .await;
}

fn pass_boxed<K: Kind>(
    object: Arc<Guarded<K>>,
    context: Arc<Context<K>>,
) -> BoxFuture<'static, Result<Action, Error>> {
    Box::pin(async move {
        let started = Instant::now();
        if let Some(wait) = context.early(&object, started) {
            return Ok(Action::requeue(wait));
        }
        let result = pass(&object, &context).await;
        context.shared.metrics.passed(K::NAME, result.is_ok(), started.elapsed());
        if result.is_ok() {
            context.knows(object.meta(), |known| known.failures = 0);
        }
        result
    })
}

fn retry<K: Kind>(object: Arc<Guarded<K>>, _: &Error, context: Arc<Context<K>>) -> Action {
    let (first, most) = RETRY;
    let failures = context.knows(object.meta(), |known| {
        known.failures += 1;
        known.failures
    });
    Action::requeue(first.saturating_mul(1 << (failures - 1).min(6)).min(most))
}

async fn pass<K: Kind>(guarded: &Guarded<K>, context: &Context<K>) -> Result<Action, Error> {
    let meta = guarded.meta();
    let object = guarded.0.as_ref();
    if meta.deletion_timestamp.is_some() {
        return if has_finalizer(meta) {
            collect(meta, object.ok(), context).await
        } else {
            Ok(Action::await_change())
        };
    }
    context.shared.namespaces.add(meta.namespace.as_deref().unwrap_or_default());
    let object = match object {
        Ok(object) => object,
        Err(invalid) => return unreadable(meta, &invalid.error, context).await,
    };
    if !has_finalizer(meta) {
        let finalizers = meta.finalizers.iter().flatten().cloned().chain([FINALIZER.into()]).collect();
        context.set_finalizers(meta, finalizers).await?;
    }
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    // Without an answer the next question has none either, and that is told.
    if let Ok(Some(lost)) = context.shared.term.admin().lost(namespace).await {
        let (endpoints, namespace) = (context.shared.etcd.clone(), namespace.to_owned());
        let restored = Restored { why: lost.why, endpoints, namespace };
        tell(object, &Standing::Unavailable(restored.to_string()), None, context).await?;
        return Ok(Action::requeue(SOON));
    }
    match enforce(object, context).await {
        Ok((standing, state)) => tell(object, &standing, Some(&state), context).await,
        Err(Error::Etcd(etcd::Error::Etcd(error))) => {
            tell(object, &Standing::Unavailable(error.to_string()), None, context).await?;
            Err(error.into())
        }
        Err(error) => Err(error),
    }
}

/// Brings etcd to what the object says, and reads what is there.
async fn enforce<K: Kind>(object: &K::Object, context: &Context<K>) -> Result<(Standing, K::State), Error> {
    let term = &context.shared.term;
    let namespace = object.namespace().unwrap_or_default();
    let settings = match K::compile(object) {
        Ok(settings) => settings,
        Err(invalid) => {
            return Ok((Standing::Invalid(invalid), K::look(term.admin(), &namespace, object).await?));
        }
    };
    let definition = Definition {
        uid: object.uid().unwrap_or_default(),
        generation: object.meta().generation.unwrap_or_default(),
        settings: settings.clone(),
    };
    let name = object.name_any().into();
    let Some(created) = term.define(&namespace, K::KIND, &name, definition.clone()).await? else {
        // An object of this name was removed without its finalizer: what it left goes first.
        let left = term.definition(&namespace, K::KIND, &name).await?.map(|(_, definition)| definition.uid);
        let former = ObjectMeta { uid: left, ..object.meta().clone() };
        let awaited = cleanup::pass_in::<K>(&context.shared.client, term, &former).await?;
        let what = awaited.unwrap_or_else(|| "it is removed".into());
        let standing = Standing::Deleting(format!("an earlier object of this name left state: {what}"));
        return Ok((standing, K::look(term.admin(), &namespace, object).await?));
    };
    if let Some(what) = K::unsupported(object, &settings) {
        return Ok((Standing::NotSupported(what), K::look(term.admin(), &namespace, object).await?));
    }
    let mut state = K::look(term.admin(), &namespace, object).await?;
    let now = Now { monotonic: 0, unix: Timestamp::now().as_millisecond() as u64 };
    if let Some(plan) = K::begin(object, &state, &settings, created, now) {
        term.write(&namespace, plan).await?;
        state = K::look(term.admin(), &namespace, object).await?;
    }
    if let Some(asked) = K::asked(object, &state) {
        // Written anew, the definition tells every sidecar to look again at what it holds.
        let key = Key::Definition { kind: K::KIND, name };
        let touch = |plan: Plan| {
            plan.same_life(key.clone(), created).put(key.clone(), definition.clone(), Lease::Forever)
        };
        context.do_as_asked(object.meta(), asked, touch).await?;
        state = K::look(term.admin(), &namespace, object).await?;
    }
    Ok((Standing::Accepted, state))
}

/// Removes what a deleted object left, then lets it go.
async fn collect<K: Kind>(
    meta: &ObjectMeta,
    object: Option<&K::Object>,
    context: &Context<K>,
) -> Result<Action, Error> {
    let Shared { client, term, .. } = &context.shared;
    let Some(awaited) = cleanup::pass_in::<K>(client, term, meta).await? else {
        let others = meta.finalizers.iter().flatten().filter(|name| *name != FINALIZER).cloned().collect();
        context.set_finalizers(meta, others).await?;
        context.known.lock().remove(meta.uid.as_deref().unwrap_or_default());
        let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
        context.shared.metrics.gone(K::NAME, namespace.unwrap_or_default(), name.unwrap_or_default());
        return Ok(Action::await_change());
    };
    if let Some(object) = object {
        let namespace = object.namespace().unwrap_or_default();
        let state = K::look(context.shared.term.admin(), &namespace, object).await?;
        tell(object, &Standing::Deleting(awaited), Some(&state), context).await?;
    }
    Ok(Action::requeue(PACE))
}

fn has_finalizer(meta: &ObjectMeta) -> bool {
    meta.finalizers.iter().flatten().any(|name| name == FINALIZER)
}

impl<K: Kind> Context<K> {
    fn knows<T>(&self, meta: &ObjectMeta, with: impl FnOnce(&mut Known<K>) -> T) -> T {
        with(self.known.lock().entry(meta.uid.clone().unwrap_or_default()).or_default())
    }

    /// How long an object that stays as it is must still wait for its next pass; if it need not, this is that pass. One
    /// that waits has neither succeeded nor failed.
    fn early(&self, object: &Guarded<K>, now: Instant) -> Option<Duration> {
        let meta = object.meta();
        if meta.deletion_timestamp.is_some() || object.0.is_err() {
            return None;
        }
        self.knows(meta, |known| match known.looked {
            Some((at, generation)) if generation == meta.generation && at + PACE > now => {
                Some(at + PACE - now)
            }
            _ => {
                known.looked = Some((now, meta.generation));
                None
            }
        })
    }

    fn api(&self, meta: &ObjectMeta) -> Api<K::Object> {
        Api::namespaced(self.shared.client.clone(), meta.namespace.as_deref().unwrap_or_default())
    }

    /// Sets the object's finalizers, if it is still as known.
    async fn set_finalizers(&self, meta: &ObjectMeta, finalizers: Vec<String>) -> Result<(), Error> {
        let patch =
            json!({ "metadata": { "finalizers": finalizers, "resourceVersion": meta.resource_version } });
        self.patch_metadata(meta, "concordat-operator/finalizer", patch).await
    }

    /// Does what a person asked for by an annotation, tells of it, and removes the annotation.
    async fn do_as_asked(
        &self,
        meta: &ObjectMeta,
        asked: Asked,
        touch: impl FnOnce(Plan) -> Plan,
    ) -> Result<(), Error> {
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let event = match asked.plan {
            Ok((plan, reason, note)) => {
                if self.shared.term.write(namespace, touch(plan)).await?.held {
                    events::event(EventType::Normal, reason, &note)
                } else {
                    // What was read is no longer so: it is looked at again.
                    return Ok(());
                }
            }
            Err(why) => events::event(EventType::Warning, asked.refused, &why),
        };
        self.publish_one(meta, &event).await;
        let patch = json!({ "metadata": { "annotations": { asked.annotation: null }, "resourceVersion": meta.resource_version } });
        self.patch_metadata(meta, "concordat-operator/annotation", patch).await
    }

    /// Changes an object's metadata, if it is still there.
    async fn patch_metadata(
        &self,
        meta: &ObjectMeta,
        manager: &str,
        patch: serde_json::Value,
    ) -> Result<(), Error> {
        let params = PatchParams { field_manager: Some(manager.to_owned()), ..PatchParams::default() };
        let name = meta.name.as_deref().unwrap_or_default();
        match self.api(meta).patch_metadata(name, &params, &Patch::Merge(patch)).await {
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            result => Ok(result.map(drop)?),
        }
    }
}
