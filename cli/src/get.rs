//! `concordat get`: what the operator would show as status, read from etcd.

pub(crate) mod objects;

use anyhow::Result;
use clap::ValueEnum;
use concordat_operator::{Standing, kind::Kind, lock::Locks, queue::Queues, transaction::Transactions};
use concordat_protocol::{Definition, Key, Range, Record};
use concordat_store::Admin;
use jiff::Timestamp;
use serde_json::{Value, json};

use self::objects::Rebuilt;
use crate::{output::Format, reach::Scope, table};

/// What `get` is told.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// What to print
    kind: What,
    #[command(flatten)]
    scope: Scope,
    /// Of every namespace that etcd knows
    #[arg(long, short = 'A', conflicts_with = "namespace")]
    all_namespaces: bool,
    #[command(flatten)]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// Locks
    #[value(alias = "lock")]
    Locks,
    /// Queues
    #[value(alias = "queue")]
    Queues,
    /// Distributed transactions
    #[value(aliases = ["transaction", "tx"])]
    Transactions,
}

/// Prints the objects of one kind.
pub(crate) fn run(options: Options) -> Result<()> {
    crate::dev::runtime()?.block_on(async {
        let reached = options.scope.reach().await?;
        let namespaces =
            if options.all_namespaces { reached.admin.namespaces().await? } else { vec![reached.namespace] };
        let mut found = Vec::new();
        for namespace in &namespaces {
            found.extend(match options.kind {
                What::Locks => look::<Locks>(&reached.admin, namespace).await?,
                What::Queues => look::<Queues>(&reached.admin, namespace).await?,
                What::Transactions => look::<Transactions>(&reached.admin, namespace).await?,
            });
        }
        let mut columns = options.kind.columns().to_vec();
        if options.all_namespaces {
            columns.insert(0, ("NAMESPACE", "/namespace"));
        }
        options.format.print(&found.into(), |found| {
            table::of(&columns, found.as_array().map(Vec::as_slice).unwrap_or_default())
        })
    })
}

impl What {
    /// Heading and JSON pointer of each column.
    fn columns(self) -> &'static [table::Column] {
        match self {
            Self::Locks => &[
                ("NAME", "/name"),
                ("READY", "/ready"),
                ("HELD", "/status/held"),
                ("WAITERS", "/status/waiters"),
                ("OLDEST WAIT", "/status/oldestWait"),
                ("FIRST KEY", "/status/holders/0/key"),
                ("OWNER", "/status/holders/0/owner"),
                ("FENCE", "/status/holders/0/fence"),
            ],
            Self::Queues => &[
                ("NAME", "/name"),
                ("READY", "/ready"),
                ("MESSAGES", "/status/ready"),
                ("IN FLIGHT", "/status/inFlight"),
                ("DELAYED", "/status/delayed"),
                ("DEAD", "/status/dead"),
                ("CONSUMERS", "/status/consumers"),
                ("OLDEST", "/status/oldestAge"),
            ],
            Self::Transactions => &[
                ("NAME", "/name"),
                ("READY", "/ready"),
                ("ACTIVE", "/status/active"),
                ("COMMITTED", "/status/committed"),
                ("ABORTED", "/status/aborted"),
                ("STUCK", "/status/stuck"),
                ("OUTCOME", "/status/outcome"),
            ],
        }
    }
}

/// Name, standing and status of each object of a kind.
async fn look<K: Kind>(admin: &Admin, namespace: &str) -> Result<Vec<Value>>
where
    K::Object: Rebuilt,
{
    let defined = admin.read(namespace, vec![Range::Definitions]).await?;
    let mut found = Vec::new();
    for entry in defined.reads.into_iter().flatten() {
        if let (Key::Definition { kind, name }, Record::Definition(definition)) = (entry.key, entry.record)
            && kind == K::KIND
        {
            found.push(shown::<K>(admin, namespace, name.as_str(), definition).await?);
        }
    }
    Ok(found)
}

/// Name, standing and status of an object.
pub(crate) async fn shown<K: Kind>(
    admin: &Admin,
    namespace: &str,
    name: &str,
    definition: Definition,
) -> Result<Value>
where
    K::Object: Rebuilt,
{
    let object = K::Object::rebuild(namespace, name, &definition)?;
    let standing = match K::unsupported(&object, &definition.settings) {
        Some(what) => Standing::NotSupported(what),
        None => Standing::Accepted,
    };
    let state = K::look(admin, namespace, &object).await?;
    let status = K::status(&object, &standing, Some(&state), &mut K::Memory::default(), Timestamp::now());
    let fact = standing.fact();
    let ready = if standing.accepted() { "True".to_owned() } else { fact.reason.to_owned() };
    Ok(json!({"namespace": namespace, "name": name, "ready": ready, "status": status}))
}
