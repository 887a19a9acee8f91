//! What deleted objects leave in etcd.

use concordat_protocol::{Key, Plan, Range};
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, api::ObjectMeta};

use crate::{
    controller,
    etcd::{Error, Term},
    kind::Kind,
};

/// Keys deleted by one plan: with its compare it stays below etcd's 128 operations.
const PLAN: usize = 100;
/// Keys deleted in one pass: others get their turn between two.
const PASS: usize = 2_000;

/// One pass of removing what an object left; may be repeated at any point. `None`: nothing of it is left. Otherwise
/// what is awaited, in words: transactions are never dropped, holders never robbed.
pub async fn pass<K: Kind>(term: &Term, object: &ObjectMeta) -> Result<Option<String>, Error> {
    let namespace = object.namespace.as_deref().unwrap_or_default();
    let name = object.name.as_deref().unwrap_or_default().into();
    let uid = object.uid.as_deref().unwrap_or_default();
    // Once the definition is gone nothing more of the object can come: every plan that creates state compares it.
    match term.definition(namespace, K::KIND, &name).await? {
        Some((_, definition)) if definition.uid != uid => return Ok(None), // a later object of this name
        Some((entry, _)) => {
            let plan = Plan::new().unchanged(entry.key.clone(), entry.mod_revision).delete(entry.key);
            if !term.write(namespace, plan).await?.held {
                return Ok(Some("its definition changed meanwhile".into()));
            }
        }
        None => {}
    }
    if let Some(awaited) = K::awaited(term, namespace, &name, uid).await? {
        return Ok(Some(awaited));
    }
    let mut keys: Vec<Key> = Vec::new();
    for range in K::left(&name, uid) {
        let (listed, _) = term.admin().list_keys(namespace, range).await?;
        keys.extend(listed.into_iter().map(|(key, ..)| key));
    }
    let later = keys.len().saturating_sub(PASS);
    keys.truncate(PASS);
    delete(term, namespace, &keys).await?;
    Ok((later > 0).then(|| format!("{later} keys are left to remove")))
}

/// The same for an object of a cluster, whose namespace may be deleted with it: what then is awaited of sidecars, and no
/// sidecar is there any more, nobody will ever end. It is given up, which the log tells, or the namespace could not go.
pub(crate) async fn pass_in<K: Kind>(
    client: &Client,
    term: &Term,
    object: &ObjectMeta,
) -> Result<Option<String>, controller::Error> {
    let awaited = pass::<K>(term, object).await?;
    let namespace = object.namespace.as_deref().unwrap_or_default();
    if awaited.is_none() || !is_forsaken(client, term, namespace).await? {
        return Ok(awaited);
    }
    let name = object.name.as_deref().unwrap_or_default().into();
    let given_up = K::give_up(term, namespace, &name).await?;
    delete(term, namespace, &given_up).await?;
    Ok(pass::<K>(term, object).await?)
}

/// Whether a namespace is deleted, so that no pod can start in it, and the last of its sidecars is gone.
async fn is_forsaken(client: &Client, term: &Term, namespace: &str) -> Result<bool, controller::Error> {
    let found = Api::<Namespace>::all(client.clone()).get_metadata_opt(namespace).await?;
    let stays = found.is_some_and(|found| found.metadata.deletion_timestamp.is_none());
    Ok(!stays && term.admin().list_keys(namespace, Range::Sessions).await?.0.is_empty())
}

async fn delete(term: &Term, namespace: &str, keys: &[Key]) -> Result<(), Error> {
    for keys in keys.chunks(PLAN) {
        let plan = keys.iter().cloned().fold(Plan::new(), Plan::delete);
        term.write(namespace, plan).await?;
    }
    Ok(())
}
