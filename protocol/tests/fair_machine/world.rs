//! One machine of a fair lock, what its etcd would answer, and what a watch would tell it.

use concordat_protocol::{
    Answer, Entry, Key, Now, Plan, Record, Write,
    lock::{
        Caller, Effect, Holder, Input, Machine, Mode, Rejected, Reply, Request, Seen, Shadow, Share, Token,
        Waiter,
    },
};

pub(crate) const BELIEVED: u64 = 90_000;
pub(crate) const DELAY: u64 = 30_000;

pub(crate) fn at(monotonic: u64) -> Now {
    Now { monotonic, unix: monotonic }
}

pub(crate) fn request(caller: u64, wait: u64) -> Request {
    Request {
        caller: Caller(caller),
        token: Token(u128::from(caller)),
        session: "s".into(),
        pod: "pod".into(),
        owner: "owner".into(),
        definition: 2,
        mode: Mode::FairQueue,
        wait,
        max_waiters: 2_000,
        share: Share::EXCLUSIVE,
        lock_delay: 0,
        ttl: 5_000,
        max_hold: 0,
        renew: false,
    }
}

/// A machine, and the revisions that its etcd would give.
pub(crate) struct Run {
    pub(crate) machine: Machine,
    pub(crate) believed: u64,
    pub(crate) revision: i64,
    /// The plan under way that puts, and the one that deletes.
    pub(crate) puts: Option<Plan>,
    pub(crate) deletes: Option<Plan>,
    /// All that was asked of etcd.
    pub(crate) plans: usize,
}

impl Run {
    pub(crate) fn new() -> Self {
        let machine = Machine::new("orders".into(), "c42".into(), 0, Mode::FairQueue);
        Self { machine, believed: BELIEVED, revision: 10, puts: None, deletes: None, plans: 0 }
    }

    pub(crate) fn step(&mut self, input: Input, now: u64) -> Result<Vec<Effect>, Rejected> {
        let believed = self.believed;
        self.machine.believe(|_, _| believed);
        let effects = self.machine.step(input, at(now))?;
        for effect in &effects {
            match effect {
                Effect::Commit(plan) => assert!(self.puts.replace(plan.clone()).is_none()),
                Effect::Free(plan) => assert!(self.deletes.replace(plan.clone()).is_none()),
                _ => continue,
            }
            self.plans += 1;
        }
        Ok(effects)
    }

    pub(crate) fn tell(&mut self, input: Input, now: u64) -> Vec<Effect> {
        self.step(input, now).unwrap()
    }

    pub(crate) fn acquire(&mut self, request: Request, now: u64) -> Vec<Effect> {
        self.tell(Input::Acquire(request), now)
    }

    /// What the plan under way puts, as it stands once it has landed at the next revision.
    pub(crate) fn put(&mut self) -> Vec<Entry> {
        self.revision += 1;
        let plan = self.puts.take().unwrap();
        let entry = |write| match write {
            Write::Put(key, record, _) => {
                Entry { key, record, create_revision: self.revision, mod_revision: self.revision, lease: 0 }
            }
            Write::Delete(_) => panic!("it deletes"),
        };
        plan.writes.into_iter().map(entry).collect()
    }

    /// The plan that puts lands, in the line of `before`; then the watch shows the same.
    pub(crate) fn lands_behind(&mut self, before: &[Entry], now: u64) -> Vec<Effect> {
        let mut entries = before.to_vec();
        entries.extend(self.put());
        let answer = Answer { held: true, revision: self.revision, reads: vec![entries.clone()] };
        let effects = self.tell(Input::Landed { outcome: Ok(answer), believed: 0 }, now);
        if self.machine.watches() {
            assert!(granted(&self.tell(all(self.revision, &entries), now)).is_empty(), "nothing new");
        }
        effects
    }

    /// The plan that deletes lands.
    pub(crate) fn frees(&mut self, now: u64) -> Vec<Effect> {
        self.revision += 1;
        self.deletes.take().unwrap();
        let answer = Answer { held: true, revision: self.revision, reads: Vec::new() };
        self.tell(Input::Freed(Ok(answer)), now)
    }

    pub(crate) fn release(&mut self, token: u64, now: u64) -> Vec<Effect> {
        let (caller, token) = (Caller(1_000_000 + token), Token(u128::from(token)));
        self.tell(Input::Release { caller, token }, now)
    }

    pub(crate) fn held(&mut self, caller: u64) {
        self.acquire(request(caller, 0), 0);
        assert!(is_granted(&self.lands_behind(&[], 0), caller));
    }
}

/// One of this sidecar's own in the line.
pub(crate) fn own(number: u64, revision: i64, share: Share) -> Entry {
    Entry { key: key("s", number), ..rival(number, revision, share) }
}

pub(crate) fn tick() -> Input {
    Input::Tick { believed: 0 }
}

pub(crate) fn key(session: &str, number: u64) -> Key {
    Key::Waiter { lock: "orders".into(), key: "c42".into(), session: session.into(), number }
}

pub(crate) fn shadow_key(session: &str, number: u64) -> Key {
    Key::Shadow { lock: "orders".into(), key: "c42".into(), session: session.into(), number }
}

pub(crate) fn holder() -> Holder {
    Holder {
        session: "other".into(),
        pod: "elsewhere".into(),
        owner: "rival".into(),
        since: 0,
        regrants: 0,
        stays: false,
    }
}

pub(crate) fn rival(number: u64, revision: i64, share: Share) -> Entry {
    let record = Waiter { holder: holder(), share, place: 0 }.into();
    Entry { key: key("other", number), record, create_revision: revision, mod_revision: revision, lease: 0 }
}

pub(crate) fn shadow(number: u64, revision: i64) -> Entry {
    let record: Record = Shadow { holder: holder(), share: Share::EXCLUSIVE, delay: DELAY }.into();
    Entry {
        key: shadow_key("other", number),
        record,
        create_revision: revision,
        mod_revision: revision,
        lease: 0,
    }
}

pub(crate) fn all(revision: i64, entries: &[Entry]) -> Input {
    Input::Seen(Seen::All { revision, entries: entries.to_vec() })
}

pub(crate) fn gone(key: Key, revision: i64) -> Input {
    Input::Seen(Seen::Deleted { key, revision })
}

pub(crate) fn reply(effects: &[Effect], caller: u64) -> Option<&Result<Reply, Rejected>> {
    effects.iter().find_map(|effect| match effect {
        Effect::Reply(of, reply) if *of == Caller(caller) => Some(reply),
        _ => None,
    })
}

pub(crate) fn granted(effects: &[Effect]) -> Vec<u64> {
    let granted = effects.iter().filter_map(|effect| match effect {
        Effect::Reply(caller, Ok(Reply::Granted { .. })) => Some(caller.0),
        _ => None,
    });
    granted.collect()
}

pub(crate) fn is_granted(effects: &[Effect], caller: u64) -> bool {
    granted(effects) == [caller]
}
