//! A small bank: services that agree through Concordat over plain HTTP, with no SDK.
//!
//! `accounts` keeps balances and takes part in transfers; `ledger` keeps the books and takes part in them too;
//! `worker` writes statements from a queue, one at a time an account, under a lock. Each keeps what it knows in a
//! SQLite file of its own and talks to nothing but its sidecar. `demo` drives all of it and checks every sum.

mod accounts;
mod database;
mod demo;
mod ledger;
mod participant;
mod sidecar;
mod worker;

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;

#[derive(Parser)]
#[command(name = "concordat-bank", about = "A small bank on Concordat")]
enum Command {
    /// Keeps balances.
    Accounts(Service),
    /// Keeps the books.
    Ledger(Service),
    /// Writes statements.
    Worker(Service),
    /// Starts `concordat dev` and the services, drives them and checks every sum.
    Demo(demo::Options),
}

#[derive(clap::Args)]
struct Service {
    /// Port the service listens on, on 127.0.0.1 (in a pod its sidecar calls it there).
    #[arg(long, env = "PORT", default_value_t = 8080)]
    port: u16,
    /// Port of the sidecar's API.
    #[arg(long, env = "CONCORDAT_PORT", default_value_t = 4700)]
    sidecar_port: u16,
    /// File of the sidecar's API token, where one is required.
    #[arg(long, env = "CONCORDAT_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// SQLite file.
    #[arg(long, env = "DATABASE")]
    database: PathBuf,
}

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        match Command::parse() {
            Command::Accounts(service) => accounts::serve(service).await,
            Command::Ledger(service) => ledger::serve(service).await,
            Command::Worker(service) => worker::serve(service).await,
            Command::Demo(options) => demo::run(options).await,
        }
    })
}
