//! What people are told of an object: its status, and events of what changed.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{
    Api, Resource, ResourceExt,
    api::{DynamicObject, ObjectMeta, Patch, PatchParams},
    core::{ApiResource, object::HasStatus},
    runtime::{controller::Action, events::Event},
};
use serde_json::json;
use tokio::time::Instant;

use super::{Context, Error, PACE, SOON};
use crate::{Invalid, Standing, conditions, events, kind::Kind};

/// Tells where the object stands, if that changed.
pub(super) async fn tell<K: Kind>(
    object: &K::Object,
    standing: &Standing,
    state: Option<&K::State>,
    context: &Context<K>,
) -> Result<Action, Error> {
    if let Some(state) = state {
        let namespace = object.namespace().unwrap_or_default();
        context.shared.metrics.saw(K::NAME, &namespace, &object.name_any(), K::measures(state));
    }
    let now = Instant::now();
    let shown = object.status().cloned();
    let (before, status, wait) = context.knows(object.meta(), |known| {
        let mut last = object.clone();
        if let Some(status) = &known.status {
            *last.status_mut() = Some(status.clone());
        }
        let before = last.status().cloned();
        let status = K::status(&last, standing, state, &mut known.memory, Timestamp::now());
        let wait = known.wrote.map(|wrote| (wrote + PACE).saturating_duration_since(now)).unwrap_or_default();
        (before, status, wait)
    });
    if before.as_ref() != Some(&status) || shown.as_ref() != Some(&status) {
        if !wait.is_zero() {
            return Ok(Action::requeue(wait));
        }
        context.patch_status(object.meta(), &json!(status)).await?;
        context.knows(object.meta(), |known| {
            known.status = Some(status.clone());
            known.wrote = Some(Instant::now());
        });
        let before = before.as_ref().map(K::conditions).unwrap_or_default();
        context.publish(object.meta(), before, K::conditions(&status)).await;
    }
    Ok(Action::requeue(if K::moves(&status) { SOON } else { K::SELDOM }))
}

/// Tells of an object that is not of its kind's form; its definition, if it ever had one, stays in force.
pub(super) async fn unreadable<K: Kind>(
    meta: &ObjectMeta,
    error: &str,
    context: &Context<K>,
) -> Result<Action, Error> {
    let (namespace, name) =
        (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
    let resource = ApiResource::erase::<K::Object>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(context.shared.client.clone(), namespace, &resource);
    let Some(object) = api.get_opt(name).await? else { return Ok(Action::await_change()) };
    let before: Vec<Condition> = object
        .data
        .pointer("/status/conditions")
        .and_then(|conditions| serde_json::from_value(conditions.clone()).ok())
        .unwrap_or_default();
    let generation = object.metadata.generation.unwrap_or_default();
    let standing =
        Standing::Invalid(Invalid::new("the object", format!("must be of its kind's form: {error}")));
    let now = conditions::merge(&before, vec![standing.fact()], generation, Timestamp::now());
    if now != before {
        // Not by server-side apply, which refuses an object that is not of its schema.
        let patch = json!({ "status": { "observedGeneration": generation, "conditions": now } });
        let params = PatchParams { field_manager: Some(status_manager::<K>()), ..PatchParams::default() };
        let told = match api.patch_status(name, &params, &Patch::Merge(patch)).await {
            // A field of a type that a CEL rule cannot take: the API server takes no status then. The event tells.
            Err(kube::Error::Api(refused)) if refused.code == 422 => {
                context.knows(meta, |known| known.told.replace(now.clone())).unwrap_or(before)
            }
            result => {
                result?;
                before
            }
        };
        context.publish(meta, &told, &now).await;
    }
    Ok(Action::await_change())
}

fn status_manager<K: Kind>() -> String {
    format!("concordat-operator/{}-status", K::NAME)
}

impl<K: Kind> Context<K> {
    async fn patch_status(&self, meta: &ObjectMeta, status: &serde_json::Value) -> Result<(), Error> {
        let name = meta.name.as_deref().unwrap_or_default();
        let patch = json!({
            "apiVersion": K::Object::api_version(&()),
            "kind": K::Object::kind(&()),
            // An object of the same name made since must not get this status.
            "metadata": { "name": name, "uid": meta.uid },
            "status": status,
        });
        let params = PatchParams::apply(&status_manager::<K>()).force();
        let resource = ApiResource::erase::<K::Object>(&());
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let api: Api<DynamicObject> = Api::namespaced_with(self.shared.client.clone(), namespace, &resource);
        match api.patch_status(name, &params, &Patch::Apply(patch)).await {
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            result => {
                result?;
                self.shared.metrics.patched(K::NAME);
                Ok(())
            }
        }
    }

    /// Tells events; one that cannot be told is not worth a failed pass.
    async fn publish(&self, meta: &ObjectMeta, before: &[Condition], now: &[Condition]) {
        for event in events::changes(before, now) {
            self.publish_one(meta, &event).await;
        }
    }

    pub(super) async fn publish_one(&self, meta: &ObjectMeta, event: &Event) {
        let reference = k8s_openapi::api::core::v1::ObjectReference {
            api_version: Some(K::Object::api_version(&()).into()),
            kind: Some(K::Object::kind(&()).into()),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            ..Default::default()
        };
        if let Err(error) = self.shared.recorder.publish(event, &reference).await {
            tracing::warn!(%error, reason = event.reason, "an event could not be told");
        }
    }
}
