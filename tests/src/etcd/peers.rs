//! What members of an etcd say to each other, through a proxy for each that calls and each that is called.
//!
//! All members of a cluster know one address of each, so the door behind it cannot tell by itself who comes in. The kernel
//! can: /proc knows which process a connection is of.

use std::{fs, sync::Arc};

use anyhow::{Context, Result};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::proxy::Proxy;

#[derive(Debug)]
pub(super) struct Peers {
    ports: Vec<u16>,
    shared: Arc<Shared>,
    _stop: DropGuard,
}

#[derive(Debug)]
struct Shared {
    /// By who calls, and who is called.
    links: Vec<Vec<Proxy>>,
    /// Process ids of the members.
    processes: Mutex<Vec<u32>>,
}

impl Peers {
    /// Doors of members that listen on these ports.
    pub(super) async fn start(listening: &[u16]) -> Result<Self> {
        let mut links = Vec::new();
        for _ in listening {
            let mut of_caller = Vec::new();
            for port in listening {
                of_caller.push(Proxy::start(format!("127.0.0.1:{port}")).await?);
            }
            links.push(of_caller);
        }
        let shared = Arc::new(Shared { links, processes: Mutex::new(vec![0; listening.len()]) });
        let (stop, mut ports) = (CancellationToken::new(), Vec::new());
        for called in 0..listening.len() {
            let door = TcpListener::bind("127.0.0.1:0").await?;
            ports.push(door.local_addr()?.port());
            let shared = shared.clone();
            tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
                while let Ok((stream, from)) = door.accept().await {
                    // A call of nobody's is dropped, as one is whose caller has ended meanwhile.
                    if let Ok(caller) = shared.caller(from.port()) {
                        shared.links[caller][called].carry(stream);
                    }
                }
            }));
        }
        Ok(Self { ports, shared, _stop: stop.drop_guard() })
    }

    /// Where a member is called.
    pub(super) fn port(&self, member: usize) -> u16 {
        self.ports[member]
    }

    /// The process a member is now.
    pub(super) fn runs(&self, member: usize, process: u32) {
        self.shared.processes.lock()[member] = process;
    }

    /// From now on nothing passes from whom to whom this says.
    pub(super) fn part(&self, whom: impl Fn(usize, usize) -> bool) {
        for (caller, links) in self.shared.links.iter().enumerate() {
            for (called, link) in links.iter().enumerate() {
                if whom(caller, called) {
                    link.swallow();
                }
            }
        }
    }

    /// All passes again.
    pub(super) fn reunite(&self) {
        self.shared.links.iter().flatten().for_each(Proxy::heal);
    }
}

impl Shared {
    /// The member that a connection from this port of 127.0.0.1 is of.
    fn caller(&self, port: u16) -> Result<usize> {
        let local = format!("0100007F:{port:04X}");
        let table = fs::read_to_string("/proc/net/tcp")?;
        // Columns as in proc(5): the local address is the second, the inode the tenth.
        let mut sockets = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let socket =
            sockets.find(|columns| columns.get(1) == Some(&&*local)).context("no such connection")?;
        let inode = format!("socket:[{}]", socket.get(9).context("no inode")?);
        let has_it = |process: &u32| {
            let files = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
            files
                .map(|file| fs::read_link(file.path()))
                .any(|to| to.is_ok_and(|to| to.as_os_str() == &*inode))
        };
        let processes = self.processes.lock();
        processes.iter().position(has_it).context("a connection of nobody's")
    }
}
