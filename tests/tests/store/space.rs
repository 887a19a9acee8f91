//! When etcd has no space, what gives space back still goes.

use concordat_protocol::{Lease, Plan, lock::Holder};
use concordat_store::{CommitError, Store};
use concordat_tests::{
    etcd::{Etcd, Settings},
    process::eventually,
};

use futures::future::join_all;

use crate::{change, config, connect, holder, key, revision_of};

#[tokio::test]
async fn what_takes_the_last_space_is_told_to_be_applied_and_what_finds_none_is_not() {
    let etcd = Etcd::with(Settings::default().quota(16 << 20)).await.unwrap();
    let store = Store::connect(config([etcd.endpoint(0)])).await.unwrap();
    let large = Holder { owner: "x".repeat(600_000), ..holder(&store.session().id) };
    // Several requests at a time: etcd lets them in while there is space, and one after the other they take it.
    for round in 0.. {
        let names: Vec<String> = (0..16).map(|number| format!("{round}-{number}")).collect();
        let put = |name: &String| store.commit(Plan::new().put(key(name), large.clone(), Lease::Forever));
        let answers = join_all(names.iter().map(put)).await;
        for (name, answer) in names.iter().zip(&answers) {
            let revision = revision_of(&store, name).await;
            match answer {
                Ok(answer) => assert_eq!(answer.revision, revision, "{name}"),
                Err(CommitError::NotApplied(_)) => assert_eq!(revision, 0, "{name} is there"),
                Err(error) => panic!("{name}: {error}"),
            }
        }
        if answers.iter().any(Result::is_err) {
            break;
        }
    }
}

#[tokio::test]
async fn without_space_deletes_go_and_puts_are_refused_until_there_is_some() {
    let etcd = Etcd::with(Settings::default().quota(16 << 20)).await.unwrap();
    let store = Store::connect(config([etcd.endpoint(0)])).await.unwrap();
    let session = store.session().id;
    assert!(store.space().await.unwrap().intake_open());
    let large = Holder { owner: "x".repeat(500_000), ..holder(&session) };
    let mut stored = Vec::new();
    let refused = loop {
        let name = format!("fill{}", stored.len());
        match store.commit(Plan::new().put(key(&name), large.clone(), Lease::Forever)).await {
            Ok(_) => stored.push(name),
            Err(error) => break error,
        }
    };
    assert!(matches!(&refused, CommitError::NotApplied(why) if why.contains("no space")), "{refused}");
    eventually("etcd is known to be full", async || {
        let space = store.space().await?;
        anyhow::ensure!(!space.intake_open() && space.exhausted, "{space:?}");
        Ok(())
    })
    .await
    .unwrap();
    assert!(!store.intake_open());
    // Puts and deletes that wait together: each meets its own fate.
    let delete = |name: &String| {
        let plan = Plan::new().present(key(name)).delete(key(name));
        store.commit(plan)
    };
    let (first, put, second) =
        tokio::join!(delete(&stored[0]), store.commit(change("a", 0)), delete(&stored[1]));
    assert!(first.unwrap().held);
    assert!(matches!(put, Err(CommitError::NotApplied(_))), "{put:?}");
    assert!(second.unwrap().held);
    assert!(!delete(&stored[0]).await.unwrap().held, "it is gone");
    assert_eq!(revision_of(&store, "a").await, 0);
    for name in &stored[2..] {
        assert!(delete(name).await.unwrap().held);
    }
    assert!(store.session().is_believed(store.clock().now()), "keepalives need no space");
    etcd.compact().await.unwrap();
    etcd.defragment().await.unwrap();
    etcd.disarm().await.unwrap();
    eventually("puts go again", async || {
        let revision = revision_of(&store, "a").await;
        anyhow::ensure!(store.commit(change("a", revision)).await?.held);
        Ok(())
    })
    .await
    .unwrap();
    eventually("there is room for new work", async || {
        anyhow::ensure!(store.space().await?.intake_open());
        Ok(())
    })
    .await
    .unwrap();
    drop(connect(etcd.endpoint(0)).await);
}
