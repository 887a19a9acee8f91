//! The process: its configuration, its health, and its end.

use std::{collections::BTreeSet, process::Command};

use anyhow::{Result, ensure};
use concordat_tests::process::{Process, binary, eventually, free_port};
use hyper::Method;
use serde_json::Value;

use crate::world::World;

const GET: &Method = &Method::GET;

/// Every route there is: the methods and paths of the API.
const ROUTES: &[&str] = &[
    "post /v1/locks/{lock}/{key}",
    "put /v1/locks/{lock}/{key}",
    "delete /v1/locks/{lock}/{key}",
    "get /v1/locks/{lock}/{key}",
    "get /v1/locks/{lock}/{key}/verify",
    "get /v1/locks/{lock}/{key}/events",
    "post /v1/locks/{lock}",
    "put /v1/locks/{lock}",
    "delete /v1/locks/{lock}",
    "get /v1/locks/{lock}",
    "post /v1/locks:acquire",
    "post /v1/locks:release",
    "post /v1/queues/{queue}/messages",
    "post /v1/queues/{queue}/receive",
    "post /v1/queues/{queue}/ack",
    "post /v1/queues/{queue}/nack",
    "post /v1/queues/{queue}/extend",
    "delete /v1/queues/{queue}/receipts/{receipt}",
    "get /v1/queues/{queue}/stream",
    "put /v1/queues/{queue}/groups/{group}/offset",
    "get /v1/queues/{queue}",
    "get /v1/queues/{queue}/dead",
    "post /v1/queues/{queue}/dead/redrive",
    "post /v1/transactions/{transaction}",
    "get /v1/transactions/{transaction}",
    "get /v1/transactions/{transaction}/{id}",
    "post /v1/transactions/{transaction}/{id}/rollback",
    "post /v1/transactions/{transaction}/{id}/retry",
    "post /v1/transactions/{transaction}/{id}/branches/{branch}/skip",
];

#[tokio::test]
async fn a_configuration_that_cannot_be_used_is_refused_before_a_port_is_bound() -> Result<()> {
    let port = free_port()?.to_string();
    let listener = std::net::TcpListener::bind(format!("127.0.0.1:{port}"))?;
    let good = ["--namespace=a", "--app=b", "--pod=c", "--api-port", &port];
    let table: &[(&[&str], i32, &str)] = &[
        (&["--help"], 0, "CONCORDAT_NAMESPACE"),
        (&["--version"], 0, "0.1.0"),
        (&[], 64, "--namespace"),
        (&[&good[..], &["--session-ttl=1s"]].concat(), 64, "between 3s and 10m"),
        (&[&good[..], &["--token-file=/no/such/file"]].concat(), 64, "CONCORDAT_TOKEN_FILE"),
        (&[&good[..], &["--etcd-endpoints=etcd:2379"]].concat(), 64, "--etcd-endpoints"),
        (&[&good[..], &["--log=a=b=c"]].concat(), 64, "--log"),
        (&[&good[..], &["--otlp-endpoint=collector:4317"]].concat(), 64, "http://collector:4317"),
        (&[&good[..], &["--otlp-endpoint=https://a:1"]].concat(), 64, "CONCORDAT_OTLP_CA_FILE"),
        // What is wrong with the machine is another matter.
        (&good, 1, "cannot listen"),
    ];
    for (flags, code, says) in table {
        let mut command = Command::new(binary("concordat-sidecar")?);
        command.args(*flags).env_remove("HOSTNAME");
        let mut process = Process::start("refused", command)?;
        let status = process.wait().await?;
        ensure!(status.code() == Some(*code), "{flags:?}: {status}");
        ensure!(process.log().contains(says), "{flags:?}: {says:?} is not in {}", process.log());
    }
    drop(listener);
    Ok(())
}

#[tokio::test]
async fn a_variable_configures_as_its_flag_does() -> Result<()> {
    let mut command = Command::new(binary("concordat-sidecar")?);
    command.envs([("CONCORDAT_NAMESPACE", "a"), ("CONCORDAT_APP", "Not-a-label"), ("HOSTNAME", "h")]);
    let mut process = Process::start("refused", command)?;
    assert_eq!(process.wait().await?.code(), Some(64));
    ensure!(process.log().contains("Not-a-label"), "{}", process.log());
    Ok(())
}

#[tokio::test]
async fn it_is_ready_describes_itself_counts_and_is_gone_with_its_session() -> Result<()> {
    let world = World::new().await?;
    let mut sidecar = world.sidecar(&[]).await?;
    assert_eq!(sidecar.health("/live").await?.status, 200);
    assert_eq!(world.sessions().await?, 1);

    let description = sidecar.ask(GET, "/openapi.json", &[], "").await?;
    let description: Value = serde_json::from_str(&description.text)?;
    ensure!(description["openapi"].as_str().is_some_and(|version| version.starts_with("3.1")));
    let described: BTreeSet<String> = description["paths"]
        .as_object()
        .into_iter()
        .flatten()
        .flat_map(|(path, methods)| {
            methods.as_object().into_iter().flatten().map(move |(m, _)| format!("{m} {path}"))
        })
        .collect();
    assert_eq!(described, ROUTES.iter().map(|route| (*route).to_owned()).collect());

    assert_eq!(sidecar.ask(GET, "/v1/locks/orders/a", &[], "").await?.status, 200);
    assert_eq!(sidecar.ask(GET, "/v1/locks/none/a", &[], "").await?.code(), "no-such-lock");
    let metrics = sidecar.health("/metrics").await?;
    ensure!(metrics.headers["content-type"].to_str()?.starts_with("application/openmetrics-text"));
    for line in [
        r#"concordat_sidecar_operations_total{route="/v1/locks/{lock}/{key}",method="GET",status="200"} 1"#,
        r#"concordat_sidecar_errors_total{code="no-such-lock"} 1"#,
        "concordat_sidecar_panics_total 0",
    ] {
        ensure!(metrics.text.contains(line), "{line} is not in {}", metrics.text);
    }
    let age = |text: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix("concordat_sidecar_session_age_seconds "));
        line.and_then(|age| age.parse::<f64>().ok()).unwrap_or_default()
    };
    eventually("the session ages", async || {
        ensure!(age(&sidecar.health("/metrics").await?.text) > 0.0);
        Ok(())
    })
    .await?;
    let kib = anonymous_kib(sidecar.process.id())?;
    // The program itself is some 10 MiB of the 25 that a sidecar may idle at.
    ensure!(kib < 15 * 1024, "{kib} KiB is more than an idle sidecar takes");

    assert_eq!(sidecar.process.terminate().await?.code(), Some(0));
    assert_eq!(world.sessions().await?, 0, "the session is revoked, not left to run out");
    Ok(())
}

/// Memory that is not of its program file: how much of that is resident depends on how it was built, and `make bench`
/// looks at the whole of a release build.
fn anonymous_kib(process: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or_default();
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

#[tokio::test]
async fn who_waits_is_answered_when_it_ends() -> Result<()> {
    let world = World::new().await?;
    let mut sidecar = world.sidecar(&[]).await?;
    let (api, terminated) = {
        let held = sidecar.ask(&Method::POST, "/v1/locks/orders/a", &[], "").await?;
        ensure!(held.status == 200, "{held:?}");
        let api = sidecar.api;
        let waiting = tokio::spawn(async move {
            let url = format!("http://127.0.0.1:{api}/v1/locks/orders/a?wait=50s");
            reqwest::Client::new().post(url).send().await
        });
        eventually("it waits", async || {
            let inspected = sidecar.ask(GET, "/v1/locks/orders/a", &[], "").await?;
            ensure!(serde_json::from_str::<Value>(&inspected.text)?["waiters"] == 1, "{inspected:?}");
            Ok(())
        })
        .await?;
        assert_eq!(sidecar.process.terminate().await?.code(), Some(0));
        (api, waiting.await??)
    };
    ensure!(terminated.status().is_client_error() || terminated.status() == 503, "{terminated:?}");
    ensure!(std::net::TcpStream::connect(("127.0.0.1", api)).is_err());
    let left = world.etcd.client().await?.get("/concordat/shop/lock/", None).await?;
    assert_eq!(left.count(), 0);
    Ok(())
}

#[tokio::test]
async fn without_the_token_nothing_is_answered() -> Result<()> {
    let world = World::new().await?;
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), "0123456789abcdef\n")?;
    let token_file = format!("--token-file={}", file.path().display());
    let sidecar = world.sidecar(&[&token_file]).await?;
    for path in ["/v1/locks/orders/a", "/openapi.json", "/no-route"] {
        for headers in [&[][..], &[("concordat-token", "0123456789abcdeF")]] {
            let answer = sidecar.ask(GET, path, headers, "").await?;
            assert_eq!((answer.status.as_u16(), answer.code().as_str()), (401, "token-required"), "{path}");
        }
    }
    let answer =
        sidecar.ask(GET, "/v1/locks/orders/a", &[("concordat-token", "0123456789abcdef")], "").await?;
    assert_eq!(answer.status, 200);
    Ok(())
}

#[tokio::test]
async fn it_outlives_etcd_and_says_so_meanwhile() -> Result<()> {
    let mut world = World::new().await?;
    let sidecar = world.sidecar(&[]).await?;
    world.etcd.kill(0)?;
    let unready = eventually("it is not ready without etcd", async || {
        let ready = sidecar.health("/ready").await?;
        ensure!(ready.status == 503, "{ready:?}");
        Ok(ready.text)
    })
    .await?;
    ensure!(unready.contains("no session"), "{unready}");
    assert_eq!(sidecar.health("/live").await?.status, 200, "nothing is mended by starting it again");
    let answer = sidecar.ask(&Method::POST, "/v1/locks/orders/a", &[], "").await?;
    assert_eq!(answer.status, 503, "{answer:?}");
    ensure!(answer.text.contains("outcome") && answer.headers.contains_key("retry-after"), "{answer:?}");

    world.etcd.restart(0).await?;
    eventually("it is ready again", async || {
        ensure!(sidecar.health("/ready").await?.status == 200);
        Ok(())
    })
    .await?;
    eventually("it grants again", async || {
        let answer = sidecar.ask(&Method::POST, "/v1/locks/orders/b", &[], "").await?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn it_waits_for_an_etcd_that_is_not_there_yet() -> Result<()> {
    let mut world = World::new().await?;
    world.etcd.kill(0)?;
    let mut sidecar = world.starting(&[])?;
    let live = format!("http://127.0.0.1:{}/live", sidecar.admin);
    sidecar.process.answers(&live).await?;
    assert_eq!(sidecar.health("/ready").await?.status, 503);
    world.etcd.restart(0).await?;
    let ready = format!("http://127.0.0.1:{}/ready", sidecar.admin);
    sidecar.process.answers(&ready).await?;

    let mut another = world.starting(&[])?;
    world.etcd.kill(0)?;
    another.process.answers(&format!("http://127.0.0.1:{}/live", another.admin)).await?;
    assert_eq!(another.process.terminate().await?.code(), Some(0), "it ends even so");
    Ok(())
}
