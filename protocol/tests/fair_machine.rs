//! One machine of a fair lock alone: what the model has no room for.

#![allow(clippy::panic, clippy::unwrap_used)]

#[path = "fair_machine/world.rs"]
mod world;

use concordat_protocol::{
    Entry, Key, Lease, Range, Record, Write,
    lock::{
        Caller, Effect, Failure, Input, Rejected, Reply, Request, Seen, Share, Token,
        fair::{
            self,
            line::{Line, Spot, Standing},
        },
        machine,
    },
};
use world::{
    DELAY, Run, all, gone, granted, holder, is_granted, key, own, reply, request, rival, shadow, shadow_key,
    tick,
};

/// Pitfall 9: however many wait, a release is one grant and one deletion.
#[test]
fn a_thousand_waiters_are_granted_one_by_one_in_their_order() {
    let mut run = Run::new();
    run.held(1);
    for caller in 2..=1_000 {
        assert_eq!(granted(&run.acquire(request(caller, 600_000), 0)), []);
    }
    let mut line = vec![own(1, 11, Share::EXCLUSIVE)];
    while let Some(plan) = &run.puts {
        assert!(plan.writes.len() <= fair::TOGETHER);
        let before = line.clone();
        line.extend(plan.writes.iter().filter_map(|write| match write {
            Write::Put(key, record, _) => {
                let revision = run.revision + 1;
                let (key, record) = (key.clone(), record.clone());
                Some(Entry { key, record, create_revision: revision, mod_revision: revision, lease: 0 })
            }
            Write::Delete(_) => None,
        }));
        run.lands_behind(&before, 0);
        run.tell(tick(), fair::GATHER);
    }
    assert_eq!(run.machine.waiters(), 999);
    assert!(run.machine.watches());
    let before = run.plans;
    let mut last = 0;
    for caller in 1..=999 {
        let effects = run.release(caller, 1);
        assert!(is_granted(&effects, caller + 1), "at once, and nobody else");
        let Some(Ok(Reply::Granted { fence, .. })) = reply(&effects, caller + 1) else { panic!() };
        assert!(fence.get() > last);
        last = fence.get();
        run.frees(1);
    }
    assert_eq!(run.plans - before, 999, "a release is one plan");
}

/// Granted at once, the next one holds it while etcd still shows the one before.
#[test]
fn who_is_handed_the_lock_is_known_to_hold_it_before_etcd_tells() {
    let revisions = |spots: &mut dyn Iterator<Item = (&Spot, &Standing)>| -> Vec<i64> {
        spots.map(|(spot, _)| spot.revision).collect()
    };
    let own = |number, revision| own(number, revision, Share::EXCLUSIVE);
    let mut run = Run::new();
    run.held(1);
    run.acquire(request(2, 60_000), 0);
    run.lands_behind(&[own(1, 11)], 0);
    assert!(run.machine.deletes().is_empty());
    assert!(is_granted(&run.release(1, 0), 2));
    let read = [own(1, 11), own(2, 12), rival(1, 13, Share::EXCLUSIVE)];
    for _ in 0..2 {
        let deletes = run.machine.deletes();
        let left = read.iter().filter(|entry| !deletes.contains(&entry.key)).cloned();
        let here = Line::of(13, &left.collect::<Vec<_>>());
        assert_eq!(revisions(&mut here.living_holders()), [12]);
        if run.deletes.is_some() {
            run.frees(0); // What is read may be older still.
        }
    }
    let elsewhere = Line::of(13, &read);
    assert_eq!(revisions(&mut elsewhere.living_holders()), [11]);
    assert_eq!(revisions(&mut elsewhere.heirs()), [12], "it may hold it");
    let behind = Line::of(13, &[rival(1, 3, Share::EXCLUSIVE), own(2, 12)]);
    assert_eq!(revisions(&mut behind.heirs()), [], "nobody has handed it on");
    let after_a_loss = Line::of(13, &[shadow(2, 3), own(2, 12), rival(1, 13, Share::EXCLUSIVE)]);
    assert_eq!(revisions(&mut after_a_loss.heirs()), [12], "its delay may be over");
}

#[test]
fn those_who_come_while_others_of_theirs_wait_are_put_together() {
    let mut run = Run::new();
    run.held(1);
    let own = |number, revision| own(number, revision, Share::EXCLUSIVE);
    run.acquire(request(2, 60_000), 0);
    run.lands_behind(&[own(1, 11)], 0);
    let before = run.plans;
    run.acquire(request(3, 60_000), 1);
    run.acquire(request(4, 60_000), 2);
    assert_eq!(run.plans, before, "another of this sidecar waits in the line");
    assert_eq!(run.machine.wake_at(), Some(1 + fair::GATHER));
    assert!(is_granted(&run.release(1, 3), 2));
    assert_eq!(run.plans - before, 2, "the last of them has it: one goes, and those who came are put");
    run.frees(3);
    run.lands_behind(&[own(2, 12)], 3);
    assert_eq!(run.machine.waiters(), 2);

    // Held for longer, it is not awaited.
    let before = run.plans;
    run.acquire(request(5, 60_000), 4);
    run.tell(tick(), 3 + fair::GATHER);
    assert_eq!(run.plans, before);
    run.tell(tick(), 4 + fair::GATHER);
    assert_eq!(run.plans - before, 1);
    run.lands_behind(&[own(2, 12), own(3, 14), own(4, 14)], 20);

    // As many as one plan puts do not wait for more.
    let before = run.plans;
    for caller in 6..6 + fair::TOGETHER as u64 {
        assert_eq!(run.plans, before);
        run.acquire(request(caller, 60_000), 20);
    }
    assert_eq!(run.plans - before, 1);
}

#[test]
fn readers_share_and_a_writer_waits_for_them_and_keeps_later_ones_waiting() {
    let mut run = Run::new();
    let reader = |caller| Request { share: Share::READER, ..request(caller, 60_000) };
    run.acquire(reader(1), 0);
    assert!(is_granted(&run.lands_behind(&[rival(1, 3, Share::READER)], 0), 1));
    run.acquire(request(2, 60_000), 0);
    let line = [rival(1, 3, Share::READER), own(1, 11, Share::READER)];
    assert_eq!(granted(&run.lands_behind(&line, 0)), []);
    run.acquire(reader(3), 0);
    run.tell(tick(), fair::GATHER);
    let line = [line.as_slice(), &[own(2, 12, Share::EXCLUSIVE)]].concat();
    assert_eq!(granted(&run.lands_behind(&line, 0)), [], "the writer came first");
    run.tell(all(13, &[line.as_slice(), &[own(3, 13, Share::READER)]].concat()), 0);
    assert_eq!(granted(&run.release(1, 0)), [], "a reader elsewhere holds it still");
    assert!(is_granted(&run.tell(gone(key("other", 1), 14), 0), 2));
    assert!(is_granted(&run.release(2, 0), 3));
}

#[test]
fn permits_are_given_in_order_even_if_a_later_request_would_fit() {
    let mut run = Run::new();
    let asks = |caller, permits| Request { share: Share::permits(permits, 5), ..request(caller, 60_000) };
    let line = [rival(1, 3, Share::permits(3, 5)), rival(2, 4, Share::permits(1, 5))];
    run.acquire(asks(1, 2), 0);
    assert_eq!(granted(&run.lands_behind(&line, 0)), []);
    run.acquire(asks(2, 1), 0);
    run.tell(tick(), fair::GATHER);
    let line = [line.as_slice(), &[own(1, 11, Share::permits(2, 5))]].concat();
    assert_eq!(granted(&run.lands_behind(&line, 0)), [], "one permit is free");
    assert_eq!(granted(&run.tell(gone(key("other", 1), 13), 0)), [1, 2]);
}

#[test]
fn who_does_not_wait_leaves_the_line_and_is_told_who_has_it() {
    let mut run = Run::new();
    run.acquire(request(1, 0), 0);
    let told = run.lands_behind(&[rival(1, 3, Share::EXCLUSIVE)], 0);
    let Some(Err(Rejected::Held(by))) = reply(&told, 1) else { panic!("{told:?}") };
    assert_eq!((&by.holder, by.expires_in), (&holder(), None));
    let deletes = run.deletes.clone().unwrap();
    assert!(deletes.deletes_only() && deletes.compares.is_empty(), "it goes without space too");
    run.frees(0);
    assert!(run.machine.is_idle());

    run.held(2);
    let Err(Rejected::Held(by)) = run.step(Input::Acquire(request(3, 0)), 1_000) else { panic!("held") };
    assert_eq!(by.expires_in, Some(4_000), "of its own sidecar's callers it is known");
}

#[test]
fn no_more_wait_than_may_over_all_sidecars() {
    let mut run = Run::new();
    let few = |caller| Request { max_waiters: 2, ..request(caller, 60_000) };
    let mut line = vec![rival(1, 3, Share::EXCLUSIVE), rival(2, 4, Share::EXCLUSIVE)];
    run.acquire(few(1), 0);
    assert_eq!(reply(&run.lands_behind(&line, 0), 1), None, "one waits before it");
    assert_eq!(run.step(Input::Acquire(few(2)), 0), Err(Rejected::Full), "that is known beforehand");

    let mut run = Run::new();
    line.push(rival(3, 5, Share::EXCLUSIVE));
    run.acquire(few(1), 0);
    assert_eq!(reply(&run.lands_behind(&line, 0), 1), Some(&Err(Rejected::Full)), "or known by then");
    assert!(run.deletes.is_some());

    let uncontended = Request { max_waiters: 0, ..request(1, 0) };
    let mut run = Run::new();
    run.acquire(uncontended, 0);
    assert!(is_granted(&run.lands_behind(&[], 0), 1), "who need not wait may come");
}

#[test]
fn a_wait_that_is_over_leaves_no_key() {
    for end in [tick(), Input::Cancel(Caller(1))] {
        let mut run = Run::new();
        run.acquire(request(1, 2_000), 0);
        run.lands_behind(&[rival(1, 3, Share::EXCLUSIVE)], 0);
        let over = run.tell(end.clone(), 2_000);
        if end != Input::Cancel(Caller(1)) {
            assert!(matches!(reply(&over, 1), Some(Err(Rejected::TimedOut(Some(_))))), "{over:?}");
        }
        let deleted = [shadow_key("s", 1), key("s", 1)].map(|key| Write::Delete(Range::One(key)));
        assert_eq!(run.deletes.as_ref().unwrap().writes, deleted);
    }
    // While the plan is under way it is not known whether there is a key.
    let mut run = Run::new();
    run.acquire(request(1, 2_000), 0);
    run.tell(Input::Cancel(Caller(1)), 0);
    assert!(run.deletes.is_none());
    run.lands_behind(&[], 0);
    assert!(run.deletes.is_some());
}

/// Pitfalls 1 and 2.
#[test]
fn a_waiter_whose_lease_is_over_is_told_and_never_granted() {
    let mut run = Run::new();
    run.acquire(request(1, 60_000), 0);
    run.lands_behind(&[rival(1, 3, Share::EXCLUSIVE)], 0);
    assert_eq!(run.machine.wake_at(), Some(60_000), "belief lasts longer");
    run.believed = 5;
    run.tell(tick(), 0);
    assert_eq!(run.machine.wake_at(), Some(5));
    let told = run.tell(tick(), 5);
    assert_eq!(reply(&told, 1), Some(&Err(Rejected::Lost)));
    assert_eq!(granted(&run.tell(gone(key("other", 1), 20), 6)), []);

    let mut run = Run::new();
    run.acquire(request(1, 60_000), 0);
    run.lands_behind(&[rival(1, 3, Share::EXCLUSIVE)], 0);
    let told = run.tell(gone(key("s", 1), 20), 1);
    assert_eq!(reply(&told, 1), Some(&Err(Rejected::Lost)), "its key is gone");
}

#[test]
fn what_nobody_renews_is_lost_and_its_shadow_stays() {
    let mut run = Run::new();
    run.acquire(Request { lock_delay: DELAY, ..request(1, 0) }, 0);
    let puts = &run.puts.as_ref().unwrap().writes;
    assert!(matches!(&puts[1], Write::Put(Key::Shadow { .. }, Record::Shadow(_), Lease::Forever)));
    run.lands_behind(&[], 0);
    let renew = || Input::Renew { caller: Caller(9), token: Token(1), believed: 0 };
    let renewed = run.tell(renew(), 4_000);
    assert_eq!(reply(&renewed, 9), Some(&Ok(Reply::Renewed { expires_in: 5_000 })));
    run.tell(tick(), 5_000);
    assert_eq!(run.machine.wake_at(), Some(9_000));
    let lost = run.tell(tick(), 9_000);
    assert!(lost.contains(&Effect::Lost(Token(1))));
    let deletes = run.deletes.clone().unwrap().writes;
    assert_eq!(deletes, [Write::Delete(Range::One(key("s", 1)))], "so that others keep the lock-delay");
    assert_eq!(run.step(renew(), 9_001), Err(Rejected::Lost));
    run.frees(9_001);

    // Its own sidecar keeps it too.
    run.acquire(request(2, 60_000), 9_002);
    let shadow = Entry { key: shadow_key("s", 1), ..shadow(1, 11) };
    assert_eq!(granted(&run.lands_behind(&[shadow], 9_002)), []);
    assert_eq!(run.machine.wake_at(), Some(9_000 + DELAY));
    let over = run.tell(tick(), 9_000 + DELAY);
    assert!(is_granted(&over, 2));
    assert!(run.deletes.unwrap().writes.contains(&Write::Delete(Range::One(shadow_key("s", 1)))));
}

/// What is known of a lease here may fall behind what etcd thinks of it.
#[test]
fn what_is_no_longer_believed_is_deleted_lest_its_lease_lives_on() {
    for lost in [tick(), Input::Lost("s".into())] {
        let mut run = Run::new();
        run.acquire(Request { lock_delay: DELAY, ..request(1, 0) }, 0);
        run.lands_behind(&[], 0);
        run.believed = 5;
        assert!(run.tell(lost, 5).contains(&Effect::Lost(Token(1))));
        assert_eq!(run.deletes.unwrap().writes, [Write::Delete(Range::One(key("s", 1)))]);
    }
}

/// Of a session with several leases one can be lost.
#[test]
fn a_plan_under_a_lease_that_was_lost_ends_nothing_under_the_others() {
    let ended = || Input::Landed { outcome: Err(Failure::SessionEnded), believed: 0 };
    let mut run = Run::new();
    run.held(1);
    run.acquire(Request { ttl: 3_000, ..request(2, 60_000) }, 0);
    run.puts = None;
    let told = run.tell(ended(), 0);
    assert_eq!(told, [Effect::Reply(Caller(2), Err(Rejected::Lost))]);
    run.release(1, 0);
    assert!(run.deletes.is_some(), "it was held still");

    // Nor is it forgotten what may have landed.
    let mut run = Run::new();
    run.acquire(request(1, 60_000), 0);
    run.put();
    run.tell(Input::Landed { outcome: Err(Failure::Unknown), believed: 0 }, 0);
    run.acquire(Request { ttl: 3_000, ..request(2, 60_000) }, 0);
    run.puts = None;
    run.tell(ended(), 0);
    run.tell(all(20, &[own(1, 11, Share::EXCLUSIVE)]), 0);
    let deletes = run.deletes.unwrap().writes;
    assert!(deletes.contains(&Write::Delete(Range::One(key("s", 1)))), "{deletes:?}");
}

/// Pitfall 13, of the others' holders.
#[test]
fn a_lock_delay_follows_a_loss_and_no_release() {
    let line = [rival(1, 3, Share::EXCLUSIVE), shadow(1, 3), rival(2, 4, Share::EXCLUSIVE), shadow(2, 4)];
    let mut run = Run::new();
    run.acquire(request(1, 600_000), 0);
    run.lands_behind(&line, 0);
    let mut seen = line.to_vec();
    seen.push(own(1, 11, Share::EXCLUSIVE));
    run.tell(all(12, &seen), 0);
    // The second goes before its turn: nobody need wait for what never held the lock.
    run.tell(gone(key("other", 2), 13), 1_000);
    assert_eq!(granted(&run.tell(gone(key("other", 1), 14), 2_000)), [], "lost");
    assert_eq!(granted(&run.tell(tick(), 1_999 + DELAY)), []);
    assert!(is_granted(&run.tell(tick(), 2_000 + DELAY), 1));
    let deletes = run.deletes.unwrap().writes;
    for shadow in [shadow_key("other", 1), shadow_key("other", 2)] {
        assert!(deletes.contains(&Write::Delete(Range::One(shadow))), "cleared away");
    }

    let mut run = Run::new();
    run.acquire(request(1, 600_000), 0);
    run.lands_behind(&line[..2], 0);
    run.tell(gone(shadow_key("other", 1), 13), 1_000);
    assert!(is_granted(&run.tell(gone(key("other", 1), 13), 1_000), 1), "let go");
}

/// Somebody who asks now and then would never come to the end of a delay that begins anew each time.
#[test]
fn who_asks_now_and_then_comes_to_the_end_of_the_lock_delay() {
    let shadows = [shadow(1, 3), shadow(2, 4)];
    let mut run = Run::new();
    // The second one is lost later; the first delay, once over, is not begun anew for that.
    for (caller, now, lost) in [(1, 100, 1), (2, 1_100, 2), (3, DELAY + 99, 2), (4, DELAY + 1_099, 2)] {
        run.acquire(request(caller, 0), now);
        let refused = run.lands_behind(&shadows[..lost], now);
        assert!(matches!(reply(&refused, caller), Some(Err(Rejected::Held(_)))), "{refused:?}");
        run.frees(now);
        assert!(run.machine.is_idle());
    }
    run.acquire(request(5, 0), DELAY + 1_100);
    assert!(is_granted(&run.lands_behind(&shadows, DELAY + 1_100), 5), "it is over");
    let deletes = run.deletes.unwrap().writes;
    for number in [1, 2] {
        assert!(deletes.contains(&Write::Delete(Range::One(shadow_key("other", number)))));
    }
}

#[test]
fn a_deletion_is_sent_until_it_is_known_and_a_release_may_be_repeated() {
    let mut run = Run::new();
    run.held(1);
    run.release(1, 0);
    assert!(granted(&run.tell(Input::Release { caller: Caller(8), token: Token(1) }, 0)).is_empty());
    run.deletes.take().unwrap();
    let failed = run.tell(Input::Freed(Err(Failure::Unknown)), 0);
    assert!(failed.is_empty(), "nobody is told what is not known");
    let again = run.machine.wake_at().unwrap();
    assert_eq!(again, machine::RETRY);
    run.tell(tick(), again);
    let told = run.frees(again);
    assert_eq!(reply(&told, 1_000_001), Some(&Ok(Reply::Released)));
    assert_eq!(reply(&told, 8), Some(&Ok(Reply::Released)));
    assert_eq!(reply(&run.release(1, again), 1_000_001), Some(&Ok(Reply::Released)));
    let other = Input::Release { caller: Caller(5), token: Token(7) };
    assert_eq!(run.step(other, again), Err(Rejected::Mismatch));
}

#[test]
fn a_key_that_goes_with_its_session_is_not_watched_for() {
    let unknown = || Input::Landed { outcome: Err(Failure::Unknown), believed: 0 };
    let mut run = Run::new();
    run.acquire(request(1, 60_000), 0);
    run.tell(Input::Lost("s".into()), 0);
    run.tell(unknown(), 0);
    assert!(run.machine.is_idle() && !run.machine.watches(), "it was lost before");
    run.puts = None;

    for end in [Input::Lost("s".into()), Input::Drain] {
        run.acquire(request(2, 60_000), 0);
        run.tell(unknown(), 0);
        run.puts = None;
        assert!(run.machine.watches());
        run.tell(end, 0);
        assert!(run.machine.is_idle() && !run.machine.watches());
    }
}

/// Pitfall 5: a plan of unknown outcome lands after all.
#[test]
fn a_key_that_lands_for_nobody_is_deleted() {
    let mut run = Run::new();
    run.acquire(request(1, 60_000), 0);
    let own = run.put();
    let told = run.tell(Input::Landed { outcome: Err(Failure::Unknown), believed: 0 }, 0);
    assert_eq!(reply(&told, 1), Some(&Err(Rejected::Unavailable { unknown: true })));
    assert!(run.machine.watches(), "it may land yet");
    run.tell(all(10, &[]), 0);
    run.tell(Input::Seen(Seen::Put(own[0].clone())), 0);
    assert!(run.deletes.is_some());
    run.frees(0);
    assert!(run.machine.is_idle());
}

#[test]
fn a_definition_made_anew_ends_the_wait_and_not_the_grant() {
    let mut run = Run::new();
    run.held(1);
    run.acquire(request(2, 60_000), 0);
    let told = run.tell(Input::Defined(Some(99)), 0);
    assert_eq!(reply(&told, 2), Some(&Err(Rejected::Replaced)));
    let renew = Input::Renew { caller: Caller(9), token: Token(1), believed: 0 };
    assert!(run.step(renew, 1).is_ok());
}
