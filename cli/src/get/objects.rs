//! As much of a custom resource as its status is made from, out of its definition in etcd.

use anyhow::Result;
use concordat_crds::{DistributedTransaction, Lock, Queue};
use concordat_protocol::{Definition, Settings, transaction::Protocol};
use serde_json::{Value, json};

/// A resource that can be rebuilt from its definition.
pub(crate) trait Rebuilt: Sized {
    /// The resource of this name.
    fn rebuild(namespace: &str, name: &str, definition: &Definition) -> Result<Self>;
}

macro_rules! rebuilt {
    ($($object:ident),+) => {$(
        impl Rebuilt for $object {
            fn rebuild(namespace: &str, name: &str, definition: &Definition) -> Result<Self> {
                let mut object = Self::new(name, serde_json::from_value(spec(&definition.settings))?);
                object.metadata.namespace = Some(namespace.to_owned());
                object.metadata.uid = Some(definition.uid.clone());
                object.metadata.generation = Some(definition.generation);
                Ok(object)
            }
        }
    )+};
}

rebuilt!(DistributedTransaction, Lock, Queue);

// The names in settings are those of the API, but for TCC.
fn spec(settings: &Settings) -> Value {
    match settings {
        Settings::Lock(lock) => {
            json!({"mode": format!("{:?}", lock.mode), "kind": format!("{:?}", lock.sharing)})
        }
        Settings::Queue(queue) => {
            json!({"mode": format!("{:?}", queue.mode), "ordering": format!("{:?}", queue.ordering)})
        }
        Settings::Transaction(transaction) => {
            let protocol = match transaction.protocol {
                Protocol::Tcc => "TCC".to_owned(),
                protocol => format!("{protocol:?}"),
            };
            let participants: Vec<Value> = transaction
                .participants
                .iter()
                .map(|part| json!({"name": part.name.as_str(), "app": part.app.as_str(), "path": part.path}))
                .collect();
            let run = if transaction.once { "Once" } else { "OnDemand" };
            json!({"protocol": protocol, "participants": participants, "run": run})
        }
    }
}
