//! The harness itself: what the fault tests rely on.

use std::{process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use concordat_protocol::{Key, Kind, Record, lock::Holder, record::Epoch, session::Stat};
use concordat_store::{keys, record};
use concordat_tests::{
    budget::{Cost, Meter},
    etcd::{Etcd, Settings},
    history::{Operations, Outcome, Recorder},
    process::{Process, eventually},
    proxy::Proxy,
};
use etcd_client::{Client, Compare, CompareOp, ConnectOptions, PutOptions, Txn, TxnOp};

fn epoch(holder: &str) -> Vec<u8> {
    record::encode(&Record::Epoch(Epoch { holder: holder.into() }))
}

#[tokio::test]
async fn a_leader_is_killed_paused_and_moved() -> Result<()> {
    let mut etcd = Etcd::three().await?;
    let mut client = etcd.client().await?;
    client.put("a", "1", None).await?;

    let first = etcd.leader().await?;
    etcd.kill(first)?;
    let second = etcd.leader().await?;
    assert_ne!(first, second);
    eventually("writes go on", async || Ok(client.clone().put("a", "2", None).await?)).await?;
    etcd.restart(first).await?;

    etcd.move_leader(first).await?;
    assert_eq!(etcd.leader().await?, first);
    etcd.pause(first)?;
    eventually("another member leads", async || {
        let leader = etcd.leader().await?;
        ensure!(leader != first, "the paused one is still taken for the leader");
        Ok(())
    })
    .await?;
    etcd.resume(first)?;
    etcd.healthy(first).await?;

    for member in 0..3 {
        etcd.kill(member)?;
    }
    for member in 0..3 {
        etcd.spawn(member)?;
    }
    for member in 0..3 {
        etcd.healthy(member).await?;
    }
    let answer = etcd.client().await?.get("a", None).await?;
    assert_eq!(answer.kvs()[0].value(), b"2");
    Ok(())
}

#[tokio::test]
async fn space_runs_out_and_is_freed() -> Result<()> {
    let etcd = Etcd::with(Settings::default().quota(16 << 20)).await?;
    let mut client = etcd.client().await?;
    let full = async |client: &mut Client| {
        for _ in 0..100 {
            if let Err(error) = client.put("a", vec![0; 1 << 20], None).await {
                return Ok(error.to_string());
            }
        }
        anyhow::bail!("it never ran out")
    };
    let error = full(&mut client).await?;
    assert!(error.contains("database space exceeded"), "{error}");
    assert_eq!(etcd.no_space_alarms().await?, 1);
    client.delete("a", None).await?;
    let revision = etcd.compact().await?;
    assert_eq!(revision, etcd.revision().await?);
    etcd.defragment().await?;
    etcd.disarm().await?;
    assert_eq!(etcd.no_space_alarms().await?, 0);
    client.put("a", "1", None).await?;
    Ok(())
}

#[tokio::test]
async fn certificates_and_passwords_are_asked_for() -> Result<()> {
    let etcd = Etcd::with(Settings { tls: true, ..Settings::default() }).await?;
    etcd.client().await?.put("a", "1", None).await?;
    assert!(etcd.client_identity().is_some());

    let etcd = Etcd::start().await?;
    etcd.require_password("concordat", "secret").await?;
    assert!(etcd.client().await?.put("a", "1", None).await.is_err());
    let options = ConnectOptions::new().with_user("concordat", "secret");
    Client::connect(etcd.endpoints(), Some(options)).await?.put("a", "1", None).await?;
    Ok(())
}

#[tokio::test]
async fn exactly_the_nth_reply_is_dropped() -> Result<()> {
    let etcd = Etcd::start().await?;
    let proxy = Proxy::start(etcd.address(0)).await?;
    for lost in 1..=3 {
        let mut client = Client::connect([proxy.endpoint()], None).await?;
        let before = etcd.revision().await?;
        proxy.drop_reply(lost);
        for nth in 1..=3 {
            let put = client.put("a", "1", None).await;
            assert_eq!(put.is_err(), nth == lost, "{nth} of {lost}: {put:?}");
        }
        // It was done nevertheless.
        assert_eq!(etcd.revision().await?, before + 3);
    }
    Ok(())
}

#[tokio::test]
async fn a_network_holds_swallows_refuses_and_delays() -> Result<()> {
    let etcd = Etcd::start().await?;
    let proxy = Proxy::start(etcd.address(0)).await?;
    let mut client = Client::connect([proxy.endpoint()], None).await?;
    let mut other = client.clone();
    client.put("a", "1", None).await?;

    proxy.hold();
    let held = tokio::spawn(async move { other.put("a", "2", None).await });
    let seen = etcd.client().await?.get("a", None).await?;
    assert_eq!(seen.kvs()[0].value(), b"1");
    proxy.heal();
    held.await??;

    proxy.swallow();
    let mut other = client.clone();
    let swallowed = tokio::spawn(async move { other.put("a", "3", None).await });
    let seen = etcd.client().await?.get("a", None).await?;
    assert_eq!(seen.kvs()[0].value(), b"2");
    proxy.heal();
    assert!(swallowed.await?.is_err());

    proxy.refuse();
    assert!(client.put("a", "4", None).await.is_err());
    proxy.heal();
    eventually("it connects again", async || Ok(client.clone().put("a", "5", None).await?)).await?;

    proxy.delay(Duration::from_millis(300));
    let start = std::time::Instant::now();
    client.put("a", "6", None).await?;
    assert!(start.elapsed() >= Duration::from_millis(600), "{:?}", start.elapsed());
    Ok(())
}

#[tokio::test]
async fn the_recorder_sees_every_change_across_a_kill() -> Result<()> {
    let mut etcd = Etcd::three().await?;
    let mut client = etcd.client().await?;
    let recorder = Recorder::start(etcd.client().await?);
    let key = keys::encode("ns", &Key::Epoch);
    client.put(&*key, epoch("0"), None).await?;
    let leader = etcd.leader().await?;
    etcd.kill(leader)?;
    for holder in ["1", "2"] {
        eventually("a put", async || Ok(client.clone().put(&*key, epoch(holder), None).await?)).await?;
    }
    eventually("a delete", async || Ok(client.clone().delete(&*key, None).await?)).await?;

    let changes = recorder.changes().await?;
    let mut holders: Vec<_> = changes
        .iter()
        .map(|change| match change.entry.as_ref().map(|entry| &entry.record) {
            Some(Record::Epoch(epoch)) => epoch.holder.as_str(),
            Some(_) => "something else",
            None => "nobody",
        })
        .collect();
    // A put whose reply went with the leader may have been made twice.
    holders.dedup();
    assert_eq!(holders, ["0", "1", "2", "nobody"]);
    assert!(changes.is_sorted_by_key(|change| change.revision));
    assert!(recorder.state().await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_gap_or_a_foreign_record_voids_the_record() -> Result<()> {
    let etcd = Etcd::start().await?;
    let mut client = etcd.client().await?;
    let key = keys::encode("ns", &Key::Epoch);
    client.put(&*key, epoch("0"), None).await?;
    client.put(&*key, epoch("1"), None).await?;
    etcd.compact().await?;
    let error = Recorder::start(etcd.client().await?).changes().await.unwrap_err();
    assert!(error.to_string().contains("compacted"), "{error:#}");

    let etcd = Etcd::start().await?;
    etcd.client().await?.put(&*key, "no record", None).await?;
    let error = Recorder::start(etcd.client().await?).changes().await.unwrap_err();
    assert!(error.to_string().contains("/concordat/-/epoch"), "{error:#}");
    Ok(())
}

#[test]
fn operations_keep_what_clients_know() {
    let operations = Operations::<&str, u64>::default();
    operations.invoke(0, "acquire").ok(7);
    operations.invoke(1, "acquire").fail("held");
    operations.invoke(2, "acquire").info("timed out");
    drop(operations.invoke(3, "acquire"));
    let recorded = operations.recorded();
    let outcomes: Vec<_> = recorded.iter().map(|operation| operation.outcome.clone()).collect();
    assert_eq!(
        outcomes[..3],
        [Outcome::Ok(7), Outcome::Fail("held".into()), Outcome::Info("timed out".into())]
    );
    assert!(matches!(outcomes[3], Outcome::Info(_)));
    assert!(recorded.iter().all(|operation| operation.invoked <= operation.ended));
}

#[tokio::test]
async fn processes_end_as_they_are_told() -> Result<()> {
    let shell = |script: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    };
    let mut polite = Process::start(
        "polite",
        shell("trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.01; done"),
    )?;
    polite.ready("is up", async || Ok(())).await?;
    let log = async |process: &Process, text: &str| {
        eventually("it said so", async || {
            ensure!(process.log().contains(text), "{}", process.log());
            Ok(())
        })
        .await
    };
    log(&polite, "up").await?;
    assert_eq!(polite.terminate().await?.code(), Some(7));
    assert!(polite.log().contains("bye"));

    let mut brief = Process::start("brief", shell("echo for want of a nail; exit 3"))?;
    let error = brief.ready("never", async || -> Result<()> { anyhow::bail!("not yet") }).await.unwrap_err();
    assert!(error.to_string().contains("for want of a nail"), "{error:#}");

    let mut counting = Process::start("counting", shell("while :; do echo tick; sleep 0.01; done"))?;
    log(&counting, "tick").await?;
    counting.pause()?;
    eventually("it stands still", async || {
        let status = std::fs::read_to_string(format!("/proc/{}/stat", counting.id()))?;
        ensure!(status.split(' ').nth(2) == Some("T"), "{status}");
        Ok(())
    })
    .await?;
    let paused = counting.log().len();
    assert_eq!(counting.log().len(), paused);
    counting.resume()?;
    eventually("it goes on", async || {
        ensure!(counting.log().len() > paused);
        Ok(())
    })
    .await?;
    counting.kill()?;
    assert!(counting.ended()?.is_some());
    Ok(())
}

/// Leases end with what was put under them, also while nobody looks.
#[tokio::test]
async fn a_lease_is_seen_to_end() -> Result<()> {
    let etcd = Etcd::start().await?;
    let mut client = etcd.client().await?;
    let recorder = Recorder::start(etcd.client().await?);
    let lease = client.lease_grant(60, None).await?.id();
    let key = keys::encode("ns", &Key::Epoch);
    client.put(&*key, epoch("0"), Some(PutOptions::new().with_lease(lease))).await?;
    client.lease_revoke(lease).await?;
    let changes = recorder.changes().await?;
    assert_eq!(changes.len(), 2);
    assert_eq!(changes.last().context("no change")?.entry, None);
    Ok(())
}

/// What is asked of etcd is counted exactly, and what a sidecar counts for people is not.
#[tokio::test]
async fn a_meter_counts_what_an_operation_asks_for() -> Result<()> {
    let etcd = Etcd::start().await?;
    let mut client = etcd.client().await?;
    let meter = Meter::start(&etcd).await?;
    let key = |key: &Key| keys::encode("ns", key);
    let put = |at: &Key, of: Record| TxnOp::put(key(at), record::encode(&of), None);
    let holder = Key::Holder { lock: "orders".into(), key: "1".into() };
    let held = Holder {
        session: "s".into(),
        pod: "p".into(),
        owner: String::new(),
        since: 0,
        regrants: 0,
        stays: false,
    };
    let stat = Key::Stat { kind: Kind::Lock, name: "orders".into(), session: "s".into() };
    let absent = Compare::create_revision(key(&holder), CompareOp::Equal, 0);
    client.put(key(&Key::Epoch), epoch("0"), None).await?;

    let taken = Txn::new().when([absent.clone()]).and_then([
        put(&holder, held.into()),
        put(&Key::Epoch, Epoch { holder: "1".into() }.into()),
        TxnOp::get(key(&Key::Epoch), None),
    ]);
    let counted = Txn::new().and_then([put(&stat, Stat::default().into())]);
    let freed = Txn::new().and_then([TxnOp::delete(key(&holder), None)]);
    let refused = Txn::new().when([absent]).or_else([]);
    let (outcome, cost) = meter
        .measure(async {
            client.txn(taken).await?;
            client.txn(refused).await?;
            client.txn(counted).await?;
            client.txn(freed).await?;
            anyhow::Ok(())
        })
        .await?;
    outcome?;
    let expected = Cost {
        calls: [("Txn".to_owned(), 3)].into(),
        commits: 2,
        puts: [("holder", 1), ("epoch", 1)].into(),
        deletes: [("holder", 1)].into(),
        reads: 3,
    };
    assert_eq!(cost, expected);
    assert_eq!((cost.rounds(), cost.writes()), (3, 3));

    // The same again costs the same, and nothing costs nothing.
    let ((), nothing) = meter.measure(async {}).await?;
    assert_eq!(nothing, Cost::default());
    Ok(())
}

/// What a test runs is what is checked out: cargo is asked, and answers with a file of this build's own.
#[test]
fn binaries_are_built_from_what_is_checked_out() -> Result<()> {
    let program = concordat_tests::process::binary("crdgen")?;
    assert!(program.is_file(), "{}", program.display());
    assert!(program.parent().context("no folder")?.ends_with("harness"), "{}", program.display());
    assert_eq!(concordat_tests::process::binary("crdgen")?, program);
    let error = concordat_tests::process::binary("no-such-binary").unwrap_err();
    assert!(format!("{error:#}").contains("no-such-binary"), "{error:#}");
    Ok(())
}
