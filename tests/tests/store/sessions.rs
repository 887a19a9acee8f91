//! A session's life: believed no longer than it lives, and never twice.

use concordat_protocol::{Lease, Plan, Range};
use concordat_store::{CommitError, Config, SessionState, Store};
use concordat_tests::{etcd::Etcd, process::eventually};

use crate::{acquire, config, connect, holder, key, revision_of};

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
    let put =
        |name: &str, ttl| Plan::new().put(key(name), holder(&session), Lease::Ttl(session.clone(), ttl));
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

/// What is put last under a shared lease stays its full time, and what was put first not much longer.
#[tokio::test]
async fn a_retention_s_lease_is_replaced_while_most_of_its_time_is_left() {
    let etcd = Etcd::start().await.unwrap();
    let store = connect(etcd.endpoint(0)).await;
    let session = store.session().id;
    let mut client = etcd.client().await.unwrap();
    let lease_of = async |name: &str| {
        let lease = Lease::Retention(session.clone(), 20_000);
        store.commit(Plan::new().put(key(name), holder(&session), lease)).await?;
        let found =
            etcd.client().await?.get(format!("/concordat/test/lock/lock/{name}/holder"), None).await?;
        anyhow::Ok(found.kvs().first().map_or(0, etcd_client::KeyValue::lease))
    };
    let first = lease_of("first").await.unwrap();
    assert_eq!(lease_of("beside").await.unwrap(), first, "they share it");
    let second = eventually("another lease", async || {
        let lease = lease_of("later").await?;
        anyhow::ensure!(lease != first);
        Ok(lease)
    })
    .await
    .unwrap();
    assert_eq!(lease_of("last").await.unwrap(), second);
    for name in ["first", "beside"] {
        assert_ne!(revision_of(&store, name).await, 0, "{name} stays: its lease is left to run out");
    }
    // Nobody keeps it alive, and it does not go with its session.
    store.close().await;
    let left = client.lease_time_to_live(first, None).await.unwrap();
    assert_eq!(left.granted_ttl(), 25);
    assert!(left.ttl() > 0);
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
    let all = etcd_client::GetOptions::new().with_all_keys().with_keys_only();
    let left = client.get("", Some(all)).await.unwrap();
    let left: Vec<_> = left.kvs().iter().map(|kv| kv.key_str().unwrap()).collect();
    assert_eq!(left, ["/concordat/test/timeline"], "of whose namespace it is");
}
