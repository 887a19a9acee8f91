//! Answers that get lost: what the store says afterwards is what happened.

use std::sync::Arc;

use concordat_protocol::Plan;
use concordat_store::{CommitError, Config, Store, observer::Purpose};
use concordat_tests::{etcd::Etcd, process::eventually, proxy::Proxy};
use futures::future::join_all;

use crate::{Counting, change, config, connect, key, revision_of};

/// Long enough that every reply to the plans below, and some to what finds out about them, is among them.
const REPLIES: u64 = 24;

#[tokio::test]
async fn whichever_reply_is_dropped_every_answer_is_true() {
    let etcd = Etcd::start().await.unwrap();
    let outside = connect(etcd.endpoint(0)).await;
    let mut withdrawn_or_found = 0;
    for nth in 1..=REPLIES {
        let proxy = Proxy::start(etcd.address(0)).await.unwrap();
        let counting = Arc::new(Counting::default());
        let settings = Config { observer: counting.clone(), ..config([proxy.endpoint()]) };
        let store = Store::connect(settings).await.unwrap();
        proxy.drop_reply(nth);
        for round in 0..8 {
            let names: Vec<String> = (0..3).map(|number| format!("{nth}.{round}.{number}")).collect();
            // Three that change a key, the last of them in vain; then the same keys deleted.
            let wrong = [0, 0, 99];
            let plans = names.iter().zip(wrong).map(|(name, revision)| store.commit(change(name, revision)));
            for (name, answer) in names.iter().zip(join_all(plans).await) {
                let revision = revision_of(&outside, name).await;
                match answer {
                    Ok(answer) if answer.held => assert_eq!(revision, answer.revision, "{name}"),
                    Ok(_) | Err(CommitError::NotApplied(_)) => assert_eq!(revision, 0, "{name}"),
                    Err(error) => panic!("{name}: {error}"),
                }
            }
            let plans =
                names.iter().map(|name| store.commit(Plan::new().present(key(name)).delete(key(name))));
            for (name, answer) in names.iter().zip(join_all(plans).await) {
                answer.unwrap_or_else(|error| panic!("{name} was not deleted: {error}"));
                assert_eq!(revision_of(&outside, name).await, 0, "{name}");
            }
        }
        withdrawn_or_found += counting.take(Purpose::Resolve).len();
        store.close().await;
    }
    assert!(withdrawn_or_found > 0, "no reply to a commit was among those dropped");
}

#[tokio::test]
async fn a_commit_that_lands_after_it_was_given_up_is_found_or_never_lands() {
    let etcd = Etcd::start().await.unwrap();
    let outside = connect(etcd.endpoint(0)).await;
    let proxy = Proxy::start(etcd.address(0)).await.unwrap();
    let counting = Arc::new(Counting::default());
    let settings = Config { session_ttl: 60_000, observer: counting.clone(), ..config([proxy.endpoint()]) };
    let store = Store::connect(settings).await.unwrap();
    for round in 0..5 {
        let name = format!("late{round}");
        counting.take(Purpose::Commit);
        proxy.hold();
        let release = async {
            eventually("the commit is given up", async || {
                anyhow::ensure!(!counting.take(Purpose::Commit).is_empty(), "it is waited for");
                Ok(())
            })
            .await
            .unwrap();
            proxy.heal();
        };
        let (answer, ()) = tokio::join!(store.commit(change(&name, 0)), release);
        let revision = revision_of(&outside, &name).await;
        match answer {
            Ok(answer) => assert_eq!((answer.held, answer.revision), (true, revision)),
            Err(CommitError::NotApplied(_)) => assert_eq!(revision, 0),
            Err(error) => panic!("{error}"),
        }
        // Whatever was still on its way has come by the time that another commit on the same connection has.
        while store.commit(change(&format!("after{round}"), 0)).await.is_err() {}
        assert_eq!(revision_of(&outside, &name).await, revision);
    }
}

#[tokio::test]
async fn an_answer_that_cannot_be_found_is_called_unknown() {
    let etcd = Etcd::start().await.unwrap();
    let proxy = Proxy::start(etcd.address(0)).await.unwrap();
    let settings = Config { session_ttl: 60_000, resolve_timeout: 6_000, ..config([proxy.endpoint()]) };
    let store = Store::connect(settings).await.unwrap();
    proxy.swallow();
    let sent = store.commit(change("a", 0)).await;
    assert!(matches!(sent, Err(CommitError::Unknown(_))), "{sent:?}");
    // It may still land, so what depends on it waits, and is certainly not applied.
    let waited = store.commit(change("a", 0)).await;
    assert!(matches!(waited, Err(CommitError::NotApplied(_))), "{waited:?}");
    proxy.heal();
    let outside = connect(etcd.endpoint(0)).await;
    let now = revision_of(&outside, "a").await;
    while store.commit(change("b", 0)).await.is_err() {}
    assert_eq!(revision_of(&outside, "a").await, now);
}
