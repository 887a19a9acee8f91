//! `concordat`: all of it on one machine, and its state in tables.

mod dev;
mod epoch;
mod etcd;
mod get;

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};

/// Where `dev` has its etcd and `get` looks for it, unless told otherwise.
const ETCD_PORT: u16 = 4790;

/// Coordination for services that must agree.
#[derive(Parser)]
#[command(name = "concordat", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the whole product on this machine, without Kubernetes
    Dev(dev::Options),
    /// Prints locks, queues or transactions as their status has them
    Get(get::Options),
    /// Says whether etcd was restored from a snapshot, and goes on from there
    Epoch(epoch::Options),
    /// Runs one sidecar: what `dev` starts for each `--sidecar`
    #[command(hide = true, disable_help_flag = true)]
    Sidecar {
        /// Process id of `concordat dev`.
        parent: i32,
        /// As of `concordat-sidecar`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Becomes the embedded etcd: what `dev` starts unless it is given one
    #[command(hide = true, disable_help_flag = true)]
    Etcd {
        /// Process id of `concordat dev`.
        parent: i32,
        /// As of `etcd`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Sidecar { parent, arguments } => return dev::sidecar(parent, arguments),
        Command::Etcd { parent, arguments } => dev::become_etcd(parent, arguments),
        Command::Dev(options) => dev::run(options),
        Command::Get(options) => get::run(options),
        Command::Epoch(options) => epoch::run(options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("concordat: {error:#}");
            ExitCode::FAILURE
        }
    }
}
