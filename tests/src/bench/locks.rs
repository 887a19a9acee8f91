//! Locks beside their peers: etcd's own lock service, ZooKeeper and Redis, in one run, rounds interleaved.

mod contended;
mod ends;
mod peers;
mod report;
mod stage;
mod work;

use std::{path::PathBuf, time::Duration};

use anyhow::Result;

use self::{report::Report, stage::Stage, work::Work};

/// What is measured.
#[derive(clap::Parser)]
#[command(about = "Measures locks beside etcd's lock service, ZooKeeper and Redis")]
pub struct Command {
    /// How often each figure is taken; medians are told.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How long each takes, in seconds.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// How many clients there are at a time that do not contend.
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256")]
    clients: Vec<usize>,
    /// How many clients contend for one key.
    #[arg(long, default_value_t = 64)]
    contenders: usize,
    /// How many wait for one key while its wake-ups are counted.
    #[arg(long, default_value_t = 1_000)]
    waiters: usize,
    /// Only the work whose name holds this text; without it also wake-ups and what follows a kill.
    #[arg(long, default_value = "")]
    only: String,
    /// The sidecar to measure; the one beside this program unless given.
    #[arg(long)]
    sidecar: Option<PathBuf>,
    /// File to write the results to.
    #[arg(long)]
    output: Option<PathBuf>,
}

/// Runs every benchmark and tells the results.
///
/// # Errors
/// When something cannot be measured, and when a gate is missed.
pub async fn run(command: Command) -> Result<()> {
    let sidecar = match &command.sidecar {
        Some(sidecar) => sidecar.clone(),
        None => std::env::current_exe()?.with_file_name("concordat-sidecar"),
    };
    let stage = Stage::set(&sidecar).await?;
    let mut report = Report::new(command.rounds, command.seconds, command.contenders, command.waiters);
    let time = Duration::from_secs(command.seconds);
    let chosen = |work: &Work| work.name().contains(&command.only);
    for round in 1..=command.rounds {
        for &clients in &command.clients {
            for work in Work::PAIRS.into_iter().filter(chosen) {
                let figure = work.run(&stage, clients, time).await?;
                eprintln!("round {round} · {clients:>3} clients · {:<66} {figure}", work.name());
                report.pairs.add(work, clients, figure);
            }
        }
        for work in Work::CONTENDED.into_iter().filter(chosen) {
            let figure = work.run(&stage, command.contenders, time).await?;
            eprintln!("round {round} · {:>3} on one key · {:<64} {figure}", command.contenders, work.name());
            report.contended.add(work, command.contenders, figure);
        }
        if command.only.is_empty() {
            let wakeups = ends::wakeups(&stage, command.waiters, time).await?;
            eprintln!("round {round} · {wakeups:.3} wake-ups a release with {} waiters", command.waiters);
            report.wakeups.push(wakeups);
            let after = ends::after_kill(&stage, &sidecar, round).await?;
            eprintln!("round {round} · granted {after:.2} s after its holder's sidecar was killed");
            report.after_kill.push(after);
        }
    }
    let text = report.text();
    println!("{text}");
    if let Some(output) = command.output {
        std::fs::write(output, &text)?;
    }
    report.check_gates()
}
