//! What is remembered: keys, records, commits, sessions and watches on etcd.
//!
//! The only crate that knows etcd.

pub mod access;
mod admin;
pub mod batch;
mod certificates;
mod channel;
mod clock;
mod config;
mod connection;
pub mod epoch;
mod error;
mod exchange;
mod health;
mod isolation;
pub mod keys;
pub mod observer;
mod read;
pub mod record;
mod refusal;
mod session;
mod space;
mod store;
mod timeline;
pub mod version;
mod watch;
mod wire;

pub use admin::{Admin, AdminConfig};
pub use clock::Clock;
pub use config::{Config, Tls};
pub use error::{CommitError, ConnectError, Restored};
pub use health::Health;
pub use isolation::NotIsolated;
pub use refusal::Refusal;
pub use session::{Session, SessionState};
pub use space::Space;
pub use store::Store;
pub use watch::{Watch, WatchEvent};
