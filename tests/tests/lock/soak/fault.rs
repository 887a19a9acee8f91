//! What breaks.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use concordat_protocol::{Key, Record, SessionId};
use concordat_tests::{disk::SlowDisk, process::eventually, proxy::Proxy};
use etcd_client::DeleteOptions;
use rand::RngExt as _;
use serde_json::json;

use super::{
    HELD, LOCKS, PODS, QUOTA, Soak,
    caller::{self, Held},
};

/// Grants under a fault that does not end by itself: the others go on.
const UNDER_WAY: u64 = 20;
/// By how much a slow disk is slower each time.
const SLOW: Duration = Duration::from_millis(100);
/// How often a leader that changes every second does.
const MOVES: usize = 3;
const FILL: &str = "fill/";

/// One kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// kill -9 of a sidecar; another comes in its place once its session is over, or at once.
    SidecarKilled,
    /// A sidecar stands still past its session.
    SidecarFrozen,
    /// A sidecar reaches no member of etcd until its session is over.
    SidecarCutOff,
    /// A sidecar reaches all members but the leader.
    SidecarWithoutLeader,
    /// What a sidecar's watch missed is compacted.
    WatchCompacted,
    /// kill -9 of the leader.
    LeaderKilled,
    /// The leader stands still until another leads.
    LeaderFrozen,
    /// The leader is parted from the other members until another leads; clients reach it.
    LeaderIsolated,
    /// No member reaches another until every sidecar that can speak has said that it can do nothing.
    AllParted,
    /// The leader changes every second.
    LeaderMoved,
    /// The leader's disk is slow.
    SlowDisk,
    /// etcd has no space; what is held is let go, and nothing new is taken.
    NoSpace,
}

/// A fault under way.
pub(super) struct Struck {
    pub(super) fault: Fault,
    /// The sidecar it is about, if it is about one, or without space the one that holds.
    pub(super) pod: usize,
    session: SessionId,
    /// The member that led.
    leader: usize,
    /// The sidecar that can say nothing, because of a fault under way.
    mute: Option<usize>,
    /// What each sidecar had refused.
    refusals: Vec<u64>,
    disk: Option<SlowDisk>,
    held: Vec<Held>,
}

impl Fault {
    pub(super) const ALL: [Self; 12] = [
        Self::SidecarKilled,
        Self::SidecarFrozen,
        Self::SidecarCutOff,
        Self::SidecarWithoutLeader,
        Self::WatchCompacted,
        Self::LeaderKilled,
        Self::LeaderFrozen,
        Self::LeaderIsolated,
        Self::AllParted,
        Self::LeaderMoved,
        Self::SlowDisk,
        Self::NoSpace,
    ];

    /// Whether it is about one sidecar; else it is about etcd.
    pub(super) fn of_a_sidecar(self) -> bool {
        matches!(
            self,
            Self::SidecarKilled
                | Self::SidecarFrozen
                | Self::SidecarCutOff
                | Self::SidecarWithoutLeader
                | Self::WatchCompacted
        )
    }

    /// Whether the sidecar says nothing while it lasts.
    fn silences(self) -> bool {
        matches!(self, Self::SidecarKilled | Self::SidecarFrozen)
    }

    /// Another fault may be under way beside it: it is about another sidecar then.
    pub(super) async fn strike(self, soak: &mut Soak, beside: Option<&Struck>) -> Result<Struck> {
        let pod = match beside {
            Some(other) => (other.pod + 1) % PODS.len(),
            None => soak.random.random_range(0..PODS.len()),
        };
        let leader = soak.world.etcd.leader().await?;
        let mut struck = Struck {
            fault: self,
            pod,
            session: session(soak, pod).await?,
            leader,
            mute: beside.filter(|other| other.fault.silences()).map(|other| other.pod),
            refusals: soak.scene.pods.iter().map(|pod| pod.refusals.load(SeqCst)).collect(),
            disk: None,
            held: Vec::new(),
        };
        let etcd = &mut soak.world.etcd;
        let (sidecar, ways) = &mut soak.sidecars[pod];
        match self {
            Self::SidecarKilled => sidecar.process.kill()?,
            Self::SidecarFrozen => sidecar.process.pause()?,
            Self::SidecarCutOff => {
                let swallows = soak.random.random_bool(0.5);
                for way in ways.iter() {
                    if swallows { way.swallow() } else { way.refuse() }
                }
            }
            Self::SidecarWithoutLeader => ways[leader].refuse(),
            Self::WatchCompacted => ways.iter().for_each(Proxy::refuse),
            Self::LeaderKilled => etcd.kill(leader)?,
            Self::LeaderFrozen => etcd.pause(leader)?,
            Self::LeaderIsolated => etcd.isolate(leader)?,
            Self::AllParted => etcd.part()?,
            Self::LeaderMoved => {}
            Self::SlowDisk => struck.disk = Some(SlowDisk::of(etcd.process_id(leader)?, SLOW).await?),
            Self::NoSpace => {
                struck.held = hold(soak, pod).await?;
                fill(soak).await?;
            }
        }
        Ok(struck)
    }
}

impl Struck {
    /// Waits until the fault has done what it can.
    pub(super) async fn lasts(&self, soak: &mut Soak) -> Result<()> {
        match self.fault {
            // At once, every other time.
            Fault::SidecarKilled if soak.random.random_bool(0.5) => return Ok(()),
            Fault::SidecarKilled | Fault::SidecarFrozen | Fault::SidecarCutOff => self.is_over(soak).await?,
            Fault::LeaderKilled | Fault::LeaderFrozen | Fault::LeaderIsolated => {
                soak.world.etcd.next_leader(self.leader).await?;
            }
            Fault::AllParted => {
                return eventually("every sidecar says that it can do nothing", async || {
                    let pods = soak.scene.pods.iter().zip(&self.refusals).enumerate();
                    for (_, (pod, before)) in pods.filter(|(number, _)| Some(*number) != self.mute) {
                        ensure!(pod.refusals.load(SeqCst) > *before, "{} does not", pod.api.read());
                    }
                    Ok(())
                })
                .await;
            }
            Fault::LeaderMoved => {
                let mut second = tokio::time::interval(Duration::from_secs(1));
                for moved in 1..=MOVES {
                    second.tick().await;
                    soak.world.etcd.move_leader((self.leader + moved) % 3).await?;
                }
            }
            Fault::NoSpace => return self.nothing_new_is_taken(soak).await,
            Fault::WatchCompacted => {
                soak.scene.more(UNDER_WAY).await?;
                soak.compact().await?;
            }
            Fault::SidecarWithoutLeader | Fault::SlowDisk => {}
        }
        soak.scene.more(UNDER_WAY).await
    }

    pub(super) async fn ends(self, soak: &mut Soak) -> Result<()> {
        let etcd = &mut soak.world.etcd;
        let (sidecar, ways) = &soak.sidecars[self.pod];
        match self.fault {
            Fault::SidecarKilled => soak.restart(self.pod).await?,
            Fault::SidecarFrozen => sidecar.process.resume()?,
            Fault::SidecarCutOff | Fault::SidecarWithoutLeader | Fault::WatchCompacted => {
                ways.iter().for_each(Proxy::heal);
            }
            Fault::LeaderKilled => etcd.restart(self.leader).await?,
            Fault::LeaderFrozen => {
                soak.scene.callers.leader_thaws();
                etcd.resume(self.leader)?;
                etcd.healthy(self.leader).await?;
            }
            Fault::LeaderIsolated | Fault::AllParted => {
                etcd.reunite()?;
                for member in 0..3 {
                    etcd.healthy(member).await?;
                }
            }
            Fault::LeaderMoved => {}
            Fault::SlowDisk => self.disk.context("no disk is slow")?.end().await?,
            Fault::NoSpace => {
                etcd.client().await?.delete(FILL, Some(DeleteOptions::new().with_prefix())).await?;
                // What was deleted is gone once the record, and with it compaction, is there.
                soak.world.changes().await?;
                soak.compact().await?;
                let etcd = &soak.world.etcd;
                eventually("every member has room again", async || {
                    etcd.defragment().await?;
                    let sizes = etcd.sizes().await?;
                    ensure!(sizes.iter().all(|size| *size < QUOTA / 2), "their files have {sizes:?} bytes");
                    Ok(())
                })
                .await?;
                etcd.disarm().await?;
            }
        }
        Ok(())
    }

    /// Waits until etcd has given up the session of the sidecar.
    async fn is_over(&self, soak: &Soak) -> Result<()> {
        eventually("its session is over", async || {
            let state = soak.world.state().await?;
            ensure!(!state.contains_key(&Key::Session(self.session.clone())), "it is not");
            Ok(())
        })
        .await
    }

    /// Without space what is held is let go, and until then nothing was taken from it.
    async fn nothing_new_is_taken(&self, soak: &Soak) -> Result<()> {
        let (scene, pod) = (&soak.scene, self.pod);
        for held in &self.held {
            ensure!(held.release(scene, pod).await?, "{} was lost without space", held.path);
        }
        eventually("nothing new is taken", async || {
            let before = scene.tally.unavailable.load(SeqCst);
            let taken = caller::acquire(scene, pod, &format!("lease/{HELD}"), json!({}), "", true).await?;
            if let Some(held) = taken {
                held.release(scene, pod).await?;
                bail!("it was taken");
            }
            ensure!(scene.tally.unavailable.load(SeqCst) > before, "it is held");
            Ok(())
        })
        .await
    }
}

async fn session(soak: &Soak, pod: usize) -> Result<SessionId> {
    eventually("it has a session", async || {
        let state = soak.world.state().await?;
        // The last: that of one that was killed may still stand.
        let sessions = state.into_iter().filter_map(|(key, entry)| match (key, entry.record) {
            (Key::Session(id), Record::Session(session)) if session.pod == PODS[pod] => {
                Some((entry.create_revision, id))
            }
            _ => None,
        });
        Ok(sessions.max().context("it has none")?.1)
    })
    .await
}

/// Takes a key of each lock for long.
async fn hold(soak: &Soak, pod: usize) -> Result<Vec<Held>> {
    let mut held = Vec::new();
    for (lock, ..) in LOCKS {
        let path = format!("{lock}/{HELD}");
        let grant = eventually("it is taken", async || {
            let body = json!({"ttl": "5m"});
            caller::acquire(&soak.scene, pod, &path, body, "30s", true).await?.context("it is not")
        });
        held.push(grant.await?);
    }
    Ok(held)
}

/// Fills etcd until it takes no more.
async fn fill(soak: &Soak) -> Result<()> {
    let mut client = soak.world.etcd.client().await?;
    let mut filled = 0;
    while client.put(format!("{FILL}{filled}"), vec![b'x'; 1 << 20], None).await.is_ok() {
        filled += 1;
    }
    ensure!(soak.world.etcd.no_space_alarms().await? > 0, "etcd is not full after {filled} MiB");
    Ok(())
}
