//! What a commit means while nothing goes wrong, and what a caller may do to others.

use concordat_protocol::{Key, Lease, Plan, Range};
use concordat_store::{
    CommitError,
    observer::{Counts, Purpose},
};
use concordat_tests::{etcd::Etcd, process::eventually};
use futures::future::join_all;

use crate::{acquire, change, connect, counted, holder, key, revision_of};

#[tokio::test]
async fn a_plan_is_applied_whole_or_not_at_all() {
    let etcd = Etcd::start().await.unwrap();
    let store = connect(etcd.endpoint(0)).await;
    let session = store.session().id;
    let first = store.commit(acquire(&session, "a")).await.unwrap();
    assert!(first.held);
    let second = store.commit(acquire(&session, "a")).await.unwrap();
    assert!(!second.held);
    assert_eq!(second.reads[0][0].key, key("a"));
    assert_eq!(second.reads[0][0].mod_revision, first.revision);
    assert_eq!(second.reads[0][0].record, holder(&session).into());
    let both = Plan::new().unchanged(key("a"), first.revision).delete(key("a")).read(Range::Locks);
    let both = store.commit(both).await.unwrap();
    assert_eq!((both.held, both.reads), (true, vec![vec![]]));
    assert_eq!(store.count(Range::Locks).await.unwrap(), (0, both.revision));
}

#[tokio::test]
async fn plans_that_wait_go_together_and_each_gets_its_own_answer() {
    let etcd = Etcd::start().await.unwrap();
    let (store, counting) = counted(etcd.endpoint(0)).await;
    let session = store.session().id;
    counting.take(Purpose::Commit);
    // A hundred keys, each wanted three times.
    let names: Vec<String> = (0..300).map(|number| format!("k{}", number % 100)).collect();
    let answers = join_all(names.iter().map(|name| store.commit(acquire(&session, name)))).await;
    let held: Vec<bool> = answers.into_iter().map(|answer| answer.unwrap().held).collect();
    assert!(held[..100].iter().all(|held| *held), "first come, first served");
    assert!(held[100..].iter().all(|held| !*held), "one each");
    // The second hundred went once as if they held, and then each for itself; the third did so at once.
    let sent = counting.take(Purpose::Commit);
    assert_eq!(sent.iter().map(|counts| counts.plans).sum::<usize>(), 400);
    assert!(sent.len() <= 8, "{} requests", sent.len());
    let (keys, _) = store.list_keys(Range::Locks).await.unwrap();
    assert_eq!(keys.len(), 100);
}

#[tokio::test]
async fn a_commit_is_one_request_with_nothing_but_the_plan_its_guard_and_the_marker() {
    let etcd = Etcd::start().await.unwrap();
    let (store, counting) = counted(etcd.endpoint(0)).await;
    let session = store.session().id;
    counting.take(Purpose::Commit);
    let acquired = store.commit(acquire(&session, "a")).await.unwrap();
    let sent = counting.take(Purpose::Commit);
    assert_eq!(sent.len(), 1);
    assert_eq!(
        Counts { bytes: 0, ..sent[0] },
        Counts { plans: 1, compares: 3, puts: 2, gets: 2, ..Counts::default() }
    );
    store.commit(Plan::new().unchanged(key("a"), acquired.revision).delete(key("a"))).await.unwrap();
    let sent = counting.take(Purpose::Commit);
    assert_eq!(sent.len(), 1);
    assert_eq!(
        Counts { bytes: 0, ..sent[0] },
        Counts { plans: 1, compares: 2, puts: 1, deletes: 1, gets: 1, ..Counts::default() }
    );
}

#[tokio::test]
async fn plans_that_hold_cost_what_they_put_and_compare_and_one_marker() {
    let etcd = Etcd::start().await.unwrap();
    let (store, counting) = counted(etcd.endpoint(0)).await;
    let session = store.session().id;
    counting.take(Purpose::Commit);
    let names: Vec<String> = (0..50).map(|number| format!("k{number}")).collect();
    let answers = join_all(names.iter().map(|name| store.commit(acquire(&session, name)))).await;
    assert!(answers.into_iter().all(|answer| answer.unwrap().held));
    let sent = counting.take(Purpose::Commit);
    assert_eq!(sent.len(), 1);
    assert_eq!(
        Counts { bytes: 0, ..sent[0] },
        Counts { plans: 50, compares: 50 + 2, puts: 50 + 1, gets: 1, ..Counts::default() }
    );
}

#[tokio::test]
async fn where_a_plan_does_not_hold_time_and_again_one_batch_of_seventeen_goes_twice() {
    let etcd = Etcd::start().await.unwrap();
    let (store, counting) = counted(etcd.endpoint(0)).await;
    let session = store.session().id;
    assert!(store.commit(acquire(&session, "held")).await.unwrap().held);
    counting.take(Purpose::Commit);
    for round in 0..18 {
        let name = format!("free-{round}");
        let (held, free) =
            tokio::join!(store.commit(acquire(&session, "held")), store.commit(acquire(&session, &name)));
        assert_eq!((held.unwrap().held, free.unwrap().held), (false, true));
    }
    assert_eq!(counting.take(Purpose::Commit).len(), 18 + 2);
}

#[tokio::test]
async fn a_dead_lease_fails_nobody_else() {
    let etcd = Etcd::start().await.unwrap();
    let (store, counting) = counted(etcd.endpoint(0)).await;
    let session = store.session().id;
    let leased = |name: &str| {
        Plan::new().put(key(name), holder(&session), Lease::Ttl(session.clone(), 30_000)).otherwise(key(name))
    };
    store.commit(leased("first")).await.unwrap();
    let mut client = etcd.client().await.unwrap();
    let lease = client.get("/concordat/test/lock/lock/first/holder", None).await.unwrap().kvs()[0].lease();
    client.lease_revoke(lease).await.unwrap();
    counting.take(Purpose::Commit);
    let (dead, neighbours) = tokio::join!(
        store.commit(leased("dead")),
        join_all((0..20).map(|n| store.commit(change(&n.to_string(), 0))))
    );
    assert!(matches!(dead, Err(CommitError::NotApplied(_))), "{dead:?}");
    assert!(neighbours.into_iter().all(|answer| answer.unwrap().held));
    // Together, and then each for itself.
    let sent = counting.take(Purpose::Commit);
    assert_eq!(sent.iter().map(|counts| counts.plans).collect::<Vec<_>>(), [21, 21]);
    assert_eq!(revision_of(&store, "dead").await, 0);
}

#[tokio::test]
async fn leases_are_kept_apart_by_their_time_to_live() {
    let etcd = Etcd::start().await.unwrap();
    let store = connect(etcd.endpoint(0)).await;
    let session = store.session().id;
    assert_eq!(store.believed_until(5_000), None);
    let put = |name: &str, lease| Plan::new().put(key(name), holder(&session), lease);
    store.commit(put("ttl", Lease::Ttl(session.clone(), 5_000))).await.unwrap();
    assert!(store.believed_until(5_000).unwrap() <= store.session().believed_until());
    assert!(store.believed_until(5_000).unwrap() > store.clock().now().monotonic);
    store.commit(put("kept", Lease::Retention(session.clone(), 60_000))).await.unwrap();
    store.commit(put("mine", Lease::Session(session.clone()))).await.unwrap();
    store.close().await;
    let other = connect(etcd.endpoint(0)).await;
    let (keys, _) = other.list_keys(Range::Locks).await.unwrap();
    assert_eq!(keys.into_iter().map(|(key, ..)| key).collect::<Vec<_>>(), [key("kept")]);
}

#[tokio::test]
async fn what_etcd_would_not_take_is_refused_before_it_is_sent() {
    let etcd = Etcd::start().await.unwrap();
    let store = connect(etcd.endpoint(0)).await;
    let wide = (0..128).fold(Plan::new(), |plan, number| plan.absent(key(&number.to_string())));
    assert!(matches!(store.commit(wide).await, Err(CommitError::TooLarge { .. })));
    let most = (0..127).fold(Plan::new(), |plan, number| plan.absent(key(&number.to_string())));
    assert!(store.commit(most).await.unwrap().held);
    let foreign = acquire(&"somebody-else".into(), "a");
    assert_eq!(store.commit(foreign).await, Err(CommitError::SessionEnded));
    let twice = change("a", 0).put(key("a"), holder(&store.session().id), Lease::Forever);
    let neighbours = [0, 1].map(|number| store.commit(change(&format!("n{number}"), 0)));
    let (twice, neighbours) = tokio::join!(store.commit(twice), join_all(neighbours));
    assert!(matches!(twice, Err(CommitError::NotApplied(_))), "{twice:?}");
    assert!(neighbours.into_iter().all(|answer| answer.unwrap().held));
}

#[tokio::test]
async fn what_was_put_for_a_caller_that_left_is_deleted() {
    let etcd = Etcd::start().await.unwrap();
    let store = connect(etcd.endpoint(0)).await;
    let session = store.session().id;
    let mut watch = store.watch(Range::Locks);
    watch.next().await;
    // It is submitted at the first poll, and nobody polls it again.
    let mut left = Box::pin(store.commit(acquire(&session, "left")));
    assert!(futures::poll!(left.as_mut()).is_pending());
    drop(left);
    let put = watch.next().await;
    assert!(!put.is_empty());
    eventually("the key is gone", async || {
        anyhow::ensure!(revision_of(&store, "left").await == 0);
        Ok(())
    })
    .await
    .unwrap();
    assert!(matches!(key("left"), Key::Holder { .. }));
}
