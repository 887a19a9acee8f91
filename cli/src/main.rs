//! `concordat`, also as `kubectl concordat`: all of it on one machine, and what is in etcd and in a cluster, for people.

mod check;
mod cluster;
mod describe;
mod dev;
mod epoch;
mod etcd;
mod get;
mod guard;
mod guest;
mod lock;
mod output;
mod queue;
mod reach;
mod secret;
mod table;
mod transaction;
mod version;

use std::{ffi::OsString, io, path::Path, process::ExitCode};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;

/// Where `dev` has its etcd and the other commands look for it, unless told otherwise.
const ETCD_PORT: u16 = 4790;
/// The name by which kubectl finds this program, when it is linked so.
const PLUGIN: &str = "kubectl-concordat";

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
    /// Prints all there is to know of one lock, queue or transaction
    Describe(describe::Options),
    /// Looks after transactions that are stuck or undecided
    #[command(alias = "transaction")]
    Tx(transaction::Options),
    /// Takes a lock from its holder
    Lock(lock::Options),
    /// Looks after dead letters
    Queue(queue::Options),
    /// Says what is wrong with an installation, and what to do about it
    Check(check::Options),
    /// Says whether etcd was restored from a snapshot, and goes on from there
    Epoch(epoch::Options),
    /// Prints the versions of this program and of what it reaches
    Version(version::Options),
    /// Prints the completion of a shell, as in: source <(concordat completion bash)
    Completion {
        /// The shell
        shell: Shell,
    },
    /// Runs one sidecar: what `dev` starts for each `--sidecar`, and what others ask
    #[command(hide = true, disable_help_flag = true)]
    Sidecar {
        /// Process id of who started it.
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
    let matches = called_as(std::env::args_os().next().as_deref()).get_matches();
    let arguments = Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    // Only fails when one is installed already: then there is one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let done = match arguments.command {
        Command::Sidecar { parent, arguments } => return dev::sidecar(parent, arguments),
        Command::Etcd { parent, arguments } => dev::become_etcd(parent, arguments),
        Command::Dev(options) => dev::run(options),
        Command::Get(options) => get::run(options),
        Command::Describe(options) => describe::run(options),
        Command::Tx(options) => transaction::run(options),
        Command::Lock(options) => lock::run(options),
        Command::Queue(options) => queue::run(options),
        Command::Check(options) => check::run(options),
        Command::Epoch(options) => epoch::run(options),
        Command::Version(options) => version::run(options),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "concordat", &mut io::stdout());
            Ok(())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("concordat: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The commands under the name that a person typed: kubectl runs `kubectl-concordat` for `kubectl concordat`.
fn called_as(program: Option<&std::ffi::OsStr>) -> clap::Command {
    let command = Arguments::command();
    let name = program.and_then(|program| Path::new(program).file_stem());
    if name.is_some_and(|name| name == PLUGIN) { command.bin_name("kubectl concordat") } else { command }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn help_names_what_was_typed() {
        let usage = |program: &str| called_as(Some(program.as_ref())).render_help().to_string();
        assert!(usage("/usr/local/bin/kubectl-concordat").contains("Usage: kubectl concordat <COMMAND>"));
        assert!(usage("target/debug/concordat").contains("Usage: concordat <COMMAND>"));
    }
}
