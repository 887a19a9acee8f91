//! What an operation of the product costs etcd, counted and not timed: so that a slower protocol is a red test on any
//! machine.
//!
//! Writes are counted by kind of key from the record of every change; calls and reads by etcd's own counters.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use concordat_protocol::Key;
use parking_lot::Mutex;
use serde::Serialize;

use crate::{
    etcd::Etcd,
    history::{Change, Recorder},
};

/// Longer than anything waits that an operation leaves to be done later: a sidecar puts its counters within 2 s.
const QUIET: Duration = Duration::from_millis(2_500);
const POLL: Duration = Duration::from_millis(50);
/// What a sidecar counts is put at most every 2 s, however much is done: it belongs to no operation.
const STAT: &str = "stat";

/// What was asked of etcd.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// Calls by method, as in `Txn`; those to put counters alone are left out.
    pub calls: BTreeMap<String, u64>,
    /// Revisions that were made; those of counters alone are left out.
    pub commits: u64,
    /// Keys put, by kind.
    pub puts: BTreeMap<&'static str, u64>,
    /// Keys deleted, by kind.
    pub deletes: BTreeMap<&'static str, u64>,
    /// Keys and ranges read, compares included.
    pub reads: u64,
}

impl Cost {
    /// All calls.
    pub fn rounds(&self) -> u64 {
        self.calls.values().sum()
    }

    /// All keys put or deleted.
    pub fn writes(&self) -> u64 {
        self.puts.values().chain(self.deletes.values()).sum()
    }
}

/// Counts what is asked of an etcd of one node while nobody else uses it.
pub struct Meter {
    recorder: Recorder,
    http: reqwest::Client,
    url: String,
    /// The counters after the last measurement.
    measured: Mutex<Option<Counters>>,
}

/// etcd's counters at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Counters {
    calls: BTreeMap<String, u64>,
    reads: u64,
}

impl Meter {
    /// A meter of `etcd`, which asks for no certificate.
    pub async fn start(etcd: &Etcd) -> Result<Self> {
        let url = format!("{}/metrics", etcd.endpoint(0));
        let recorder = Recorder::start(etcd.client().await?);
        Ok(Self { recorder, http: reqwest::Client::new(), url, measured: Mutex::default() })
    }

    /// What `operation` costs, with all that it leaves to be done later. What goes on anyhow, as keeping leases alive
    /// does on streams, is not counted.
    pub async fn measure<T>(&self, operation: impl Future<Output = T>) -> Result<(T, Cost)> {
        let counters = self.counters().await?;
        // Where nothing was asked since the last measurement, it is quiet already.
        if self.measured.lock().as_ref() != Some(&counters) {
            self.quiet_since(counters).await?;
        }
        let earlier = self.recorder.changes().await?.len();
        let before = self.counters().await?;
        let value = operation.await;
        let after = self.quiet_since(before.clone()).await?;
        let changes = self.recorder.changes().await?;
        *self.measured.lock() = Some(self.counters().await?);
        Ok((value, cost(&before, &after, &changes[earlier..])))
    }

    /// Every change that was recorded so far, without a question to etcd that would be counted.
    pub fn seen(&self) -> Vec<Change> {
        self.recorder.seen()
    }

    /// The counters once nothing was asked for a while.
    async fn quiet_since(&self, mut last: Counters) -> Result<Counters> {
        let mut since = Instant::now();
        while since.elapsed() < QUIET {
            tokio::time::sleep(POLL).await;
            let counters = self.counters().await?;
            if counters != last {
                (last, since) = (counters, Instant::now());
            }
        }
        Ok(last)
    }

    async fn counters(&self) -> Result<Counters> {
        let text = self.http.get(&self.url).send().await?.error_for_status()?.text().await?;
        Counters::parse(&text)
    }
}

impl Counters {
    /// Reads etcd's metrics, in Prometheus's text form.
    fn parse(text: &str) -> Result<Self> {
        let mut counters = Self { calls: BTreeMap::new(), reads: 0 };
        for line in text.lines() {
            let Some((name, value)) = line.rsplit_once(' ') else { continue };
            if name == "etcd_mvcc_range_total" {
                counters.reads = count(value)?;
            } else if let Some(labels) = name.strip_prefix("grpc_server_started_total{")
                && let Some((_, method)) = labels.split_once("grpc_method=\"")
                && labels.contains("grpc_type=\"unary\"")
            {
                let method = method.split('"').next().context("a label without end")?;
                // A sidecar looks every few seconds at how full etcd is, whatever it is asked.
                if method == "Status" {
                    continue;
                }
                *counters.calls.entry(method.to_owned()).or_default() += count(value)?;
            }
        }
        Ok(counters)
    }
}

/// A counter, which Prometheus writes as a floating point number.
fn count(value: &str) -> Result<u64> {
    Ok(value.parse::<f64>().with_context(|| format!("a counter of {value}"))?.round() as u64)
}

fn cost(before: &Counters, after: &Counters, changes: &[Change]) -> Cost {
    let mut cost = Cost { reads: after.reads - before.reads, ..Cost::default() };
    for (method, calls) in &after.calls {
        let new = calls - before.calls.get(method).copied().unwrap_or_default();
        if new > 0 {
            cost.calls.insert(method.clone(), new);
        }
    }
    let mut revisions: BTreeMap<i64, Vec<&Change>> = BTreeMap::new();
    for change in changes {
        revisions.entry(change.revision).or_default().push(change);
    }
    for changes in revisions.values() {
        let kinds: BTreeSet<_> = changes.iter().map(|change| kind(&change.key)).collect();
        // A batch of counters alone, with its flusher's marker, belongs to no operation.
        if kinds.contains(STAT) && kinds.iter().all(|kind| [STAT, "marker"].contains(kind)) {
            if let Some(txns) = cost.calls.get_mut("Txn") {
                *txns = txns.saturating_sub(1);
            }
            continue;
        }
        cost.commits += 1;
        for Change { key, entry, .. } in changes.iter().filter(|change| kind(&change.key) != STAT) {
            let writes = if entry.is_some() { &mut cost.puts } else { &mut cost.deletes };
            *writes.entry(kind(key)).or_default() += 1;
        }
    }
    cost.calls.retain(|_, calls| *calls > 0);
    cost
}

/// What a key is, in a word.
fn kind(key: &Key) -> &'static str {
    match key {
        Key::Definition { .. } => "definition",
        Key::Session(_) => "session",
        Key::Marker { .. } => "marker",
        Key::Work { .. } => "work",
        Key::Answer { .. } => "answer",
        Key::Transaction(_) => "transaction",
        Key::Done(_) => "done",
        Key::Holder { .. } => "holder",
        Key::Waiter { .. } => "waiter",
        Key::Shadow { .. } => "shadow",
        Key::Want { .. } => "want",
        Key::Segment { .. } => "segment",
        Key::Progress { .. } => "progress",
        Key::Claim { .. } => "claim",
        Key::Dead { .. } => "dead letter",
        Key::Dedup { .. } => "dedup",
        Key::Stat { .. } => STAT,
        Key::Timeline => "timeline",
        Key::Epoch => "epoch",
    }
}
