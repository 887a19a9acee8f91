//! What deleted objects leave in etcd.

use concordat_protocol::{Key, Plan};
use kube::api::ObjectMeta;

use crate::{
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
    for keys in keys.chunks(PLAN) {
        let plan = keys.iter().cloned().fold(Plan::new(), Plan::delete);
        term.write(namespace, plan).await?;
    }
    Ok((later > 0).then(|| format!("{later} keys are left to remove")))
}
