//! The localhost API: routes, and what stands before all of them.

pub mod duration;
pub mod extract;
pub mod guard;
pub mod idempotency;
pub mod trace;
