//! A sidecar that ends says so first: what begins from then on goes to others, while it finishes what it has.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use concordat_protocol::{Key, Range, Record};
use concordat_tests::{etcd::Etcd, process::eventually};
use serde_json::json;
use tokio::sync::Notify;

use super::{
    app::Behaviour::Await,
    world::{NAME, World},
};

#[tokio::test]
async fn no_new_work_is_aimed_at_a_sidecar_that_ends() -> Result<()> {
    let etcd = Etcd::start().await?;
    let world = World::new(&etcd, "withdraw").await?;
    let (c, mut leaving, _q) =
        (world.start("c", "").await?, world.start("p", "").await?, world.start("q", "").await?);
    // It has something to finish: a call that is not answered yet.
    let go = Arc::new(Notify::new());
    world.p.behave("debit", "prepare", [Await(go.clone()), Await(go.clone())]);
    world.post(&c, NAME, Some("t0"), &json!({})).await?;
    eventually("the app is asked", async || {
        ensure!(!world.p.calls().is_empty(), "it is not");
        Ok(())
    })
    .await?;
    let _staying = world.start("p", "").await?;
    leaving.process.ask_to_end()?;
    let session = eventually("it says that it takes no new work", async || {
        let answer = world.admin.read(&world.namespace, vec![Range::Sessions]).await?;
        let told = answer.reads.iter().flatten().find_map(|entry| match (&entry.key, &entry.record) {
            (Key::Session(id), Record::Session(session))
                if session.pod == leaving.name && !session.accepts =>
            {
                Some(id.clone())
            }
            _ => None,
        });
        told.context("it does not")
    })
    .await?;

    // One that starts now has seen it.
    let other = world.start("c", "").await?;
    let ids = ["t1", "t2", "t3", "t4", "t5", "t6", "t7", "t8"];
    for id in ids {
        let answer = world.begin(&other, id).await?;
        ensure!(answer.status == 200, "{id}: {answer:?}");
    }
    go.notify_waiters();
    ensure!(leaving.process.wait().await?.success(), "{}", leaving.process.log());
    for id in ["t0"].into_iter().chain(ids) {
        assert_eq!(world.finished(&c, id).await?["outcome"], "committed", "{id}");
    }
    for change in world.changes().await? {
        if let (Key::Work { session: Some(aimed), transaction, .. }, Some(_)) = (&change.key, &change.entry) {
            ensure!(*aimed != session || transaction.as_str() == "t0", "{change:?}");
        }
    }
    Ok(())
}
