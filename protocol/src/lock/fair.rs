//! One key of a lock of mode [`Mode::FairQueue`](super::Mode::FairQueue): first come, first served.
//!
//! Whoever wants the lock puts a key of its own, and etcd's order of these is the [`line`]: a caller holds the lock
//! when it is its turn there. Nothing is written for a grant. Two plans may be under way, one that puts new waiters and
//! one that deletes those who left; each takes along whoever came meanwhile, so however many wait, a release is one
//! deletion and one grant.
//!
//! When the next in line is a caller of this sidecar too it is granted at once, while the deletion is on its way: only
//! when its own key was seen in the line, so that everybody before it was, and while its lease is believed. If the
//! deletion never lands, the keys of both go with their leases.
//!
//! Those who come while others of their sidecar wait in the line are put [together](GATHER), not each by itself among
//! those of other sidecars: the line stays one of runs, and most releases cost no round trip.

mod calls;
mod landing;
pub mod line;
mod turn;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use self::line::{Line, Who};
use super::{Caller, Effect, Fence, Input, Rejected, Request, Rival, Seen, Token, plans};
use crate::{Entry, Key, Millis, Name, Now, SessionId};

/// How many are put, or deleted, by one plan: each is two operations, and etcd takes 128.
pub const TOGETHER: usize = 32;

/// How long those who come are held back at most while others of their sidecar wait in the line, milliseconds: by so much
/// those who come later elsewhere may go before them.
pub const GATHER: Millis = 10;

/// How many ended grants of a key are remembered, so that a repeated release is told from a wrong one.
const REMEMBERED: usize = 256;

/// The machine. See the module.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fair {
    lock: Name,
    key: Name,
    /// What a restored etcd's revisions are raised by, for the fence.
    offset: i64,
    line: Line,
    /// Whether every change of the line is told.
    watched: bool,
    /// The callers that wait or hold, by the number of their key.
    mine: BTreeMap<u64, Mine>,
    /// Those of them who hold.
    tokens: BTreeMap<Token, u64>,
    /// Those of them who have no key yet, the first first.
    coming: VecDeque<u64>,
    /// Those of them whose key is put, and who do not hold.
    queued: BTreeSet<u64>,
    /// When to look after whom, monotonic.
    timers: BTreeSet<(Millis, u64)>,
    /// The plan under way that puts waiters.
    joining: Option<Joining>,
    /// Those who have come to stand in the line and were not looked at yet.
    fresh: Vec<u64>,
    /// No new waiters are put before, monotonic; 0 unless the last plan failed.
    retry_at: Millis,
    /// Keys to delete.
    leaving: BTreeMap<Who, Leaving>,
    /// Those that the plan under way deletes, and whether their shadow stays.
    freeing: Vec<(Who, bool)>,
    /// Nothing is deleted before, monotonic.
    free_at: Millis,
    /// Those whose keys are known to be deleted, as of which revision, and whether their shadow stays: what is seen of
    /// them may be older.
    gone: BTreeMap<Who, (i64, bool)>,
    /// Keys that a plan of unknown outcome may have put, or may yet.
    doubt: BTreeSet<Who>,
    /// Until when the lease of each ttl is believed, monotonic.
    beliefs: BTreeMap<(SessionId, Millis), Millis>,
    ended: VecDeque<(Token, End)>,
}

/// A caller that waits or holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Mine {
    request: Request,
    asked: Millis,
    /// The timer that stands for it.
    timer: Millis,
    stage: Stage,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// To be put.
    Coming,
    /// The plan that puts it is under way.
    Joining,
    /// Its key was put at this revision, and is not seen in the line yet.
    Landed(i64),
    /// Its key was seen in the line.
    Queued,
    /// It holds the lock.
    Held {
        fence: Fence,
        /// Ends then unless renewed.
        until: Millis,
        /// Ends then in any case.
        limit: Millis,
    },
}

/// A plan under way that puts waiters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Joining {
    session: SessionId,
    /// Those who were not seen in the line yet.
    numbers: Vec<u64>,
    /// Whether its session was lost meanwhile: what it puts goes with that, if not before.
    lost: bool,
    /// Since when, monotonic.
    since: Millis,
}

/// Somebody whose key is to be deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Leaving {
    /// Whether its shadow stays: it was lost.
    lost: bool,
    /// The token it held by.
    token: Option<Token>,
    /// Who wants to know when it is done.
    callers: Vec<Caller>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum End {
    Released,
    Lost,
}

impl Joining {
    fn whos(&self) -> impl Iterator<Item = Who> {
        self.numbers.iter().map(|number| (self.session.clone(), *number))
    }
}

impl Mine {
    fn who(&self) -> Who {
        (self.request.session.clone(), self.request.caller.0)
    }

    fn lease(&self) -> (SessionId, Millis) {
        (self.request.session.clone(), self.request.ttl)
    }
}

impl Fair {
    /// See [`Machine::new`](super::Machine::new).
    pub(super) fn new(lock: Name, key: Name, offset: i64) -> Self {
        Self {
            lock,
            key,
            offset,
            line: Line::default(),
            watched: false,
            mine: BTreeMap::new(),
            tokens: BTreeMap::new(),
            coming: VecDeque::new(),
            queued: BTreeSet::new(),
            timers: BTreeSet::new(),
            joining: None,
            fresh: Vec::new(),
            retry_at: 0,
            leaving: BTreeMap::new(),
            freeing: Vec::new(),
            free_at: 0,
            gone: BTreeMap::new(),
            doubt: BTreeSet::new(),
            beliefs: BTreeMap::new(),
            ended: VecDeque::new(),
        }
    }

    /// One step. Refused, it changes nothing.
    pub(super) fn step(&mut self, input: Input, now: Now) -> Result<Vec<Effect>, Rejected> {
        let mut effects = Vec::new();
        match input {
            Input::Acquire(request) => self.acquire(request, now)?,
            Input::Cancel(caller) => self.cancel(caller),
            Input::Renew { caller, token, .. } => {
                effects.push(Effect::Reply(caller, Ok(self.renew(token, now)?)));
            }
            Input::Release { caller, token } => self.release(caller, token, &mut effects)?,
            Input::Landed { outcome, .. } => self.landed(outcome, now, &mut effects)?,
            Input::Freed(outcome) => self.freed(outcome, now, &mut effects)?,
            Input::Seen(seen) => self.see(seen, now, &mut effects),
            Input::Wanted { .. } | Input::LetGo => {}
            Input::Defined(created) => self.defined(created, i64::MAX, &mut effects),
            Input::Lost(session) => self.lost(&session, now, &mut effects),
            Input::Tick { .. } => self.tick(now, &mut effects),
            Input::Drain => self.drain(&mut effects),
        }
        self.advance(now, &mut effects);
        self.rest();
        Ok(effects)
    }

    /// See [`Machine::believe`](super::Machine::believe).
    pub(super) fn believe(&mut self, believed: impl Fn(&SessionId, Millis) -> Millis) {
        for ((session, ttl), until) in &mut self.beliefs {
            *until = believed(session, *ttl);
        }
    }

    pub(super) fn wake_at(&self) -> Option<Millis> {
        let timer = self.timers.first().map(|(at, _)| *at);
        let join = (self.joining.is_none() && !self.coming.is_empty()).then(|| self.join_at());
        let free = (self.freeing.is_empty() && !self.leaving.is_empty()).then_some(self.free_at);
        // What is believed no longer must be said to be lost.
        let belief = self.beliefs.values().copied().filter(|until| *until > 0 && self.relies()).min();
        let delay = self.line.wake_at().filter(|_| !self.queued.is_empty());
        [timer, join, free, belief, delay].into_iter().flatten().min()
    }

    /// Somebody waits for others to leave, or a plan may have landed unnoticed.
    pub(super) fn watches(&self) -> bool {
        !self.queued.is_empty() || !self.doubt.is_empty()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.mine.is_empty()
            && self.joining.is_none()
            && self.leaving.is_empty()
            && self.freeing.is_empty()
            && self.doubt.is_empty()
    }

    pub(super) fn waiters(&self) -> usize {
        self.mine.len() - self.tokens.len()
    }

    pub(super) fn contenders(&self, after: Caller) -> Vec<Caller> {
        self.queued.range(after.0 + 1..).map(|number| Caller(*number)).collect()
    }

    pub(super) fn waiting_since(&self) -> Option<Millis> {
        let waits = |mine: &&Mine| !matches!(mine.stage, Stage::Held { .. });
        // They are numbered as they came.
        self.mine.values().find(waits).map(|mine| mine.asked)
    }

    /// When the grant of this fence, if it is of a caller of this sidecar, ends unless renewed.
    pub(super) fn ends(&self, of: Fence) -> Option<Millis> {
        self.tokens.values().filter_map(|number| self.mine.get(number)).find_map(|mine| match &mine.stage {
            Stage::Held { fence, until, .. } if *fence == of => Some(self.end(mine, *until)),
            _ => None,
        })
    }

    /// When those who come are put, monotonic milliseconds.
    fn join_at(&self) -> Millis {
        let first = self.coming.front().and_then(|number| self.mine.get(number));
        let gathered = first.filter(|_| self.coming.len() < TOGETHER && !self.queued.is_empty());
        self.retry_at.max(gathered.map_or(0, |mine| mine.asked.saturating_add(GATHER)))
    }

    /// Whether some grant, or key in the line, stands or falls with a lease.
    fn relies(&self) -> bool {
        !self.tokens.is_empty() || !self.queued.is_empty()
    }

    fn end(&self, mine: &Mine, until: Millis) -> Millis {
        until.min(self.believed(mine))
    }

    fn believed(&self, mine: &Mine) -> Millis {
        self.beliefs.get(&mine.lease()).copied().unwrap_or_default()
    }

    /// Who stands in the way of one who comes now, as far as is known.
    fn rival(&self, now: Now) -> Option<Box<Rival>> {
        let (spot, standing) = self.line.holders().next().or_else(|| self.line.waiters().next())?;
        let mine = self.mine.get(&spot.who.1).filter(|mine| mine.who() == spot.who);
        let expires_in = mine.and_then(|mine| match mine.stage {
            Stage::Held { until, .. } => Some(self.end(mine, until).saturating_sub(now.monotonic)),
            _ => None,
        });
        Some(Box::new(Rival { holder: standing.holder.clone(), expires_in }))
    }

    /// Takes in what the watch shows.
    fn see(&mut self, seen: Seen, now: Now, effects: &mut Vec<Effect>) {
        match seen {
            Seen::All { revision, entries } => {
                self.watched = true;
                self.list(revision, entries, now, effects);
            }
            // Without what came before, a change tells nothing of the line.
            Seen::Put(_) | Seen::Deleted { .. } if !self.watched => {}
            Seen::Put(entry) => {
                if !self.is_gone(&entry.key)
                    && let Some(who) = self.line.put(&entry)
                {
                    self.arrived(&who);
                }
            }
            Seen::Deleted { key, revision } => {
                if let Some(who) = self.line.deleted(&key, revision, now.monotonic) {
                    self.vanished(&who, effects);
                }
            }
        }
        self.forget_gone();
    }

    /// Takes in all there is of the key.
    fn list(&mut self, revision: i64, entries: Vec<Entry>, now: Now, effects: &mut Vec<Effect>) {
        if revision < self.line.seen() {
            return;
        }
        let entries: Vec<Entry> = entries.into_iter().filter(|entry| !self.is_gone(&entry.key)).collect();
        self.line.list(revision, &entries, now.monotonic);
        let (there, missing): (Vec<Who>, Vec<Who>) = self
            .mine
            .values()
            .map(Mine::who)
            .chain(self.doubt.iter().cloned())
            .chain(self.joining.iter().flat_map(Joining::whos))
            .partition(|who| self.line.spot(who).is_some());
        for who in &there {
            self.arrived(who);
        }
        for who in missing {
            let stood = self.mine.get(&who.1).is_some_and(|mine| match mine.stage {
                Stage::Coming | Stage::Joining => false,
                Stage::Landed(at) => at <= revision,
                Stage::Queued | Stage::Held { .. } => true,
            });
            if stood {
                self.vanished(&who, effects);
            }
        }
        self.forget_gone();
    }

    fn forget_gone(&mut self) {
        let seen = self.line.seen();
        self.gone.retain(|_, (revision, _)| *revision > seen);
    }

    /// Whoever is not told of every change knows nothing of the line; whoever wants nothing need not.
    fn rest(&mut self) {
        self.watched &= self.watches();
        if self.is_idle() {
            self.line.forget();
            self.gone.clear();
            self.beliefs.clear();
        }
    }

    /// Whether what is seen of a key is older than what is known of it.
    fn is_gone(&self, key: &Key) -> bool {
        let Some(who) = line::who(key) else { return false };
        let lost = self.leaving.get(&who).map(|leaving| leaving.lost);
        let lost = lost.or(self.gone.get(&who).map(|(_, lost)| *lost));
        lost.is_some_and(|lost| !lost || matches!(key, Key::Waiter { .. }))
    }

    /// See [`Machine::deletes`](super::Machine::deletes).
    pub(super) fn deletes(&self) -> BTreeSet<Key> {
        let leaving = self.leaving.iter().map(|(who, leaving)| (who, leaving.lost));
        let gone = self.gone.iter().map(|(who, (_, lost))| (who, *lost));
        let keys = leaving.chain(gone).flat_map(|((session, number), lost)| {
            let (lock, key, number) = (&self.lock, &self.key, *number);
            let shadow = (!lost).then(|| plans::shadow_key(lock, key, session, number));
            shadow.into_iter().chain([plans::waiter_key(lock, key, session, number)])
        });
        keys.collect()
    }

    /// Somebody stands in the line now.
    fn arrived(&mut self, who: &Who) {
        let (session, number) = who;
        let joined =
            self.joining.as_mut().filter(|joining| joining.session == *session).is_some_and(|joining| {
                let before = joining.numbers.len();
                joining.numbers.retain(|other| other != number);
                joining.numbers.len() < before
            });
        match self.mine.get_mut(number).filter(|mine| mine.request.session == *session) {
            Some(mine) if matches!(mine.stage, Stage::Joining | Stage::Landed(_)) => {
                mine.stage = Stage::Queued;
                self.queued.insert(*number);
                self.fresh.push(*number);
            }
            Some(_) => {}
            // Its caller was answered, or hung up.
            None if self.doubt.remove(who) || joined => self.let_go(who.clone(), Leaving::default()),
            None => {}
        }
    }

    fn remember(&mut self, token: Token, end: End) {
        if self.ended.len() >= REMEMBERED {
            self.ended.pop_front();
        }
        self.ended.push_back((token, end));
    }
}
