//! Which sidecars live, as one of them sees it: late, so every plan that counts on it says so in its compares.

use std::collections::{BTreeMap, BTreeSet};

use crate::{App, SessionId, TransactionId, session::Session};

/// The live sidecars of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Peers {
    sessions: BTreeMap<SessionId, Session>,
    by_app: BTreeMap<App, BTreeSet<SessionId>>,
}

impl Peers {
    /// A sidecar came, or changed what it says of itself.
    pub fn put(&mut self, id: SessionId, session: Session) {
        self.by_app.entry(session.app.clone()).or_default().insert(id.clone());
        self.sessions.insert(id, session);
    }

    /// A sidecar's session ended.
    pub fn remove(&mut self, id: &SessionId) {
        if let Some(session) = self.sessions.remove(id)
            && let Some(of_app) = self.by_app.get_mut(&session.app)
        {
            of_app.remove(id);
            if of_app.is_empty() {
                self.by_app.remove(&session.app);
            }
        }
    }

    /// Whether the session lives.
    pub fn is_live(&self, id: &SessionId) -> bool {
        self.sessions.contains_key(id)
    }

    /// All live sessions.
    pub fn live(&self) -> impl Iterator<Item = &SessionId> {
        self.sessions.keys()
    }

    /// The sidecar of an app to give a transaction's work to: the same one for everybody who sees the same peers.
    /// `None` when there is none that takes work, `except` those known to be gone.
    pub fn choose(
        &self,
        app: &App,
        transaction: &TransactionId,
        except: &BTreeSet<SessionId>,
    ) -> Option<SessionId> {
        self.by_app
            .get(app)?
            .iter()
            .filter(|id| {
                !except.contains(*id) && self.sessions.get(*id).is_some_and(|session| session.accepts)
            })
            .max_by_key(|id| weigh(transaction.as_str(), id.as_str()))
            .cloned()
    }

    /// How many others come before `own` in looking after what `dead` left: 0 for the first choice. Only sidecars of
    /// `app` count where one is given.
    pub fn rank(&self, dead: &str, own: &SessionId, app: Option<&App>) -> usize {
        let mine = weigh(dead, own.as_str());
        self.sessions
            .iter()
            .filter(|(id, session)| {
                *id != own && session.accepts && app.is_none_or(|app| *app == session.app)
            })
            .filter(|(id, _)| weigh(dead, id.as_str()) > mine)
            .count()
    }
}

/// The weight of a candidate in rendezvous hashing: FNV-1a, its bits then spread (splitmix64), since names that differ
/// in their last byte alone would else weigh alike.
fn weigh(what: &str, candidate: &str) -> u64 {
    let mut hash = super::digest(what);
    for byte in candidate.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}
