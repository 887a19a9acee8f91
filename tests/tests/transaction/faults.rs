//! Every step of two-phase commit at which a sidecar can die, or freeze past the end of its session and go on: in the end
//! it is decided once, applied everywhere, and nothing is left.

use super::world::{Pod, World};
use anyhow::{Result, ensure};
use concordat_tests::{etcd::Etcd, process::eventually};
use futures::{StreamExt, TryStreamExt, stream};

const COORDINATOR: [&str; 6] = [
    "tx-before-begin",
    "tx-after-begin",
    "tx-before-decide",
    "tx-after-decide",
    "tx-before-finish",
    "tx-after-finish",
];
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
        eventually(&format!("{} is struck", pod.name), async || {
            ensure!(pod.process.log().contains("fail point"), "not yet");
            Ok(())
        })
        .await?;
        world.session_ended(pod).await
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
    let name = format!("{point}-{}", if fault == Fault::Kill { "killed" } else { "frozen" });
    let world = World::new(etcd, &name).await?;
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
    let name = format!("{point}-{}", if fault == Fault::Kill { "killed" } else { "frozen" });
    let world = World::new(etcd, &name).await?;
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
