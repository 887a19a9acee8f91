//! A session's life: believed no longer than it lives, and never twice.

use concordat_protocol::Range;
use concordat_store::{CommitError, Config, SessionState, Store};
use concordat_tests::etcd::Etcd;

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
