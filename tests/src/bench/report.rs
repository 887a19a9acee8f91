//! The results, and whether they are good enough.

use std::{collections::BTreeMap, fmt::Write as _};

use anyhow::{Result, ensure};

use super::{load::Figure, stage::Idle, work::Work};

/// Clients at which the gates hold.
const GATED: usize = 64;
/// What is compared with what, and what the ratio must reach (issue "The foundation", How fast).
const GATES: [(Work, Work, f64); 5] = [
    (Work::Lock, Work::EtcdLock, 1.3),
    (Work::Publish, Work::Put, 2.5),
    (Work::PublishBatch, Work::Put, 20.0),
    (Work::Deliver, Work::Put, 1.2),
    (Work::Transaction, Work::Put, 0.2),
];
/// At one client an operation may take so many times the etcd round trips it needs.
const ALONE: f64 = 1.5;

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Figures by work and clients, one a round.
pub(super) struct Report {
    rounds: usize,
    seconds: u64,
    idle: Option<Idle>,
    figures: BTreeMap<(Work, usize), Vec<Figure>>,
}

impl Report {
    pub(super) fn new(rounds: usize, seconds: u64) -> Self {
        Self { rounds, seconds, idle: None, figures: BTreeMap::new() }
    }

    pub(super) fn idle(&mut self, idle: Idle) {
        self.idle = Some(idle);
    }

    pub(super) fn add(&mut self, work: Work, clients: usize, figure: Figure) {
        self.figures.entry((work, clients)).or_default().push(figure);
    }

    /// Medians over the rounds, of each column for itself.
    fn median(&self, work: Work, clients: usize) -> Option<Figure> {
        let figures = self.figures.get(&(work, clients))?;
        let of = |column: fn(&Figure) -> f64| middle(figures.iter().map(column).collect());
        Some(Figure {
            operations: figures.iter().map(|figure| figure.operations).sum(),
            rate: of(|f| f.rate),
            p50: of(|f| f.p50),
            p99: of(|f| f.p99),
            spent: std::array::from_fn(|process| middle(figures.iter().map(|f| f.spent[process]).collect())),
        })
    }

    /// Median of the rounds' ratios: what slows a machine for a while slows both of a round.
    fn ratio(&self, work: Work, peer: Work) -> Option<f64> {
        let (works, peers) = (self.figures.get(&(work, GATED))?, self.figures.get(&(peer, GATED))?);
        Some(middle(works.iter().zip(peers).map(|(work, peer)| work.rate / peer.rate).collect()))
    }

    pub(super) fn text(&self) -> String {
        let mut text = String::from(
            "# Benchmarks\nMade by `make bench`: one run on one machine, with the load generator, the sidecars, the \
             participants' apps and\netcd (3.7.2, fsync on) sharing its cores. Read the ratios; absolute figures are \
             those of this machine on that day.\n\n",
        );
        let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
        let _ = writeln!(
            text,
            "{cores} cores; {} rounds of {} s each, interleaved; medians, of ratios those of the rounds. Messages\nand puts are \
             128 bytes; a batch counts its messages, and its latency is the request's.\n",
            self.rounds, self.seconds
        );
        let clients: Vec<usize> = {
            let mut all: Vec<_> = self.figures.keys().map(|(_, clients)| *clients).collect();
            all.sort_unstable();
            all.dedup();
            all
        };
        let _ = write!(text, "| operations a second (p50 / p99 ms) |");
        for clients in &clients {
            let _ = write!(text, " {clients} |");
        }
        let _ = write!(text, "\n|---|{}\n", "---|".repeat(clients.len()));
        for work in Work::ALL {
            let _ = write!(text, "| {} |", work.name());
            for &clients in &clients {
                if let Some(Figure { rate, p50, p99, .. }) = self.median(work, clients) {
                    let _ = write!(text, " {rate:.0} ({p50:.2} / {p99:.1}) |");
                }
            }
            text.push('\n');
        }
        let _ = write!(text, "\n| at {GATED} clients | ratio | gate |\n|---|---|---|\n");
        for (work, peer, gate) in GATES {
            if let Some(ratio) = self.ratio(work, peer) {
                let _ = writeln!(text, "| {} against {} | {ratio:.2} | ≥ {gate} |", work.name(), peer.name());
            }
        }
        let _ = write!(
            text,
            "\n| processor time an operation at {GATED} clients, µs | etcd | sidecar | other sidecars and apps | generator \
             |\n|---|---|---|---|---|\n"
        );
        for work in Work::ALL {
            if let Some(Figure { spent: [etcd, sidecar, others, generator], .. }) = self.median(work, GATED) {
                let _ = writeln!(
                    text,
                    "| {} | {etcd:.1} | {sidecar:.1} | {others:.1} | {generator:.1} |",
                    work.name()
                );
            }
        }
        if let Some(put) = self.median(Work::Put, 1) {
            let _ = write!(
                text,
                "\n| at 1 client | p50 ms | round trips | against so many puts | gate |\n|---|---|---|---|---|\n"
            );
            for (work, _, _) in GATES {
                if let Some(figure) = self.median(work, 1) {
                    let trips = work.round_trips();
                    let ratio = figure.p50 / (put.p50 * f64::from(trips));
                    let _ = writeln!(
                        text,
                        "| {} | {:.2} | {trips} | {ratio:.2} | ≤ {ALONE} |",
                        work.name(),
                        figure.p50
                    );
                }
            }
        }
        if let Some(Idle { memory, cpu }) = self.idle {
            let _ = write!(
                text,
                "\nAn idle sidecar takes {memory:.1} MiB (gate: 25) and {cpu:.1} % of a core (gate: 1).\n"
            );
        }
        text
    }

    /// Fails when a ratio misses its gate.
    pub(super) fn check_gates(&self) -> Result<()> {
        let missed: Vec<String> = GATES
            .iter()
            .filter_map(|&(work, peer, gate)| {
                let ratio = self.ratio(work, peer)?;
                (ratio < gate).then(|| format!("{}: {ratio:.2} of {gate}", work.name()))
            })
            .collect();
        ensure!(missed.is_empty(), "gates missed: {}", missed.join("; "));
        Ok(())
    }
}
