//! The kind `Queue`.

mod compile;
mod status;

pub use compile::compile;
pub use status::{State, status};
