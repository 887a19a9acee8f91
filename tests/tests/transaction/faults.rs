//! Every step of two-phase commit at which a sidecar can die, or freeze past the end of its session and go on: in the end
//! it is decided once, applied everywhere, and nothing is left.

use anyhow::{Result, ensure};
use concordat_protocol::transaction;
use concordat_tests::{etcd::Etcd, process::eventually};
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::json;

use super::{
    app::Behaviour,
    world::{NAME, Pod, World, many, settings},
};

const COORDINATOR: [&str; 6] = [
    "tx-before-begin",
    "tx-after-begin",
    "tx-before-decide",
    "tx-after-decide",
    "tx-before-finish",
    "tx-after-finish",
];
/// Of whoever takes over from a coordinator that is gone.
const ADOPTER: [&str; 2] = ["tx-before-adopt", "tx-after-adopt"];
/// Of a coordinator that is told of a participant that refuses what it had agreed to.
const AMENDER: [&str; 2] = ["tx-before-amend", "tx-after-amend"];
/// Of a coordinator whose decision came to nothing.
const LOOKER: [&str; 2] = ["tx-before-look", "tx-after-look"];
/// Of a coordinator that decides when more items stand where nobody lives than its decision can move.
const MOVER: [&str; 2] = ["tx-before-move", "tx-after-move"];
const PARTICIPANT: [&str; 8] = [
    "branch-before-prepare-call",
    "branch-after-prepare-call",
    "branch-before-vote",
    "branch-after-vote",
    "branch-before-apply-call",
    "branch-after-apply-call",
    "branch-before-ack",
    "branch-after-ack",
];
/// So many cases run at a time.
const AT_ONCE: usize = 2;

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    Kill,
    Freeze,
}

impl Fault {
    fn at(self, point: &str) -> String {
        let action = if self == Self::Kill { "kill" } else { "stop" };
        format!("{point}=1*return({action})")
    }

    /// Waits until it has struck, and until the session of its victim is over.
    async fn struck(self, world: &World, pod: &Pod) -> Result<()> {
        self.strikes(pod).await?;
        world.session_ended(pod).await
    }

    /// Waits until it has struck.
    async fn strikes(self, pod: &Pod) -> Result<()> {
        eventually(&format!("{} is struck", pod.name), async || {
            ensure!(pod.process.log().contains("fail point"), "not yet");
            Ok(())
        })
        .await
    }

    /// The name of a case.
    fn of(self, point: &str) -> String {
        format!("{point}-{}", if self == Self::Kill { "killed" } else { "frozen" })
    }

    fn over(self, pod: &Pod) -> Result<()> {
        if self == Self::Freeze { pod.process.resume() } else { Ok(()) }
    }
}

async fn every<F: Future<Output = Result<()>>>(
    points: &[&'static str],
    case: impl Fn(&'static str, Fault) -> F,
) -> Result<()> {
    let cases: Vec<_> = points
        .iter()
        .flat_map(|point| [Fault::Kill, Fault::Freeze].map(|fault| case(point, fault)))
        .collect();
    stream::iter(cases).buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
    Ok(())
}

#[tokio::test]
async fn a_coordinator_dies_or_freezes_at_every_step() -> Result<()> {
    let etcd = Etcd::start().await?;
    every(&COORDINATOR, |point, fault| coordinator(&etcd, point, fault)).await
}

async fn coordinator(etcd: &Etcd, point: &'static str, fault: Fault) -> Result<()> {
    let world = World::new(etcd, &fault.of(point)).await?;
    let victim = world.start("c", &fault.at(point)).await?;
    let (other, _p, _q) =
        (world.start("c", "").await?, world.start("p", "").await?, world.start("q", "").await?);
    let (answer, struck) = tokio::join!(world.begin_or_lose(&victim, "t1"), async {
        let struck = fault.struck(&world, &victim).await;
        // What it was about to write was never written, unless it froze: then it is late.
        if point != "tx-before-begin" {
            world.finished(&other, "t1").await?;
        }
        fault.over(&victim)?;
        struck
    });
    struck?;
    if point == "tx-before-begin" {
        // A frozen one goes on with a session that has ended: it must say that nothing was begun.
        ensure!(answer.is_none_or(|answer| answer.status == 503), "it was begun by nobody");
        let unknown = world.get(&other, "/t1").await?;
        ensure!(unknown.status == 404, "{unknown:?}");
        return Ok(());
    }
    let finished = world.finished(&other, "t1").await?;
    let told: Vec<_> = answer.iter().map(|answer| &answer.body).chain([&finished]).collect();
    world.check("t1", &told, true).await?;
    if fault == Fault::Freeze {
        works_again(&world, &victim, &other).await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_adopter_dies_or_freezes_before_and_after_it_adopts() -> Result<()> {
    let etcd = Etcd::start().await?;
    every(&ADOPTER, |point, fault| adopter(&etcd, point, fault)).await
}

async fn adopter(etcd: &Etcd, point: &'static str, fault: Fault) -> Result<()> {
    let world = World::new(etcd, &fault.of(point)).await?;
    let first = world.start("c", &Fault::Kill.at("tx-after-begin")).await?;
    let victim = world.start("c", &fault.at(point)).await?;
    let none = world.begin_or_lose(&first, "t1").await;
    ensure!(none.is_none(), "{none:?} of one that was killed");
    // There is nobody else who could adopt it.
    fault.struck(&world, &victim).await?;
    let (other, _p, _q) =
        (world.start("c", "").await?, world.start("p", "").await?, world.start("q", "").await?);
    let finished = world.finished(&other, "t1").await?;
    fault.over(&victim)?;
    world.check("t1", &[&finished], true).await?;
    if fault == Fault::Freeze {
        works_again(&world, &victim, &other).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_coordinator_dies_or_freezes_as_it_records_that_a_branch_is_stuck() -> Result<()> {
    let etcd = Etcd::start().await?;
    every(&AMENDER, |point, fault| amender(&etcd, point, fault)).await
}

async fn amender(etcd: &Etcd, point: &'static str, fault: Fault) -> Result<()> {
    let world = World::new(etcd, &fault.of(point)).await?;
    world.p.behave("debit", "commit", [Behaviour::Answer(400)]);
    let victim = world.start("c", &fault.at(point)).await?;
    let (other, _p, _q) =
        (world.start("c", "").await?, world.start("p", "").await?, world.start("q", "").await?);
    let answer = world.begin_or_lose(&victim, "t1").await;
    fault.struck(&world, &victim).await?;
    let stuck = world.reaches(&other, "t1", "stuck").await?;
    assert_eq!(stuck["outcome"], "committed");
    let retried = world.post(&other, &format!("{NAME}/t1/retry"), None, &json!({})).await?;
    ensure!(retried.status == 202, "{retried:?}");
    let finished = world.finished(&other, "t1").await?;
    fault.over(&victim)?;
    let told: Vec<_> = answer.iter().map(|answer| &answer.body).chain([&stuck, &finished]).collect();
    world.check("t1", &told, true).await?;
    if fault == Fault::Freeze {
        works_again(&world, &victim, &other).await?;
    }
    Ok(())
}

/// One after another: each takes etcd's space from all.
#[tokio::test]
async fn a_coordinator_dies_or_freezes_as_it_looks_what_became_of_its_decision() -> Result<()> {
    let etcd = Etcd::start().await?;
    for point in LOOKER {
        for fault in [Fault::Kill, Fault::Freeze] {
            looker(&etcd, point, fault).await?;
        }
    }
    Ok(())
}

async fn looker(etcd: &Etcd, point: &'static str, fault: Fault) -> Result<()> {
    let world = World::new(etcd, &fault.of(point)).await?;
    world.define(&transaction::Settings { timeout: 3_000, ..settings() }).await?;
    let victim = world.start("c", &fault.at(point)).await?;
    let (other, _p) = (world.start("c", "").await?, world.start("p", "").await?);
    let begun = world.post(&victim, NAME, Some("t1"), &json!({})).await?;
    ensure!(begun.status == 202, "{begun:?}");
    // At its deadline there is no space for a decision.
    etcd.raise_no_space(0).await?;
    fault.strikes(&victim).await?;
    etcd.disarm().await?;
    world.session_ended(&victim).await?;
    let _q = world.start("q", "").await?;
    let finished = world.finished(&other, "t1").await?;
    assert_eq!(finished["outcome"], "aborted");
    fault.over(&victim)?;
    world.check("t1", &[&finished], true).await?;
    if fault == Fault::Freeze {
        world.define(&settings()).await?;
        works_again(&world, &victim, &other).await?;
    }
    Ok(())
}

/// As many branches as there may be, and their sidecar is lost before any of them has voted.
#[tokio::test]
async fn a_coordinator_dies_or_freezes_while_it_moves_items() -> Result<()> {
    let etcd = Etcd::start().await?;
    every(&MOVER, |point, fault| mover(&etcd, point, fault)).await
}

async fn mover(etcd: &Etcd, point: &'static str, fault: Fault) -> Result<()> {
    let world = World::new(etcd, &fault.of(point)).await?;
    world.define(&many(64)).await?;
    let (victim, other) = (world.start("c", &fault.at(point)).await?, world.start("c", "").await?);
    let lost = world.start("p", &Fault::Kill.at("branch-before-prepare-call")).await?;
    let begun = world.post(&victim, NAME, Some("t1"), &json!({})).await?;
    ensure!(begun.status == 202, "{begun:?}");
    Fault::Kill.struck(&world, &lost).await?;
    let roll_back = async { world.post(&other, &format!("{NAME}/t1/rollback"), None, &json!({})).await };
    let (_, struck) = tokio::join!(roll_back, fault.struck(&world, &victim));
    struck?;
    let _p = world.start("p", "").await?;
    let finished = world.finished(&other, "t1").await?;
    assert_eq!(finished["outcome"], "aborted");
    fault.over(&victim)?;
    world.check("t1", &[&finished], true).await?;
    let again = world.begin(&other, "t2").await?;
    ensure!(again.body["outcome"] == "committed", "{again:?}");
    world.finished(&other, "t2").await?;
    world.check("t2", &[&again.body], true).await
}

/// Whoever froze works again, with a session of its own.
async fn works_again(world: &World, victim: &Pod, other: &Pod) -> Result<()> {
    let again = eventually("it has a session again", async || {
        let again = world.begin(victim, "t2").await?;
        ensure!(again.status == 200, "{again:?}");
        Ok(again)
    })
    .await?;
    world.finished(other, "t2").await?;
    world.check("t2", &[&again.body], true).await
}

#[tokio::test]
async fn a_participant_dies_or_freezes_at_every_step() -> Result<()> {
    let etcd = Etcd::start().await?;
    every(&PARTICIPANT, |point, fault| participant(&etcd, point, fault)).await
}

async fn participant(etcd: &Etcd, point: &'static str, fault: Fault) -> Result<()> {
    let world = World::new(etcd, &fault.of(point)).await?;
    let (c, _q) = (world.start("c", "").await?, world.start("q", "").await?);
    // The only pod of its app, so that all of them are gone until another one comes.
    let victim = world.start("p", &fault.at(point)).await?;
    let (answer, struck) = tokio::join!(world.begin(&c, "t1"), async {
        fault.struck(&world, &victim).await?;
        let restarted = world.start("p", "").await?;
        world.finished(&c, "t1").await?;
        fault.over(&victim)?;
        anyhow::Ok(restarted)
    });
    let (answer, _restarted) = (answer?, struck?);
    ensure!(answer.status == 200 || answer.status == 409, "{answer:?}");
    let finished = world.finished(&c, "t1").await?;
    world.check("t1", &[&answer.body, &finished], true).await?;
    if fault == Fault::Freeze {
        works_again(&world, &victim, &c).await?;
    }
    Ok(())
}
