//! One machine of mode CompareAndSwap alone: what stays with its sidecar, how it comes to be let go, and how another asks
//! for it.

#![allow(clippy::unwrap_used, clippy::panic)]

use concordat_protocol::{
    Answer, Entry, Key, Now, Plan, Range, Record, Write,
    lock::{
        Caller, Effect, Failure, Holder, Input, Machine, Mode, Rejected, Reply, Request, Seen, Share, Token,
        Want,
        fence::PLACES,
        invariant::{self, Change, Grant, History},
        machine::{ANSWER, RETRY, STAY, TURNS, UNTOLD, YIELD},
        plans,
    },
};

const BELIEVED: u64 = 900_000;

fn request(caller: u64, wait: u64) -> Request {
    Request {
        caller: Caller(caller),
        token: Token(u128::from(caller)),
        session: "s".into(),
        pod: "pod".into(),
        owner: format!("owner {caller}"),
        definition: 2,
        mode: Mode::CompareAndSwap,
        wait,
        max_waiters: 100,
        share: Share::EXCLUSIVE,
        lock_delay: 0,
        ttl: 15_000,
        max_hold: 0,
        renew: false,
    }
}

fn key() -> Key {
    plans::holder(&"orders".into(), &"c42".into())
}

fn rival(stays: bool) -> Holder {
    Holder {
        session: "other".into(),
        pod: "elsewhere".into(),
        owner: "rival".into(),
        since: 0,
        regrants: 0,
        stays,
    }
}

fn stands(stays: bool, create_revision: i64, mod_revision: i64) -> Entry {
    Entry { key: key(), record: rival(stays).into(), create_revision, mod_revision, lease: 0 }
}

/// A machine and the plan that it has under way.
struct Run {
    machine: Machine,
    now: u64,
    plan: Option<Plan>,
    believed: u64,
    hears: u64,
}

impl Run {
    fn new() -> Self {
        let machine = Machine::new("orders".into(), "c42".into(), 0, Mode::CompareAndSwap);
        Self { machine, now: 0, plan: None, believed: BELIEVED, hears: BELIEVED }
    }

    fn step(&mut self, input: Input) -> Vec<Effect> {
        if matches!(input, Input::Landed { .. }) {
            assert!(self.plan.take().is_some());
        }
        self.machine.believe(|_, _| self.believed);
        self.machine.hears(self.hears);
        let now = Now { monotonic: self.now, unix: self.now };
        let effects = self.machine.step(input, now).unwrap();
        for effect in &effects {
            if let Effect::Commit(plan) = effect {
                assert!(self.plan.replace(plan.clone()).is_none(), "one at a time");
            }
        }
        effects
    }

    /// The caller's fence and place, if it is granted by this step.
    fn asks(&mut self, request: Request) -> Option<(u64, u64)> {
        let caller = request.caller.0;
        granted(&self.step(Input::Acquire(request)), caller)
    }

    fn lands(&mut self, held: bool, revision: i64, found: &[Entry]) -> Vec<Effect> {
        let reads = if held { Vec::new() } else { vec![found.to_vec(), vec![definition()]] };
        self.step(Input::Landed { outcome: Ok(Answer { held, revision, reads }), believed: self.believed })
    }

    fn fails(&mut self, failure: Failure) -> Vec<Effect> {
        self.step(Input::Landed { outcome: Err(failure), believed: self.believed })
    }

    fn lets_go(&mut self, holder: u64) -> Vec<Effect> {
        self.step(Input::Release { caller: Caller(1_000 + holder), token: Token(u128::from(holder)) })
    }

    fn sees(&mut self, seen: Seen) -> Vec<Effect> {
        self.step(Input::Seen(seen))
    }

    /// The time of its next timer comes.
    fn wakes(&mut self) -> Vec<Effect> {
        self.now = self.machine.wake_at().unwrap();
        self.step(Input::Tick { believed: self.believed })
    }

    /// Held by caller 1 since revision 5.
    fn held() -> Self {
        let mut run = Self::new();
        run.asks(request(1, 0));
        assert_eq!(granted(&run.lands(true, 5, &[]), 1), Some((5, 0)));
        run
    }

    /// Kept after that.
    fn staying() -> Self {
        let mut run = Self::held();
        let effects = run.lets_go(1);
        assert_eq!(reply(&effects, 1_001), Some(&Ok(Reply::Released)));
        assert!(run.plan.is_none() && run.machine.stays().is_some());
        run
    }

    fn frees(&self) -> bool {
        self.plan.as_ref().is_some_and(|plan| plan.writes.contains(&Write::Delete(key().into())))
    }

    fn tries(&self) -> bool {
        self.plan.as_ref().is_some_and(|plan| {
            plan.writes.iter().any(|write| matches!(write, Write::Put(Key::Holder { .. }, ..)))
        })
    }

    /// The want that is being put.
    fn wants(&self) -> Option<i64> {
        self.plan.as_ref()?.writes.iter().find_map(|write| match write {
            Write::Put(Key::Want { .. }, Record::Want(Want { life }), _) => Some(*life),
            _ => None,
        })
    }
}

fn definition() -> Entry {
    let key = plans::definition(&"orders".into());
    Entry { key, record: rival(false).into(), create_revision: 2, mod_revision: 2, lease: 0 }
}

fn reply(effects: &[Effect], caller: u64) -> Option<&Result<Reply, Rejected>> {
    effects.iter().find_map(|effect| match effect {
        Effect::Reply(of, reply) if *of == Caller(caller) => Some(reply),
        _ => None,
    })
}

fn granted(effects: &[Effect], caller: u64) -> Option<(u64, u64)> {
    match reply(effects, caller) {
        Some(Ok(Reply::Granted { fence, .. })) => Some((fence.get() / PLACES, fence.get() % PLACES)),
        _ => None,
    }
}

#[test]
fn what_stays_is_granted_again_without_a_commit_until_the_fence_has_no_room() {
    let mut run = Run::staying();
    for place in 1..PLACES {
        assert_eq!(run.asks(request(place + 1, 0)), Some((5, place)));
        assert_eq!(run.machine.holding().unwrap().0.owner, format!("owner {}", place + 1));
        run.lets_go(place + 1);
        assert!(run.plan.is_none());
    }
    assert_eq!(run.asks(request(5_000, 0)), None);
    assert!(run.frees(), "a fence of its own needs a commit");
    run.lands(true, 9, &[]);
    assert!(run.tries());
    assert_eq!(granted(&run.lands(true, 10, &[]), 5_000), Some((10, 0)));
}

#[test]
fn what_does_not_fit_is_let_go_and_taken_anew() {
    let spoils: [fn(&mut Run) -> Request; 6] = [
        |_| Request { ttl: 16_000, ..request(2, 0) },
        |_| Request { definition: 3, ..request(2, 0) },
        |_| Request { session: "next".into(), ..request(2, 0) },
        |run| {
            run.believed = run.now;
            request(2, 0)
        },
        |run| {
            run.hears = run.now;
            request(2, 0)
        },
        |run| {
            run.now += STAY;
            request(2, 0)
        },
    ];
    for spoil in spoils {
        let mut run = Run::staying();
        let request = spoil(&mut run);
        assert_eq!(run.asks(request), None);
        assert!(run.frees());
    }
}

#[test]
fn it_does_not_stay_when_wants_are_not_heard_of_and_not_for_ever() {
    let mut run = Run::held();
    run.hears = 0;
    run.lets_go(1);
    assert!(run.frees());

    let mut run = Run::staying();
    run.wakes();
    assert_eq!(run.now, STAY);
    assert!(run.frees());
    run.lands(true, 9, &[]);
    assert!(run.machine.is_idle());

    let mut run = Run::staying();
    run.hears = 1_500;
    run.step(Input::Wanted { life: 4 });
    assert_eq!(run.machine.wake_at(), Some(1_500));
}

#[test]
fn whatever_ends_it_frees_it() {
    for end in
        [Input::Wanted { life: 5 }, Input::LetGo, Input::Defined(None), Input::Defined(Some(3)), Input::Drain]
    {
        let mut run = Run::staying();
        let wanted = matches!(end, Input::Wanted { .. });
        run.step(end);
        assert!(run.frees());
        let wants = Range::WantsOf("s".into(), "orders".into(), "c42".into());
        assert_eq!(run.plan.as_ref().unwrap().writes.contains(&Write::Delete(wants)), wanted);
        assert_eq!(run.asks(request(2, 0)), None, "not once its deletion was sent");
    }
    for nothing in [Input::Wanted { life: 4 }, Input::Defined(Some(2)), Input::Lost("older".into())] {
        let mut run = Run::staying();
        run.step(nothing);
        assert!(run.plan.is_none() && run.machine.stays().is_some());
    }
    for gone in [Input::Seen(Seen::Deleted { key: key(), revision: 8 }), Input::Lost("s".into())] {
        let mut run = Run::staying();
        assert!(run.step(gone).is_empty(), "nobody had it");
        assert!(run.machine.is_idle());
    }
}

#[test]
fn local_callers_come_first_for_so_many_turns_once_others_wait() {
    let mut run = Run::held();
    for caller in 2..=40 {
        run.asks(request(caller, 60_000));
    }
    // As long as nobody else waits it goes from one to the next.
    for holder in 1..=3 {
        assert_eq!(granted(&run.lets_go(holder), holder + 1), Some((5, holder)));
    }
    run.step(Input::Wanted { life: 5 });
    run.lands(true, 7, &[]);
    run.step(Input::Wanted { life: 5 });
    assert!(run.plan.is_none(), "it was told once");
    let mut holder = 4;
    while granted(&run.lets_go(holder), holder + 1).is_some() {
        holder += 1;
    }
    assert_eq!(holder, 4 + u64::from(TURNS));
    assert!(run.frees());
    let history = |last: u64| History {
        changes: vec![
            Change { revision: 5, at: 0, holder: Some("s".into()), told: None },
            Change { revision: 7, at: 0, holder: Some("s".into()), told: Some(3) },
        ],
        grants: (0..last)
            .map(|place| Grant {
                caller: ("s".into(), place),
                fence: 5 * PLACES + place,
                from: place,
                to: place,
                session_alive: true,
                definition_in_force: true,
            })
            .collect(),
        ..History::default()
    };
    assert_eq!(invariant::turns(&history(holder), 0), Ok(()));
    assert!(invariant::turns(&history(holder + 1), 0).is_err(), "one turn more is found");
    let freed = run.lands(true, 8, &[]);
    assert!(reply(&freed, 1_000 + holder).is_some() && run.plan.is_none(), "the others go first");
    run.wakes();
    assert_eq!(run.now, YIELD);
    assert!(run.tries(), "nobody came");
}

#[test]
fn what_lasts_is_told_and_does_not_stay() {
    let mut run = Run::held();
    run.wakes();
    assert_eq!(run.now, UNTOLD);
    let Some(Write::Put(_, Record::Holder(told), _)) = run.plan.as_ref().unwrap().writes.first().cloned()
    else {
        panic!("it is not told")
    };
    assert_eq!((told.owner.as_str(), told.stays), ("owner 1", false));
    assert!(run.lets_go(1).is_empty(), "one plan at a time");
    run.lands(true, 6, &[]);
    assert!(run.frees(), "others count on it");
}

#[test]
fn a_holder_that_is_gone_when_it_is_told_of_is_lost() {
    let mut run = Run::held();
    run.step(Input::Wanted { life: 5 });
    let lost = run.lands(false, 9, &[]);
    assert!(lost.contains(&Effect::Lost(Token(1))));

    let mut run = Run::held();
    run.step(Input::Wanted { life: 5 });
    run.fails(Failure::Unknown);
    assert!(reply(&run.lets_go(1), 1_001).is_none());
    assert!(run.frees(), "it may be told yet, so it does not stay");
}

#[test]
fn who_does_not_wait_is_told_of_a_holder_and_never_of_what_stays() {
    let mut run = Run::new();
    run.asks(request(1, 0));
    assert!(reply(&run.lands(false, 7, &[stands(true, 7, 7)]), 1).is_none());
    assert_eq!(run.wants(), Some(7));
    run.lands(true, 8, &[]);
    let told = run.sees(Seen::Put(stands(false, 7, 9)));
    assert!(matches!(reply(&told, 1), Some(Err(Rejected::Held(_)))));
    assert!(run.plan.is_none() && run.machine.is_idle(), "what tells it has taken the want away");

    let mut run = Run::new();
    run.asks(request(1, 0));
    run.lands(false, 7, &[stands(true, 7, 7)]);
    run.lands(true, 8, &[]);
    run.sees(Seen::Deleted { key: key(), revision: 9 });
    assert!(run.tries());
    let takes_back = run.plan.as_ref().unwrap().writes.iter();
    assert_eq!(takes_back.filter(|write| matches!(write, Write::Delete(_))).count(), 1);
    assert_eq!(granted(&run.lands(true, 10, &[]), 1), Some((10, 0)));
}

#[test]
fn a_sidecar_that_does_not_answer_has_it() {
    let mut run = Run::new();
    run.asks(request(1, 0));
    run.asks(request(2, 60_000));
    run.lands(false, 7, &[stands(true, 7, 7)]);
    run.lands(true, 8, &[]);
    let told = run.wakes();
    assert_eq!(run.now, ANSWER);
    assert!(matches!(reply(&told, 1), Some(Err(Rejected::Held(_)))));
    assert_eq!(run.machine.waiters(), 1);
    run.step(Input::Cancel(Caller(2)));
    let plan = run.plan.clone().unwrap();
    assert!(plan.deletes_only(), "nobody wants it any more");
    run.fails(Failure::NotApplied);
    run.wakes();
    run.lands(true, 9, &[]);
    assert!(run.machine.is_idle());
}

#[test]
fn where_nobody_may_wait_what_stays_can_be_had() {
    let alone = |caller| Request { max_waiters: 0, ..request(caller, 60_000) };
    assert_eq!(Run::staying().asks(alone(2)), Some((5, 1)));

    let mut run = Run::new();
    run.asks(alone(1));
    assert!(run.lands(false, 7, &[stands(true, 7, 7)]).iter().all(|told| matches!(told, Effect::Commit(_))));
    run.lands(true, 8, &[]);
    let told = run.wakes();
    assert_eq!((run.now, reply(&told, 1)), (ANSWER, Some(&Err(Rejected::Full))), "it is not let go");
}

#[test]
fn a_want_that_may_be_lost_is_put_again() {
    for failure in [Failure::Unknown, Failure::NotApplied] {
        let mut run = Run::new();
        run.asks(request(1, 60_000));
        run.lands(false, 7, &[stands(true, 7, 7)]);
        run.fails(failure);
        run.wakes();
        assert_eq!((run.now, run.wants()), (RETRY, Some(7)));
        // Meanwhile it has come into other hands.
        run.lands(false, 9, &[stands(true, 9, 9)]);
        assert_eq!(run.wants(), Some(9));
    }
}

#[test]
fn who_contended_for_it_is_known_not_to_keep_it() {
    let mut run = Run::new();
    run.asks(request(1, 60_000));
    run.lands(false, 7, &[stands(false, 7, 7)]);
    assert_eq!(run.wants(), None, "it comes free when it is let go");
    run.sees(Seen::Deleted { key: key(), revision: 8 });
    run.lands(true, 9, &[]);
    run.lets_go(1);
    assert!(run.frees());
}
