//! The results, and whether they are good enough.

use std::fmt::Write as _;

use anyhow::{Result, ensure};

use super::{
    figures::{Figures, cores},
    http::Connections,
    load::Figure,
    servers::Idle,
    work::Work,
};

/// Clients at which the gates hold.
const GATED: usize = 64;
/// Work, by how it is asked for.
type Kind = fn(Connections) -> Work;
/// What is compared with what, and what the ratio must reach (issue "The foundation", How fast).
const GATES: [(Kind, Kind, f64); 6] = [
    (Work::Lock, Work::EtcdLock, 1.3),
    (Work::Publish, Work::Put, 2.5),
    (Work::PublishBatch, Work::Put, 20.0),
    (Work::Deliver, Work::Put, 1.2),
    (Work::DeliverOn, Work::Put, 1.2),
    (Work::Transaction, Work::Put, 0.2),
];
/// At one client an operation may take so many times the etcd round trips it needs.
const ALONE: f64 = 1.5;

/// All that was measured.
pub(super) struct Report {
    rounds: usize,
    seconds: u64,
    idle: Option<Idle>,
    pub(super) figures: Figures<Work>,
}

impl Report {
    pub(super) fn new(rounds: usize, seconds: u64) -> Self {
        Self { rounds, seconds, idle: None, figures: Figures::new() }
    }

    pub(super) fn idle(&mut self, idle: Idle) {
        self.idle = Some(idle);
    }

    pub(super) fn text(&self) -> String {
        let mut text = String::from(
            "# Benchmarks\nMade by `make bench`: one run on one machine, with the load generator, the sidecars, the \
             participants' apps and\netcd (3.7.2, fsync on) sharing its cores. Read the ratios; absolute figures are \
             those of this machine on that day.\n\n",
        );
        let cores = cores();
        let _ = writeln!(
            text,
            "{cores} cores; {} rounds of {} s each, interleaved; medians, of ratios those of the rounds. Messages\nand puts are \
             128 bytes; a batch counts its messages, and its latency is the request's. Over HTTP/1.1 each client\nhas a \
             connection, over HTTP/2 all share one; etcd is called both ways too, and like is compared with like.\n",
            self.rounds, self.seconds
        );
        let clients = self.figures.clients();
        let _ = write!(text, "| operations a second (p50 / p99 ms) |");
        for clients in &clients {
            let _ = write!(text, " {clients} |");
        }
        let _ = write!(text, "\n|---|{}\n", "---|".repeat(clients.len()));
        for work in Work::ALL {
            let _ = write!(text, "| {} |", work.name());
            for &clients in &clients {
                match self.figures.median(work, clients) {
                    Some(Figure { rate, p50, p99, .. }) => {
                        let _ = write!(text, " {rate:.0} ({p50:.2} / {p99:.1}) |");
                    }
                    None => text.push_str(" |"),
                }
            }
            text.push('\n');
        }
        let _ = write!(text, "\n| at {GATED} clients | ratio | gate |\n|---|---|---|\n");
        for (work, peer, ratio, gate) in self.ratios() {
            let _ = writeln!(text, "| {} against {} | {ratio:.2} | ≥ {gate} |", work.name(), peer.name());
        }
        let _ = write!(
            text,
            "\n| processor time an operation at {GATED} clients, µs | etcd | sidecar | other sidecars and apps | generator \
             |\n|---|---|---|---|---|\n"
        );
        for work in Work::ALL {
            if let Some(Figure { spent: [etcd, sidecar, others, generator], .. }) =
                self.figures.median(work, GATED)
            {
                let _ = writeln!(
                    text,
                    "| {} | {etcd:.1} | {sidecar:.1} | {others:.1} | {generator:.1} |",
                    work.name()
                );
            }
        }
        self.alone(&mut text);
        if let Some(Idle { memory, cpu }) = self.idle {
            let _ = write!(
                text,
                "\nAn idle sidecar takes {memory:.1} MiB (gate: 25) and {cpu:.1} % of a core (gate: 1).\n"
            );
        }
        text
    }

    /// What one client waits for, beside the round trips that it needs.
    fn alone(&self, text: &mut String) {
        let alone = Work::ALL.into_iter().filter_map(|work| {
            let (trips, commit) = work.round_trips()?;
            let (figure, commit) = (self.figures.median(work, 1)?, self.figures.median(commit, 1)?);
            Some((work, trips, figure.p50, figure.p50 / (commit.p50 * f64::from(trips))))
        });
        let rows: Vec<_> = alone.collect();
        if rows.is_empty() {
            return;
        }
        text.push_str(
            "\n| at 1 client | p50 ms | round trips | against so many transactions | gate |\n|---|---|---|---|---|\n",
        );
        for (work, trips, p50, ratio) in rows {
            let _ = writeln!(text, "| {} | {p50:.2} | {trips} | {ratio:.2} | ≤ {ALONE} |", work.name());
        }
    }

    /// Ours, its peer, the ratio and what it must reach.
    fn ratios(&self) -> impl Iterator<Item = (Work, Work, f64, f64)> {
        let both = GATES.into_iter().flat_map(|(work, peer, gate)| {
            Connections::ALL.map(|connections| (work(connections), peer(connections), gate))
        });
        both.filter_map(|(work, peer, gate)| Some((work, peer, self.figures.ratio(work, peer, GATED)?, gate)))
    }

    /// Fails when a ratio misses its gate.
    pub(super) fn check_gates(&self) -> Result<()> {
        let missed = self.ratios().filter(|(_, _, ratio, gate)| ratio < gate);
        let missed: Vec<String> =
            missed.map(|(work, _, ratio, gate)| format!("{}: {ratio:.2} of {gate}", work.name())).collect();
        ensure!(missed.is_empty(), "gates missed: {}", missed.join("; "));
        Ok(())
    }
}
