//! A closed loop: each client asks again as soon as it is answered.

use std::{
    cell::RefCell,
    fmt,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::Result;
use hdrhistogram::Histogram;

/// What one run came to.
#[derive(Clone, Debug)]
pub(super) struct Figure {
    /// Operations a second.
    pub(super) rate: f64,
    /// How many operations were done.
    pub(super) operations: u64,
    /// Median and 99th percentile of an operation, in milliseconds.
    pub(super) p50: f64,
    pub(super) p99: f64,
    /// Processor time an operation, in microseconds, by process.
    pub(super) spent: [f64; 4],
}

impl Figure {
    /// With the processor time of each process that this took: what all took before it and after it.
    pub(super) fn spending(self, before: [f64; 4], after: [f64; 4]) -> Self {
        let operations = self.operations.max(1) as f64;
        Self { spent: std::array::from_fn(|of| (after[of] - before[of]) / operations), ..self }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>9.0}/s  p50 {:>7.2} ms  p99 {:>7.2} ms", self.rate, self.p50, self.p99)
    }
}

/// Counts what is done until the time is over.
#[derive(Clone)]
pub(super) struct Meter {
    state: Rc<RefCell<State>>,
    pub(super) end: Instant,
}

struct State {
    operations: u64,
    latency: Histogram<u64>,
    start: Instant,
}

impl Meter {
    pub(super) fn start(time: Duration) -> Result<Self> {
        let start = Instant::now();
        let latency = Histogram::new_with_bounds(1, 60_000_000, 3)?;
        Ok(Self { state: Rc::new(RefCell::new(State { operations: 0, latency, start })), end: start + time })
    }

    /// Whether there is time left.
    pub(super) fn goes_on(&self) -> bool {
        Instant::now() < self.end
    }

    /// Counts `operations` that were asked for at `since` and are done now.
    pub(super) fn done(&self, operations: u64, since: Instant) {
        let mut state = self.state.borrow_mut();
        state.operations += operations;
        let micros = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
        state.latency.saturating_record(micros.max(1));
    }

    pub(super) fn figure(&self) -> Figure {
        let state = self.state.borrow();
        let millis = |quantile| state.latency.value_at_quantile(quantile) as f64 / 1000.0;
        Figure {
            operations: state.operations,
            rate: state.operations as f64 / state.start.elapsed().as_secs_f64(),
            p50: millis(0.5),
            p99: millis(0.99),
            spent: [0.0; 4],
        }
    }
}

/// Runs one future a client, all on this thread, and fails with the first that fails.
pub(super) async fn all<F: Future<Output = Result<()>>>(clients: impl Iterator<Item = F>) -> Result<()> {
    futures::future::try_join_all(clients).await.map(|_| ())
}
