//! etcd's members. They read their own certificate for each connection that is made, but whom to trust only when they start:
//! when that changes their StatefulSet starts them anew, one after the other.

use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::Secret};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{Error, authority::blocks};

/// The annotation of the StatefulSet, and of the pods that were started since it first changed, that names those whom
/// members trust.
const TRUSTS: &str = "concordat.dev/trusts";

/// Names those who are trusted, in whatever order.
pub(super) fn name(trusted: &str) -> String {
    let mut all: Vec<String> = blocks(trusted).collect();
    all.sort_unstable();
    let digest = Sha256::digest(all.concat());
    digest.iter().take(8).fold(String::new(), |name, byte| format!("{name}{byte:02x}"))
}

/// Whom all members trust, by name; none while some are to be started anew, or there are none yet. Sees to it that they
/// trust what their Secret says.
pub(super) async fn trust(client: &Client, namespace: &str, service: &str) -> Result<Option<String>, Error> {
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), namespace);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let wrong = |what: String| move |why| Error::Kubernetes { what, why };
    // In this order: what is written is of a Secret that is at least as new as the StatefulSet.
    let set = sets.get_opt(service).await.map_err(wrong(format!("StatefulSet {service}")))?;
    let secret = format!("{service}-tls");
    let secret = secrets.get_opt(&secret).await.map_err(wrong(format!("Secret {secret}")))?;
    let trusted = secret.and_then(|secret| secret.data?.remove("ca.crt"));
    let (Some(set), Some(trusted)) = (set, trusted) else { return Ok(None) };
    let wanted = name(&String::from_utf8_lossy(&trusted.0));
    let known = set.annotations().get(TRUSTS);
    if known == Some(&wanted) {
        return Ok(stands(&set).then_some(wanted));
    }
    let annotations = json!({ "annotations": { TRUSTS: wanted } });
    let mut patch = json!({ "metadata": annotations });
    patch["metadata"]["resourceVersion"] = json!(set.resource_version());
    // Members that were never told read it when they first started.
    if known.is_some() {
        patch["spec"] = json!({ "template": { "metadata": annotations } });
    }
    let params = PatchParams { field_manager: Some("concordat-operator".into()), ..PatchParams::default() };
    match sets.patch(service, &params, &Patch::Merge(patch)).await {
        Ok(_) if known.is_some() => tracing::info!(service, "etcd is started anew: it is to trust others"),
        Ok(_) => {}
        // It changed meanwhile, or another replica was first.
        Err(kube::Error::Api(status)) if status.is_conflict() => {}
        Err(why) => return Err(wrong(format!("StatefulSet {service}"))(why)),
    }
    Ok(None)
}

/// Whether every member is as the StatefulSet says now, and ready.
fn stands(set: &StatefulSet) -> bool {
    let (Some(spec), Some(status)) = (&set.spec, &set.status) else { return false };
    let wanted = spec.replicas.unwrap_or(1);
    status.observed_generation >= set.metadata.generation
        && status.current_revision == status.update_revision
        && status.ready_replicas == Some(wanted)
        && status.updated_replicas.unwrap_or(wanted) == wanted
}
