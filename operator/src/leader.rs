//! Who leads: one Lease of `coordination.k8s.io`, as Kubernetes' own components use it.
//!
//! A lease only keeps replicas from working against each other; what keeps two that both believe they lead from doing
//! harm is the epoch in etcd ([`crate::etcd::Term`]). No clock of another machine is read: a lease is over when it was
//! not seen to change for as long as it lasts, by one's own clock.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use concordat_protocol::timeline::Remembered;
use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{Api, Client, api::PostParams};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout};

use crate::admin::Health;

/// The annotation that holds etcd's cluster id and the last revision that was seen, as in `cdf8181a8c3c7fb1:4711`.
pub const REMEMBERED: &str = "concordat.dev/etcd";

/// Which lease, and who wants it.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The namespace of the lease.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// This replica: unlike any other's.
    pub identity: String,
    /// How long others wait for a leader that is not heard of; at least 1 s.
    pub duration: Duration,
}

/// Stands for election, time and again.
pub struct Elector {
    api: Api<Lease>,
    candidate: Candidate,
    health: Arc<Health>,
    /// The lease as last seen, and since when it is so.
    seen: Option<(LeaseSpec, Instant)>,
    /// What is remembered of etcd, outside it: in an annotation of the lease, which each leader finds and writes.
    memory: Memory,
}

/// What the leader remembers of etcd.
pub type Memory = Arc<Mutex<Option<Remembered>>>;

/// What to do about a lease.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// It is not there: make it.
    Create,
    /// It is free, over, or one's own: write oneself into it.
    Take,
    /// Another leads.
    Wait,
}

impl Elector {
    /// A candidate.
    pub fn new(client: Client, candidate: Candidate, health: Arc<Health>) -> Self {
        Self {
            api: Api::namespaced(client, &candidate.namespace),
            candidate,
            health,
            seen: None,
            memory: Memory::default(),
        }
    }

    /// What the leader remembers of etcd: the last one's, once the lease is this replica's.
    pub fn memory(&self) -> Memory {
        self.memory.clone()
    }

    /// Returns once the lease is this replica's, with when the write that made it so was sent.
    pub async fn acquire(&mut self) -> Instant {
        loop {
            let sent = Instant::now();
            if self.attempt().await {
                return sent;
            }
            sleep(self.pace()).await;
        }
    }

    /// Renews the lease and returns once it may be another's: it was seen to be, or was not renewed for two thirds of
    /// its duration, counted from when the last renewal that succeeded was sent.
    pub async fn keep(&mut self, mut renewed: Instant) {
        let limit = self.candidate.duration * 2 / 3;
        loop {
            sleep(self.pace()).await;
            let sent = Instant::now();
            let left = (renewed + limit).saturating_duration_since(sent);
            match timeout(left, self.attempt()).await {
                Ok(true) => renewed = sent,
                Ok(false) if self.another_leads() || renewed.elapsed() >= limit => return,
                Ok(false) => {}
                Err(_) => return,
            }
        }
    }

    /// Gives the lease up, so that the next one need not wait for its end.
    pub async fn release(&mut self) {
        let Ok(Some(mut lease)) = self.api.get_opt(&self.candidate.name).await else { return };
        let Some(spec) = lease.spec.as_mut().filter(|spec| holder(spec) == self.candidate.identity) else {
            return;
        };
        spec.holder_identity = None;
        if let Err(error) = self.api.replace(&self.candidate.name, &PostParams::default(), &lease).await {
            tracing::warn!(%error, "the lease could not be given up: the next leader waits for its end");
        }
        self.seen = None;
    }

    /// A lease is renewed thrice within the time after which its holder would give up.
    fn pace(&self) -> Duration {
        self.candidate.duration / 5
    }

    fn another_leads(&self) -> bool {
        self.seen.as_ref().is_some_and(|(spec, _)| holder(spec) != self.candidate.identity)
    }

    /// Tries once to make the lease this replica's.
    async fn attempt(&mut self) -> bool {
        let result = self.try_once().await;
        self.health.kubernetes.store(result.is_ok(), Ordering::Relaxed);
        match result {
            Ok(leads) => leads,
            Err(error) => {
                tracing::warn!(%error, "the lease cannot be read or written");
                false
            }
        }
    }

    async fn try_once(&mut self) -> Result<bool, kube::Error> {
        let found = self.api.get_opt(&self.candidate.name).await?;
        let spec = found.as_ref().map(|lease| lease.spec.clone().unwrap_or_default());
        let unchanged = self.observe(spec.as_ref());
        let written = match decide(&self.candidate.identity, spec.as_ref(), unchanged) {
            Step::Wait => return Ok(false),
            Step::Create => {
                let mut lease = Lease::default();
                lease.metadata.name = Some(self.candidate.name.clone());
                lease.spec = Some(self.taken(None));
                self.api.create(&PostParams::default(), &lease).await
            }
            // The lease read carries its resource version: another's write in between makes this one a conflict.
            Step::Take => {
                let mut lease = found.unwrap_or_default();
                self.remember(&mut lease, spec.as_ref());
                lease.spec = Some(self.taken(spec.as_ref()));
                self.api.replace(&self.candidate.name, &PostParams::default(), &lease).await
            }
        };
        match written {
            Ok(lease) => {
                self.observe(lease.spec.as_ref());
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes over what the leader before this one remembered, or writes down what this one does.
    fn remember(&self, lease: &mut Lease, before: Option<&LeaseSpec>) {
        let mut memory = self.memory.lock();
        let annotations = lease.metadata.annotations.get_or_insert_default();
        if before.is_some_and(|spec| holder(spec) == self.candidate.identity) {
            annotations.extend(memory.as_ref().map(|memory| (REMEMBERED.to_owned(), written(memory))));
        } else {
            let found = annotations.get(REMEMBERED);
            *memory = found.and_then(|text| read(text));
            if memory.is_none()
                && let Some(text) = found
            {
                tracing::warn!(
                    text,
                    "the lease's annotation {REMEMBERED} is not of the form cluster:revision"
                );
            }
        }
    }

    /// Notes the lease as it is; tells for how long it has been seen so.
    fn observe(&mut self, spec: Option<&LeaseSpec>) -> Duration {
        match (&self.seen, spec) {
            (Some((before, since)), Some(spec)) if before == spec => since.elapsed(),
            (_, spec) => {
                self.seen = spec.map(|spec| (spec.clone(), Instant::now()));
                Duration::ZERO
            }
        }
    }

    /// The lease's spec with this replica as its holder.
    fn taken(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let mine = before.is_some_and(|spec| holder(spec) == self.candidate.identity);
        let transitions = before.and_then(|spec| spec.lease_transitions);
        LeaseSpec {
            holder_identity: Some(self.candidate.identity.clone()),
            lease_duration_seconds: Some(self.candidate.duration.as_secs().max(1) as i32),
            acquire_time: before
                .filter(|_| mine)
                .map_or_else(|| Some(now.clone()), |spec| spec.acquire_time.clone()),
            renew_time: Some(now),
            lease_transitions: if mine {
                transitions
            } else {
                Some(transitions.map_or(0, |count| count + 1))
            },
            ..before.cloned().unwrap_or_default()
        }
    }
}

fn written(Remembered { cluster, revision, .. }: &Remembered) -> String {
    format!("{cluster:x}:{revision}")
}

fn read(text: &str) -> Option<Remembered> {
    let (cluster, revision) = text.split_once(':')?;
    let cluster = u64::from_str_radix(cluster, 16).ok()?;
    Some(Remembered { epoch: None, cluster, revision: revision.parse().ok()?, offset: 0 })
}

fn holder(spec: &LeaseSpec) -> &str {
    spec.holder_identity.as_deref().unwrap_or_default()
}

/// What `me` does about a lease that has been seen unchanged for so long.
fn decide(me: &str, lease: Option<&LeaseSpec>, unchanged: Duration) -> Step {
    let Some(spec) = lease else { return Step::Create };
    let lasts = Duration::from_secs(spec.lease_duration_seconds.unwrap_or_default().max(1) as u64);
    if holder(spec).is_empty() || holder(spec) == me || unchanged > lasts { Step::Take } else { Step::Wait }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: Option<&str>) -> LeaseSpec {
        LeaseSpec {
            holder_identity: holder.map(Into::into),
            lease_duration_seconds: Some(15),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn what_is_remembered_of_etcd_is_read_as_it_was_written() {
        let remembered = Remembered { epoch: None, cluster: 0xcdf8, revision: 4_711, offset: 0 };
        assert_eq!(written(&remembered), "cdf8:4711");
        assert_eq!(read("cdf8:4711"), Some(remembered));
        assert_eq!(["", "x:1", "1", "1:x"].map(read), [None; 4]);
    }

    #[test]
    fn a_lease_is_taken_when_it_is_free_over_or_one_s_own() {
        let seconds = Duration::from_secs;
        for (spec, unchanged, step) in [
            (None, 0, Step::Create),
            (Some(lease(None)), 0, Step::Take),
            (Some(lease(Some(""))), 0, Step::Take),
            (Some(lease(Some("me"))), 0, Step::Take),
            (Some(lease(Some("other"))), 0, Step::Wait),
            (Some(lease(Some("other"))), 15, Step::Wait),
            (Some(lease(Some("other"))), 16, Step::Take),
            (Some(LeaseSpec { lease_duration_seconds: None, ..lease(Some("other")) }), 2, Step::Take),
        ] {
            assert_eq!(decide("me", spec.as_ref(), seconds(unchanged)), step, "{spec:?} for {unchanged} s");
        }
    }
}
