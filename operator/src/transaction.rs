//! The kind `DistributedTransaction`.

mod compile;
mod once;
mod status;
mod totals;

pub use compile::compile;
pub use once::hand_over;
pub use status::{State, status};
pub use totals::Totals;
