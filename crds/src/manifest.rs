//! The `CustomResourceDefinition`s as the YAML files beside this crate's manifest.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use crate::{DistributedTransaction, Lock, Queue};

const HEADER: &str = "# Generated from the Rust types by `cargo run -p concordat-crds --bin crdgen`.\n";

/// Every kind's definition, with the name of its file in `crds/`.
pub fn definitions() -> [(&'static str, CustomResourceDefinition); 3] {
    [
        ("lock.yaml", Lock::crd()),
        ("queue.yaml", Queue::crd()),
        ("transaction.yaml", DistributedTransaction::crd()),
    ]
}

/// The text of a definition's file.
pub fn yaml(definition: &CustomResourceDefinition) -> Result<String, serde_saphyr::ser::Error> {
    Ok(format!("{HEADER}{}", serde_saphyr::to_string(definition)?))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::names;

    #[test]
    fn regenerating_changes_nothing() {
        for (file, definition) in definitions() {
            let checked_in = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
            assert_eq!(
                checked_in,
                yaml(&definition).unwrap(),
                "{file}: run `cargo run -p concordat-crds --bin crdgen`"
            );
        }
    }

    #[test]
    fn the_text_says_what_the_types_say() {
        for (file, definition) in definitions() {
            let read: CustomResourceDefinition = serde_saphyr::from_str(&yaml(&definition).unwrap()).unwrap();
            assert_eq!(read, definition, "{file}");
        }
    }

    #[test]
    fn every_definition_is_of_our_group_and_version() {
        for (file, definition) in definitions() {
            assert_eq!(definition.spec.group, names::GROUP, "{file}");
            let versions: Vec<_> = definition.spec.versions.iter().map(|version| &version.name).collect();
            assert_eq!(versions, [names::VERSION], "{file}");
        }
    }

    /// `kubectl apply -f crds/` takes every file of the folder that looks like a manifest.
    #[test]
    fn the_folder_holds_no_other_manifest() {
        let mut found: Vec<_> = fs::read_dir(env!("CARGO_MANIFEST_DIR"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| [".yaml", ".yml", ".json"].iter().any(|ending| name.ends_with(ending)))
            .collect();
        found.sort();
        assert_eq!(found, definitions().map(|(file, _)| file));
    }
}
