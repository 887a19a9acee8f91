//! Two-phase commit through real sidecars on a real etcd: what clients, participants and people are told.

use std::sync::Arc;

use super::app::Behaviour::{Answer, Await};
use super::world::{NAME, World, many, settings, text};
use anyhow::{Result, ensure};
use concordat_protocol::{
    Key, Now, Plan,
    transaction::{Operation, once_id, plans},
};
use concordat_tests::{etcd::Etcd, process::eventually};
use serde_json::json;
use tokio::sync::Notify;

#[tokio::test]
async fn what_everybody_agrees_to_is_committed_everywhere() -> Result<()> {
    let etcd = Etcd::start().await?;
    let world = World::new(&etcd, "commit").await?;
    let (c, p, _q) = (world.start("c", "").await?, world.start("p", "").await?, world.start("q", "").await?);

    let answer = world.begin(&c, "t1").await?;
    ensure!(answer.status == 200 && answer.body["outcome"] == "committed", "{answer:?}");
    let finished = world.finished(&c, "t1").await?;
    assert_eq!(finished["branches"][0]["name"], "debit");
    assert_eq!(finished["branches"][0]["state"], "applied");
    world.check("t1", &[&answer.body, &finished], false).await?;
    assert_eq!(world.p.ledger("t1", "debit"), [Operation::Prepare, Operation::Commit]);
    let call = &world.p.calls()[0];
    assert_eq!((call.attempt, call.body.as_str()), (1, "{\"amount\":10}"));
    ensure!(call.epoch > 0 && world.p.calls()[1].epoch > call.epoch, "epochs rise");

    // The same again is the same transaction, wherever it is asked for, and nothing is done twice.
    let calls = world.p.calls().len();
    let again = world.begin(&p, "t1").await?;
    ensure!(again.status == 200 && again.body["outcome"] == "committed", "{again:?}");
    let other = world.post(&c, NAME, Some("t1"), &json!({ "amount": 11 })).await?;
    ensure!(other.status == 422 && other.body["code"] == "transaction-id-reused", "{other:?}");
    assert_eq!(world.p.calls().len(), calls);

    // Ids that are prefixes of each other, and any UTF-8.
    for id in ["t", "t10", "1/0", "é ü"] {
        let answer = world.begin(&c, id).await?;
        ensure!(answer.status == 200, "{id}: {answer:?}");
    }
    let listed = world.get(&c, "?limit=3").await?;
    assert_eq!(listed.body["transactions"].as_array().map(Vec::len), Some(3));
    let unknown = world.get(&c, "/nothing").await?;
    assert_eq!((unknown.status, text(&unknown.body, "code")?), (404, "transaction-not-found"));
    Ok(())
}

#[tokio::test]
async fn a_no_aborts_and_says_why() -> Result<()> {
    let etcd = Etcd::start().await?;
    let world = World::new(&etcd, "abort").await?;
    let (c, p, _q) = (world.start("c", "").await?, world.start("p", "").await?, world.start("q", "").await?);
    world.p.behave("debit", "prepare", [Answer(503), Answer(409)]);

    let answer = world.begin(&c, "t1").await?;
    ensure!(answer.status == 409 && answer.body["outcome"] == "aborted", "{answer:?}");
    ensure!(text(&answer.body, "reason")?.starts_with("debit: 409"), "{answer:?}");
    let finished = world.finished(&c, "t1").await?;
    world.check("t1", &[&answer.body, &finished], false).await?;
    assert_eq!(world.p.ledger("t1", "debit"), [Operation::Abort]);
    // The failed attempt was repeated, and told apart.
    let attempts: Vec<u32> =
        world.p.calls().iter().filter(|call| call.operation == "prepare").map(|call| call.attempt).collect();
    assert_eq!(attempts, [1, 2]);
    let decided = "concordat_sidecar_transaction_decisions_total";
    let took = "concordat_sidecar_transaction_decision_seconds_count 1";
    c.counts(&[
        &format!("{decided}{{decision=\"abort\"}} 1"),
        &format!("{decided}{{decision=\"commit\"}} 0"),
        took,
    ])
    .await?;
    let called = |operation: &str, answer: &str, count: u32| {
        format!("concordat_sidecar_callbacks_total{{operation=\"{operation}\",answer=\"{answer}\"}} {count}")
    };
    let calls = [
        called("prepare", "again", 1),
        called("prepare", "no", 1),
        called("prepare", "yes", 0),
        called("abort", "yes", 1),
    ];
    let took = "concordat_sidecar_callback_seconds_count{operation=\"prepare\"} 2";
    p.counts(&calls.iter().map(String::as_str).chain([took]).collect::<Vec<_>>()).await?;
    Ok(())
}

#[tokio::test]
async fn a_rollback_wins_before_the_decision_and_not_after() -> Result<()> {
    let etcd = Etcd::start().await?;
    let world = World::new(&etcd, "rollback").await?;
    let (c, p, _q) = (world.start("c", "").await?, world.start("p", "").await?, world.start("q", "").await?);
    let go = Arc::new(Notify::new());
    world.p.behave("debit", "prepare", [Await(go.clone())]);

    let begun = world.post(&c, NAME, Some("t1"), &json!({})).await?;
    ensure!(begun.status == 202 && begun.body["outcome"] == "undecided", "{begun:?}");
    // Asked of another sidecar than its coordinator's.
    let answer = world.post(&p, &format!("{NAME}/t1/rollback"), None, &json!({})).await?;
    ensure!(answer.status == 200 && answer.body["outcome"] == "aborted", "{answer:?}");
    go.notify_one();
    let finished = world.finished(&c, "t1").await?;
    world.check("t1", &[&answer.body, &finished], true).await?;
    // The abort waited for the prepare that was under way.
    let operations: Vec<String> = world.p.calls().into_iter().map(|call| call.operation).collect();
    assert_eq!(operations, ["prepare", "abort"]);

    let committed = world.begin(&c, "t2").await?;
    let late = world.post(&p, &format!("{NAME}/t2/rollback"), None, &json!({})).await?;
    ensure!(late.status == 409 && late.body["code"] == "transaction-committed", "{committed:?} {late:?}");
    Ok(())
}

#[tokio::test]
async fn the_deadline_aborts_what_nobody_answers() -> Result<()> {
    let etcd = Etcd::start().await?;
    let world = World::new(&etcd, "deadline").await?;
    world.define(&concordat_protocol::transaction::Settings { timeout: 1_000, ..settings() }).await?;
    let (c, _q) = (world.start("c", "").await?, world.start("q", "").await?);

    let answer = world.begin(&c, "t1").await?;
    ensure!(answer.status == 409, "{answer:?}");
    // Nobody of `p` has come yet; the first one finds its work.
    let _p = world.start("p", "").await?;
    let finished = world.finished(&c, "t1").await?;
    world.check("t1", &[&answer.body, &finished], true).await?;
    assert_eq!(world.p.ledger("t1", "debit"), [Operation::Abort]);
    Ok(())
}

#[tokio::test]
async fn what_is_stuck_is_tried_again_or_given_up_by_people() -> Result<()> {
    let etcd = Etcd::start().await?;
    let world = World::new(&etcd, "stuck").await?;
    let (c, p, _q) = (world.start("c", "").await?, world.start("p", "").await?, world.start("q", "").await?);
    world.p.behave("debit", "commit", [Answer(400), Answer(400)]);

    let answer = world.begin(&c, "t1").await?;
    ensure!(answer.status == 200, "{answer:?}");
    let stuck = world.reaches(&c, "t1", "stuck").await?;
    assert_eq!(stuck["outcome"], "committed");
    assert_eq!(stuck["branches"][0]["state"], "stuck");
    let listed = world.get(&p, "?state=stuck").await?;
    assert_eq!(listed.body["transactions"][0]["id"], "t1");

    let retried = world.post(&p, &format!("{NAME}/t1/retry"), None, &json!({})).await?;
    ensure!(retried.status == 202, "{retried:?}");
    eventually("it is stuck again", async || {
        let stuck = world.reaches(&c, "t1", "stuck").await?;
        ensure!(stuck["branches"][0]["notes"].as_array().is_some_and(|notes| notes.len() == 1), "{stuck}");
        Ok(())
    })
    .await?;
    let retried = world.post(&c, &format!("{NAME}/t1/retry"), None, &json!({})).await?;
    ensure!(retried.status == 202, "{retried:?}");
    let finished = world.finished(&c, "t1").await?;
    world.check("t1", &[&answer.body, &finished], false).await?;
    let never = world.post(&c, &format!("{NAME}/t1/retry"), None, &json!({})).await?;
    assert_eq!((never.status, text(&never.body, "code")?), (409, "transaction-not-stuck"));

    world.p.behave("debit", "commit", [Answer(400)]);
    world.begin(&c, "t2").await?;
    world.reaches(&c, "t2", "stuck").await?;
    let path = format!("{NAME}/t2/branches/debit/skip");
    let skipped = world.post(&p, &path, None, &json!({ "reason": "paid by hand" })).await?;
    ensure!(skipped.status == 202, "{skipped:?}");
    let finished = world.finished(&c, "t2").await?;
    assert_eq!(finished["branches"][0]["state"], "skipped");
    ensure!(finished["branches"][0]["notes"][0] == "skipped: paid by hand", "{finished}");
    Ok(())
}

/// Each is called once more, though all of them fail again.
#[tokio::test]
async fn all_that_is_stuck_is_tried_again_at_once() -> Result<()> {
    const BRANCHES: usize = 8;
    let etcd = Etcd::start().await?;
    let world = World::new(&etcd, "stuck-together").await?;
    world.define(&many(BRANCHES)).await?;
    let (c, _p) = (world.start("c", "").await?, world.start("p", "").await?);
    for number in 0..BRANCHES {
        world.p.behave(&format!("b{number}"), "commit", [Answer(400), Answer(400)]);
    }
    let answer = world.begin(&c, "t1").await?;
    ensure!(answer.status == 200, "{answer:?}");
    let all_are_stuck = async |notes: usize| {
        eventually("all are stuck", async || {
            // Whoever waits for the decision is told how it is now, too.
            let now = world.get(&c, "/t1?wait=1s").await?.body;
            let branches = now["branches"].as_array().into_iter().flatten();
            let stuck = branches.filter(|branch| {
                branch["state"] == "stuck" && branch["notes"].as_array().map_or(0, Vec::len) == notes
            });
            ensure!(now["state"] == "stuck" && stuck.count() == BRANCHES, "{now}");
            Ok(())
        })
        .await
    };
    all_are_stuck(0).await?;
    let retried = world.post(&c, &format!("{NAME}/t1/retry"), None, &json!({})).await?;
    ensure!(retried.status == 202, "{retried:?}");
    all_are_stuck(1).await?;
    let commits = world.p.calls().iter().filter(|call| call.operation == "commit").count();
    assert_eq!(commits, 2 * BRANCHES);
    let retried = world.post(&c, &format!("{NAME}/t1/retry"), None, &json!({})).await?;
    ensure!(retried.status == 202, "{retried:?}");
    let finished = world.finished(&c, "t1").await?;
    world.check("t1", &[&answer.body, &finished], false).await
}

#[tokio::test]
async fn a_participant_that_hangs_holds_up_no_other() -> Result<()> {
    let etcd = Etcd::start().await?;
    let world = World::new(&etcd, "hang").await?;
    let (c, _p, _q) = (world.start("c", "").await?, world.start("p", "").await?, world.start("q", "").await?);
    let go = Arc::new(Notify::new());
    world.p.behave("debit", "commit", [Await(go.clone())]);

    let first = world.begin(&c, "t1").await?;
    ensure!(first.status == 200, "the client is answered at the decision: {first:?}");
    let second = world.begin(&c, "t2").await?;
    ensure!(second.status == 200, "{second:?}");
    world.finished(&c, "t2").await?;
    ensure!(world.get(&c, "/t1").await?.body["state"] == "applying", "it hangs");
    go.notify_one();
    world.finished(&c, "t1").await?;
    world.check("t1", &[&first.body], false).await
}

#[tokio::test]
async fn a_definition_guards_what_begins_and_not_what_is_under_way() -> Result<()> {
    let etcd = Etcd::start().await?;
    let world = World::new(&etcd, "definition").await?;
    let (c, _p, _q) = (world.start("c", "").await?, world.start("p", "").await?, world.start("q", "").await?);
    let go = Arc::new(Notify::new());
    world.p.behave("debit", "prepare", [Await(go.clone())]);
    let begun = world.post(&c, NAME, Some("t1"), &json!({})).await?;
    ensure!(begun.status == 202, "{begun:?}");

    // Changed while in use: what is under way keeps what it began with.
    let mut changed = settings();
    changed.participants.truncate(1);
    world.define(&changed).await?;
    // Deleted while in use.
    world.admin.write(&world.namespace, Plan::new().delete(World::definition())).await?;
    eventually("the definition is gone", async || {
        let answer = world.post(&c, NAME, Some("t2"), &json!({})).await?;
        ensure!(answer.status == 404, "{answer:?}");
        Ok(())
    })
    .await?;
    go.notify_one();
    let finished = world.finished(&c, "t1").await?;
    assert_eq!(finished["branches"].as_array().map(Vec::len), Some(2));
    world.check("t1", &[&finished], false).await
}

#[tokio::test]
async fn one_that_is_handed_over_is_adopted() -> Result<()> {
    let etcd = Etcd::start().await?;
    let world = World::new(&etcd, "once").await?;
    let (c, _p, _q) = (world.start("c", "").await?, world.start("p", "").await?, world.start("q", "").await?);
    let once = concordat_protocol::transaction::Settings { once: true, ..settings() };
    let created = world.define(&once).await?;
    let id = once_id("u1");
    let record = plans::new(NAME.into(), &once, created, "{}".into(), Now { monotonic: 0, unix: 1 });
    let handed = world.admin.write(&world.namespace, plans::hand_over(&id, record.clone())).await?;
    ensure!(handed.held, "it was not put");
    let finished = world.finished(&c, id.as_str()).await?;
    assert_eq!(finished["outcome"], "committed");
    world.check(id.as_str(), &[&finished], false).await?;
    // Handed over twice is handed over once.
    let again = world.admin.write(&world.namespace, plans::hand_over(&id, record)).await?;
    ensure!(!again.held, "it began again");
    // Nor does anybody begin another.
    let answer = world.post(&c, NAME, Some("t1"), &json!({})).await?;
    assert_eq!((answer.status, text(&answer.body, "code")?), (422, "runs-once"));
    let (begun, done) = (Key::Transaction("t1".into()), Key::Done("t1".into()));
    let left = world.admin.read(&world.namespace, vec![begun.into(), done.into()]).await?;
    ensure!(left.reads.iter().all(Vec::is_empty), "something was written");
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_decided_in_one_commit_is_not_begun() -> Result<()> {
    let etcd = Etcd::start().await?;
    let world = World::new(&etcd, "large").await?;
    world.define(&many(70)).await?;
    let c = world.start("c", "").await?;
    let answer = world.post(&c, NAME, Some("t1"), &json!({})).await?;
    assert_eq!((answer.status, text(&answer.body, "code")?), (413, "transaction-too-large"));
    let body = json!("x".repeat(256 * 1024));
    let answer = world.post(&c, NAME, Some("t2"), &body).await?;
    assert_eq!((answer.status, text(&answer.body, "code")?), (413, "payload-too-large"));
    let left = world.admin.read(&world.namespace, vec![Key::Transaction("t1".into()).into()]).await?;
    ensure!(left.reads[0].is_empty(), "something was written");
    Ok(())
}

#[tokio::test]
async fn a_sidecar_that_ends_in_good_order_leaves_nothing_undone() -> Result<()> {
    let etcd = Etcd::start().await?;
    let world = World::new(&etcd, "drain").await?;
    let (mut c, other) = (world.start("c", "").await?, world.start("c", "").await?);
    let (_p, _q) = (world.start("p", "").await?, world.start("q", "").await?);
    world.p.behave("debit", "commit", [Answer(400)]);
    let answer = world.begin(&c, "t1").await?;
    world.reaches(&c, "t1", "stuck").await?;
    // It can do nothing more for what is stuck: that is another's from now on.
    let status = c.process.terminate().await?;
    ensure!(status.success(), "{status}");
    eventually("another coordinates it", async || {
        let retried = world.post(&other, &format!("{NAME}/t1/retry"), None, &json!({})).await?;
        ensure!(retried.status == 202, "{retried:?}");
        Ok(())
    })
    .await?;
    let finished = world.finished(&other, "t1").await?;
    world.check("t1", &[&answer.body, &finished], true).await
}
