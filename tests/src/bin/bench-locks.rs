//! `make bench-locks`: locks through the sidecars beside those of etcd, ZooKeeper and Redis, in one run on one machine.

use anyhow::Result;
use clap::Parser;
use concordat_tests::bench::locks::{self, Command};

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(locks::run(Command::parse()))
}
