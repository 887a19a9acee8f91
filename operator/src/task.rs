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
    core::{PartialObjectMeta, Status},
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
/// How soon the API server is asked again for a pod with a sidecar, or whether an operator leads.
const AGAIN: Duration = Duration::from_secs(1);

/// One of them.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Task {
    /// After the operator is gone: takes its finalizer off the objects that stay, so that they and their namespaces can be
    /// deleted, and deletes the Secrets and the lease that operators, or cert-manager for them, made
    Uninstall {
        /// The only namespace whose objects operators looked after [default: all]
        #[arg(long, value_name = "NAME")]
        namespace: Option<String>,
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
        /// How long it may take until one is given, as after an installation; 0s asks once
        #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = duration)]
        patience: Duration,
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
        Task::Uninstall { namespace, secrets, lease } => {
            uninstall(&client, &own, namespace.as_deref(), &secrets, lease.as_deref()).await
        }
        Task::CheckInjection { namespace, patience } => check_injection(client, &namespace, patience).await,
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    text.parse::<concordat_crds::Duration>().map(Duration::from).map_err(|error| error.to_string())
}

/// All of it, whatever becomes of any part, once nobody leads; what went wrong last.
async fn uninstall(
    client: &Client,
    own: &str,
    only: Option<&str>,
    secrets: &[String],
    lease: Option<&str>,
) -> Result<(), Error> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), own);
    let mut failures = Failures::default();
    if let Some(lease) = lease {
        match nobody_leads(&leases, lease).await {
            Err(led @ Error::Led(_)) => return Err(led),
            // Who may not look is told so, and does the rest.
            looked => drop(failures.note(looked)),
        }
    }
    release::<Lock>(client, only, &mut failures).await;
    release::<Queue>(client, only, &mut failures).await;
    release::<DistributedTransaction>(client, only, &mut failures).await;
    let namespaces = match only {
        Some(only) => vec![only.to_owned()],
        None => {
            let all = all(&Api::<Namespace>::all(client.clone()), "namespaces").await;
            failures.note(all).unwrap_or_default().iter().map(ResourceExt::name_any).collect()
        }
    };
    for namespace in namespaces {
        failures.note(delete_secret(client, &namespace, IDENTITY, MANAGED_BY).await);
    }
    for secret in secrets {
        failures.note(delete_secret(client, own, secret, PART_OF).await);
    }
    if let Some(lease) = lease {
        let deleted = leases.delete(lease, &DeleteParams::default()).await;
        failures.note(gone(deleted, &format!("Lease {lease}")));
    }
    failures.0.map_or(Ok(()), Err)
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
        sleep(AGAIN).await;
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

/// Whether there is no such object, or kind: of a kind that nobody knows the API server says so in plain words, without the
/// reason that goes with an object.
fn is_absent(status: &Status) -> bool {
    status.is_not_found() || status.code == 404
}

/// What is not there need not be deleted.
fn gone<T>(answer: kube::Result<T>, what: &str) -> Result<(), Error> {
    match answer {
        Err(kube::Error::Api(status)) if is_absent(&status) => Ok(()),
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
            Err(kube::Error::Api(status)) if is_absent(&status) => return Ok(found),
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
async fn release<K>(client: &Client, only: Option<&str>, failures: &mut Failures)
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let kind = K::kind(&());
    let api: Api<K> = match only {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let objects = failures.note(all(&api, &kind).await).unwrap_or_default();
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

/// Asks until a pod that asks is given a sidecar; the last answer once `patience` is over. API servers come to know of a
/// webhook, and of whom to trust at it, in their own time.
async fn check_injection(client: Client, namespace: &str, patience: Duration) -> Result<(), Error> {
    let api: Api<Pod> = Api::namespaced(client, namespace);
    let until = Instant::now() + patience;
    let mut said = String::new();
    loop {
        let Err(error) = is_injected(&api).await else {
            println!("a pod that asks for a sidecar gets one");
            return Ok(());
        };
        if Instant::now() + AGAIN > until {
            return Err(error);
        }
        if error.to_string() != said {
            said = error.to_string();
            eprintln!("not yet: {said}");
        }
        sleep(AGAIN).await;
    }
}

/// Whether a pod that asks is given a sidecar; none is made.
async fn is_injected(api: &Api<Pod>) -> Result<(), Error> {
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
    let made = api.create(&params, &pod).await.map_err(|why| failed("a pod that asks for a sidecar", why))?;
    let mut inits = made.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    if inits.any(|container| container.name == CONTAINER) { Ok(()) } else { Err(Error::NotInjected) }
}
