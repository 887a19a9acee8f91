//! The results, and whether they are good enough.

use std::fmt::Write as _;

use anyhow::{Result, ensure};

use super::{
    super::{
        figures::{Figures, cores, middle},
        http::Connections,
        load::Figure,
    },
    stage::{LOCK_DELAY, TTL},
    work::Work,
};

/// What is compared with what, at how many clients, and what the ratio must reach (issue "Locks", How fast).
const PAIRS: [(Work, Work, usize, f64); 11] = [
    (Work::Sidecar(Connections::Own), Work::V3Lock(Connections::Own), 64, 1.5),
    (Work::Sidecar(Connections::Shared), Work::V3Lock(Connections::Shared), 64, 1.5),
    (Work::Sidecar(Connections::Own), Work::V3Lock(Connections::Own), 256, 1.5),
    (Work::Sidecar(Connections::Shared), Work::V3Lock(Connections::Shared), 256, 1.5),
    (Work::Sidecar(Connections::Own), Work::ZooKeeper(Connections::Own), 64, 0.8),
    (Work::Sidecar(Connections::Shared), Work::ZooKeeper(Connections::Shared), 64, 0.8),
    (Work::Sidecar(Connections::Own), Work::ZooKeeper(Connections::Own), 256, 1.0),
    (Work::Sidecar(Connections::Shared), Work::ZooKeeper(Connections::Shared), 256, 1.0),
    (Work::Store, Work::V3Lock(Connections::Shared), 64, 3.0),
    (Work::Stays(Connections::Own), Work::Redis(Connections::Own), 64, 1.5),
    (Work::Stays(Connections::Shared), Work::Redis(Connections::Shared), 64, 1.5),
];
const CONTENDED: [(Work, Work, f64); 2] =
    [(Work::FairOne, Work::Recipe, 8.0), (Work::FairFour, Work::Recipe, 5.0)];
/// Clients at which processor time is told.
const TOLD: usize = 64;

/// All that was measured.
pub(super) struct Report {
    rounds: usize,
    seconds: u64,
    contenders: usize,
    waiters: usize,
    pub(super) pairs: Figures<Work>,
    pub(super) contended: Figures<Work>,
    pub(super) wakeups: Vec<f64>,
    /// Seconds.
    pub(super) after_kill: Vec<f64>,
}

/// A gate, and what was measured of it.
struct Gate {
    what: String,
    measured: String,
    to_reach: String,
    reached: bool,
}

impl Report {
    pub(super) fn new(rounds: usize, seconds: u64, contenders: usize, waiters: usize) -> Self {
        let (pairs, contended) = (Figures::new(), Figures::new());
        let (wakeups, after_kill) = (Vec::new(), Vec::new());
        Self { rounds, seconds, contenders, waiters, pairs, contended, wakeups, after_kill }
    }

    fn gates(&self) -> Vec<Gate> {
        let ratio = |work: Work, peer: Work, at: String, ratio: f64, gate: f64| Gate {
            what: format!("{}, against {}{at}", work.name(), peer.name()),
            measured: format!("{ratio:.2}"),
            to_reach: format!("≥ {gate}"),
            reached: ratio >= gate,
        };
        let pairs = PAIRS.into_iter().filter_map(|(work, peer, clients, gate)| {
            let measured = self.pairs.ratio(work, peer, clients)?;
            Some(ratio(work, peer, format!(", {clients} clients"), measured, gate))
        });
        let contended = CONTENDED.into_iter().filter_map(|(work, peer, gate)| {
            let measured = self.contended.ratio(work, peer, self.contenders)?;
            Some(ratio(work, peer, format!(", {} on one key", self.contenders), measured, gate))
        });
        let wakeups = (!self.wakeups.is_empty()).then(|| {
            let measured = middle(self.wakeups.clone());
            Gate {
                what: format!("wake-ups in a sidecar per release, {} waiters", self.waiters),
                measured: format!("{measured:.3}"),
                to_reach: "≤ 1".into(),
                reached: measured <= 1.0,
            }
        });
        let kill = self.after_kill.iter().copied().reduce(f64::max).map(|longest| {
            let bound = (TTL + LOCK_DELAY + 1_000) as f64 / 1e3;
            Gate {
                what: format!(
                    "seconds to the grant after kill -9 of the holder's sidecar, the longest, of a TTL of {} s and a \
                     lockDelay of {} s",
                    TTL / 1_000,
                    LOCK_DELAY / 1_000
                ),
                measured: format!("{longest:.2}"),
                to_reach: format!("≤ {bound} (TTL + lockDelay + 1)"),
                reached: longest <= bound,
            }
        });
        pairs.chain(contended).chain(wakeups).chain(kill).collect()
    }

    pub(super) fn text(&self) -> String {
        let mut text = format!(
            "# Benchmarks of locks\nMade by `make bench-locks`: one run on one machine, with the load generator, four \
             sidecars, etcd (3.7.2), and\nZooKeeper and Redis as Debian has them sharing its cores, one node each, all \
             of which wait for the disk before they\nanswer. Read the ratios; absolute figures are those of this \
             machine on that day.\n\n{} cores; {} rounds of {} s each, interleaved; medians, of ratios those of the \
             rounds. Over HTTP/1.1\neach client has a connection, over HTTP/2 all share one; the others are called both \
             ways too, and like is compared with\nlike. Those that share sessions of ZooKeeper share 16; the store has one \
             connection.\n",
            cores(),
            self.rounds,
            self.seconds
        );
        let clients = self.pairs.clients();
        let _ = write!(text, "\n| uncontended pairs a second (p50 / p99 ms), one key a client |");
        for clients in &clients {
            let _ = write!(text, " {clients} |");
        }
        let _ = write!(text, "\n|---|{}\n", "---|".repeat(clients.len()));
        for work in Work::PAIRS {
            let _ = write!(text, "| {} |", work.name());
            for &clients in &clients {
                match self.pairs.median(work, clients) {
                    Some(Figure { rate, p50, p99, .. }) => {
                        let _ = write!(text, " {rate:.0} ({p50:.2} / {p99:.1}) |");
                    }
                    None => text.push_str(" |"),
                }
            }
            text.push('\n');
        }
        let _ = write!(
            text,
            "\n| {} clients on one key | grants a second | from a release to the next grant, p50 / p99 ms |\n|---|---|---|\n",
            self.contenders
        );
        for work in Work::CONTENDED {
            if let Some(Figure { rate, p50, p99, .. }) = self.contended.median(work, self.contenders) {
                let _ = writeln!(text, "| {} | {rate:.0} | {p50:.2} / {p99:.2} |", work.name());
            }
        }
        let _ = write!(text, "\n| gate | measured | to reach | |\n|---|---|---|---|\n");
        for Gate { what, measured, to_reach, reached } in self.gates() {
            let _ = writeln!(
                text,
                "| {what} | {measured} | {to_reach} | {} |",
                if reached { "ok" } else { "**missed**" }
            );
        }
        let _ = write!(
            text,
            "\n| processor time an operation at {TOLD} clients, µs | etcd | sidecars | ZooKeeper and Redis | generator \
             |\n|---|---|---|---|---|\n"
        );
        for (works, figures) in [(&Work::PAIRS[..], &self.pairs), (&Work::CONTENDED[..], &self.contended)] {
            for work in works {
                if let Some(Figure { spent: [etcd, sidecars, peers, generator], .. }) =
                    figures.median(*work, TOLD)
                {
                    let _ = writeln!(
                        text,
                        "| {} | {etcd:.1} | {sidecars:.1} | {peers:.1} | {generator:.1} |",
                        work.name()
                    );
                }
            }
        }
        text.push_str("\nThe generator's column has the store when that is measured in process.\n");
        text
    }

    /// Fails when a gate is missed.
    pub(super) fn check_gates(&self) -> Result<()> {
        let missed: Vec<String> = self
            .gates()
            .into_iter()
            .filter(|gate| !gate.reached)
            .map(|Gate { what, measured, to_reach, .. }| format!("{what}: {measured}, {to_reach}"))
            .collect();
        ensure!(missed.is_empty(), "gates missed:\n{}", missed.join("\n"));
        Ok(())
    }
}
