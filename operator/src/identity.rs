//! Who sidecars are in etcd: every namespace that uses Concordat has a user there, who may read and write the namespace's
//! keys and nothing else, and a Secret with the certificate by which etcd knows it. Only the leader sees to that.
//!
//! A namespace uses Concordat when its label asks for sidecars, a pod's label does, or it has one of Concordat's
//! resources. Its user goes when the namespace does, and not before: pods that have a sidecar may live on.
//!
//! Whatever etcd is asked of its users, even to list them, is a round of Raft. So a pass asks for two lists and looks
//! closely at so many namespaces at most; with more of them each has its turn less often.

mod known;

use std::time::Duration;

use concordat_store::{CommitError, access};
use futures::{Stream, StreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, ObjectReference, Pod};
use kube::{
    Api,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt,
        events::EventType,
        watcher::{self, Event, watcher},
    },
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use self::known::Known;
use crate::{
    controller::Shared,
    events,
    inject::{IDENTITY, INJECT},
    pki::{Authority, Certificate, Error, Life, Request, Usage, secret::Secrets},
};

/// How long after one pass the next one comes, should something have been taken away or changed.
const PACE: Duration = Duration::from_secs(30);
/// At how many namespaces, of those that lack nothing that a list shows, a pass looks closely.
const CLOSELY: usize = 30;
/// How soon etcd is asked again that did not answer.
const RETRY: Duration = Duration::from_secs(1);
/// Namespaces that are seen to at a time: one whose Secret is not taken for long keeps the others waiting no longer.
const AT_ONCE: usize = 8;
/// Of the event in a namespace that is without.
const NO_IDENTITY: &str = "NoIdentity";

/// Sees to the identities of namespaces, signed by this authority as soon as it is known. Without one etcd's users are
/// somebody else's concern.
pub(crate) async fn run(shared: &Shared, authority: Option<watch::Receiver<Option<Authority>>>) {
    let Some(mut authority) = authority else { return std::future::pending().await };
    let (mut namespaces, mut pods) = watches(shared);
    let mut identities =
        Identities { shared, secrets: Secrets::new(shared.client.clone()), known: Known::default() };
    let (mut pass, mut retry) = (Instant::now(), None);
    loop {
        // While nobody can be served it is of no use to look at the clock: what changes that is told.
        let can = authority.borrow().is_some() && identities.known.is_told();
        let next = [Some(pass), retry, identities.next()].into_iter().flatten().min().filter(|_| can);
        tokio::select! {
            Some(event) = namespaces.next() => identities.known.namespace(event),
            Some(event) = pods.next() => identities.known.pod(event),
            () = shared.namespaces.more() => {}
            changed = authority.changed() => match changed {
                Ok(()) => identities.known.all_again(),
                Err(_) => return,
            },
            () = at(next) => {}
        }
        let signs = authority.borrow_and_update().clone();
        let Some(signs) = signs.filter(|_| identities.known.is_told()) else { continue };
        if pass <= Instant::now() {
            let passed = identities.pass().await;
            pass = Instant::now() + if passed.is_ok() { PACE } else { RETRY };
            if let Err(error) = passed {
                tracing::warn!(%error, "etcd's users were not looked at");
                continue;
            }
        }
        if retry.is_none_or(|retry| retry <= Instant::now()) {
            retry = identities.dismiss().await.is_err().then(|| Instant::now() + RETRY);
        }
        identities.serve(&signs).await;
    }
}

/// At this time, or never.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Namespaces, and pods that ask: all, or those of the one namespace.
fn watches(
    shared: &Shared,
) -> (
    impl Stream<Item = Event<PartialObjectMeta<Namespace>>> + Unpin,
    impl Stream<Item = Event<PartialObjectMeta<Pod>>> + Unpin,
) {
    let client = || shared.client.clone();
    let asks = watcher::Config::default().labels(&format!("{INJECT}=enabled"));
    let (named, pods) = match &shared.namespace {
        // By its name the right to list and to watch can be given for it alone.
        Some(name) => (
            watcher::Config::default().fields(&format!("metadata.name={name}")),
            Api::namespaced(client(), name),
        ),
        None => (watcher::Config::default(), Api::all(client())),
    };
    (watched(Api::all(client()), named), watched(pods, asks))
}

fn watched<K>(
    api: Api<PartialObjectMeta<K>>,
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
    let events = watcher(api, config).default_backoff();
    Box::pin(events.filter_map(async |event| match event {
        Ok(event) => Some(event),
        Err(error) => {
            tracing::warn!(%error, "namespaces and pods are not watched");
            None
        }
    }))
}

struct Identities<'a> {
    shared: &'a Shared,
    secrets: Secrets,
    known: Known,
}

impl Identities<'_> {
    /// When somebody is to be seen to again who could not be.
    fn next(&self) -> Option<Instant> {
        self.known.next(&self.shared.namespaces.known())
    }

    /// Sees to it that etcd asks who comes, and whom it knows.
    async fn pass(&mut self) -> Result<(), CommitError> {
        let admin = self.shared.term.admin();
        admin.require_users().await?;
        let mut admitted = admin.admitted().await?;
        if let Some(only) = &self.shared.namespace {
            admitted.retain(|name, _| name == only);
        }
        self.known.are_admitted(&admitted, CLOSELY);
        Ok(())
    }

    /// Takes the users of namespaces away that are gone.
    async fn dismiss(&mut self) -> Result<(), CommitError> {
        for namespace in self.known.gone() {
            match self.shared.term.admin().dismiss(&namespace).await {
                Ok(_) => tracing::info!(namespace, "the namespace is gone, and its user in etcd"),
                Err(error) => {
                    tracing::warn!(namespace, %error, "the user of a namespace that is gone was not removed");
                    return Err(error);
                }
            }
            self.known.is_dismissed(&namespace);
        }
        Ok(())
    }

    /// Serves those who wait, each whatever becomes of the others.
    async fn serve(&mut self, authority: &Authority) {
        let waiting = self.known.waiting(&self.shared.namespaces.known(), Instant::now());
        let (shared, secrets) = (self.shared, &self.secrets);
        let mut served = stream::iter(waiting)
            .map(async |namespace| {
                let life = identify(shared, secrets, authority, &namespace).await;
                (namespace, life)
            })
            .buffer_unordered(AT_ONCE);
        while let Some((namespace, life)) = served.next().await {
            match life {
                Ok(life) => self.known.is_served(namespace, life, Instant::now()),
                Err(error) => {
                    tracing::warn!(namespace, %error, "the namespace has no identity in etcd");
                    tell(shared, &namespace, &error).await;
                    self.known.has_failed(namespace, Instant::now());
                }
            }
        }
        if let Some(first) = self.known.first_to_end() {
            shared.metrics.certified("namespaces", first);
        }
    }
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

/// Tells those who look why their pods wait for a Secret: in their namespace, of the Secret.
async fn tell(shared: &Shared, namespace: &str, error: &Error) {
    let secret = ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Secret".into()),
        namespace: Some(namespace.to_owned()),
        name: Some(IDENTITY.into()),
        ..ObjectReference::default()
    };
    let note = format!("sidecars of this namespace are not known to etcd: {error}");
    let event = events::event(EventType::Warning, NO_IDENTITY, &note);
    if let Err(error) = shared.recorder.publish(&event, &secret).await {
        tracing::warn!(namespace, %error, "an event could not be told");
    }
}
