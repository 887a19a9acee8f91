//! Fields that nobody knows: a cluster refuses them, by the schema of the object's kind.

use concordat_operator::Invalid;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};
use kube::api::ObjectMeta;
use serde_json::{Map, Value};

/// Refuses an object with a field that its kind does not have.
pub(super) fn check(object: &Map<String, Value>, kind: &CustomResourceDefinition) -> Result<(), Invalid> {
    let schema = kind.spec.versions.first().and_then(|version| version.schema.as_ref());
    let Some(schema) = schema.and_then(|schema| schema.open_api_v3_schema.as_ref()) else { return Ok(()) };
    for (name, value) in object {
        match name.as_str() {
            "apiVersion" | "kind" => {}
            "metadata" => metadata(value)?,
            _ => member(name, value, schema, "")?,
        }
    }
    Ok(())
}

/// Refuses metadata with a field that Kubernetes does not have.
fn metadata(given: &Value) -> Result<(), Invalid> {
    let of_its_form = |error| Invalid::new("metadata", format!("must be that of an object: {error}"));
    let known: ObjectMeta = serde_json::from_value(given.clone()).map_err(of_its_form)?;
    let known = serde_json::to_value(known).map_err(of_its_form)?;
    match given
        .as_object()
        .into_iter()
        .flatten()
        .find(|(name, value)| !value.is_null() && known.get(name).is_none())
    {
        None => Ok(()),
        Some((name, _)) => {
            Err(Invalid::new(format!("metadata.{name}"), "is not a field of metadata: remove it"))
        }
    }
}

fn member(name: &str, value: &Value, of: &JSONSchemaProps, path: &str) -> Result<(), Invalid> {
    let whole = if path.is_empty() { "the object" } else { path };
    let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    let known = of.properties.as_ref();
    match known.and_then(|known| known.get(name)) {
        Some(schema) => walk(value, schema, &path),
        None => {
            let names: Vec<&str> = known.into_iter().flatten().map(|(name, _)| name.as_str()).collect();
            let told = format!("is not a field: those of {whole} are {}", names.join(", "));
            Err(Invalid::new(path, told))
        }
    }
}

fn walk(value: &Value, schema: &JSONSchemaProps, path: &str) -> Result<(), Invalid> {
    if schema.x_kubernetes_preserve_unknown_fields == Some(true) {
        return Ok(());
    }
    match (value, &schema.items) {
        (Value::Object(fields), _) => {
            fields.iter().try_for_each(|(name, value)| member(name, value, schema, path))
        }
        (Value::Array(items), Some(JSONSchemaPropsOrArray::Schema(schema))) => {
            let mut items = items.iter().enumerate();
            items.try_for_each(|(place, item)| walk(item, schema, &format!("{path}[{place}]")))
        }
        // Of another type than it should be: reading the object tells.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use concordat_crds::{DistributedTransaction, Lock};
    use kube::CustomResourceExt;
    use serde_json::json;

    use super::*;

    fn refusal(object: &Value, kind: &CustomResourceDefinition) -> String {
        check(object.as_object().unwrap(), kind).unwrap_err().to_string()
    }

    #[test]
    fn a_field_that_nobody_knows_is_refused_with_those_that_are_known() {
        let object = json!({ "metadata": { "name": "a" }, "spec": { "mode": "Lease", "ttll": "5s" } });
        assert_eq!(
            refusal(&object, &Lock::crd()),
            "spec.ttll is not a field: those of spec are daprStore, kind, lockDelay, maxHold, maxWait, maxWaiters, mode, permits, \
             ttl"
        );
        let object = json!({ "spec": { "participants": [{}, { "retry": { "tries": 3 } }] } });
        let told = refusal(&object, &DistributedTransaction::crd());
        assert!(told.starts_with("spec.participants[1].retry.tries is not a field"), "{told}");
        assert!(refusal(&json!({ "specs": {} }), &Lock::crd()).starts_with("specs is not a field"));
        assert!(refusal(&json!({ "metadata": { "labls": {} } }), &Lock::crd()).starts_with("metadata.labls"));
    }

    #[test]
    fn what_a_cluster_takes_passes() {
        let object = json!({
            "apiVersion": "concordat.dev/v1alpha1", "kind": "DistributedTransaction",
            "metadata": {
                "name": "a", "namespace": "b", "labels": {}, "annotations": { "a": "b" }, "creationTimestamp": null,
            },
            "spec": { "input": { "what": { "ever": [1] } }, "participants": [{ "name": "a", "input": { "b": 1 } }] },
            "status": { "conditions": [] },
        });
        assert_eq!(check(object.as_object().unwrap(), &DistributedTransaction::crd()), Ok(()));
    }
}
