//! What callers of locks were told. With what etcd did it makes the histories that L1 to L7 judge.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use anyhow::{Context, Result};
use concordat_protocol::{
    Key, Kind, Millis, Name, Record, SessionId, Settings,
    lock::{
        Holder, Mode, Waiter, fence,
        invariant::{self, Grant, line},
        plans,
    },
};
use parking_lot::Mutex;

use super::Change;

/// What every fence is raised by.
const OFFSET: i64 = 0;
/// How long a lock may be free beside somebody who waits, milliseconds: far more than a busy machine takes to hand it
/// over, and far less than a wake-up that was lost takes, which never comes.
const HAND_OVER: Millis = 10_000;

/// Records what callers of locks ask and are told. Paths are `lock/key`, instants milliseconds since it was made.
#[derive(Debug)]
pub struct Callers {
    start: Instant,
    arrivals: AtomicU64,
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    grants: Vec<Granted>,
    waits: Vec<Waited>,
    said: Vec<Said>,
    accepted: Vec<u64>,
}

#[derive(Debug)]
struct Granted {
    path: String,
    token: String,
    grant: Grant,
}

#[derive(Debug)]
struct Waited {
    path: String,
    owner: String,
    from: Millis,
    to: Millis,
}

/// A renewal or release that was said to have succeeded.
#[derive(Debug)]
struct Said {
    what: &'static str,
    path: String,
    token: String,
    from: Millis,
}

impl Default for Callers {
    fn default() -> Self {
        Self { start: Instant::now(), arrivals: AtomicU64::new(0), told: Mutex::default() }
    }
}

impl Callers {
    /// Now.
    pub fn now(&self) -> Millis {
        self.start.elapsed().as_millis() as Millis
    }

    /// The number of a call that is made, from 0.
    pub fn arrive(&self) -> u64 {
        self.arrivals.fetch_add(1, Ordering::SeqCst)
    }

    /// A grant came, perhaps not for the first time: it is relied on for `expires_in` from now, or until [`Callers::stop_believing`].
    ///
    /// `caller` is a sidecar and the caller's place among those of its callers whose order it knows.
    pub fn granted(&self, path: &str, caller: (String, u64), token: &str, fence: u64, expires_in: Millis) {
        let from = self.now();
        let to = from + expires_in;
        let grant = Grant { caller, fence, from, to, session_alive: true, definition_in_force: true };
        let grants = &mut self.told.lock().grants;
        if !grants.iter().any(|granted| granted.path == path && granted.token == token) {
            grants.push(Granted { path: path.to_owned(), token: token.to_owned(), grant });
        }
    }

    /// A renewal came: the grant is relied on for `expires_in` from now.
    pub fn renewed(&self, token: &str, expires_in: Millis) {
        let to = self.now() + expires_in;
        for granted in self.told.lock().grants.iter_mut().filter(|granted| granted.token == token) {
            granted.grant.to = to;
        }
    }

    /// A call under this owner's name, made at `from`, was granted or waited in vain.
    pub fn waited(&self, path: &str, owner: &str, from: Millis) {
        let to = self.now();
        self.told.lock().waits.push(Waited { path: path.to_owned(), owner: owner.to_owned(), from, to });
    }

    /// A renewal or release, made at `from`, was said to have succeeded.
    pub fn succeeded(&self, what: &'static str, path: &str, token: &str, from: Millis) {
        let (path, token) = (path.to_owned(), token.to_owned());
        self.told.lock().said.push(Said { what, path, token, from });
    }

    /// The caller of a grant relies on it no longer, as before it lets go.
    pub fn stop_believing(&self, token: &str) {
        self.forget(|granted| granted.token == token);
    }

    /// Whoever holds a key relies on it no longer, as when it is taken by force.
    pub fn give_up(&self, path: &str) {
        self.forget(|granted| granted.path == path);
    }

    fn forget(&self, of: impl Fn(&Granted) -> bool) {
        let now = self.now();
        for granted in self.told.lock().grants.iter_mut().filter(|granted| of(granted)) {
            granted.grant.to = granted.grant.to.min(now);
        }
    }

    /// A resource that keeps the highest fence beside its data; whether it takes this write.
    pub fn write(&self, fence: u64) -> bool {
        let accepted = &mut self.told.lock().accepted;
        let takes = accepted.last().is_none_or(|last| *last <= fence);
        if takes {
            accepted.push(fence);
        }
        takes
    }

    /// Holds L1 to L7 over all that was recorded of a key, whatever the mode of its lock.
    pub fn judge(&self, path: &str, changes: &[Change]) -> Result<()> {
        if Self::facts(path, changes)?.settings.mode == Mode::FairQueue {
            self.judge_line(path, changes).map(drop)
        } else {
            self.judge_swap(path, changes).map(drop)
        }
    }

    /// The same of a lock of mode `CompareAndSwap` or `Lease`; and the history.
    pub fn judge_swap(&self, path: &str, changes: &[Change]) -> Result<invariant::History> {
        let facts = Self::facts(path, changes)?;
        let mut history = invariant::History::default();
        let mut holders = BTreeMap::new();
        for change in changes {
            let Key::Holder { lock, key } = &change.key else { continue };
            if (lock, key) != (&facts.lock, &facts.key) {
                continue;
            }
            let (holder, told) = match change.entry.as_ref().map(|entry| &entry.record) {
                Some(Record::Holder(Holder { session, regrants, stays, .. })) => {
                    (Some(session.clone()), (!stays).then_some(*regrants))
                }
                _ => (None, None),
            };
            holders.extend(holder.clone().map(|holder| (change.revision, holder)));
            history.changes.push(invariant::Change {
                revision: change.revision,
                at: self.at(change),
                holder,
                told,
            });
        }
        let told = self.told.lock();
        let gone = |fence: u64| {
            let mut later = history.changes.iter().skip_while(|change| change.revision < put_at(fence));
            let holder = later.next()?.holder.as_ref();
            Some(later.find(|change| change.holder.as_ref() != holder)?.at)
        };
        history.forged = told.forged(path, gone);
        history.grants = self.grants(&told, &facts, |fence| holders.get(&put_at(fence)));
        let waits = told.waits.iter().filter(|waited| waited.path == path);
        history.waits = waits.map(|waited| invariant::Wait { from: waited.from, to: waited.to }).collect();
        history.accepted.clone_from(&told.accepted);
        history.shadows = facts.shadow().into_iter().filter(|shadow| told.released(path, *shadow)).collect();
        let bound = HAND_OVER + facts.settings.lock_delay;
        invariant::all(&history, OFFSET, bound).map_err(anyhow::Error::msg)?;
        invariant::l7_nothing_taken(&history, OFFSET).map_err(anyhow::Error::msg)?;
        Ok(history)
    }

    /// The same of a lock of mode `FairQueue`; and the history.
    pub fn judge_line(&self, path: &str, changes: &[Change]) -> Result<line::History> {
        let facts = Self::facts(path, changes)?;
        let mut history = line::History::default();
        let mut owners = BTreeMap::new();
        for change in changes {
            let Key::Waiter { lock, key, session, number } = &change.key else { continue };
            if (lock, key) != (&facts.lock, &facts.key) {
                continue;
            }
            let (who, revision) = ((session.clone(), *number), change.revision);
            if let Some(Record::Waiter(Waiter { holder, share, place })) =
                change.entry.as_ref().map(|entry| &entry.record)
            {
                owners.insert(holder.owner.clone(), who.clone());
                history.stood.push(line::Stood { revision, who, place: *place, share: *share, gone: None });
            } else {
                let gone = Some(self.at(change));
                history.stood.iter_mut().filter(|stood| stood.who == who).for_each(|stood| stood.gone = gone);
            }
        }
        let told = self.told.lock();
        let of = |fence: u64| {
            let place = fence % fence::PLACES;
            history
                .stood
                .iter()
                .find(|stood| (stood.revision, u64::from(stood.place)) == (put_at(fence), place))
        };
        history.forged = told.forged(path, |fence| of(fence)?.gone);
        history.grants = self.grants(&told, &facts, |fence| Some(&of(fence)?.who.0));
        let waits = told.waits.iter().filter(|waited| waited.path == path);
        history.waits = waits
            .filter_map(|Waited { owner, from, to, .. }| {
                Some(line::Wait { who: owners.get(owner)?.clone(), from: *from, to: *to })
            })
            .collect();
        history.accepted.clone_from(&told.accepted);
        let bound = HAND_OVER + facts.settings.lock_delay;
        line::all(&history, OFFSET, bound).map_err(anyhow::Error::msg)?;
        line::l7_nothing_taken(&history, OFFSET).map_err(anyhow::Error::msg)?;
        Ok(history)
    }

    /// When the watch told of a change.
    fn at(&self, change: &Change) -> Millis {
        change.seen.saturating_duration_since(self.start).as_millis() as Millis
    }

    /// What callers were granted, with what etcd knows of it: under whose session each grant was put, `of` knows.
    fn grants<'a>(
        &self,
        told: &Told,
        facts: &Facts<'_>,
        of: impl Fn(u64) -> Option<&'a SessionId>,
    ) -> Vec<Grant> {
        let of_key = told.grants.iter().filter(|granted| granted.path == facts.path);
        of_key
            .map(|granted| {
                let mut grant = granted.grant.clone();
                let session = of(grant.fence).map(|session| Key::Session(session.clone()));
                grant.session_alive = session.is_none_or(|session| {
                    let mut ends = facts.changes.iter().filter(|change| change.key == session);
                    !ends.any(|change| change.entry.is_none() && self.at(change) < grant.from)
                });
                grant.definition_in_force = facts.in_force(put_at(grant.fence));
                grant
            })
            .collect()
    }

    fn facts<'a>(path: &'a str, changes: &'a [Change]) -> Result<Facts<'a>> {
        let (lock, key) = path.split_once('/').context("a path is lock/key")?;
        let (lock, key) = (Name::from(lock), Name::from(key));
        let definition = Key::Definition { kind: Kind::Lock, name: lock.clone() };
        let last = changes.iter().rev().find_map(|change| match change.entry.as_ref()?.record {
            Record::Definition(ref of) if change.key == definition => Some(of.settings.clone()),
            _ => None,
        });
        match last {
            Some(Settings::Lock(settings)) => Ok(Facts { path, lock, key, definition, settings, changes }),
            _ => anyhow::bail!("there never was a lock {lock}"),
        }
    }
}

impl Told {
    /// Whether the caller of the grant made at a revision was told that it has let go.
    fn released(&self, path: &str, revision: i64) -> bool {
        let of_path = self.grants.iter().filter(|granted| granted.path == path);
        let mut grants = of_path.filter(|granted| put_at(granted.grant.fence) == revision);
        grants.any(|granted| self.said.iter().any(|said| said.what == RELEASE && said.token == granted.token))
    }

    /// When the release was asked for that was said to have succeeded first with a token.
    fn let_go(&self, token: &str) -> Option<Millis> {
        let releases = self.said.iter().filter(|said| said.what == RELEASE && said.token == token);
        releases.map(|said| said.from).min()
    }

    /// What was said to have succeeded of a key and cannot have, or was not to: by a token that nobody was granted, a
    /// renewal of what was let go or `gone` before it was asked for, a release of what is still relied on. (It may be repeated.)
    fn forged(&self, path: &str, gone: impl Fn(u64) -> Option<Millis>) -> Vec<String> {
        let mut forged = Vec::new();
        for Said { what, token, from, .. } in self.said.iter().filter(|said| said.path == path) {
            let of = self.grants.iter().find(|granted| granted.path == path && granted.token == *token);
            let relied_on = of.is_some_and(|granted| granted.grant.to > *from);
            match of.map(|granted| granted.grant.fence) {
                Some(fence) if *what == RELEASE && relied_on => {
                    forged.push(format!("{fence} is relied on and was released"));
                }
                None => forged.push(format!("a {what} succeeded with a token that nobody was granted")),
                Some(fence) if *what == RENEWAL && self.let_go(token).is_some_and(|at| at < *from) => {
                    forged.push(format!("a {what} of {fence} succeeded when that was let go"));
                }
                Some(fence) if *what == RENEWAL && gone(fence).is_some_and(|gone| gone < *from) => {
                    forged.push(format!("a {what} of {fence} succeeded when that was gone"));
                }
                Some(_) => {}
            }
        }
        forged
    }
}

/// What a renewal is called in [`Callers::succeeded`].
pub const RENEWAL: &str = "renewal";
/// What a release is called there.
pub const RELEASE: &str = "release";

/// What etcd knows of a lock.
struct Facts<'a> {
    path: &'a str,
    lock: Name,
    key: Name,
    definition: Key,
    /// The last there were.
    settings: concordat_protocol::lock::Settings,
    changes: &'a [Change],
}

impl Facts<'_> {
    /// Revision of the shadow that stands at the end, in mode `Lease`.
    fn shadow(&self) -> Option<i64> {
        let key = plans::shadow(&self.lock, &self.key);
        let last = self.changes.iter().rfind(|change| change.key == key)?;
        last.entry.as_ref().map(|entry| entry.mod_revision)
    }

    /// Whether there was a definition at a revision.
    fn in_force(&self, revision: i64) -> bool {
        let before = |change: &&Change| change.revision <= revision && change.key == self.definition;
        self.changes.iter().rfind(before).is_some_and(|last| last.entry.is_some())
    }
}

/// The revision at which the key of a grant was put.
fn put_at(fence: u64) -> i64 {
    (fence / fence::PLACES) as i64 - OFFSET
}
