//! What of an object stays as it was created: the CRDs' rules on updates, for where no API server holds them.

use concordat_protocol::{Settings, queue::Ordering};

use crate::Invalid;

/// Refuses settings that change what is immutable, with the field.
pub fn keeps(before: &Settings, after: &Settings) -> Result<(), Invalid> {
    let kept = match (before, after) {
        (Settings::Lock(before), Settings::Lock(after)) => {
            vec![("spec.mode", before.mode == after.mode), ("spec.kind", before.sharing == after.sharing)]
        }
        (Settings::Queue(before), Settings::Queue(after)) => {
            let free = before.ordering != Ordering::Key;
            vec![
                ("spec.mode", before.mode == after.mode),
                ("spec.ordering", free || before.ordering == after.ordering),
                ("spec.partitions", free || before.partitions == after.partitions),
            ]
        }
        (Settings::Transaction(before), Settings::Transaction(after)) => {
            vec![
                ("spec.protocol", before.protocol == after.protocol),
                ("spec.run", before.once == after.once),
            ]
        }
        _ => vec![("kind", false)],
    };
    match kept.into_iter().find(|(_, kept)| !kept) {
        None => Ok(()),
        Some((field, _)) => {
            Err(Invalid::new(field, "is immutable: change it back, or delete the object and create it anew"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use concordat_crds::{DistributedTransaction, Lock, Queue, manifest};
    use serde_json::{Value, json};

    use super::*;
    use crate::{kind::Kind, lock::Locks, queue::Queues, transaction::Transactions};

    fn lock(spec: Value) -> Settings {
        Locks::compile(&Lock::new("l", serde_json::from_value(spec).unwrap())).unwrap()
    }

    fn queue(spec: Value) -> Settings {
        Queues::compile(&Queue::new("q", serde_json::from_value(spec).unwrap())).unwrap()
    }

    fn transaction(protocol: &str, run: &str) -> Settings {
        let mut spec =
            json!({ "protocol": protocol, "run": run, "participants": [{ "name": "a", "app": "a" }] });
        if run == "Once" {
            spec["input"] = json!({});
        }
        let object = DistributedTransaction::new("t", serde_json::from_value(spec).unwrap());
        Transactions::compile(&object).unwrap()
    }

    /// Before, after, and the field that must not change so.
    fn refused() -> Vec<(Settings, Settings, (&'static str, &'static str))> {
        let keyed = json!({ "mode": "Log", "ordering": "Key", "partitions": 2 });
        vec![
            (lock(json!({ "mode": "Lease" })), lock(json!({ "mode": "FairQueue" })), ("Lock", "spec.mode")),
            (
                lock(json!({ "mode": "FairQueue" })),
                lock(json!({ "mode": "FairQueue", "kind": "ReadWrite" })),
                ("Lock", "spec.kind"),
            ),
            (queue(json!({ "mode": "Log" })), queue(json!({ "mode": "PubSub" })), ("Queue", "spec.mode")),
            (
                queue(keyed.clone()),
                queue(json!({ "mode": "Log", "partitions": 2 })),
                ("Queue", "spec.ordering"),
            ),
            (
                queue(keyed),
                queue(json!({ "mode": "Log", "ordering": "Key", "partitions": 3 })),
                ("Queue", "spec.partitions"),
            ),
            (
                transaction("TCC", "OnDemand"),
                transaction("Saga", "OnDemand"),
                ("DistributedTransaction", "spec.protocol"),
            ),
            (
                transaction("TCC", "OnDemand"),
                transaction("TCC", "Once"),
                ("DistributedTransaction", "spec.run"),
            ),
        ]
    }

    #[test]
    fn what_is_immutable_is_refused_by_its_field() {
        for (before, after, (_, field)) in refused() {
            assert_eq!(keeps(&before, &after).unwrap_err().field, field);
            assert_eq!(keeps(&before, &before), Ok(()));
        }
    }

    #[test]
    fn the_rest_may_change() {
        let plain = queue(json!({ "mode": "Log", "partitions": 2 }));
        let keyed = queue(json!({ "mode": "Log", "ordering": "Key", "partitions": 3, "visibility": "9s" }));
        assert_eq!(keeps(&plain, &keyed), Ok(()));
        let short = lock(json!({ "mode": "Lease", "ttl": "3s" }));
        assert_eq!(keeps(&lock(json!({ "mode": "Lease" })), &short), Ok(()));
    }

    /// The rules on updates in the CRDs and those here are the same ones.
    #[test]
    fn every_rule_on_updates_is_held_here() {
        let mut declared = BTreeSet::new();
        for (_, definition) in manifest::definitions() {
            let kind = definition.spec.names.kind.clone();
            let schema = json!(definition.spec.versions[0].schema)["openAPIV3Schema"].take();
            rules_on_updates(&schema, "", &mut |field| {
                declared.insert((kind.clone(), field));
            });
        }
        let held = refused().into_iter().map(|(.., (kind, field))| (kind.to_owned(), field.to_owned()));
        assert_eq!(held.collect::<BTreeSet<_>>(), declared);
    }

    fn rules_on_updates(schema: &Value, path: &str, found: &mut dyn FnMut(String)) {
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            if rule["rule"].as_str().unwrap().contains("oldSelf") {
                let field = format!("{path}{}", rule["fieldPath"].as_str().unwrap_or_default());
                found(field.trim_start_matches('.').to_owned());
            }
        }
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            rules_on_updates(property, &format!("{path}.{name}"), found);
        }
    }
}
