//! One machine of mode Lease alone: its shadows, and the lock-delay after a holder that was lost.

#![allow(clippy::unwrap_used, clippy::panic)]

use concordat_protocol::{
    Answer, Entry, Key, Lease, Now, Plan, Record, Write,
    lock::{
        Caller, Effect, Failure, Holder, Input, Machine, Mode, Rejected, Reply, Request, Seen, Shadow, Share,
        Token,
        machine::RETRY,
        plans::{self, Delayed, Frees},
    },
};

const BELIEVED: u64 = 90_000;
const DELAY: u64 = 3_000;

fn at(monotonic: u64) -> Now {
    Now { monotonic, unix: 0 }
}

fn request(caller: u64, wait: u64) -> Request {
    Request {
        caller: Caller(caller),
        token: Token(u128::from(caller)),
        session: "s".into(),
        pod: "pod".into(),
        owner: "owner".into(),
        definition: 2,
        mode: Mode::Lease,
        wait,
        max_waiters: 8,
        share: Share::EXCLUSIVE,
        lock_delay: DELAY,
        ttl: 5_000,
        max_hold: 0,
        renew: false,
    }
}

/// A machine and the plan that it has under way.
struct Run {
    machine: Machine,
    plan: Option<Plan>,
}

impl Run {
    fn new() -> Self {
        Self { machine: Machine::new("orders".into(), "c42".into(), 0, Mode::Lease), plan: None }
    }

    fn try_step(&mut self, input: Input, now: u64) -> Result<Vec<Effect>, Rejected> {
        if matches!(input, Input::Landed { .. }) {
            self.plan = None;
        }
        let effects = self.machine.step(input, at(now))?;
        for effect in &effects {
            if let Effect::Commit(plan) = effect {
                assert!(self.plan.replace(plan.clone()).is_none(), "one at a time");
            }
        }
        Ok(effects)
    }

    fn step(&mut self, input: Input, now: u64) -> Vec<Effect> {
        self.try_step(input, now).unwrap()
    }

    fn asks(&mut self, caller: u64, wait: u64, now: u64) {
        self.step(Input::Acquire(request(caller, wait)), now);
    }

    fn lands(&mut self, revision: i64, now: u64) -> Vec<Effect> {
        self.step(landed(Ok(Answer { held: true, revision, reads: Vec::new() })), now)
    }

    /// What the plan under way reads when it is refused and these stand there.
    fn is_refused(&mut self, revision: i64, stands: &[Entry], now: u64) -> Vec<Effect> {
        let plan = self.plan.clone().unwrap();
        let found = |range| stands.iter().find(|entry| range == entry.key.clone().into()).cloned();
        let reads = plan.otherwise.into_iter().map(|range| found(range).into_iter().collect()).collect();
        self.step(landed(Ok(Answer { held: false, revision, reads })), now)
    }

    fn sees(&mut self, seen: Seen, now: u64) -> Vec<Effect> {
        self.step(Input::Seen(seen), now)
    }

    /// When it wakes; the tick of that time is told.
    fn wakes(&mut self) -> u64 {
        let at = self.machine.wake_at().unwrap();
        self.step(Input::Tick { believed: BELIEVED }, at);
        at
    }

    /// What the plan under way compares the shadow to.
    fn over(&self) -> i64 {
        let compares = &self.plan.as_ref().unwrap().compares;
        compares.iter().find(|compare| compare.key == shadow_key()).unwrap().value
    }
}

fn landed(outcome: Result<Answer, Failure>) -> Input {
    Input::Landed { outcome, believed: BELIEVED }
}

fn shadow_key() -> Key {
    plans::shadow(&"orders".into(), &"c42".into())
}

fn holder_key() -> Key {
    plans::holder(&"orders".into(), &"c42".into())
}

fn release(revision: i64, frees: Frees) -> Plan {
    plans::release(&"orders".into(), &"c42".into(), revision, frees)
}

fn rival() -> Holder {
    Holder {
        session: "other".into(),
        pod: "elsewhere".into(),
        owner: "rival".into(),
        since: 0,
        regrants: 0,
        stays: false,
    }
}

fn entry(key: Key, record: Record, revision: i64) -> Entry {
    Entry { key, record, create_revision: revision, mod_revision: revision, lease: 0 }
}

fn holder(revision: i64) -> Entry {
    entry(holder_key(), rival().into(), revision)
}

fn shadow(revision: i64) -> Entry {
    let record = Shadow { holder: rival(), share: Share::EXCLUSIVE, delay: DELAY };
    entry(shadow_key(), record.into(), revision)
}

fn definition() -> Entry {
    entry(plans::definition(&"orders".into()), rival().into(), 2)
}

fn gone(key: Key, revision: i64) -> Seen {
    Seen::Deleted { key, revision }
}

fn reply(effects: &[Effect], caller: u64) -> Option<&Result<Reply, Rejected>> {
    effects.iter().find_map(|effect| match effect {
        Effect::Reply(of, reply) if *of == Caller(caller) => Some(reply),
        _ => None,
    })
}

/// Who a caller was told to be in the way, and for how long.
fn told(reply: Option<&Result<Reply, Rejected>>) -> (Holder, Option<u64>) {
    let Some(Err(Rejected::Held(rival))) = reply else { panic!("{reply:?}") };
    (rival.holder.clone(), rival.expires_in)
}

#[test]
fn a_grant_has_a_shadow_and_a_release_deletes_both() {
    let mut run = Run::new();
    run.asks(1, 0, 0);
    let puts = &run.plan.as_ref().unwrap().writes;
    assert!(matches!(&puts[0], Write::Put(Key::Holder { .. }, _, Lease::Ttl(_, 5_000))), "first: {puts:?}");
    assert!(matches!(&puts[1], Write::Put(at, _, Lease::Forever) if *at == shadow_key()), "{puts:?}");
    assert!(matches!(reply(&run.lands(5, 0), 1), Some(Ok(Reply::Granted { .. }))));
    run.step(Input::Release { caller: Caller(2), token: Token(1) }, 1);
    let plan = run.plan.clone().unwrap();
    assert_eq!(plan, release(5, Frees::Both));
    assert_eq!(plan.writes, [shadow_key(), holder_key()].map(|key| Write::Delete(key.into())));
    assert_eq!(reply(&run.lands(6, 1), 2), Some(&Ok(Reply::Released)));
    run.asks(3, 0, 2);
    assert_eq!(run.over(), 0, "nobody waits after it");
}

#[test]
fn without_a_lock_delay_there_is_no_shadow() {
    let mut run = Run::new();
    run.step(Input::Acquire(Request { lock_delay: 0, ..request(1, 9_000) }), 0);
    assert_eq!(run.plan.as_ref().unwrap().writes.len(), 1);
    assert_eq!(run.over(), 0, "one of earlier settings is waited for all the same");
    run.is_refused(9, &[shadow(5), definition()], 0);
    assert_eq!(run.wakes(), DELAY);
    let plan = run.plan.clone().unwrap();
    assert_eq!((run.over(), plan.writes.len()), (5, 2));
    assert_eq!(plan.writes[1], Write::Delete(shadow_key().into()), "and goes then");
}

#[test]
fn nobody_tries_before_the_lock_delay_of_a_lost_holder_is_over() {
    let mut run = Run::new();
    run.asks(1, 60_000, 0);
    run.asks(2, 0, 0);
    let refused = run.is_refused(9, &[shadow(5), definition()], 100);
    assert_eq!(told(reply(&refused, 2)), (rival(), Some(DELAY)), "who does not wait is told for how long");
    assert!(run.plan.is_none() && run.machine.watches());
    let Err(rejected) = run.try_step(Input::Acquire(request(3, 0)), 1_100) else { panic!("it is not free") };
    assert_eq!(told(Some(&Err(rejected))), (rival(), Some(DELAY - 1_000)));
    assert_eq!(run.wakes(), 100 + DELAY);
    assert_eq!(run.over(), 5, "what takes its place compares it");
    let granted = run.lands(12, 100 + DELAY);
    assert!(matches!(reply(&granted, 1), Some(Ok(Reply::Granted { .. }))));
}

#[test]
fn the_lock_delay_counts_from_the_loss_and_not_from_the_grant() {
    let mut run = Run::new();
    run.asks(1, 60_000, 0);
    run.is_refused(9, &[holder(5), shadow(5), definition()], 0);
    run.sees(Seen::All { revision: 9, entries: vec![holder(5), shadow(5)] }, 1_000);
    // The next one follows at once: its keys are told of one by one.
    for seen in [gone(shadow_key(), 10), gone(holder_key(), 10)] {
        run.sees(seen, 2_000);
    }
    run.is_refused(11, &[holder(11), shadow(11), definition()], 2_000);
    for seen in [Seen::Put(holder(11)), Seen::Put(shadow(11))] {
        run.sees(seen, 7_000);
    }
    assert!(run.plan.is_none());
    run.sees(gone(holder_key(), 12), 20_000);
    assert_eq!(run.wakes(), 20_000 + DELAY);
    assert_eq!(run.over(), 11);
}

#[test]
fn after_a_release_elsewhere_nobody_waits() {
    let mut run = Run::new();
    run.asks(1, 60_000, 0);
    run.is_refused(9, &[holder(5), shadow(5), definition()], 0);
    run.sees(gone(shadow_key(), 10), 2_000);
    assert!(run.plan.is_none(), "the holder's key is not gone yet");
    run.sees(gone(holder_key(), 10), 2_000);
    assert_eq!(run.over(), 0, "at once");
}

/// Somebody who asks now and then would never come to the end of a delay that begins anew each time.
#[test]
fn who_asks_now_and_then_comes_to_the_end_of_the_lock_delay() {
    let mut run = Run::new();
    for (caller, now, left) in [(1, 100, DELAY), (2, 1_100, DELAY - 1_000), (3, DELAY + 99, 1)] {
        run.asks(caller, 0, now);
        assert_eq!(run.over(), 0, "it may have been taken and released meanwhile");
        let refused = run.is_refused(9, &[shadow(5), definition()], now);
        assert_eq!(told(reply(&refused, caller)), (rival(), Some(left)));
    }
    run.asks(4, 0, DELAY + 100);
    let refused = run.is_refused(9, &[shadow(5), definition()], DELAY + 100);
    assert_eq!((reply(&refused, 4), run.over()), (None, 5), "it is over");
    assert!(matches!(reply(&run.lands(12, DELAY + 100), 4), Some(Ok(Reply::Granted { .. }))));
}

#[test]
fn a_second_loss_is_waited_for_anew() {
    let mut run = Run::new();
    run.asks(1, 60_000, 0);
    run.is_refused(9, &[shadow(5), definition()], 0);
    run.wakes();
    let refused = run.is_refused(12, &[shadow(11), definition()], DELAY);
    assert!(refused.is_empty() && run.plan.is_none(), "another was first, and was lost as well");
    assert_eq!(run.wakes(), 2 * DELAY);
    run.is_refused(15, &[definition()], 2 * DELAY);
    assert_eq!(run.over(), 0, "another was first, and has let go");
}

#[test]
fn what_is_refused_for_another_reason_is_tried_again_later() {
    let mut run = Run::new();
    run.asks(1, 60_000, 0);
    run.is_refused(9, &[shadow(5), definition()], 0);
    run.wakes();
    run.is_refused(12, &[shadow(5), definition()], DELAY);
    assert!(run.plan.is_none(), "the session's key was gone");
    assert_eq!((run.wakes(), run.over()), (DELAY + RETRY, 5));
}

#[test]
fn whoever_is_lost_leaves_the_shadow() {
    let mut run = Run::new();
    run.asks(1, 0, 0);
    run.lands(5, 0);
    let mut lost = run.machine.clone();
    let lost = lost.step(Input::Lost("s".into()), at(0)).unwrap();
    assert!(lost.contains(&Effect::Commit(release(5, Frees::Holder))), "its session is over");
    run.asks(2, 60_000, 0);
    assert_eq!(run.wakes(), 5_000, "nobody renewed it");
    assert_eq!(run.plan, Some(release(5, Frees::Holder)));
    run.lands(6, 5_000);
    assert_eq!(run.over(), 0);
    run.is_refused(6, &[shadow(5), definition()], 5_001);
    assert_eq!(run.wakes(), 5_001 + DELAY, "its own sidecar waits as others do");
}

#[test]
fn what_was_let_go_leaves_no_shadow_though_its_key_went_with_its_lease() {
    let mut run = Run::new();
    run.asks(1, 0, 0);
    run.lands(5, 0);
    run.step(Input::Release { caller: Caller(2), token: Token(1) }, 1);
    run.step(landed(Err(Failure::NotApplied)), 1);
    let again = run.wakes();
    assert_eq!(run.plan, Some(release(5, Frees::Both)));
    let refused = run.is_refused(8, &[shadow(5)], again);
    assert_eq!((reply(&refused, 2), &run.plan), (None, &Some(release(5, Frees::Shadow))));
    assert_eq!(reply(&run.lands(9, again), 2), Some(&Ok(Reply::Released)));
    // Of another's grant nothing is touched.
    let plan = release(5, Frees::Both);
    assert!(plan.compares.iter().all(|compare| compare.key == holder_key() && compare.value == 5));
    let plan = release(5, Frees::Shadow);
    assert!(plan.compares.iter().all(|compare| compare.key == shadow_key() && compare.value == 5));
    assert_eq!(plan.writes, [Write::Delete(shadow_key().into())]);
}

#[test]
fn a_grant_that_nobody_got_leaves_no_shadow() {
    let mut run = Run::new();
    run.asks(1, 0, 0);
    run.step(Input::Cancel(Caller(1)), 0);
    run.lands(5, 0);
    assert_eq!(run.plan, Some(release(5, Frees::Both)));
    run.lands(6, 0);

    run.asks(2, 60_000, 10);
    run.step(landed(Err(Failure::Unknown)), 10);
    let mut own = holder(8);
    own.record = Holder { session: "s".into(), ..rival() }.into();
    run.sees(Seen::Put(own), 20);
    assert_eq!(run.plan, Some(release(8, Frees::Both)), "it landed after all");
}

/// An operator takes it by force: the holder was not asked, and may still write.
#[test]
fn what_was_taken_by_force_is_a_loss() {
    let mut run = Run::new();
    run.asks(1, 0, 0);
    run.lands(5, 0);
    run.asks(2, 60_000, 0);
    let lost = run.sees(Seen::All { revision: 9, entries: vec![shadow(5)] }, 1_000);
    assert!(lost.contains(&Effect::Lost(Token(1))));
    assert!(run.plan.is_none());
    assert_eq!((run.wakes(), run.over()), (1_000 + DELAY, 5));
}

#[test]
fn in_mode_compare_and_swap_nothing_is_asked_of_a_shadow() {
    let record = rival();
    let acquire =
        |delayed| plans::acquire(&"orders".into(), &"c42".into(), 2, 5_000, record.clone(), delayed);
    let plain = acquire(None);
    assert!(plain.compares.iter().all(|compare| compare.key != shadow_key()));
    assert_eq!((plain.writes.len(), plain.otherwise.len()), (1, 2));
    let delayed = acquire(Some(Delayed { over: 0, delay: DELAY }));
    assert_eq!((delayed.writes.len(), delayed.otherwise.len()), (2, 3));
}
