//! A session's life: believed no longer than it lives, and never twice.

use concordat_protocol::{Lease, Plan, Range, Write};
use concordat_store::{CommitError, Config, SessionState, Store};
use concordat_tests::{etcd::Etcd, process::eventually};

use crate::{acquire, config, connect, key};

#[tokio::test]
async fn a_session_is_given_up_before_etcd_gives_it_up_and_another_one_opens() {
    let etcd = Etcd::start().await.unwrap();
    let store = Store::connect(Config { session_ttl: 3_000, ..config([etcd.endpoint(0)]) }).await.unwrap();
    let first = store.session();
    store.commit(acquire(&first.id, "a")).await.unwrap();
    let mut states = store.sessions();
    assert_eq!(*states.borrow_and_update(), SessionState::Live(first.id.clone()));
    etcd.pause(0).unwrap();
    states.changed().await.unwrap();
    assert_eq!(*states.borrow_and_update(), SessionState::Lost(first.id.clone()));
    assert!(!first.is_believed(store.clock().now()));
    assert_eq!(store.commit(acquire(&first.id, "b")).await, Err(CommitError::SessionEnded));
    etcd.resume(0).unwrap();
    states.changed().await.unwrap();
    let second = store.session();
    assert_eq!(*states.borrow_and_update(), SessionState::Live(second.id.clone()));
    assert_ne!(first.id, second.id);
    assert!(second.is_believed(store.clock().now()));
    assert!(!first.is_believed(store.clock().now()));
    assert_eq!(store.commit(acquire(&first.id, "c")).await, Err(CommitError::SessionEnded));
    // What hung on the first session goes; the second one may have it then.
    let mut watch = store.watch(Range::One(key("a")));
    while !store.commit(acquire(&second.id, "a")).await.unwrap().held {
        watch.next().await;
    }
}

#[tokio::test]
async fn a_session_that_etcd_ended_is_lost_at_once() {
    let etcd = Etcd::start().await.unwrap();
    let store = Store::connect(Config { session_ttl: 6_000, ..config([etcd.endpoint(0)]) }).await.unwrap();
    let first = store.session().id;
    let mut states = store.sessions();
    states.borrow_and_update();
    let mut client = etcd.client().await.unwrap();
    let session = format!("/concordat/test/session/{first}");
    let lease = client.get(session, None).await.unwrap().kvs()[0].lease();
    client.lease_revoke(lease).await.unwrap();
    // Before the store learns of it, etcd already refuses what goes under it.
    assert_eq!(store.commit(acquire(&first, "a")).await, Err(CommitError::SessionEnded));
    states.wait_for(|state| *state == SessionState::Lost(first.clone())).await.unwrap();
    states.wait_for(|state| matches!(state, SessionState::Live(_))).await.unwrap();
    let second = store.session().id;
    assert!(store.commit(acquire(&second, "a")).await.unwrap().held);
}

/// What was put under it is gone, and must not be believed for the sake of what others put since.
#[tokio::test]
async fn a_lease_that_was_lost_is_never_believed_again() {
    let etcd = Etcd::start().await.unwrap();
    let store = connect(etcd.endpoint(0)).await;
    let session = store.session().id;
    let put = |name: &str, ttl| {
        let holder = acquire(&session, name).writes.into_iter().find_map(|write| match write {
            Write::Put(_, record, _) => Some(record),
            Write::Delete(_) => None,
        });
        Plan::new().put(key(name), holder.unwrap(), Lease::Ttl(session.clone(), ttl))
    };
    assert!(store.commit(put("a", 3_000)).await.unwrap().held);
    assert_eq!(store.live_ttl(3_000), 3_000);
    let mut client = etcd.client().await.unwrap();
    let lease = client.get("/concordat/test/lock/lock/a/holder", None).await.unwrap().kvs()[0].lease();
    client.lease_revoke(lease).await.unwrap();
    eventually("the loss is known", async || {
        anyhow::ensure!(store.believed_until(3_000) == Some(0));
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(store.commit(put("b", 3_000)).await, Err(CommitError::SessionEnded));
    assert_eq!(store.live_ttl(3_000), 3_001);
    assert!(store.commit(put("b", 3_001)).await.unwrap().held);
    assert_eq!(store.believed_until(3_000), Some(0));
    assert!(store.believed_until(3_001).unwrap() > store.clock().now().monotonic);
    assert_eq!(store.session().id, session, "the session goes on");
}

#[tokio::test]
async fn closing_leaves_nothing_behind() {
    let etcd = Etcd::start().await.unwrap();
    let store = connect(etcd.endpoint(0)).await;
    let session = store.session().id;
    store.commit(acquire(&session, "a")).await.unwrap();
    let kept = store.clone();
    store.close().await;
    assert_eq!(kept.commit(acquire(&session, "b")).await, Err(CommitError::SessionEnded));
    let mut client = etcd.client().await.unwrap();
    let all = etcd_client::GetOptions::new().with_all_keys().with_count_only();
    assert_eq!(client.get("", Some(all)).await.unwrap().count(), 0);
}
