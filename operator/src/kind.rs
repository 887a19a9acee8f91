//! What the pipeline needs to know of a kind.

use std::{fmt::Debug, future::Future, time::Duration};

use concordat_protocol::{Key, Name, Now, Plan, Range, Settings};
use concordat_store::{Admin, CommitError};
use jiff::Timestamp;
use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{Resource, core::object::HasStatus};
use serde::{Serialize, de::DeserializeOwned};

use crate::{Invalid, Standing, etcd, metrics::Measure};

/// What a person asked for by an annotation, which is removed once it is done or cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The annotation.
    pub annotation: &'static str,
    /// What to do, and the reason and note of the Event that tells so; or why it cannot be done.
    pub plan: Result<(Plan, &'static str, String), String>,
    /// Reason of the Event that tells that it was not done.
    pub refused: &'static str,
}

/// One kind of custom resource: its pure functions and what of etcd they are given.
pub trait Kind: Sized + Send + Sync + 'static {
    /// The custom resource.
    type Object: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + HasStatus<Status = Self::Status>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static;
    /// Its status.
    type Status: Clone + Debug + PartialEq + Serialize + Send + Sync + 'static;
    /// What is remembered of it in etcd.
    type State: Send + Sync;
    /// What goes on from one status to the next besides the status.
    type Memory: Default + Clone + Send;

    /// The kind in keys.
    const KIND: concordat_protocol::Kind;
    /// The kind in metrics and in the names of field managers.
    const NAME: &'static str;
    /// How soon an object is looked at again that nothing is known to have happened to.
    const SELDOM: Duration = Duration::from_mins(5);

    /// The settings that sidecars get, or what to change.
    fn compile(object: &Self::Object) -> Result<Settings, Invalid>;

    /// What of these settings does not work yet, as users name it.
    fn unsupported(object: &Self::Object, settings: &Settings) -> Option<String>;

    /// Reads what is remembered of an object.
    fn look(
        admin: &Admin,
        namespace: &str,
        object: &Self::Object,
    ) -> impl Future<Output = Result<Self::State, CommitError>> + Send;

    /// What the operator itself puts for an object that is in force, under the definition created at a revision.
    fn begin(_: &Self::Object, _: &Self::State, _: &Settings, _definition: i64, _: Now) -> Option<Plan> {
        None
    }

    /// What a person asks for by an annotation of the object, given what was read.
    fn asked(_: &Self::Object, _: &Self::State) -> Option<Asked> {
        None
    }

    /// The status after `object.status`.
    fn status(
        object: &Self::Object,
        standing: &Standing,
        state: Option<&Self::State>,
        memory: &mut Self::Memory,
        now: Timestamp,
    ) -> Self::Status;

    /// A status's conditions.
    fn conditions(status: &Self::Status) -> &[Condition];

    /// What metrics tell of an object, given what was read: of each the same measures, whatever their values.
    fn measures(state: &Self::State) -> Vec<Measure>;

    /// Whether a status changes as time passes, without anything being written.
    fn moves(status: &Self::Status) -> bool;

    /// What of a deleted object must end by itself before it is wiped, in words; its definition is gone.
    fn awaited(
        term: &etcd::Term,
        namespace: &str,
        name: &Name,
        uid: &str,
    ) -> impl Future<Output = Result<Option<String>, etcd::Error>> + Send;

    /// The keys of what [`awaited`](Self::awaited) names, to be deleted in this order: it is told of here and never
    /// ends, as nobody is left to end it.
    fn give_up(
        _: &etcd::Term,
        _namespace: &str,
        _: &Name,
    ) -> impl Future<Output = Result<Vec<Key>, etcd::Error>> + Send {
        async { Ok(Vec::new()) }
    }

    /// What is left then.
    fn left(name: &Name, uid: &str) -> Vec<Range>;
}
