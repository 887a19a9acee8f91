//! Who sidecars are in etcd: every namespace that uses Concordat has a user there, who may read and write the namespace's
//! keys and nothing else, and a Secret with the certificate by which etcd knows it. Only the leader sees to that.
//!
//! A namespace uses Concordat when its label asks for sidecars, a pod's label does, or it has one of Concordat's
//! resources. Its user goes when the namespace does.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use concordat_store::access;
use futures::{Stream, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    Api, ResourceExt,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    controller::Shared,
    inject::{IDENTITY, INJECT},
    pki::{Authority, Certificate, Error, Life, Request, Usage, secret::Secrets},
};

/// How often every namespace is looked at, should something have been taken away.
const PACE: Duration = Duration::from_secs(30);
/// How soon what did not succeed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What is known of namespaces.
#[derive(Default)]
struct Known {
    /// Those that there are, once all were told, and whether they are to stay.
    there: BTreeMap<String, bool>,
    all_told: bool,
    /// Those that ask by a label, or have a pod that does.
    asking: BTreeSet<String>,
    /// Those whose identity is as it should be, with its certificate's life.
    served: BTreeMap<String, Life>,
}

/// Sees to the identities of namespaces, signed by this authority as soon as it is known. Without one etcd's users are
/// somebody else's concern.
pub(crate) async fn run(shared: &Shared, authority: Option<watch::Receiver<Option<Authority>>>) {
    let Some(mut authority) = authority else { return std::future::pending().await };
    while let Err(error) = shared.term.admin().require_users().await {
        tracing::warn!(%error, "etcd was not told to ask who comes");
        sleep(RETRY).await;
    }
    let secrets = Secrets::new(shared.client.clone());
    let mut known = Known::default();
    let asks = watcher::Config::default().labels(&format!("{INJECT}=enabled"));
    let mut namespaces = watched::<Namespace>(shared, watcher::Config::default());
    let mut pods = watched::<Pod>(shared, asks);
    let mut due = Instant::now();
    loop {
        let mut all = false;
        tokio::select! {
            Some(event) = namespaces.next() => known.namespace(event),
            Some(event) = pods.next() => known.pod(event),
            changed = authority.changed() => match changed {
                Ok(()) => all = true,
                Err(_) => return,
            },
            () = sleep_until(due) => all = true,
        }
        let signs = authority.borrow_and_update().clone();
        let Some(signs) = signs.filter(|_| known.all_told) else {
            due = Instant::now() + RETRY;
            continue;
        };
        if all {
            known.served.clear();
            due = Instant::now() + PACE;
        }
        let served = serve(shared, &secrets, &signs, &mut known).await;
        if !served || all && !dismiss(shared, &known.there).await {
            due = Instant::now() + RETRY;
        }
    }
}

fn watched<K>(
    shared: &Shared,
    config: watcher::Config,
) -> impl Stream<Item = Event<PartialObjectMeta<K>>> + Unpin
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + Send
        + 'static,
{
    let api: Api<PartialObjectMeta<K>> = Api::all(shared.client.clone());
    let events = watcher(api, config).default_backoff();
    Box::pin(events.filter_map(async |event| match event {
        Ok(event) => Some(event),
        Err(error) => {
            tracing::warn!(%error, "namespaces and pods are not watched");
            None
        }
    }))
}

impl Known {
    fn namespace(&mut self, event: Event<PartialObjectMeta<Namespace>>) {
        match event {
            Event::Apply(namespace) | Event::InitApply(namespace) => {
                let name = namespace.name_any();
                if namespace.labels().get(INJECT).is_some_and(|asks| asks == "enabled") {
                    self.asking.insert(name.clone());
                }
                self.there.insert(name, namespace.metadata.deletion_timestamp.is_none());
            }
            Event::Delete(namespace) => self.forget(&namespace.name_any()),
            Event::Init => (self.all_told, self.there) = (false, BTreeMap::new()),
            Event::InitDone => self.all_told = true,
        }
    }

    fn pod(&mut self, event: Event<PartialObjectMeta<Pod>>) {
        if let Event::Apply(pod) | Event::InitApply(pod) = event
            && let Some(namespace) = pod.namespace()
        {
            self.asking.insert(namespace);
        }
    }

    fn forget(&mut self, namespace: &str) {
        self.there.remove(namespace);
        self.asking.remove(namespace);
        self.served.remove(namespace);
    }

    /// Those that use Concordat and have not got their identity yet.
    fn waiting(&self, with_objects: &BTreeSet<String>) -> Vec<String> {
        let stays = |name: &&String| self.there.get(*name) == Some(&true);
        let uses = self.asking.union(with_objects).filter(stays);
        uses.filter(|name| !self.served.contains_key(*name)).cloned().collect()
    }
}

/// Serves those who wait, each whatever becomes of the others; whether all are served.
async fn serve(shared: &Shared, secrets: &Secrets, authority: &Authority, known: &mut Known) -> bool {
    let mut all = true;
    for namespace in known.waiting(&shared.namespaces.known()) {
        match identify(shared, secrets, authority, &namespace).await {
            Ok(life) => drop(known.served.insert(namespace, life)),
            Err(error) => {
                tracing::warn!(namespace, %error, "the namespace has no identity in etcd");
                all = false;
            }
        }
    }
    if let Some(first) = known.served.values().min_by_key(|life| life.not_after) {
        shared.metrics.certified("namespaces", *first);
    }
    all
}

/// Gives a namespace its user, and its certificate.
async fn identify(
    shared: &Shared,
    secrets: &Secrets,
    authority: &Authority,
    namespace: &str,
) -> Result<Life, Error> {
    let etcd = |error| Error::Read(format!("etcd's users: {error}"));
    if shared.term.admin().admit(namespace).await.map_err(etcd)? {
        tracing::info!(namespace, "etcd knows the namespace");
    }
    let request =
        Request { common_name: access::user_of(namespace), names: Vec::new(), usage: Usage::Client };
    let issued = secrets.issued(namespace, IDENTITY, &request, authority, Timestamp::now()).await?;
    Ok(Certificate::read(&issued.certificate)?.life)
}

/// Takes the users of namespaces away that are gone.
async fn dismiss(shared: &Shared, there: &BTreeMap<String, bool>) -> bool {
    let admin = shared.term.admin();
    let gone = match admin.admitted().await {
        Ok(admitted) => admitted.into_iter().filter(|name| !there.contains_key(name)),
        Err(error) => {
            tracing::warn!(%error, "etcd's users were not listed");
            return false;
        }
    };
    for namespace in gone {
        match admin.dismiss(&namespace).await {
            Ok(_) => tracing::info!(namespace, "the namespace is gone, and its user in etcd"),
            Err(error) => {
                tracing::warn!(namespace, %error, "the user of a namespace that is gone was not removed");
                return false;
            }
        }
    }
    true
}
