//! Others' servers, from Debian's packages, each on one node and with a disk that is waited for; and their locks.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use redis::Script;
use zookeeper_client::{Acls, Client, CreateMode};

use super::super::{
    http::Connections,
    load::{Figure, Meter, all},
};
use crate::process::{Process, eventually, folder, free_port};

/// So many sessions, shared, serve ZooKeeper's clients best.
const SESSIONS: usize = 16;
const ACLS: Acls<'static> = Acls::anyone_all();

/// ZooKeeper as Debian has it: it forces its log to the disk before it answers (`forceSync`, its default).
pub(super) struct ZooKeeper {
    pub(super) process: Process,
    address: String,
}

impl ZooKeeper {
    pub(super) async fn start() -> Result<Self> {
        let (folder, port) = (folder("zookeeper")?, free_port()?);
        let data = folder.path().join("data");
        std::fs::create_dir(&data)?;
        let file = folder.path().join("zoo.cfg");
        let settings = format!(
            "tickTime=2000\ndataDir={}\nclientPort={port}\nclientPortAddress=127.0.0.1\nmaxClientCnxns=0\n\
             admin.enableServer=false\n",
            data.display()
        );
        std::fs::write(&file, settings)?;
        let mut command = Command::new("java");
        command
            .args(["-Xms1g", "-Xmx1g", "-cp", "/usr/share/java/zookeeper.jar"])
            .arg("org.apache.zookeeper.server.ZooKeeperServerMain")
            .arg(file);
        let mut process = Process::start_in(folder, "zookeeper", command)?;
        process.listens(port).await?;
        Ok(Self { process, address: format!("127.0.0.1:{port}") })
    }

    /// Its recipe for a lock: an ephemeral node with a number, the list of nodes to see that it is the first, and the
    /// node's end.
    pub(super) async fn pairs(
        &self,
        connections: Connections,
        clients: usize,
        time: Duration,
    ) -> Result<Figure> {
        let most = match connections {
            Connections::Own => clients,
            Connections::Shared => SESSIONS,
        };
        let mut sessions = Vec::new();
        for _ in 0..clients.min(most) {
            let connect = async || Ok(Client::connect(&self.address).await?);
            sessions.push(eventually("ZooKeeper takes a session", connect).await?);
        }
        for number in 0..clients {
            sessions[0].mkdir(&format!("/locks/{number}"), &CreateMode::Persistent.with_acls(ACLS)).await?;
        }
        let meter = Meter::start(time)?;
        all((0..clients).map(|number| {
            let (session, meter) = (sessions[number % sessions.len()].clone(), meter.clone());
            async move {
                let folder = format!("/locks/{number}");
                let prefix = format!("{folder}/n-");
                let options = CreateMode::EphemeralSequential.with_acls(ACLS);
                while meter.goes_on() {
                    let since = Instant::now();
                    let (_, sequence) = session.create(&prefix, b"", &options).await?;
                    let own = format!("n-{sequence}");
                    let first = session.list_children(&folder).await?.into_iter().min();
                    ensure!(first.as_deref() == Some(&own), "{first:?} stands before {own}");
                    session.delete(&format!("{prefix}{sequence}"), None).await?;
                    meter.done(1, since);
                }
                Ok(())
            }
        }))
        .await?;
        Ok(meter.figure())
    }
}

/// Redis as Debian has it, with an append-only file that is written through before each answer.
pub(super) struct Redis {
    pub(super) process: Process,
    client: redis::Client,
}

impl Redis {
    pub(super) async fn start() -> Result<Self> {
        let (folder, port) = (folder("redis")?, free_port()?);
        let mut command = Command::new("redis-server");
        command
            .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", ""])
            .args(["--appendonly", "yes", "--appendfsync", "always", "--dir"])
            .arg(folder.path());
        let mut process = Process::start_in(folder, "redis", command)?;
        process.listens(port).await?;
        Ok(Self { process, client: redis::Client::open(format!("redis://127.0.0.1:{port}"))? })
    }

    /// A key that is set if absent with a time to live, and a counter of fences, in one script; a script that deletes it
    /// if it is one's own.
    pub(super) async fn pairs(
        &self,
        connections: Connections,
        clients: usize,
        time: Duration,
    ) -> Result<Figure> {
        let acquire = Script::new(
            "if redis.call('set', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then \
             return redis.call('incr', KEYS[2]) else return 0 end",
        );
        let release = Script::new(
            "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end",
        );
        let mut callers = Vec::new();
        let shared = self.client.get_multiplexed_async_connection().await?;
        for _ in 0..clients {
            callers.push(match connections {
                Connections::Own => self.client.get_multiplexed_async_connection().await?,
                Connections::Shared => shared.clone(),
            });
        }
        let meter = Meter::start(time)?;
        all(callers.into_iter().enumerate().map(|(number, mut connection)| {
            let (meter, acquire, release) = (meter.clone(), acquire.clone(), release.clone());
            async move {
                let (key, counter) = (format!("lock:{number}"), format!("fence:{number}"));
                let mut last = 0;
                while meter.goes_on() {
                    let since = Instant::now();
                    let token = format!("{number}-{last}");
                    let mut taking = acquire.prepare_invoke();
                    taking.key(&key).key(&counter).arg(&token).arg(15_000);
                    let fence: u64 = taking.invoke_async(&mut connection).await?;
                    ensure!(fence > last, "{key} was not granted");
                    let mut leaving = release.prepare_invoke();
                    leaving.key(&key).arg(&token);
                    let gone: u64 = leaving.invoke_async(&mut connection).await?;
                    ensure!(gone == 1, "{key} was not held");
                    last = fence;
                    meter.done(1, since);
                }
                Ok(())
            }
        }))
        .await?;
        Ok(meter.figure())
    }
}
