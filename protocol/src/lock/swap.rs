//! One key of a lock of mode [`Mode::CompareAndSwap`] or [`Mode::Lease`]: whoever puts the holder's key has it.
//!
//! Callers of the sidecar stand in one line, and the first of them tries for all: there is one plan under way at a
//! time, so that a lock let go wakes one attempt a sidecar. What is granted is believed until the lease it stands
//! under may have run out; what was said to be lost is never held again.
//!
//! In mode [`Mode::CompareAndSwap`] a lock that is let go stays with the sidecar until another wants it: granting it
//! again commits nothing. [`staying`] is what the sidecar does that has it, [`wanting`] the one that does not.
//!
//! In mode [`Mode::Lease`] a holder may have a shadow, which is not leased: a release deletes both, so where the shadow
//! stands alone its holder was lost, and nobody tries before the lock-delay is over. Only then a grant takes the
//! shadow's place, by compare.

mod calls;
mod landing;
mod sight;
mod staying;
mod wanting;

use std::collections::{BTreeSet, VecDeque};

use self::{sight::Sight, staying::Stay, wanting::Asked};
use super::{
    Caller, Effect, Fence, Found, Holder, Input, Mode, Rejected, Request, Rival, Seen, Token,
    machine::{REMEMBERED, STALL},
    plans::{self, Frees, Left},
};
use crate::{Key, Millis, Name, Now, SessionId};

/// The machine. See the module.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Swap {
    lock: Name,
    key: Name,
    mode: Mode,
    /// What a restored etcd's revisions are raised by, for the fence.
    offset: i64,
    phase: Phase,
    line: VecDeque<Waiter>,
    seen: Sight,
    /// Nothing is tried before, monotonic; 0 unless the last plan failed.
    retry_at: Millis,
    /// Session under which a plan of unknown outcome may have taken the lock, or may yet.
    doubt: Option<SessionId>,
    ended: VecDeque<(Token, End)>,
    /// A plan under way that the phase does not wait for; no other goes meanwhile.
    aside: Option<Aside>,
    /// Create revision of the holder's key that others want, or may, of this sidecar; 0: none is known.
    wanted: i64,
    /// Until when such a want is heard of, monotonic.
    hears: Millis,
    /// Until when the lease is believed of what is held or stays, monotonic.
    believed: Millis,
    /// What was asked of the holder's sidecar last.
    asked: Option<Asked>,
    /// Keys that tell others of our want, or may.
    wants: BTreeSet<Key>,
    /// Whether another was seen to hold it while somebody waits here.
    contended: bool,
    /// Others go first until then, monotonic.
    yields: Millis,
}

/// What a plan is for that is under way beside what the phase says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Aside {
    /// It tells who holds what was put at this revision.
    Telling(i64),
    /// It asks the holder's sidecar, by a key that was not there before or may have been.
    Asking { life: i64, key: Key, session: SessionId, new: bool },
    /// It takes back what was asked.
    Withdrawing,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// Nothing of ours.
    Idle,
    /// A plan to acquire is under way; for nobody, if the caller was answered meanwhile.
    Trying {
        holder: Holder,
        ttl: Millis,
        since: Millis,
        /// The shadow that it compares; see [`Sight::shadow`].
        over: i64,
        waiter: Option<Waiter>,
    },
    /// One of our callers has it.
    Held(Grant),
    /// None of our callers has it, and nobody else can.
    Staying(Stay),
    /// A plan to release is under way, or waits to be tried again.
    Freeing { freed: Freed, token: Option<Token>, callers: Vec<Caller>, under_way: bool },
}

/// What is freed: of which session, since which revision it had it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Freed {
    revision: i64,
    session: SessionId,
    frees: Frees,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Waiter {
    request: Request,
    asked: Millis,
    deadline: Millis,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Grant {
    caller: Caller,
    token: Token,
    revision: i64,
    /// As etcd is told.
    holder: Holder,
    /// The definition that it was asked under.
    definition: i64,
    ttl: Millis,
    /// When it was granted, monotonic.
    since: Millis,
    /// The last [`Holder::regrants`] that etcd was told, or is about to be, together with that it does not stay.
    told: Option<u32>,
    /// How often it went from one caller to the next while others may have wanted it.
    turns: u32,
    /// Before it etcd is not told, monotonic: it refused.
    tells_after: Millis,
    /// Ends then unless renewed.
    until: Millis,
    /// Ends then in any case.
    limit: Millis,
    /// Until when the lease it stands under is believed.
    believed: Millis,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum End {
    Released,
    Lost,
}

impl Grant {
    /// When it ends as far as is known.
    fn end(&self) -> Millis {
        self.until.min(self.believed)
    }

    /// Until when its lease is believed that is said to be until then: never less than before, unless it is over.
    fn believes(&self, believed: Millis) -> Millis {
        if believed == 0 { 0 } else { believed.max(self.believed) }
    }

    fn fence(&self, offset: i64) -> Option<Fence> {
        Fence::new(self.revision, offset, u64::from(self.holder.regrants))
    }

    fn freed(&self, frees: Frees) -> Freed {
        Freed { revision: self.revision, session: self.holder.session.clone(), frees }
    }

    fn rival(&self, now: Now) -> Rival {
        let expires_in = Some(self.end().saturating_sub(now.monotonic));
        Rival { holder: self.holder.clone(), expires_in }
    }
}

impl Swap {
    /// See [`Machine::new`](super::Machine::new).
    pub(super) fn new(lock: Name, key: Name, offset: i64, mode: Mode) -> Self {
        Self {
            lock,
            key,
            mode,
            offset,
            phase: Phase::Idle,
            line: VecDeque::new(),
            seen: Sight::default(),
            retry_at: 0,
            doubt: None,
            ended: VecDeque::new(),
            aside: None,
            wanted: 0,
            hears: 0,
            believed: 0,
            asked: None,
            wants: BTreeSet::new(),
            contended: false,
            yields: 0,
        }
    }

    /// One step. Refused, it changes nothing.
    pub(super) fn step(&mut self, input: Input, now: Now) -> Result<Vec<Effect>, Rejected> {
        let mut effects = Vec::new();
        match input {
            Input::Acquire(request) => self.acquire(request, now)?,
            Input::Cancel(caller) => self.cancel(caller, now, &mut effects),
            Input::Renew { caller, token, believed } => {
                effects.push(Effect::Reply(caller, Ok(self.renew(token, believed, now)?)));
            }
            Input::Release { caller, token } => self.release(caller, token, now, &mut effects)?,
            Input::Landed { outcome, believed } => self.landed(outcome, believed, now, &mut effects)?,
            Input::Seen(seen) => self.shown(seen, now, &mut effects),
            Input::Wanted { life } => self.want(life),
            Input::LetGo => self.give_up(),
            Input::Defined(created) => self.defined(created, i64::MAX, &mut effects),
            Input::Lost(session) => self.lost(&session, &mut effects),
            Input::Tick { believed } => self.tick(believed, now, &mut effects),
            Input::Drain => self.drain(&mut effects),
            Input::Freed(_) => return Err(Rejected::NothingUnderWay),
        }
        self.advance(now, &mut effects);
        Ok(effects)
    }

    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    pub(super) fn lease(&self) -> Option<(SessionId, Millis)> {
        match &self.phase {
            Phase::Trying { holder, ttl, .. } => Some((holder.session.clone(), *ttl)),
            Phase::Held(grant) => Some((grant.holder.session.clone(), grant.ttl)),
            Phase::Staying(stay) => Some((stay.holder.session.clone(), stay.ttl)),
            Phase::Idle | Phase::Freeing { .. } => None,
        }
    }

    pub(super) fn wake_at(&self) -> Option<Millis> {
        let phase = match &self.phase {
            Phase::Idle => self.tries_at().into_iter().chain(self.asks_at()).min(),
            Phase::Trying { waiter, .. } => waiter.as_ref().map(|waiter| waiter.deadline),
            Phase::Held(grant) => Some(self.tells_at().map_or(grant.end(), |at| at.min(grant.end()))),
            Phase::Staying(stay) => Some(stay.until.min(self.hears)),
            Phase::Freeing { under_way, .. } => (!under_way && self.aside.is_none()).then_some(self.retry_at),
        };
        self.line.iter().map(|waiter| waiter.deadline).chain(phase).min()
    }

    /// Somebody waits for a foreign holder, or a plan may have landed unnoticed.
    pub(super) fn watches(&self) -> bool {
        self.doubt.is_some() || matches!(self.phase, Phase::Idle) && !self.line.is_empty()
    }

    pub(super) fn is_idle(&self) -> bool {
        let under_way = self.aside.is_some() || !self.wants.is_empty();
        matches!(self.phase, Phase::Idle) && self.line.is_empty() && self.doubt.is_none() && !under_way
    }

    pub(super) fn waiters(&self) -> usize {
        self.line.len() + usize::from(matches!(&self.phase, Phase::Trying { waiter: Some(_), .. }))
    }

    pub(super) fn contenders(&self, after: Caller) -> Vec<Caller> {
        if !self.contended && !matches!(self.phase, Phase::Held(_)) {
            return Vec::new();
        }
        let newest_first = self.line.iter().rev().map(|waiter| waiter.request.caller);
        newest_first.take_while(|caller| *caller > after).collect()
    }

    pub(super) fn waiting_since(&self) -> Option<Millis> {
        match &self.phase {
            Phase::Trying { waiter: Some(waiter), .. } => Some(waiter.asked),
            _ => self.line.front().map(|waiter| waiter.asked),
        }
    }

    pub(super) fn grant(&self) -> Option<(i64, Millis)> {
        match &self.phase {
            Phase::Held(grant) => Some((grant.revision, grant.end())),
            _ => None,
        }
    }

    pub(super) fn holding(&self) -> Option<(Holder, Fence)> {
        match &self.phase {
            Phase::Held(grant) => Some((grant.holder.clone(), grant.fence(self.offset)?)),
            _ => None,
        }
    }

    pub(super) fn ends(&self, fence: Fence) -> Option<Millis> {
        match &self.phase {
            Phase::Held(grant) if grant.fence(self.offset) == Some(fence) => Some(grant.end()),
            _ => None,
        }
    }

    /// Ends the grant against its holder's will, and frees the key.
    fn take_away(&mut self, effects: &mut Vec<Effect>) {
        let Phase::Held(grant) = &self.phase else { return };
        let (freed, token) = (grant.freed(Frees::Holder), grant.token);
        self.lose(token, effects);
        self.free(freed, None, Vec::new());
    }

    /// From now on the grant is said to be lost.
    fn lose(&mut self, token: Token, effects: &mut Vec<Effect>) {
        self.remember(token, End::Lost);
        effects.push(Effect::Lost(token));
    }

    fn free(&mut self, freed: Freed, token: Option<Token>, callers: Vec<Caller>) {
        self.retry_at = 0;
        self.phase = Phase::Freeing { freed, token, callers, under_way: false };
    }

    /// What is freed of a grant that nobody lost.
    fn both(&self) -> Frees {
        if self.mode == Mode::Lease { Frees::Both } else { Frees::Holder }
    }

    fn remember(&mut self, token: Token, end: End) {
        if self.ended.len() == REMEMBERED {
            self.ended.pop_front();
        }
        self.ended.push_back((token, end));
    }

    /// Takes in what the watch shows.
    fn shown(&mut self, seen: Seen, now: Now, effects: &mut Vec<Effect>) {
        let shadow = (self.mode == Mode::Lease).then(|| plans::shadow(&self.lock, &self.key));
        let is_shadow = |key: &Key| shadow.as_ref() == Some(key);
        let (revision, found) = match seen {
            Seen::All { revision, entries } => {
                let found = entries.iter().find_map(Found::read);
                let left = entries.iter().find(|entry| is_shadow(&entry.key)).and_then(Left::read);
                self.seen.all(revision, found.clone(), left, now);
                (revision, found)
            }
            Seen::Put(entry) => match Found::read(&entry) {
                Some(found) => {
                    self.seen.holder_is(found.told, Some(found.clone()), now);
                    (found.told, Some(found))
                }
                None if is_shadow(&entry.key) => {
                    return self.seen.shadow_is(entry.mod_revision, Left::read(&entry), now);
                }
                None => return,
            },
            Seen::Deleted { key: Key::Holder { .. }, revision } => {
                self.seen.holder_is(revision, None, now);
                (revision, None)
            }
            Seen::Deleted { key, revision } if is_shadow(&key) => {
                return self.seen.shadow_is(revision, None, now);
            }
            Seen::Deleted { .. } => return,
        };
        // Somebody took it from its holder: an operator, by force.
        let had = match &self.phase {
            Phase::Held(grant) => Some(grant.revision),
            Phase::Staying(stay) => Some(stay.revision),
            _ => None,
        };
        if had.is_some_and(|had| revision > had && found.is_none_or(|found| found.revision != had)) {
            self.gone(effects);
        }
    }

    /// What is held, or stays, is gone from etcd.
    fn gone(&mut self, effects: &mut Vec<Effect>) {
        if let Phase::Held(Grant { token, .. }) = std::mem::replace(&mut self.phase, Phase::Idle) {
            self.lose(token, effects);
        }
    }

    /// As of `revision` the definition is the one created at `created`, or none.
    fn defined(&mut self, created: Option<i64>, revision: i64, effects: &mut Vec<Effect>) {
        let why = if created.is_some() { Rejected::Replaced } else { Rejected::Deleted };
        self.reject(&why, effects, |request| {
            request.definition <= revision && Some(request.definition) != created
        });
        if self.stays().is_some_and(|under| under <= revision && Some(under) != created) {
            self.give_up();
        }
    }

    fn lost(&mut self, session: &SessionId, effects: &mut Vec<Effect>) {
        self.doubt.take_if(|doubt| doubt == session);
        match &self.phase {
            // Its key goes with its lease; unless that lives on.
            Phase::Held(grant) if grant.holder.session == *session => self.take_away(effects),
            Phase::Staying(stay) if stay.holder.session == *session => self.phase = Phase::Idle,
            _ => {}
        }
        self.forget_wants(session);
        self.reject(&Rejected::Lost, effects, |request| request.session == *session);
    }

    fn tick(&mut self, believed: Millis, now: Now, effects: &mut Vec<Effect>) {
        if let Phase::Held(grant) = &mut self.phase {
            grant.believed = grant.believes(believed);
            // No longer believed, its key goes with its lease; unless that lives on.
            if now.monotonic >= grant.until.min(grant.believed) {
                self.take_away(effects);
            }
        }
        if matches!(&self.phase, Phase::Staying(stay) if now.monotonic >= stay.until.min(self.hears)) {
            self.give_up();
        }
        let idle = matches!(self.phase, Phase::Idle) && self.watches();
        let rival = if idle { self.seen.rival(now).map(Box::new) } else { self.rival(now) };
        let stalled = self.stalled(now);
        let over = |waiter: &mut Waiter| waiter.deadline <= now.monotonic;
        if let Phase::Trying { waiter, .. } = &mut self.phase
            && let Some(waiter) = waiter.take_if(over)
        {
            let unavailable = stalled || waiter.request.wait == 0;
            let why =
                if unavailable { Rejected::Unavailable { unknown: true } } else { Rejected::TimedOut(None) };
            effects.push(Effect::Reply(waiter.request.caller, Err(why)));
        }
        self.line.retain_mut(|waiter| {
            let over = over(waiter);
            if over {
                let why = match &rival {
                    _ if stalled => Rejected::Unavailable { unknown: false },
                    Some(rival) if waiter.request.wait == 0 => Rejected::Held(rival.clone()),
                    rival => Rejected::TimedOut(rival.clone()),
                };
                effects.push(Effect::Reply(waiter.request.caller, Err(why)));
            }
            !over
        });
    }

    fn stalled(&self, now: Now) -> bool {
        self.retry_at > 0
            || matches!(self.phase, Phase::Trying { since, .. } if since + STALL <= now.monotonic)
    }
}
