//! The kind `Lock`.

mod compile;
mod force;
mod status;

use concordat_crds::{Lock, LockStatus};
use concordat_protocol::{Name, Range, Settings};
use concordat_store::{Admin, CommitError};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;

pub use compile::compile;
pub use status::{Held, State, status};

use crate::{
    Invalid, Standing,
    etcd::{self, Term},
    kind::{Asked, Kind},
    metrics::Measure,
};

/// The kind, for the pipeline.
pub struct Locks;

/// Reads what is remembered of the Lock of this name.
pub async fn look(admin: &Admin, namespace: &str, name: &Name) -> Result<State, CommitError> {
    Ok(State::of(&admin.read(namespace, State::ranges(name)).await?))
}

impl Kind for Locks {
    type Object = Lock;
    type Status = LockStatus;
    type State = State;
    type Memory = ();

    const KIND: concordat_protocol::Kind = concordat_protocol::Kind::Lock;
    const NAME: &'static str = "lock";

    fn compile(object: &Lock) -> Result<Settings, Invalid> {
        compile(object).map(Settings::Lock)
    }

    fn unsupported(object: &Lock, settings: &Settings) -> Option<String> {
        let Settings::Lock(settings) = settings else { return None };
        (!settings.supported())
            .then(|| format!("mode {:?} with kind {:?}", object.spec.mode, object.spec.kind))
    }

    async fn look(admin: &Admin, namespace: &str, object: &Lock) -> Result<State, CommitError> {
        look(admin, namespace, &object.name_any().into()).await
    }

    fn asked(object: &Lock, state: &State) -> Option<Asked> {
        force::asked(object, state)
    }

    fn status(
        object: &Lock,
        standing: &Standing,
        state: Option<&State>,
        (): &mut (),
        now: Timestamp,
    ) -> LockStatus {
        status(object, standing, state, now)
    }

    fn conditions(status: &LockStatus) -> &[Condition] {
        &status.conditions
    }

    fn measures(state: &State) -> Vec<Measure> {
        state.measures()
    }

    fn moves(status: &LockStatus) -> bool {
        status.oldest_wait.is_some()
    }

    async fn awaited(
        term: &Term,
        namespace: &str,
        name: &Name,
        _: &str,
    ) -> Result<Option<String>, etcd::Error> {
        let held = look(term.admin(), namespace, name).await?.holders;
        let Some(Held { key, holder, .. }) = held.first() else { return Ok(None) };
        Ok(Some(format!(
            "{} keys are held until released or lost, {key:?} by pod {:?}",
            held.len(),
            holder.pod
        )))
    }

    fn left(name: &Name, _: &str) -> Vec<Range> {
        vec![Range::Lock(name.clone()), Range::Stats(Self::KIND, name.clone())]
    }
}
