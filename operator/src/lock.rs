//! The kind `Lock`.

mod compile;
mod status;

pub use compile::compile;
pub use status::{State, status};
