//! Locks of every mode and kind, for as many grants as are asked for, while everything that touches them breaks in a random
//! order: `make soak-locks`.
//!
//! A run is a row of rounds. In each, callers come and go, one fault or two strike and are over, and every sidecar grants
//! again; then the callers leave, nothing may stay, L1 to L7 are held over the round, and its record is forgotten. So
//! memory does not grow, while fences and fenced resources go on from round to round.

mod caller;
mod fault;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use concordat_protocol::{
    Key, Millis,
    lock::{Mode, Settings, Sharing},
};
use concordat_tests::{
    etcd::{self, Etcd},
    history::{Change, lock::Callers},
    process::eventually,
    proxy::Proxy,
};
use parking_lot::{Mutex, RwLock};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use reqwest::Client;
use serde_json::json;
use tokio::{sync::watch, task::JoinSet};

use self::{
    caller::Caller,
    fault::{Fault, Struck},
};
use crate::world::{Options, Sidecar, World, settings};

const PODS: [&str; 3] = ["a", "b", "c"];
/// Callers of each sidecar.
const CALLERS: usize = 8;
/// Keys of each lock; and one that is held while etcd has no space.
const KEYS: [&str; 2] = ["0", "1"];
const HELD: &str = "held";
/// Grants of a round, at most.
const ROUND: u64 = 1_000;
/// Bytes until NOSPACE.
const QUOTA: u64 = 32 << 20;
/// How long the run may stand still: for a machine that is busy with other work.
const PATIENCE: Duration = Duration::from_mins(2);

/// A lock of each mode and kind: its name, who may hold it together, and its lock-delay. One stays where it was let go.
const STAYS: &str = "swap";
const LOCKS: [(&str, Mode, Sharing, Millis); 6] = [
    (STAYS, Mode::CompareAndSwap, Sharing::Mutex, 0),
    ("lease", Mode::Lease, Sharing::Mutex, 500),
    ("fair", Mode::FairQueue, Sharing::Mutex, 0),
    ("late", Mode::FairQueue, Sharing::Mutex, 500),
    ("rw", Mode::FairQueue, Sharing::ReadWrite, 0),
    ("many", Mode::FairQueue, Sharing::Semaphore, 0),
];
const PERMITS: u32 = 4;

fn paths() -> impl Iterator<Item = String> {
    LOCKS.iter().flat_map(|(lock, ..)| KEYS.iter().chain([&HELD]).map(move |key| format!("{lock}/{key}")))
}

/// What callers and faults know of each other.
struct Scene {
    callers: Arc<Callers>,
    pods: Vec<Pod>,
    /// Grants so far.
    grants: watch::Sender<u64>,
    /// Nothing has struck yet in this round: who never lets go keeps others waiting no longer than a fault does.
    calm: AtomicBool,
    /// No caller begins anything new.
    over: AtomicBool,
    /// What a caller found wrong.
    wrong: Mutex<Option<String>>,
    tally: Tally,
}

/// A sidecar as its callers see it: the next one in its place has another port.
struct Pod {
    api: RwLock<String>,
    client: Client,
    grants: AtomicU64,
    /// Answers that it could not do what was asked, or lost it.
    refusals: AtomicU64,
}

/// What became of calls.
#[derive(Default)]
struct Tally {
    writes: AtomicU64,
    stale_writes: AtomicU64,
    lost: AtomicU64,
    unavailable: AtomicU64,
    broken: AtomicU64,
    hung_up: AtomicU64,
    left: AtomicU64,
}

impl Scene {
    fn over(&self) -> bool {
        self.over.load(SeqCst)
    }

    /// Waits for so many grants in all, as long as there are any.
    async fn reach(&self, count: u64) -> Result<()> {
        let mut grants = self.grants.subscribe();
        loop {
            if let Some(wrong) = &*self.wrong.lock() {
                bail!("{wrong}");
            }
            let now = *grants.borrow_and_update();
            if now >= count {
                return Ok(());
            }
            let changed = tokio::time::timeout(PATIENCE, grants.changed()).await;
            ensure!(changed.is_ok(), "no progress: {now} of {count} grants");
        }
    }

    /// Waits for so many more.
    async fn more(&self, count: u64) -> Result<()> {
        let now = *self.grants.borrow();
        self.reach(now + count).await
    }
}

/// A run, and all that it runs on.
struct Soak {
    world: World,
    scene: Arc<Scene>,
    /// Each with its ways to the members of etcd.
    sidecars: Vec<(Sidecar, Vec<Proxy>)>,
    random: StdRng,
    seed: u64,
    struck: BTreeMap<Fault, u64>,
}

impl Soak {
    async fn start(seed: u64) -> Result<Self> {
        let settings = etcd::Settings { members: 3, parted: true, ..etcd::Settings::default() }.quota(QUOTA);
        let world = World::with(Etcd::with(settings).await?).await?;
        for (name, mode, sharing, lock_delay) in LOCKS {
            world.define(name, of(mode, sharing, lock_delay)).await?;
        }
        let (mut sidecars, mut pods) = (Vec::new(), Vec::new());
        for pod in PODS {
            let mut ways = Vec::new();
            for member in 0..3 {
                ways.push(Proxy::start(world.etcd.address(member)).await?);
            }
            let sidecar = start(&world, pod, &ways).await?;
            pods.push(Pod {
                api: RwLock::new(sidecar.api.clone()),
                client: Client::builder().timeout(PATIENCE).build()?,
                grants: AtomicU64::new(0),
                refusals: AtomicU64::new(0),
            });
            sidecars.push((sidecar, ways));
        }
        let scene = Scene {
            callers: world.callers.clone(),
            pods,
            grants: watch::Sender::new(0),
            calm: AtomicBool::new(true),
            over: AtomicBool::new(false),
            wrong: Mutex::new(None),
            tally: Tally::default(),
        };
        let random = StdRng::seed_from_u64(seed);
        Ok(Self { world, scene: Arc::new(scene), sidecars, random, seed, struck: BTreeMap::new() })
    }

    /// Starts the next sidecar in the place of one that ended.
    async fn restart(&mut self, pod: usize) -> Result<()> {
        let sidecar = start(&self.world, PODS[pod], &self.sidecars[pod].1).await?;
        self.scene.pods[pod].api.write().clone_from(&sidecar.api);
        self.sidecars[pod].0 = sidecar;
        Ok(())
    }

    async fn round(&mut self, faults: &[Fault], size: u64) -> Result<()> {
        self.scene.over.store(false, SeqCst);
        self.scene.calm.store(true, SeqCst);
        let mut callers = JoinSet::new();
        for pod in 0..PODS.len() {
            for _ in 0..CALLERS {
                let random = StdRng::seed_from_u64(self.random.random());
                callers.spawn(Caller::new(self.scene.clone(), pod, random).run());
            }
        }
        let begun = *self.scene.grants.borrow();
        self.scene.reach(begun + size / 4).await?;
        self.scene.calm.store(false, SeqCst);
        self.strike(faults).await?;
        self.scene.reach(begun + size).await?;
        self.scene.over.store(true, SeqCst);
        while let Some(ended) = callers.join_next().await {
            ended??;
        }
        self.nothing_stays().await?;
        self.judge().await
    }

    /// One after the other they strike, and the last is over first.
    async fn strike(&mut self, faults: &[Fault]) -> Result<()> {
        let mut under: Vec<Struck> = Vec::new();
        for fault in faults {
            *self.struck.entry(*fault).or_default() += 1;
            under.push(fault.strike(self, under.last()).await.with_context(|| format!("{fault:?} strikes"))?);
        }
        while let Some(struck) = under.pop() {
            let fault = struck.fault;
            struck.lasts(self).await.with_context(|| format!("{fault:?} lasts"))?;
            struck.ends(self).await.with_context(|| format!("{fault:?} ends"))?;
        }
        let before: Vec<u64> = self.scene.pods.iter().map(|pod| pod.grants.load(SeqCst)).collect();
        eventually("every sidecar grants again", async || {
            for (pod, before) in self.scene.pods.iter().zip(&before) {
                ensure!(pod.grants.load(SeqCst) > *before, "{} grants nothing", pod.api.read());
            }
            Ok(())
        })
        .await
    }

    /// Whoever held or waited has let go, was lost, or hung up.
    async fn nothing_stays(&self) -> Result<()> {
        let mut left = None;
        let gone = eventually("nobody holds or waits", async || {
            left = self.left().await?;
            ensure!(left.is_none(), "somebody does");
            Ok(())
        })
        .await;
        if let (Err(error), Some(path)) = (&gone, &left) {
            bail!(
                "{error:#}: {path}; its record is in {}",
                self.dump(path, &self.world.changes().await?).await?
            );
        }
        gone
    }

    /// A key that somebody holds or waits for. A lock that stays with a sidecar which nobody there holds is none.
    async fn left(&self) -> Result<Option<String>> {
        for key in self.world.state().await?.into_keys() {
            match key {
                Key::Holder { lock, key } if lock.as_str() == STAYS => {
                    let path = format!("{lock}/{key}");
                    for (sidecar, _) in &self.sidecars {
                        let shown = sidecar.get(&format!("/v1/locks/{path}")).await?.body;
                        if shown["holders"] != json!([]) || shown["waiters"] != json!(0) {
                            return Ok(Some(path));
                        }
                    }
                }
                Key::Holder { lock, key } | Key::Waiter { lock, key, .. } | Key::Want { lock, key, .. } => {
                    return Ok(Some(format!("{lock}/{key}")));
                }
                _ => {}
            }
        }
        Ok(None)
    }

    async fn judge(&self) -> Result<()> {
        let changes = self.world.changes().await?;
        for path in paths() {
            if let Err(broken) = self.scene.callers.judge(&path, &changes) {
                return Err(
                    broken.context(format!("{path}; its record is in {}", self.dump(&path, &changes).await?))
                );
            }
        }
        self.scene.callers.forget();
        self.world.recorder.forget();
        self.compact().await
    }

    /// Compacts what the record has.
    async fn compact(&self) -> Result<()> {
        let reached = self.world.recorder.reached();
        eventually("etcd compacts", async || {
            let options = etcd_client::CompactionOptions::new().with_physical();
            match self.world.etcd.client().await?.compact(reached, Some(options)).await {
                Err(error) if error.to_string().contains("has been compacted") => Ok(()),
                compacted => Ok(compacted.map(drop)?),
            }
        })
        .await
    }

    /// Writes all that is known of a key to a file.
    async fn dump(&self, path: &str, changes: &[Change]) -> Result<String> {
        let file = format!("{}/soak-{}.txt", env!("CARGO_TARGET_TMPDIR"), self.seed);
        let of_path: Vec<&Change> = changes
            .iter()
            .filter(|change| match &change.key {
                Key::Holder { lock, key } | Key::Waiter { lock, key, .. } | Key::Shadow { lock, key, .. } => {
                    format!("{lock}/{key}") == path
                }
                Key::Session(_) => true,
                _ => false,
            })
            .collect();
        let mut shown = Vec::new();
        for (sidecar, _) in &self.sidecars {
            shown.push(sidecar.get(&format!("/v1/locks/{path}")).await);
        }
        // What stands now, and whether etcd is about to take it.
        let mut stands = Vec::new();
        let mut client = self.world.etcd.client().await?;
        let everything = etcd_client::GetOptions::new().with_prefix();
        for kv in client.get("/concordat/", Some(everything)).await?.kvs() {
            let ttl = client.lease_time_to_live(kv.lease(), None).await.map(|left| left.ttl());
            stands.push(format!("{} lease {:x} {ttl:?}", String::from_utf8_lossy(kv.key()), kv.lease()));
        }
        let callers = &self.scene.callers;
        std::fs::write(&file, format!("{path}\n{shown:#?}\n{stands:#?}\n{of_path:#?}\n{callers:#?}"))?;
        Ok(file)
    }
}

fn of(mode: Mode, sharing: Sharing, lock_delay: Millis) -> Settings {
    let permits = if sharing == Sharing::Semaphore { PERMITS } else { 1 };
    Settings { mode, sharing, permits, lock_delay, ttl: 4_000, ..settings() }
}

async fn start(world: &World, pod: &str, ways: &[Proxy]) -> Result<Sidecar> {
    let etcd = ways.iter().map(Proxy::endpoint).collect::<Vec<_>>().join(",");
    let options = Options { etcd: Some(etcd), victim: true, terse: true, ..Options::default() };
    world.sidecar_with(pod, options).await
}

/// A number from the environment.
fn told(name: &str) -> Result<Option<u64>> {
    match std::env::var(name) {
        Ok(text) => Ok(Some(text.parse().with_context(|| format!("{name}={text}"))?)),
        Err(_) => Ok(None),
    }
}

/// `SOAK_GRANTS` and `SOAK_SEED` say how many and which; `SOAK_FAULTS` which faults, by their names.
#[tokio::test]
async fn locks_keep_what_they_promise_whatever_breaks() -> Result<()> {
    let goal = told("SOAK_GRANTS")?.unwrap_or(2_000);
    let seed = told("SOAK_SEED")?.unwrap_or_else(rand::random);
    println!("SOAK_GRANTS={goal} SOAK_SEED={seed}");
    let only = std::env::var("SOAK_FAULTS").unwrap_or_default();
    let chosen: Vec<Fault> = Fault::ALL
        .into_iter()
        .filter(|fault| only.is_empty() || only.contains(&format!("{fault:?}")))
        .collect();
    let size = ROUND.min(goal / chosen.len() as u64).max(1);
    let begun = Instant::now();
    let mut soak = Soak::start(seed).await?;
    let mut round = 0;
    // Each fault once, in an order of its own each time around.
    let mut order: Vec<Fault> = Vec::new();
    while *soak.scene.grants.borrow() < goal || !chosen.iter().all(|fault| soak.struck.contains_key(fault)) {
        if order.is_empty() {
            order.clone_from(&chosen);
            order.shuffle(&mut soak.random);
        }
        round += 1;
        let mut faults: Vec<Fault> = order.pop().into_iter().collect();
        // Later also two at a time: one of a sidecar, and then one of etcd.
        if round > chosen.len() && soak.random.random_bool(0.3) {
            let beside = |other: &Fault| other.of_a_sidecar() != faults[0].of_a_sidecar();
            faults.extend(order.iter().rposition(beside).map(|at| order.remove(at)));
            faults.sort_by_key(|fault| !fault.of_a_sidecar());
        }
        let at = Instant::now();
        soak.round(&faults, size).await.with_context(|| format!("seed {seed}, round {round}, {faults:?}"))?;
        println!(
            "{round:>4}: {:>7} grants, {:>5.1} s, {faults:?}",
            *soak.scene.grants.borrow(),
            at.elapsed().as_secs_f64()
        );
    }
    let Tally { writes, stale_writes, lost, unavailable, broken, hung_up, left } = &soak.scene.tally;
    println!(
        "{} grants in {:.0} s, seed {seed}\nfaults: {:?}\nfenced writes {}, stale ones refused {}; told that it was lost {}, \
         unavailable {}, connection broken {}; hung up {}, never let go {}",
        *soak.scene.grants.borrow(),
        begun.elapsed().as_secs_f64(),
        soak.struck,
        writes.load(SeqCst),
        stale_writes.load(SeqCst),
        lost.load(SeqCst),
        unavailable.load(SeqCst),
        broken.load(SeqCst),
        hung_up.load(SeqCst),
        left.load(SeqCst),
    );
    Ok(())
}
