//! The store on a real etcd, one node and three, with everything that can go wrong between them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

mod access;
mod commit;
mod connect;
mod members;
mod sessions;
mod space;
mod unknown;
mod watches;

use std::sync::Arc;

use concordat_protocol::{Key, Lease, Plan, Range, SessionId, lock::Holder, record::Epoch, session::Session};
use concordat_store::{
    Config, Store,
    observer::{Counts, Observer, Purpose},
};
use parking_lot::Mutex;

/// A configuration whose time-outs a busy machine keeps and a test can wait for.
fn config(endpoints: impl IntoIterator<Item = String>) -> Config {
    let session = Session { pod: "pod".into(), app: "app".into(), accepts: true };
    Config { request_timeout: 3_000, ..Config::new(endpoints, "test", session) }
}

async fn connect(endpoint: String) -> Store {
    Store::connect(config([endpoint])).await.unwrap()
}

fn key(name: &str) -> Key {
    Key::Holder { lock: "lock".into(), key: name.into() }
}

fn holder(session: &SessionId) -> Holder {
    Holder {
        session: session.clone(),
        pod: "pod".into(),
        owner: "owner".into(),
        since: 0,
        regrants: 0,
        stays: false,
    }
}

/// Puts a key under the session's lease if it is absent, and reads it if it is not.
fn acquire(session: &SessionId, name: &str) -> Plan {
    Plan::new()
        .absent(key(name))
        .put(key(name), holder(session), Lease::Session(session.clone()))
        .otherwise(key(name))
}

/// Changes a key that stays, whatever becomes of the session, if it was last changed at `revision`.
fn change(name: &str, revision: i64) -> Plan {
    Plan::new().unchanged(key(name), revision).put(
        key(name),
        Epoch { holder: revision.to_string() },
        Lease::Forever,
    )
}

/// The revision at which a key was last changed, 0 when it is absent.
async fn revision_of(store: &Store, name: &str) -> i64 {
    let answer = store.read(vec![Range::One(key(name))]).await.unwrap();
    answer.reads[0].first().map_or(0, |entry| entry.mod_revision)
}

/// Keeps all it is told.
#[derive(Default)]
struct Counting {
    requests: Mutex<Vec<(Purpose, Counts)>>,
}

impl Counting {
    /// What was asked since the last call, for this purpose.
    fn take(&self, purpose: Purpose) -> Vec<Counts> {
        let all = std::mem::take(&mut *self.requests.lock());
        all.into_iter().filter(|(of, _)| *of == purpose).map(|(_, counts)| counts).collect()
    }
}

impl Observer for Counting {
    fn request(&self, purpose: Purpose, counts: Counts, _: std::time::Duration, _: bool) {
        self.requests.lock().push((purpose, counts));
    }
}

/// A store whose requests are counted.
async fn counted(endpoint: String) -> (Store, Arc<Counting>) {
    let counting = Arc::new(Counting::default());
    let config = Config { observer: counting.clone(), ..config([endpoint]) };
    (Store::connect(config).await.unwrap(), counting)
}
