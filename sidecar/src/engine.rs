//! The engines: each runs the machines of one column on the store.

pub mod lock;
pub mod queue;
pub mod transaction;
