//! What is done once, instead of looking after objects: what the chart's hooks run.

use std::{fmt::Debug, time::Duration};

use concordat_crds::names::FINALIZER;
use concordat_crds::{DistributedTransaction, Lock, Queue};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        coordination::v1::Lease,
        core::v1::{Namespace, Pod, Secret},
    },
};
use kube::{
    Api, Client, Config, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    core::PartialObjectMeta,
};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::{
    inject::{CONTAINER, IDENTITY, INJECT},
    pki::secret::{MANAGED_BY, PART_OF},
};

/// How many objects are read at once.
const PAGE: u32 = 500;
/// How often it is looked whether an operator leads.
const PACE: Duration = Duration::from_secs(1);

/// One of them.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Task {
    /// After the operator is gone: takes its finalizer off the objects that stay, so that they and their namespaces can be
    /// deleted, and deletes the Secrets and the lease that operators, or cert-manager for them, made
    Uninstall {
        /// Secrets of the own namespace that were made for operators, separated by commas
        #[arg(long, value_name = "NAME,NAME", value_delimiter = ',')]
        secrets: Vec<String>,
        /// Lease of the own namespace by which operators elected a leader
        #[arg(long, value_name = "NAME")]
        lease: Option<String>,
    },
    /// Fails unless the API server gives a sidecar to a pod that asks for one; no pod is made
    CheckInjection {
        /// Namespace of that pod
        #[arg(long, value_name = "NAME", default_value = "default")]
        namespace: String,
    },
}

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No kubeconfig, and not in a cluster.
    #[error("no way to the Kubernetes API: {0}")]
    Kubeconfig(#[from] kube::config::InferConfigError),
    /// The API server does not do what is asked.
    #[error("{what}: {why}")]
    Kubernetes {
        /// What was asked.
        what: String,
        /// What it said.
        why: kube::Error,
    },
    /// There is an operator still: what is taken away it would make anew.
    #[error("{0} looks after objects: delete its Deployment first")]
    Led(String),
    /// A pod that asks for a sidecar gets none.
    #[error(
        "the API server lets a pod with label {INJECT}=enabled in without a sidecar: is there a \
         MutatingWebhookConfiguration for it, and is its namespace not excluded?"
    )]
    NotInjected,
}

/// Does it.
pub async fn run(task: Task) -> Result<(), Error> {
    let config = Config::infer().await?;
    let own = config.default_namespace.clone();
    let client = Client::try_from(config).map_err(|why| failed("the client", why))?;
    match task {
        Task::Uninstall { secrets, lease } => {
            let leases: Api<Lease> = Api::namespaced(client.clone(), &own);
            if let Some(lease) = &lease {
                nobody_leads(&leases, lease).await?;
            }
            let mut failures = Failures::default();
            release::<Lock>(&client, &mut failures).await;
            release::<Queue>(&client, &mut failures).await;
            release::<DistributedTransaction>(&client, &mut failures).await;
            let namespaces = all(&Api::<Namespace>::all(client.clone()), "namespaces").await;
            for namespace in failures.note(namespaces).unwrap_or_default() {
                failures.note(delete_secret(&client, &namespace.name_any(), IDENTITY, MANAGED_BY).await);
            }
            for secret in secrets {
                failures.note(delete_secret(&client, &own, &secret, PART_OF).await);
            }
            if let Some(lease) = lease {
                let deleted = leases.delete(&lease, &DeleteParams::default()).await;
                failures.note(gone(deleted, &format!("Lease {lease}")));
            }
            failures.0.map_or(Ok(()), Err)
        }
        Task::CheckInjection { namespace } => check_injection(client, &namespace).await,
    }
}

fn failed(what: &str, why: kube::Error) -> Error {
    Error::Kubernetes { what: what.to_owned(), why }
}

/// Fails where an operator renews its lease. One that ended without letting go of it is waited for.
async fn nobody_leads(leases: &Api<Lease>, name: &str) -> Result<(), Error> {
    let read = async || {
        let lease = leases.get_opt(name).await.map_err(|why| failed(&format!("Lease {name}"), why))?;
        let spec = lease.and_then(|lease| lease.spec).unwrap_or_default();
        Ok::<_, Error>((
            spec.holder_identity.filter(|holder| !holder.is_empty()),
            spec.lease_duration_seconds,
            spec.renew_time,
        ))
    };
    let (holder, seconds, renewed) = read().await?;
    let Some(holder) = holder else { return Ok(()) };
    let over = Instant::now() + Duration::from_secs(seconds.unwrap_or_default().unsigned_abs().into());
    while Instant::now() < over {
        sleep(PACE).await;
        let (now, _, renewal) = read().await?;
        if now.is_none() {
            return Ok(());
        }
        if renewal != renewed {
            return Err(Error::Led(holder));
        }
    }
    Ok(())
}

/// What is not there need not be deleted.
fn gone<T>(answer: kube::Result<T>, what: &str) -> Result<(), Error> {
    match answer {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        answer => answer.map(drop).map_err(|why| failed(what, why)),
    }
}

/// All objects of a kind, but for what they say; none where nobody knows the kind.
async fn all<K>(api: &Api<K>, what: &str) -> Result<Vec<PartialObjectMeta<K>>, Error>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let mut params = ListParams::default().limit(PAGE);
    let mut found = Vec::new();
    loop {
        let page = match api.list_metadata(&params).await {
            Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(found),
            page => page.map_err(|why| failed(what, why))?,
        };
        found.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(found),
        }
    }
}

/// Takes the operator's finalizer off every object of a kind.
async fn release<K>(client: &Client, failures: &mut Failures)
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let kind = K::kind(&());
    let objects = failures.note(all(&Api::<K>::all(client.clone()), &kind).await).unwrap_or_default();
    for object in objects {
        let others: Vec<&String> = object.finalizers().iter().filter(|name| *name != FINALIZER).collect();
        if others.len() == object.finalizers().len() {
            continue;
        }
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        // Only as it was read: a finalizer that somebody added meanwhile is not lost.
        let patch =
            json!({ "metadata": { "finalizers": others, "resourceVersion": object.resource_version() } });
        let api: Api<K> = Api::namespaced(client.clone(), &namespace);
        let patched = api.patch_metadata(&name, &PatchParams::default(), &Patch::Merge(patch)).await;
        failures.note(gone(patched, &format!("{kind} {namespace}/{name}")));
    }
}

/// What did not succeed, while all else is done.
#[derive(Default)]
struct Failures(Option<Error>);

impl Failures {
    fn note<T>(&mut self, answer: Result<T, Error>) -> Option<T> {
        answer
            .map_err(|error| {
                eprintln!("{error}");
                self.0 = Some(error);
            })
            .ok()
    }
}

/// Deletes a Secret if it has this label: nobody else's.
async fn delete_secret(
    client: &Client,
    namespace: &str,
    name: &str,
    (label, value): (&str, &str),
) -> Result<(), Error> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let what = format!("Secret {namespace}/{name}");
    let found = api.get_opt(name).await.map_err(|why| failed(&what, why))?;
    let ours = |secret: &Secret| secret.labels().get(label).is_some_and(|of| of == value);
    if found.as_ref().is_some_and(ours) {
        gone(api.delete(name, &DeleteParams::default()).await, &what)?;
    }
    Ok(())
}

async fn check_injection(client: Client, namespace: &str) -> Result<(), Error> {
    let mut pod = Pod::default();
    pod.metadata.generate_name = Some("concordat-check-".into());
    pod.metadata.labels = Some([(INJECT.into(), "enabled".into()), ("app".into(), "check".into())].into());
    let spec = json!({
        "automountServiceAccountToken": false,
        "securityContext": { "runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": { "type": "RuntimeDefault" } },
        "containers": [{
            "name": "check",
            "image": "check",
            "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } },
        }],
    });
    pod.spec = serde_json::from_value(spec).ok();
    let params = PostParams { dry_run: true, ..PostParams::default() };
    let api: Api<Pod> = Api::namespaced(client, namespace);
    let made = api.create(&params, &pod).await.map_err(|why| failed("a pod that asks for a sidecar", why))?;
    let mut inits = made.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    if inits.any(|container| container.name == CONTAINER) {
        println!("a pod that asks for a sidecar gets one");
        Ok(())
    } else {
        Err(Error::NotInjected)
    }
}
