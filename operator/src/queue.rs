//! The kind `Queue`.

mod compile;
mod status;

use std::time::Duration;

use concordat_crds::{Queue, QueueStatus};
use concordat_protocol::{Millis, Name, Range, Settings};
use concordat_store::{Admin, CommitError};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;

pub use compile::compile;
pub use status::{State, status};

use crate::{
    Invalid, Standing,
    etcd::{self, Term},
    kind::Kind,
    metrics::Measure,
};

/// The kind, for the pipeline.
pub struct Queues;

/// Reads what is remembered of the Queue of this name: of messages only those of the oldest segment.
pub async fn look(admin: &Admin, namespace: &str, name: &Name) -> Result<State, CommitError> {
    let mut keys = Vec::new();
    for range in State::listed(name) {
        let (listed, _) = admin.list_keys(namespace, range).await?;
        keys.extend(listed.into_iter().map(|(key, created, _)| (key, created)));
    }
    let mut ranges = State::ranges(name);
    ranges.extend(State::oldest(&keys).cloned().map(Range::from));
    let found: Vec<_> = admin.read(namespace, ranges).await?.reads.into_iter().flatten().collect();
    Ok(State::of(&keys, &found, Timestamp::now().as_millisecond() as Millis))
}

impl Kind for Queues {
    type Object = Queue;
    type Status = QueueStatus;
    type State = State;
    type Memory = ();

    const KIND: concordat_protocol::Kind = concordat_protocol::Kind::Queue;
    const NAME: &'static str = "queue";
    /// Sidecars tell of consumers alone: that a message came, or died, is seen by who looks.
    const SELDOM: Duration = Duration::from_secs(15);

    fn compile(object: &Queue) -> Result<Settings, Invalid> {
        compile(object).map(Settings::Queue)
    }

    fn unsupported(object: &Queue, settings: &Settings) -> Option<String> {
        let Settings::Queue(settings) = settings else { return None };
        (!settings.supported())
            .then(|| format!("mode {:?} with ordering {:?}", object.spec.mode, object.spec.ordering))
    }

    async fn look(admin: &Admin, namespace: &str, object: &Queue) -> Result<State, CommitError> {
        look(admin, namespace, &object.name_any().into()).await
    }

    fn status(
        object: &Queue,
        standing: &Standing,
        state: Option<&State>,
        (): &mut (),
        now: Timestamp,
    ) -> QueueStatus {
        status(object, standing, state, now)
    }

    fn conditions(status: &QueueStatus) -> &[Condition] {
        &status.conditions
    }

    fn measures(state: &State) -> Vec<Measure> {
        state.measures()
    }

    fn moves(status: &QueueStatus) -> bool {
        status.delayed > 0 || status.oldest_age.is_some()
    }

    /// Nothing is: a queue that is deleted goes with its messages.
    async fn awaited(_: &Term, _: &str, _: &Name, _: &str) -> Result<Option<String>, etcd::Error> {
        Ok(None)
    }

    fn left(name: &Name, _: &str) -> Vec<Range> {
        vec![Range::Queue(name.clone()), Range::Stats(Self::KIND, name.clone())]
    }
}
