//! Three members, of which one fails: every answer stays true, and the store goes on by itself.

use concordat_store::{CommitError, Store};
use concordat_tests::etcd::Etcd;
use futures::future::join_all;

use crate::{change, config, revision_of};

/// What one worker knows of its key.
#[derive(Default)]
struct Ledger {
    held: usize,
    unknown: usize,
    revision: i64,
}

/// Changes a key again and again until it was changed `times` times after etcd is whole; after every answer the
/// ledger must agree with what etcd holds.
async fn work(store: &Store, name: &str, times: usize) -> Ledger {
    let mut ledger = Ledger::default();
    let mut done = 0;
    while done < times {
        match store.commit(change(name, ledger.revision)).await {
            Ok(answer) => {
                assert!(answer.held, "{name} was changed by nobody else");
                ledger.held += 1;
                ledger.revision = answer.revision;
                done += 1;
            }
            Err(CommitError::NotApplied(_)) => {}
            Err(CommitError::Unknown(_)) => {
                ledger.unknown += 1;
                // Nothing that conflicts with it goes before it is known: so a read after the next answer is final.
                while store.commit(change(&format!("{name}-after-{}", ledger.unknown), 0)).await.is_err() {}
                let now = read(store, name).await;
                ledger.held += usize::from(now != ledger.revision);
                ledger.revision = now;
            }
            Err(error) => panic!("{name}: {error}"),
        }
    }
    ledger
}

async fn read(store: &Store, name: &str) -> i64 {
    loop {
        let range = concordat_protocol::Range::One(crate::key(name));
        if let Ok(answer) = store.read(vec![range]).await {
            return answer.reads[0].first().map_or(0, |entry| entry.mod_revision);
        }
    }
}

async fn check(etcd: &Etcd, store: &Store, name: &str, ledger: &Ledger) {
    assert_eq!(revision_of(store, name).await, ledger.revision);
    let key = concordat_store::keys::encode("test", &crate::key(name));
    let version = etcd.client().await.unwrap().get(key, None).await.unwrap().kvs()[0].version();
    assert_eq!(version as usize, ledger.held, "{name}: {} unknown", ledger.unknown);
}

#[tokio::test]
async fn the_leader_is_killed() {
    let mut etcd = Etcd::three().await.unwrap();
    let store = Store::connect(config(etcd.endpoints())).await.unwrap();
    let session = store.session().id;
    let leader = etcd.leader().await.unwrap();
    let names: Vec<String> = (0..8).map(|number| format!("w{number}")).collect();
    let before = join_all(names.iter().map(|name| work(&store, name, 20)));
    let kill = async {
        revision_of(&store, "w0").await;
        etcd.kill(leader).unwrap();
    };
    let (ledgers, ()) = tokio::join!(before, kill);
    etcd.restart(leader).await.unwrap();
    for (name, ledger) in names.iter().zip(&ledgers) {
        check(&etcd, &store, name, ledger).await;
    }
    assert_eq!(store.session().id, session, "a session outlives a change of leader");
}

#[tokio::test]
async fn the_leader_is_stopped_and_goes_on() {
    let etcd = Etcd::three().await.unwrap();
    // Its own member is the leader first, so that what it sent is still with the leader when that goes on.
    let leader = etcd.leader().await.unwrap();
    let others = etcd.endpoints().into_iter().enumerate().filter(|(member, _)| *member != leader);
    let endpoints: Vec<String> =
        std::iter::once(etcd.endpoint(leader)).chain(others.map(|(_, url)| url)).collect();
    let mut settings = config(endpoints);
    settings.session_ttl = 20_000;
    let store = Store::connect(settings).await.unwrap();
    let names: Vec<String> = (0..8).map(|number| format!("w{number}")).collect();
    let during = join_all(names.iter().map(|name| work(&store, name, 20)));
    let stop = async {
        revision_of(&store, "w0").await;
        etcd.pause(leader).unwrap();
        let moved = async {
            loop {
                let leads = etcd.leader().await.unwrap();
                if leads != leader {
                    return;
                }
            }
        };
        moved.await;
        etcd.resume(leader).unwrap();
    };
    let (ledgers, ()) = tokio::join!(during, stop);
    for (name, ledger) in names.iter().zip(&ledgers) {
        check(&etcd, &store, name, ledger).await;
    }
}

#[tokio::test]
async fn all_members_are_killed_at_once_and_come_back() {
    let mut etcd = Etcd::three().await.unwrap();
    let mut settings = config(etcd.endpoints());
    settings.session_ttl = 60_000;
    let store = Store::connect(settings).await.unwrap();
    let first = work(&store, "a", 10).await;
    for member in 0..3 {
        etcd.kill(member).unwrap();
    }
    let lost = store.commit(change("b", 0)).await;
    assert!(matches!(lost, Err(CommitError::NotApplied(_) | CommitError::Unknown(_))), "{lost:?}");
    for member in 0..3 {
        etcd.spawn(member).unwrap();
    }
    for member in 0..3 {
        etcd.healthy(member).await.unwrap();
    }
    assert_eq!(read(&store, "a").await, first.revision, "what was acknowledged is still there");
    let mut revision = first.revision;
    for _ in 0..5 {
        let answer = loop {
            if let Ok(answer) = store.commit(change("a", revision)).await {
                break answer;
            }
        };
        assert!(answer.held);
        revision = answer.revision;
    }
}
