//! What callers of locks were told. With what etcd did it makes the histories that L1 to L7 judge.

mod told;

use std::{
    collections::{BTreeMap, HashMap},
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use anyhow::{Context, Result};
use concordat_protocol::{
    Key, Kind, Millis, Name, Record, Settings,
    lock::{
        Holder, Mode, Waiter, fence,
        invariant::{self, Grant, line},
    },
};
use parking_lot::Mutex;

use self::told::{Facts, Granted, OfPath, Said, Told, Waited, put_at};
use super::Change;

/// What every fence is raised by.
const OFFSET: i64 = 0;
/// How long a lock may be free beside somebody who waits, milliseconds: far more than a busy machine takes to hand it
/// over, and far less than a wake-up that was lost takes, which never comes.
const HAND_OVER: Millis = 10_000;
/// How long a leader of etcd that stood still takes, once it goes on, to learn that another leads, milliseconds.
const LEADER_LEARNS: Millis = 2_000;
/// The path of the one resource that all keys share.
const SHARED: &str = "";

/// Records what callers of locks ask and are told. Paths are `lock/key`, instants milliseconds since it was made.
#[derive(Debug)]
pub struct Callers {
    start: Instant,
    arrivals: AtomicU64,
    told: Mutex<Told>,
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
        self.granted_until(path, caller, token, fence, self.now() + expires_in);
    }

    /// The same, relied on until `to`; of a grant that came after that, never.
    pub fn granted_until(&self, path: &str, caller: (String, u64), token: &str, fence: u64, to: Millis) {
        let from = self.now().min(to);
        let grant = Grant { caller, fence, from, to, session_alive: true, definition_in_force: true };
        let Told { paths, tokens, .. } = &mut *self.told.lock();
        let stand = tokens.entry(token.to_owned()).or_default();
        if !stand.iter().any(|(of, _)| of == path) {
            let grants = &mut paths.entry(path.to_owned()).or_default().grants;
            stand.push((path.to_owned(), grants.len()));
            grants.push(Granted { token: token.to_owned(), grant });
        }
    }

    /// A renewal came: the grant is relied on for `expires_in` from now.
    pub fn renewed(&self, token: &str, expires_in: Millis) {
        self.renewed_until(token, self.now() + expires_in);
    }

    /// The same, relied on until `to`.
    pub fn renewed_until(&self, token: &str, to: Millis) {
        self.told.lock().of_token(token, |grant| grant.to = to);
    }

    /// A call under this owner's name, made at `from`, was granted or waited in vain.
    pub fn waited(&self, path: &str, owner: &str, from: Millis) {
        let to = self.now();
        self.told.lock().of(path).waits.push(Waited { owner: owner.to_owned(), from, to });
    }

    /// A renewal or release, made at `from`, was said to have succeeded.
    pub fn succeeded(&self, what: &'static str, path: &str, token: &str, from: Millis) {
        self.told.lock().of(path).said.push(Said { what, token: token.to_owned(), from });
    }

    /// The caller of a grant relies on it no longer, as before it lets go.
    pub fn stop_believing(&self, token: &str) {
        let now = self.now();
        self.told.lock().of_token(token, |grant| grant.to = grant.to.min(now));
    }

    /// Whoever holds a key relies on it no longer, as when it is taken by force.
    pub fn give_up(&self, path: &str) {
        let now = self.now();
        for Granted { grant, .. } in &mut self.told.lock().of(path).grants {
            grant.to = grant.to.min(now);
        }
    }

    /// A resource that keeps the highest fence beside its data; whether it takes this write.
    pub fn write(&self, fence: u64) -> bool {
        self.write_to(SHARED, fence)
    }

    /// The same of a resource that a key has to itself.
    pub fn write_to(&self, path: &str, fence: u64) -> bool {
        let takes = self.last_write(path) <= fence;
        if takes {
            self.took(path, fence);
        }
        takes
    }

    /// The resource of a key took a write, whether or not it compared.
    pub fn took(&self, path: &str, fence: u64) {
        self.told.lock().of(path).accepted.push(fence);
    }

    /// The fence of the last write that the resource of a key took; 0: it took none.
    pub fn last_write(&self, path: &str) -> u64 {
        self.told.lock().of(path).accepted.last().copied().unwrap_or_default()
    }

    /// Forgets what was told, so that the record of a long run does not grow. Fences must rise above those it forgets, and
    /// resources remember. Only while nobody holds anything.
    pub fn forget(&self) {
        let told = &mut *self.told.lock();
        told.tokens.clear();
        told.thaws.clear();
        for of in told.paths.values_mut() {
            let highest = of.grants.iter().map(|granted| granted.grant.fence).max().unwrap_or_default();
            let accepted = of.accepted.last().copied().into_iter().collect();
            *of = OfPath { accepted, forgotten: of.forgotten.max(highest), ..OfPath::default() };
        }
    }

    /// A leader of etcd that stood still goes on. Until it learns that another leads it revokes leases that it did not see
    /// kept alive and that its successor has (etcd#15247, seen on 3.7.2): what is taken so, etcd takes from holders who may
    /// rely on it. Of such grants L1, L4 and L7 are held up to that moment; L2 and L3 hold without exception.
    pub fn leader_thaws(&self) {
        let now = self.now();
        self.told.lock().thaws.push(now);
    }

    /// Whether one did since the record was forgotten last: then whom etcd took a grant from is known at its end alone.
    pub fn leader_thawed(&self) -> bool {
        !self.told.lock().thaws.is_empty()
    }

    /// Holds L1 to L7 over all that was recorded of a key, whatever the mode of its lock.
    pub fn judge(&self, path: &str, changes: &[Change]) -> Result<()> {
        if self.facts(path, changes)?.settings.mode == Mode::FairQueue {
            self.judge_line(path, changes).map(drop)
        } else {
            self.judge_swap(path, changes).map(drop)
        }
    }

    /// The same of a lock of mode `CompareAndSwap` or `Lease`; and the history.
    pub fn judge_swap(&self, path: &str, changes: &[Change]) -> Result<invariant::History> {
        let facts = self.facts(path, changes)?;
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
        let mut told = self.told.lock();
        history.accepted = told.accepted(path);
        let thaws = told.thaws.clone();
        let thawing = |at| thaws.iter().any(|thaw| (*thaw..*thaw + LEADER_LEARNS).contains(&at));
        let of = told.of(path);
        of.rise()?;
        let gone = |fence: u64| {
            let first = history.changes.partition_point(|change| change.revision < put_at(fence));
            let mut later = history.changes[first..].iter();
            let holder = later.next()?.holder.as_ref();
            Some(later.find(|change| change.holder.as_ref() != holder)?.at)
        };
        history.forged = of.forged(thawing, gone);
        history.grants =
            of.granted(&facts, thawing, |fence| Some((holders.get(&put_at(fence))?, gone(fence))));
        // What was told too late to be relied on counts as of when it was taken, which is before the next one came.
        for grant in &mut history.grants {
            grant.from = grant.from.min(grant.to);
        }
        history.waits =
            of.waits.iter().map(|wait| invariant::Wait { from: wait.from, to: wait.to }).collect();
        history.shadows = facts.shadow().into_iter().filter(|shadow| of.released(*shadow)).collect();
        let bound = HAND_OVER + facts.settings.lock_delay;
        invariant::all(&history, OFFSET, bound).map_err(anyhow::Error::msg)?;
        invariant::l7_nothing_taken(&history, OFFSET).map_err(anyhow::Error::msg)?;
        Ok(history)
    }

    /// The same of a lock of mode `FairQueue`; and the history.
    pub fn judge_line(&self, path: &str, changes: &[Change]) -> Result<line::History> {
        let facts = self.facts(path, changes)?;
        let mut history = line::History::default();
        let (mut owners, mut stand, mut fences) = (HashMap::new(), HashMap::new(), HashMap::new());
        for change in changes {
            let Key::Waiter { lock, key, session, number } = &change.key else { continue };
            if (lock, key) != (&facts.lock, &facts.key) {
                continue;
            }
            let (who, revision) = ((session.clone(), *number), change.revision);
            if let Some(Record::Waiter(Waiter { holder, share, place })) =
                change.entry.as_ref().map(|entry| &entry.record)
            {
                let at = history.stood.len();
                owners.insert(holder.owner.clone(), who.clone());
                stand.insert(who.clone(), at);
                fences.insert((revision, u64::from(*place)), at);
                history.stood.push(line::Stood { revision, who, place: *place, share: *share, gone: None });
            } else if let Some(at) = stand.get(&who) {
                history.stood[*at].gone = Some(self.at(change));
            }
        }
        let mut told = self.told.lock();
        history.accepted = told.accepted(path);
        let thaws = told.thaws.clone();
        let thawing = |at| thaws.iter().any(|thaw| (*thaw..*thaw + LEADER_LEARNS).contains(&at));
        let of = told.of(path);
        of.rise()?;
        let stood = |fence: u64| {
            let at = fences.get(&(put_at(fence), fence % fence::PLACES))?;
            Some(&history.stood[*at])
        };
        history.forged = of.forged(thawing, |fence| stood(fence)?.gone);
        history.grants =
            of.granted(&facts, thawing, |fence| stood(fence).map(|stood| (&stood.who.0, stood.gone)));
        history.waits = of
            .waits
            .iter()
            .filter_map(|Waited { owner, from, to }| {
                Some(line::Wait { who: owners.get(owner)?.clone(), from: *from, to: *to })
            })
            .collect();
        let bound = HAND_OVER + facts.settings.lock_delay;
        line::all(&history, OFFSET, bound).map_err(anyhow::Error::msg)?;
        line::l7_nothing_taken(&history, OFFSET).map_err(anyhow::Error::msg)?;
        Ok(history)
    }

    /// When the watch told of a change.
    fn at(&self, change: &Change) -> Millis {
        change.seen.saturating_duration_since(self.start).as_millis() as Millis
    }

    fn facts<'a>(&self, path: &str, changes: &'a [Change]) -> Result<Facts<'a>> {
        let (lock, key) = path.split_once('/').context("a path is lock/key")?;
        let (lock, key) = (Name::from(lock), Name::from(key));
        let definition = Key::Definition { kind: Kind::Lock, name: lock.clone() };
        let mut settings = None;
        let (mut definitions, mut ends) = (Vec::new(), HashMap::new());
        for change in changes {
            match (&change.key, &change.entry) {
                (Key::Session(session), None) => {
                    ends.entry(session).or_insert_with(|| self.at(change));
                }
                (of, entry) if *of == definition => {
                    definitions.push((change.revision, entry.is_some()));
                    if let Some(Record::Definition(of)) = entry.as_ref().map(|entry| &entry.record) {
                        settings = Some(of.settings.clone());
                    }
                }
                _ => {}
            }
        }
        let Some(Settings::Lock(settings)) = settings else {
            anyhow::bail!("there never was a lock {lock}");
        };
        Ok(Facts { lock, key, settings, definitions, ends, changes })
    }
}

/// What a renewal is called in [`Callers::succeeded`].
pub const RENEWAL: &str = "renewal";
/// What a release is called there.
pub const RELEASE: &str = "release";
