//! What is measured, running: etcd with its disk and four sidecars, the store in this process, ZooKeeper and Redis.

use std::path::Path;

use anyhow::{Context, Result};
use concordat_protocol::{Kind, Settings, lock};
use concordat_store::{Config, Store};
use etcd_client::Client;

use super::{
    super::servers::{self, NAMESPACE, Sidecar},
    peers::{Redis, ZooKeeper},
};
use crate::etcd::Etcd;

/// Locks of these names.
pub(super) const COMMITTED: &str = "committed";
pub(super) const STAYS: &str = "stays";
pub(super) const FAIR: &str = "fair";
pub(super) const LOST: &str = "lost";
/// Time to live of [`LOST`] and of its holder's session, and its lock-delay, milliseconds.
pub(super) const TTL: u64 = 5_000;
pub(super) const LOCK_DELAY: u64 = 1_000;

/// Everything that runs.
pub(super) struct Stage {
    pub(super) etcd: Etcd,
    pub(super) client: Client,
    pub(super) sidecars: Vec<Sidecar>,
    pub(super) store: Store,
    pub(super) zookeeper: ZooKeeper,
    pub(super) redis: Redis,
}

impl Stage {
    pub(super) async fn set(program: &Path) -> Result<Self> {
        let etcd = servers::etcd().await?;
        let mut client = etcd.client().await?;
        let lost = lock::Settings { ttl: TTL, lock_delay: LOCK_DELAY, ..servers::lock(lock::Mode::Lease) };
        for (name, settings) in [
            (COMMITTED, servers::lock(lock::Mode::Lease)),
            (STAYS, servers::lock(lock::Mode::CompareAndSwap)),
            (FAIR, servers::lock(lock::Mode::FairQueue)),
            (LOST, lost),
        ] {
            servers::define(&mut client, Kind::Lock, name, Settings::Lock(settings)).await?;
        }
        let mut sidecars = Vec::new();
        for name in ["a", "b", "c", "d"] {
            let sidecar = Sidecar::start(program, &etcd, name, &[]).await?;
            for lock in [COMMITTED, STAYS, FAIR, LOST] {
                sidecar.knows(&format!("/v1/locks/{lock}/ready")).await?;
            }
            sidecars.push(sidecar);
        }
        let session = concordat_protocol::session::Session {
            pod: "generator".into(),
            app: "generator".into(),
            accepts: false,
        };
        let store = Store::connect(Config::new(etcd.endpoints(), NAMESPACE, session)).await?;
        let (zookeeper, redis) = (ZooKeeper::start().await?, Redis::start().await?);
        Ok(Self { etcd, client, sidecars, store, zookeeper, redis })
    }

    /// API ports of the first so many sidecars.
    pub(super) fn ports(&self, count: usize) -> Result<Vec<u16>> {
        let sidecars = self.sidecars.get(..count).context("there are fewer sidecars")?;
        Ok(sidecars.iter().map(|sidecar| sidecar.api).collect())
    }

    /// Processor time used so far, microseconds: by etcd, by the sidecars, by ZooKeeper and Redis, and by this process,
    /// which asks and has the store in it.
    pub(super) fn spent(&self) -> Result<[f64; 4]> {
        Ok([
            servers::spent([self.etcd.process_id(0)?])?,
            servers::spent(self.sidecars.iter().map(|sidecar| sidecar.process.id()))?,
            servers::spent([self.zookeeper.process.id(), self.redis.process.id()])?,
            servers::spent([std::process::id()])?,
        ])
    }
}
