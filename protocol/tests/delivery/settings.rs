//! The queue of the tests of one delivery.

use concordat_protocol::queue::{Mode, OnFull, Ordering, Settings};

/// A work queue whose messages are given up after so many deliveries.
pub(crate) fn settings(max_deliveries: u32) -> Settings {
    Settings {
        mode: Mode::WorkQueue,
        partitions: 1,
        ordering: Ordering::None,
        visibility: 30_000,
        max_deliveries,
        backoff: vec![],
        dead_letter_queue: None,
        dead_letter_retention: 60_000,
        retention_age: 3_600_000,
        retention_bytes: 1 << 30,
        on_full: OnFull::Refuse,
        max_message_bytes: 256 << 10,
        dedup_window: 60_000,
    }
}
