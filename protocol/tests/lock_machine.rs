//! One machine alone: what the model has no room for, and what each invariant must find.

#![allow(clippy::unwrap_used)]

use concordat_protocol::{
    Answer, Entry, Key, Now, Plan, Range, SessionId,
    lock::{
        Caller, Effect, Failure, Fence, Holder, Input, Machine, Mode, Rejected, Reply, Request, Seen, Share,
        Token, invariant,
        invariant::{Change, Grant, History, Loss, Wait},
        machine,
        plans::{self, Frees},
    },
};

const BELIEVED: u64 = 9_000;

fn at(monotonic: u64) -> Now {
    Now { monotonic, unix: monotonic }
}

fn request(caller: u64, wait: u64) -> Request {
    Request {
        caller: Caller(caller),
        token: Token(u128::from(caller)),
        session: "s".into(),
        pod: "pod".into(),
        owner: "owner".into(),
        definition: 2,
        mode: Mode::CompareAndSwap,
        wait,
        max_waiters: 2_000,
        share: Share::EXCLUSIVE,
        lock_delay: 0,
        ttl: 5_000,
        max_hold: 0,
        renew: false,
    }
}

fn machine() -> Machine {
    Machine::new("orders".into(), "c42".into(), 0, Mode::CompareAndSwap)
}

fn key() -> Key {
    plans::holder(&"orders".into(), &"c42".into())
}

/// What frees the key.
fn freed(revision: i64) -> Plan {
    plans::release(&"orders".into(), &"c42".into(), revision, Frees::Holder)
}

fn gone(revision: i64) -> Input {
    Input::Seen(Seen::Deleted { key: key(), revision })
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

fn commits(effects: &[Effect]) -> Vec<&Plan> {
    effects
        .iter()
        .filter_map(|effect| if let Effect::Commit(plan) = effect { Some(plan) } else { None })
        .collect()
}

fn held(revision: i64) -> Input {
    let answer = Answer { held: true, revision, reads: Vec::new() };
    Input::Landed { outcome: Ok(answer), believed: BELIEVED }
}

/// What a refused acquire reads while somebody else holds the key.
fn refused(revision: i64) -> Input {
    let entry = |key, record, mod_revision, create_revision| Entry {
        key,
        record,
        mod_revision,
        create_revision,
        lease: 0,
    };
    let definition = plans::definition(&"orders".into());
    let reads = vec![
        vec![entry(key(), rival().into(), revision, revision)],
        vec![entry(definition, rival().into(), 2, 2)],
    ];
    Input::Landed { outcome: Ok(Answer { held: false, revision, reads }), believed: BELIEVED }
}

fn reply(effects: &[Effect], caller: u64) -> Option<&Result<Reply, Rejected>> {
    effects.iter().find_map(|effect| match effect {
        Effect::Reply(of, reply) if *of == Caller(caller) => Some(reply),
        _ => None,
    })
}

/// Pitfall 9: however many wait, what comes free wakes one attempt.
#[test]
fn a_thousand_waiters_make_one_attempt_a_release() {
    let mut machine = machine();
    let first = machine.step(Input::Acquire(request(1, 60_000)), at(0)).unwrap();
    assert_eq!(commits(&first).len(), 1);
    for caller in 2..=1_000 {
        let effects = machine.step(Input::Acquire(request(caller, 60_000)), at(0)).unwrap();
        assert!(effects.is_empty(), "one plan at a time");
    }
    assert!(machine.step(refused(5), at(1)).unwrap().is_empty(), "all of them go on waiting");
    assert_eq!(machine.waiters(), 1_000);
    assert!(machine.watches());
    let freed = machine.step(gone(6), at(2)).unwrap();
    assert_eq!(commits(&freed).len(), 1);
    let granted = machine.step(held(7), at(3)).unwrap();
    assert!(matches!(reply(&granted, 1), Some(Ok(Reply::Granted { .. }))), "the first in line");
    assert_eq!((commits(&granted).len(), machine.waiters()), (0, 999));
}

#[test]
fn what_the_watch_shows_late_is_not_believed() {
    let mut machine = machine();
    machine.step(Input::Acquire(request(1, 60_000)), at(0)).unwrap();
    machine.step(refused(5), at(0)).unwrap();
    let stale = machine.step(gone(4), at(0)).unwrap();
    assert!(stale.is_empty(), "it was free before, not now");
    let fresh = Entry { key: key(), record: rival().into(), create_revision: 8, mod_revision: 8, lease: 0 };
    assert!(machine.step(Input::Seen(Seen::Put(fresh)), at(0)).unwrap().is_empty());
    assert_eq!(commits(&machine.step(gone(9), at(0)).unwrap()).len(), 1);
}

#[test]
fn who_does_not_wait_is_told_who_has_it() {
    let mut machine = machine();
    machine.step(Input::Acquire(request(1, 0)), at(0)).unwrap();
    let told = machine.step(refused(5), at(0)).unwrap();
    let Some(Err(Rejected::Held(by))) = reply(&told, 1) else { panic!("{told:?}") };
    assert_eq!((by.holder.clone(), by.expires_in), (rival(), None));

    machine.step(Input::Acquire(request(2, 0)), at(0)).unwrap();
    machine.step(held(6), at(0)).unwrap();
    let Err(Rejected::Held(by)) = machine.step(Input::Acquire(request(3, 0)), at(1_000)) else {
        panic!("held")
    };
    assert_eq!(by.expires_in, Some(4_000), "of its own sidecar's callers it is known");
}

#[test]
fn a_grant_lasts_as_long_as_it_is_renewed_and_believed_and_no_longer_than_may_be() {
    let mut machine = machine();
    machine.step(Input::Acquire(Request { max_hold: 8_000, ..request(1, 0) }), at(0)).unwrap();
    let granted = machine.step(held(5), at(0)).unwrap();
    assert!(matches!(reply(&granted, 1), Some(Ok(Reply::Granted { expires_in: 5_000, .. }))));
    let renew = |believed| Input::Renew { caller: Caller(2), token: Token(1), believed };
    let renewed = machine.step(renew(BELIEVED), at(4_000)).unwrap();
    assert_eq!(reply(&renewed, 2), Some(&Ok(Reply::Renewed { expires_in: 4_000 })), "8 s is all there is");
    assert_eq!(commits(&renewed).len(), 1, "it has lasted, so etcd is told");
    machine.step(held(6), at(4_000)).unwrap();
    let renewed = machine.step(renew(20_000), at(7_999)).unwrap();
    assert_eq!(reply(&renewed, 2), Some(&Ok(Reply::Renewed { expires_in: 1 })));
    let before = machine.clone();
    assert_eq!(machine.step(renew(20_000), at(8_000)), Err(Rejected::Lost));
    assert_eq!(machine, before, "what is rejected changes nothing");
    let ended = machine.step(Input::Tick { believed: 20_000 }, at(8_000)).unwrap();
    assert!(ended.contains(&Effect::Lost(Token(1))));
    let wants = Range::WantsOf("s".into(), "orders".into(), "c42".into());
    assert_eq!(commits(&ended), [&freed(5).delete(wants)], "with what others may have wanted");
    assert_eq!(machine.step(renew(20_000), at(8_001)), Err(Rejected::Lost), "for good");
}

/// What is known of a lease here may fall behind what etcd thinks of it.
#[test]
fn what_is_no_longer_believed_is_deleted_lest_its_lease_lives_on() {
    let tick = |believed| Input::Tick { believed };
    for (lost, now) in [(tick(BELIEVED), BELIEVED), (tick(0), 5), (Input::Lost("s".into()), 5)] {
        let mut machine = machine();
        machine.step(Input::Acquire(Request { renew: true, ..request(1, 0) }), at(0)).unwrap();
        machine.step(held(5), at(0)).unwrap();
        let before = machine.clone();
        machine.step(Input::Lost("older".into()), at(1)).unwrap();
        assert_eq!(machine, before, "it stands under another session");
        let ended = machine.step(lost, at(now)).unwrap();
        assert!(ended.contains(&Effect::Lost(Token(1))));
        assert_eq!(commits(&ended), [&freed(5)], "its key");
        let renew = Input::Renew { caller: Caller(2), token: Token(1), believed: BELIEVED };
        assert_eq!(machine.step(renew, at(now)), Err(Rejected::Lost));
    }
}

#[test]
fn a_lease_that_is_known_to_be_over_is_not_believed_as_long_as_it_was() {
    let mut machine = machine();
    machine.step(Input::Acquire(request(1, 0)), at(0)).unwrap();
    machine.step(held(5), at(0)).unwrap();
    let renew = |believed| Input::Renew { caller: Caller(2), token: Token(1), believed };
    assert!(machine.step(renew(BELIEVED), at(1)).is_ok());
    assert_eq!(machine.step(renew(0), at(1)), Err(Rejected::Lost));
}

#[test]
fn where_nobody_may_wait_a_free_lock_can_be_had() {
    let alone = |caller, wait| Input::Acquire(Request { max_waiters: 0, ..request(caller, wait) });
    for wait in [0, 60_000] {
        let mut machine = machine();
        assert_eq!(commits(&machine.step(alone(1, wait), at(0)).unwrap()).len(), 1);
        assert_eq!(machine.step(alone(2, 60_000), at(0)), Err(Rejected::Full));
        machine.step(alone(3, 0), at(0)).unwrap();
        let granted = machine.step(held(5), at(0)).unwrap();
        assert!(matches!(reply(&granted, 1), Some(Ok(Reply::Granted { .. }))));
        assert!(matches!(reply(&granted, 3), Some(Err(Rejected::Held(_)))), "it did not want to wait");
        assert_eq!(machine.step(alone(4, 60_000), at(0)), Err(Rejected::Full));
        assert!(matches!(machine.step(alone(5, 0), at(0)), Err(Rejected::Held(_))));

        let mut machine = self::machine();
        machine.step(alone(1, wait), at(0)).unwrap();
        let told = machine.step(refused(5), at(0)).unwrap();
        let why = reply(&told, 1).unwrap().as_ref().unwrap_err();
        assert_eq!(matches!(why, Rejected::Held(_)), wait == 0, "{why:?}");
        assert_eq!(*why == Rejected::Full, wait > 0, "it would have to wait");
        assert!(machine.is_idle());
    }
}

/// A plan of unknown outcome may land yet: until its session is over, or a later plan has had its answer, which the store
/// does not send before.
#[test]
fn a_lock_that_may_be_taken_unnoticed_is_watched_only_as_long_as_that_can_be() {
    let unknown = |believed| Input::Landed { outcome: Err(Failure::Unknown), believed };
    let in_doubt = || {
        let mut machine = machine();
        machine.step(Input::Acquire(request(1, 0)), at(0)).unwrap();
        machine.step(unknown(BELIEVED), at(0)).unwrap();
        assert!(machine.watches() && !machine.is_idle());
        machine
    };
    for end in [Input::Lost("s".into()), Input::Drain] {
        let mut machine = in_doubt();
        machine.step(end, at(0)).unwrap();
        assert!(machine.is_idle() && !machine.watches());
    }

    let mut machine = machine();
    machine.step(Input::Acquire(request(1, 0)), at(0)).unwrap();
    machine.step(Input::Lost("s".into()), at(0)).unwrap();
    machine.step(unknown(0), at(0)).unwrap();
    assert!(machine.is_idle(), "it was lost before");

    let mut machine = in_doubt();
    let own = Holder { session: "s".into(), ..rival() };
    let landed = Entry { key: key(), record: own.into(), create_revision: 5, mod_revision: 5, lease: 0 };
    let found = machine.step(Input::Seen(Seen::Put(landed)), at(0)).unwrap();
    assert_eq!(commits(&found), [&freed(5)]);
    machine.step(held(6), at(0)).unwrap();
    assert!(machine.is_idle(), "it has landed and is freed");

    for answer in [held(7), refused(7)] {
        let mut machine = in_doubt();
        machine.step(Input::Acquire(request(2, 0)), at(0)).unwrap();
        machine.step(answer, at(0)).unwrap();
        assert!(!machine.watches());
    }
}

#[test]
fn a_release_is_tried_until_it_is_known_and_may_be_repeated() {
    let mut machine = machine();
    machine.step(Input::Acquire(request(1, 0)), at(0)).unwrap();
    machine.step(held(5), at(0)).unwrap();
    let release = |caller| Input::Release { caller: Caller(caller), token: Token(1) };
    assert_eq!(commits(&machine.step(release(2), at(0)).unwrap()).len(), 1);
    assert!(machine.step(release(3), at(0)).unwrap().is_empty(), "the second call waits for the same plan");
    let failed = Input::Landed { outcome: Err(Failure::Unknown), believed: BELIEVED };
    assert!(machine.step(failed, at(0)).unwrap().is_empty(), "nobody is told what is not known");
    let again = machine.wake_at().unwrap();
    assert_eq!(commits(&machine.step(Input::Tick { believed: BELIEVED }, at(again)).unwrap()).len(), 1);
    let known = Answer { held: false, revision: 9, reads: vec![Vec::new()] };
    let known = machine.step(Input::Landed { outcome: Ok(known), believed: BELIEVED }, at(again)).unwrap();
    assert_eq!(
        (reply(&known, 2), reply(&known, 3)),
        (Some(&Ok(Reply::Released)), Some(&Ok(Reply::Released)))
    );
    assert_eq!(reply(&machine.step(release(4), at(again)).unwrap(), 4), Some(&Ok(Reply::Released)));
    let other = Input::Release { caller: Caller(5), token: Token(7) };
    assert_eq!(machine.step(other, at(again)), Err(Rejected::Mismatch));
}

#[test]
fn etcd_that_does_not_answer_is_said_to() {
    let mut machine = machine();
    machine.step(Input::Acquire(request(1, 0)), at(0)).unwrap();
    machine.step(Input::Acquire(request(2, 0)), at(0)).unwrap();
    let over = machine.step(Input::Tick { believed: BELIEVED }, at(machine::PATIENCE)).unwrap();
    assert_eq!(reply(&over, 1), Some(&Err(Rejected::Unavailable { unknown: true })), "it may yet be taken");
    assert_eq!(
        reply(&over, 2),
        Some(&Err(Rejected::Unavailable { unknown: false })),
        "it was never asked for"
    );
    let late = machine.step(held(5), at(machine::PATIENCE)).unwrap();
    assert_eq!(commits(&late), [&freed(5)], "what nobody wants is freed");
}

#[test]
fn a_fence_is_safe_in_every_json_parser() {
    assert_eq!(Fence::new(7, 0, 3).map(Fence::get), Some(7 * 1_024 + 3));
    assert_eq!(Fence::new(7, 5, 0), Fence::new(12, 0, 0), "the offset raises the revision");
    assert_eq!(Fence::new((1 << 43) - 1, 0, 1_023).map(Fence::get), Some((1 << 53) - 1));
    for (revision, offset, place) in [(1 << 43, 0, 0), (i64::MAX, 1, 0), (1, -2, 0), (1, 0, 1_024)] {
        assert_eq!(Fence::new(revision, offset, place), None);
    }
}

fn change(revision: i64, holder: Option<&str>) -> Change {
    Change { revision, at: revision as u64 * 100, holder: holder.map(SessionId::from), told: None }
}

fn grant(place: u64, revision: i64, from: u64, to: u64) -> Grant {
    Grant {
        caller: ("a".into(), place),
        fence: Fence::new(revision, 0, 0).unwrap().get(),
        from,
        to,
        session_alive: true,
        definition_in_force: true,
    }
}

/// Two grants one after the other, a write under each, and a wait in vain for the second.
fn good() -> History {
    History {
        changes: vec![change(1, Some("a")), change(2, None), change(3, Some("b")), change(9, None)],
        grants: vec![grant(1, 1, 100, 200), grant(2, 3, 300, 900)],
        accepted: vec![1 << 10, 3 << 10],
        waits: vec![Wait { from: 250, to: 800 }],
        forged: Vec::new(),
        losses: vec![Loss { lost: 1, next: 3, delay: 50, known: Some(50) }],
        shadows: Vec::new(),
    }
}

#[test]
fn each_invariant_finds_the_history_that_breaks_it() {
    assert_eq!(invariant::all(&good(), 0, 100), Ok(()));
    type Spoil = fn(&mut History);
    let spoils: [(&str, Spoil); 16] = [
        ("L1", |history| drop(history.changes.remove(1))),
        ("L2", |history| {
            history.grants[0].fence += 9;
            history.grants.push(grant(3, 1, 901, 902));
        }),
        ("turns", |history| {
            history.changes[2].told = Some(2);
            history.grants[1].fence += 19;
        }),
        ("L2", |history| history.grants[1].fence = history.grants[0].fence),
        ("L2", |history| history.grants[1].fence += 5 << 10),
        ("L2", |history| history.changes.retain(|change| change.revision != 1)),
        ("L3", |history| history.accepted.reverse()),
        ("L4", |history| history.grants[0].to = 301),
        ("L4", |history| history.grants[0].session_alive = false),
        ("L4", |history| history.grants[0].definition_in_force = false),
        ("L5", |history| history.waits.push(Wait { from: 901, to: 1_100 })),
        ("L6", |history| history.grants[1].caller.1 = 0),
        ("L7", |history| history.forged.push("a renewal".into())),
        ("lock-delay", |history| history.losses[0].known = Some(49)),
        ("lock-delay", |history| history.losses[0].known = None),
        ("lock-delay", |history| history.shadows.push(3)),
    ];
    for (broken, spoil) in spoils {
        let mut history = good();
        spoil(&mut history);
        let found = invariant::all(&history, 0, 100).unwrap_err();
        assert!(found.starts_with(broken), "{broken} is to find it, not: {found}");
    }
}

#[test]
fn a_grant_that_is_gone_while_its_holder_relies_on_it_is_found() {
    assert_eq!(invariant::l7_nothing_taken(&good(), 0), Ok(()));
    let taken: [fn(&mut History); 2] =
        [|history| history.grants[0].to = 201, |history| history.changes[3].at = 899];
    for spoil in taken {
        let mut history = good();
        spoil(&mut history);
        assert!(invariant::l7_nothing_taken(&history, 0).is_err());
    }
}
