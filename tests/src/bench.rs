//! Benchmarks: closed loops against release builds, peers measured in the same run, rounds interleaved.

pub mod app;
mod figures;
mod http;
mod load;
#[cfg(feature = "peers")]
pub mod locks;
mod pairs;
mod report;
mod servers;
mod stage;
mod work;

use std::{path::PathBuf, time::Duration};

use anyhow::Result;

use self::{report::Report, stage::Stage, work::Work};

/// What is measured.
#[derive(clap::Parser)]
#[command(about = "Measures the sidecars beside etcd's lock service and plain puts")]
pub struct Command {
    /// How often each figure is taken; medians are told.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How long each takes, in seconds.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// How many clients there are at a time.
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256")]
    clients: Vec<usize>,
    /// Only the work whose name holds this text.
    #[arg(long, default_value = "")]
    only: String,
    /// The sidecar to measure; the one beside this program unless given.
    #[arg(long)]
    sidecar: Option<PathBuf>,
    /// File to write the results to.
    #[arg(long)]
    output: Option<PathBuf>,
    /// Serves as a participant's app on this port instead.
    #[arg(long, hide = true)]
    pub app: Option<u16>,
}

/// Runs every benchmark and tells the results.
pub async fn run(command: Command) -> Result<()> {
    let sidecar = match command.sidecar {
        Some(sidecar) => sidecar,
        None => std::env::current_exe()?.with_file_name("concordat-sidecar"),
    };
    let stage = Stage::set(&sidecar).await?;
    let mut report = Report::new(command.rounds, command.seconds);
    report.idle(stage.idle(Duration::from_secs(5)).await?);
    for round in 0..command.rounds {
        for &clients in &command.clients {
            let wanted = |work: &Work| work.told_of(clients) && work.name().contains(&command.only);
            for work in Work::ALL.into_iter().filter(wanted) {
                let figure = work.run(&stage, clients, Duration::from_secs(command.seconds)).await?;
                eprintln!("round {} · {clients:>3} clients · {:<48} {figure}", round + 1, work.name());
                report.figures.add(work, clients, figure);
            }
        }
    }
    let text = report.text();
    println!("{text}");
    if let Some(output) = command.output {
        std::fs::write(output, &text)?;
    }
    report.check_gates()
}
