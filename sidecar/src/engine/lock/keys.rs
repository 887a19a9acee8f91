//! The machines of all keys that are in use here, their timers, and who awaits an answer.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap, VecDeque},
};

use concordat_protocol::{
    Millis, Name, Now,
    lock::{Caller, Effect, Fence, Input, Machine, Rejected, Reply},
};
use concordat_store::Store;
use tokio::sync::oneshot;

use super::{stats::Counters, watch::Watched};

/// How long a key that nobody uses is remembered, so that a repeated release is told from a wrong one, milliseconds.
const REMEMBERED_FOR: Millis = 600_000;
/// How many such keys are remembered; beyond that the oldest is forgotten.
const MOST_REMEMBERED: usize = 4_096;
/// How many locks stay with a sidecar; beyond that the one that nobody asked for longest is let go.
const MOST_STAYING: usize = 1_024;

/// A lock and a key under it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The Lock.
    pub lock: Name,
    /// The key.
    pub key: Name,
}

type Answer = oneshot::Sender<Result<Reply, Rejected>>;

/// See the module.
#[derive(Default)]
pub(super) struct Keys {
    machines: HashMap<Place, Kept>,
    timers: BinaryHeap<Reverse<(Millis, Place)>>,
    /// Keys that nobody used for a while, the oldest first.
    unused: VecDeque<(Millis, Place)>,
    callers: HashMap<Caller, Answer>,
    next_caller: u64,
    pub(super) watched: HashMap<Name, Watched>,
    pub(super) counters: HashMap<Name, Counters>,
    pub(super) draining: bool,
    /// Keys that stay here, by when each was let go.
    staying: BTreeMap<u64, Place>,
    next_stay: u64,
    /// Until when a want of others is heard of, on the monotonic clock.
    pub(super) hears: Millis,
}

struct Kept {
    machine: Machine,
    /// The timer that stands for it.
    armed: Option<Millis>,
    watches: bool,
    waiters: usize,
    /// The last caller that was counted to have found it held.
    contended: Caller,
    used: Millis,
    /// Whether it is among the unused.
    listed: bool,
    /// Where it is among those that stay.
    stays: Option<u64>,
}

/// What a step came to.
pub(super) type Stepped = (Vec<Effect>, Due);

/// What must be seen to after a step.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Due {
    /// The earliest timer is another one now.
    pub(super) timer: bool,
    /// A counter changed.
    pub(super) stats: bool,
    /// So many more wait now.
    pub(super) waiters: i64,
    /// So many more have found it held.
    pub(super) contended: u64,
    /// The machine has nothing under way any more.
    pub(super) settled: bool,
    /// It began to watch (true) or stopped.
    pub(super) watch: Option<bool>,
    /// There is no room for it, so that it is to be let go.
    pub(super) crowded: bool,
}

impl Keys {
    /// Makes room for a caller's answer.
    pub(super) fn admit(&mut self, answer: Answer) -> Caller {
        self.next_caller += 1;
        let caller = Caller(self.next_caller);
        self.callers.insert(caller, answer);
        caller
    }

    /// The caller awaits no answer any more.
    pub(super) fn dismiss(&mut self, caller: Caller) -> Option<Answer> {
        self.callers.remove(&caller)
    }

    pub(super) fn get(&self, place: &Place) -> Option<&Machine> {
        self.machines.get(place).map(|kept| &kept.machine)
    }

    pub(super) fn places(&self) -> Vec<Place> {
        self.machines
            .iter()
            .filter(|(_, kept)| !kept.machine.is_idle())
            .map(|(place, _)| place.clone())
            .collect()
    }

    /// The keys for which somebody waits, and those that stay: what a definition's end concerns.
    pub(super) fn concerned(&self) -> Vec<Place> {
        let concerned = |kept: &Kept| kept.waiters > 0 || kept.stays.is_some();
        self.machines.iter().filter(|(_, kept)| concerned(kept)).map(|(place, _)| place.clone()).collect()
    }

    /// The keys that stay here.
    pub(super) fn staying(&self) -> impl Iterator<Item = &Place> {
        self.staying.values()
    }

    /// The one that nobody asked for longest, when more stay than may.
    pub(super) fn overstaying(&self) -> Option<Place> {
        let oldest = self.staying.first_key_value().filter(|_| self.staying.len() > MOST_STAYING)?;
        Some(oldest.1.clone())
    }

    /// The keys of a lock that want to know what the watch shows.
    pub(super) fn watching(&self, lock: &Name) -> Vec<Place> {
        let watching = self.machines.iter().filter(|(place, kept)| kept.watches && place.lock == *lock);
        watching.map(|(place, _)| place.clone()).collect()
    }

    /// Since when the first of a lock's callers waits, on the monotonic clock.
    pub(super) fn waiting_since(&self, lock: &Name) -> Option<Millis> {
        let of_lock = self.machines.iter().filter(|(place, _)| place.lock == *lock);
        of_lock.filter_map(|(_, kept)| kept.machine.waiting_since()).min()
    }

    pub(super) fn all_idle(&self) -> bool {
        self.machines.values().all(|kept| kept.machine.is_idle())
    }

    /// When the grant of a fence ends unless renewed, if it is of one of this sidecar's callers.
    pub(super) fn ends(&self, place: &Place, fence: Fence) -> Option<Millis> {
        self.get(place)?.ends(fence)
    }

    /// Until when the lease is believed that the machine of a key asks about; 0 when it is over, or none.
    pub(super) fn believed(&self, place: &Place, store: &Store) -> Millis {
        match self.get(place).and_then(Machine::lease) {
            Some((session, ttl)) if session == store.session().id => {
                store.believed_until(ttl).unwrap_or_default()
            }
            _ => 0,
        }
    }

    /// Tells one machine its time, and what is believed of what it has at this moment: it may have come to hold it since
    /// it was last looked at.
    pub(super) fn tick(&mut self, place: &Place, now: Now, store: &Store) -> Result<Stepped, Rejected> {
        let believed = self.believed(place, store);
        self.step(place, Input::Tick { believed }, now, store)
    }

    /// One step of one machine; a key that is not known yet gets one.
    pub(super) fn step(
        &mut self,
        place: &Place,
        input: Input,
        now: Now,
        store: &Store,
    ) -> Result<Stepped, Rejected> {
        self.admit_machine(place, &input, store.fence_offset())?;
        let Some(kept) = self.machines.get_mut(place) else { return unknown(input) };
        kept.machine.believe(|of, ttl| {
            let session = store.session();
            let current = session.id == *of && session.is_believed(now);
            store.believed_until(ttl).filter(|_| current).unwrap_or_default()
        });
        kept.machine.hears(self.hears);
        let stepped = kept.machine.step(input, now);
        let mut due = Due::default();
        if let Ok(effects) = &stepped {
            if kept.machine.stays().is_some() != kept.stays.is_some() {
                if let Some(left) = kept.stays.take() {
                    self.staying.remove(&left);
                } else {
                    kept.stays = Some(self.next_stay);
                    self.staying.insert(self.next_stay, place.clone());
                    self.next_stay += 1;
                    due.crowded = self.staying.len() > MOST_STAYING;
                }
            }
            let granted =
                effects.iter().filter(|e| matches!(e, Effect::Reply(_, Ok(Reply::Granted { .. })))).count();
            let refused =
                effects.iter().filter_map(refused).filter(|caller| *caller > kept.contended).count();
            let waiting = kept.machine.contenders(kept.contended);
            due.contended = (refused + waiting.len()) as u64;
            kept.contended = waiting.into_iter().max().unwrap_or(kept.contended);
            let waiters = kept.machine.waiters();
            let counters = self.counters.entry(place.lock.clone()).or_default();
            due.stats = counters.count(granted, kept.waiters, waiters);
            due.waiters = waiters as i64 - kept.waiters as i64;
            kept.waiters = waiters;
            if kept.machine.watches() != kept.watches {
                kept.watches = !kept.watches;
                due.watch = Some(kept.watches);
            }
            if let Some(at) = kept.machine.wake_at()
                && kept.armed.is_none_or(|armed| at < armed)
            {
                kept.armed = Some(at);
                due.timer = self.timers.peek().is_none_or(|Reverse((first, _))| at < *first);
                self.timers.push(Reverse((at, place.clone())));
            }
        }
        due.settled = kept.machine.is_idle();
        kept.used = now.monotonic;
        if due.settled && !kept.listed {
            kept.listed = true;
            self.unused.push_back((now.monotonic, place.clone()));
        }
        self.forget_unused(now.monotonic);
        stepped.map(|effects| (effects, due))
    }

    /// Makes the machine of a key that is asked for, if there is none or its lock has another mode now.
    fn admit_machine(&mut self, place: &Place, input: &Input, offset: i64) -> Result<(), Rejected> {
        let Input::Acquire(request) = input else { return Ok(()) };
        match self.machines.get_mut(place) {
            Some(kept) if kept.machine.mode() == request.mode => {}
            Some(kept) if !kept.machine.is_idle() => return Err(Rejected::Replaced),
            kept => {
                let machine = Machine::new(place.lock.clone(), place.key.clone(), offset, request.mode);
                match kept {
                    Some(kept) => kept.machine = machine,
                    None => {
                        let kept = Kept {
                            machine,
                            armed: None,
                            watches: false,
                            waiters: 0,
                            contended: Caller(0),
                            used: 0,
                            listed: false,
                            stays: None,
                        };
                        self.machines.insert(place.clone(), kept);
                    }
                }
            }
        }
        Ok(())
    }

    fn forget_unused(&mut self, now: Millis) {
        while let Some((since, _)) = self.unused.front()
            && (now >= since + REMEMBERED_FOR || self.unused.len() > MOST_REMEMBERED)
            && let Some((since, place)) = self.unused.pop_front()
        {
            let Some(kept) = self.machines.get_mut(&place) else { continue };
            kept.listed = false;
            if !kept.machine.is_idle() {
                continue;
            }
            if kept.used > since && self.unused.len() < MOST_REMEMBERED {
                kept.listed = true;
                self.unused.push_back((kept.used, place));
            } else {
                self.machines.remove(&place);
            }
        }
    }

    /// Takes the timers that are due.
    pub(super) fn due(&mut self, now: Millis) -> Vec<Place> {
        let mut due = Vec::new();
        while let Some(Reverse((at, _))) = self.timers.peek()
            && *at <= now
            && let Some(Reverse((at, place))) = self.timers.pop()
        {
            // One that was armed earlier meanwhile has had its time.
            if let Some(kept) = self.machines.get_mut(&place)
                && kept.armed == Some(at)
            {
                kept.armed = None;
                due.push(place);
            }
        }
        due
    }

    pub(super) fn next_timer(&self) -> Option<Millis> {
        self.timers.peek().map(|Reverse((at, _))| *at)
    }
}

/// Who is sent away since another holds it.
fn refused(effect: &Effect) -> Option<Caller> {
    match effect {
        Effect::Reply(caller, Err(Rejected::Held(_) | Rejected::TimedOut(Some(_)) | Rejected::Full)) => {
            Some(*caller)
        }
        _ => None,
    }
}

/// What a key that nothing is known of makes of an input.
fn unknown(input: Input) -> Result<Stepped, Rejected> {
    match input {
        Input::Renew { .. } | Input::Release { .. } => Err(Rejected::Mismatch),
        Input::Landed { .. } | Input::Freed(_) => Err(Rejected::NothingUnderWay),
        _ => Ok((Vec::new(), Due::default())),
    }
}
