//! What Concordat decides, and nothing else: pure state machines, their settings and their invariants.
//!
//! Nothing here knows a clock, a socket, a thread or a random number. A machine takes a state, an input and
//! the time and answers a state and effects; an effect is data, and the one that touches what is remembered is
//! [`Plan`]. The product runs plans on etcd, the model checker runs the same plans on [`etcd::Etcd`], so that
//! what is checked is what ships.

pub mod definition;
pub mod etcd;
pub mod id;
pub mod key;
pub mod lock;
pub mod plan;
pub mod queue;
pub mod record;
pub mod session;
pub mod time;
pub mod timeline;
pub mod transaction;

pub use definition::{Definition, Kind, Settings};
pub use id::{App, Branch, Name, SessionId, TransactionId};
pub use key::{Key, Range};
pub use plan::{Answer, Entry, Lease, Plan, Write};
pub use record::Record;
pub use time::{Millis, Now};
