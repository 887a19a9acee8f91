//! Figures of several rounds, and what they come to.

use std::collections::{BTreeMap, BTreeSet};

use super::load::Figure;

/// Figures by what was done and by how many clients, one a round.
pub(super) struct Figures<W>(BTreeMap<(W, usize), Vec<Figure>>);

impl<W: Copy + Ord> Figures<W> {
    pub(super) fn new() -> Self {
        Self(BTreeMap::new())
    }

    pub(super) fn add(&mut self, work: W, clients: usize, figure: Figure) {
        self.0.entry((work, clients)).or_default().push(figure);
    }

    /// How many clients there were at a time.
    pub(super) fn clients(&self) -> BTreeSet<usize> {
        self.0.keys().map(|(_, clients)| *clients).collect()
    }

    /// Medians over the rounds, of each column for itself.
    pub(super) fn median(&self, work: W, clients: usize) -> Option<Figure> {
        let figures = self.0.get(&(work, clients))?;
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
    pub(super) fn ratio(&self, work: W, peer: W, clients: usize) -> Option<f64> {
        let (works, peers) = (self.0.get(&(work, clients))?, self.0.get(&(peer, clients))?);
        Some(middle(works.iter().zip(peers).map(|(work, peer)| work.rate / peer.rate).collect()))
    }
}

/// The one in the middle, of an even number the upper.
pub(super) fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// How many cores the machine has.
pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(0, std::num::NonZero::get)
}
