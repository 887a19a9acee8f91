//! etcd comes back as it was before transactions were decided of which clients, and participants, know how.

use anyhow::{Result, ensure};
use concordat_protocol::transaction::Operation;
use concordat_tests::{etcd::Etcd, process::eventually};
use serde_json::json;

use super::world::{NAME, World, text};

#[tokio::test]
async fn what_a_restored_etcd_has_undecided_is_stuck_and_goes_on_as_people_wish() -> Result<()> {
    let mut etcd = Etcd::start().await?;
    let world = World::new(&etcd, "restored").await?;
    let (c, _p) = (world.start("c", "").await?, world.start("p", "").await?);
    let ids = ["t1", "t2"];
    for id in ids {
        let begun = world.post(&c, NAME, Some(id), &json!({})).await?;
        ensure!(begun.status == 202, "{begun:?}");
    }
    eventually("they wait for the other participant alone", async || {
        let voted = ids.iter().all(|id| world.p.ledger(id, "debit") == [Operation::Prepare]);
        ensure!(voted);
        Ok(())
    })
    .await?;
    let backup = etcd.back_up().await?;
    let _q = world.start("q", "").await?;
    for id in ids {
        assert_eq!(world.finished(&c, id).await?["outcome"], "committed");
    }
    let calls = |id: &str| {
        let all = world.p.calls().into_iter().chain(world.q.calls());
        all.filter(|call| call.transaction == id).count()
    };
    let asked = ids.map(calls);
    etcd.put_back(&backup).await?;

    eventually("it refuses", async || {
        let answer = world.get(&c, "/t1").await?;
        ensure!(answer.status == 503 && answer.body["code"] == "etcd-restored", "{answer:?}");
        Ok(())
    })
    .await?;
    let raised = world.admin.raise(&world.namespace, 0, false).await?;
    assert_eq!(raised.stopped, ids.map(Into::into));
    eventually("they are seen to be stuck, and nobody is asked", async || {
        for id in ids {
            let answer = world.get(&c, &format!("/{id}")).await?;
            ensure!(answer.body["state"] == "stuck" && answer.body["outcome"] == "undecided", "{answer:?}");
            let why = text(&answer.body["branches"][0], "lastError")?;
            ensure!(why.contains("etcd was restored"), "{answer:?}");
        }
        Ok(())
    })
    .await?;
    let listed = world.get(&c, "?state=stuck").await?;
    assert_eq!(listed.body["transactions"].as_array().map(Vec::len), Some(2), "{listed:?}");
    assert_eq!(ids.map(calls), asked);

    let retried = world.post(&c, &format!("{NAME}/t1/retry"), None, &json!({})).await?;
    ensure!(retried.status == 202, "{retried:?}");
    let finished = world.finished(&c, "t1").await?;
    assert_eq!(finished["outcome"], "committed");
    let note = &finished["branches"][0]["notes"][0];
    ensure!(
        note.as_str().is_some_and(|note| note.starts_with("tried again after: etcd was restored")),
        "{note}"
    );
    // Asked anew, a participant that keeps what it has done does nothing twice.
    ensure!(calls("t1") == 2 * asked[0], "{:?}", world.p.calls());
    assert_eq!(world.p.ledger("t1", "debit"), [Operation::Prepare, Operation::Commit]);

    let rolled_back = world.post(&c, &format!("{NAME}/t2/rollback"), None, &json!({})).await?;
    ensure!(rolled_back.status == 200 && rolled_back.body["outcome"] == "aborted", "{rolled_back:?}");
    assert_eq!(world.finished(&c, "t2").await?["outcome"], "aborted");
    Ok(())
}
