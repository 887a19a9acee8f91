//! A sidecar that stays within its namespace, or does not run; and the token that it makes.

use anyhow::{Result, ensure};
use axum::{Router, http::StatusCode, routing::post};
use concordat_store::access;
use hyper::Method;
use serde_json::Value;
use tempfile::TempDir;

use crate::world::{NAMESPACE, World};

/// The flags with which a sidecar is known to etcd as a user and stays in its namespace.
fn flags(world: &World, user: &str) -> Result<(TempDir, Vec<String>)> {
    let folder = tempfile::tempdir()?;
    world.etcd.issue(user, folder.path())?;
    let files = [("etcd-ca-file", "ca.crt"), ("etcd-cert-file", "tls.crt"), ("etcd-key-file", "tls.key")];
    let mut flags =
        files.map(|(flag, file)| format!("--{flag}={}", folder.path().join(file).display())).to_vec();
    flags.push("--isolated".into());
    Ok((folder, flags))
}

fn by<'a>(flags: &'a [String], others: &[&'a str]) -> Vec<&'a str> {
    flags.iter().map(String::as_str).chain(others.iter().copied()).collect()
}

#[tokio::test]
async fn within_its_namespace_all_works_that_a_sidecar_does() -> Result<()> {
    let world = World::guarded().await?;
    world.admin.admit(NAMESPACE).await?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let app = format!("--app-port={}", listener.local_addr()?.port());
    let router = Router::new().route("/{*path}", post(async || StatusCode::NO_CONTENT));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let (_folder, flags) = flags(&world, &access::user_of(NAMESPACE))?;
    let mut sidecar = world.sidecar(&by(&flags, &[&app])).await?;
    let post = async |path: &str, body: &str| {
        let json = [("content-type", "application/json")];
        let answer = sidecar.ask(&Method::POST, path, &json, body.to_owned()).await?;
        ensure!(answer.status.is_success(), "{path}: {answer:?}");
        Ok(serde_json::from_str::<Value>(&answer.text).unwrap_or_default())
    };
    let held = post("/v1/locks/orders/a", "").await?;
    ensure!(held["fence"].is_u64(), "{held}");
    post("/v1/queues/jobs/messages", r#"{"job":1}"#).await?;
    let received = post("/v1/queues/jobs/receive?max=1&wait=30s", "").await?;
    let receipt = received["messages"][0]["receipt"].as_str().unwrap_or_default().to_owned();
    post("/v1/queues/jobs/ack", &format!(r#"{{"receipts":["{receipt}"]}}"#)).await?;
    let done = post("/v1/transactions/own?wait=30s", r#"{"amount":1}"#).await?;
    assert_eq!(done["outcome"], "committed", "{done}");
    assert_eq!(sidecar.process.terminate().await?.code(), Some(0));
    assert_eq!(world.sessions().await?, 0, "it may revoke its own leases");
    Ok(())
}

/// The bug that is planted: a role that is too wide by one `/`.
#[tokio::test]
async fn where_a_probe_succeeds_it_does_not_run() -> Result<()> {
    let world = World::guarded().await?;
    world.admin.admit(NAMESPACE).await?;
    let user = access::user_of(NAMESPACE);
    let wider = etcd_client::Permission::read_write(format!("/concordat/{NAMESPACE}")).with_prefix();
    world.etcd.client().await?.auth_client().role_grant_permission(user.clone(), wider).await?;
    let (_folder, flags) = flags(&world, &user)?;
    let mut sidecar = world.starting(&by(&flags, &[]))?;
    assert_eq!(sidecar.process.wait().await?.code(), Some(1));
    let log = sidecar.process.log();
    ensure!(log.contains("not isolated") && log.contains("readwrite on /concordat/shop/"), "{log}");
    assert_eq!(world.sessions().await?, 0);

    world.admin.admit(NAMESPACE).await?;
    world.sidecar(&by(&flags, &[])).await?;
    Ok(())
}

#[tokio::test]
async fn the_token_that_it_makes_is_asked_for_and_outlives_it() -> Result<()> {
    let world = World::new().await?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("token");
    let flag = format!("--new-token-file={}", file.display());
    let mut sidecar = world.sidecar(&[&flag]).await?;
    let token = std::fs::read_to_string(&file)?;
    let path = "/v1/locks/orders/a";
    assert_eq!(sidecar.ask(&Method::GET, path, &[], "").await?.code(), "token-required");
    assert_eq!(sidecar.ask(&Method::GET, path, &[("concordat-token", &token)], "").await?.status, 200);
    sidecar.process.kill()?;
    let sidecar = world.sidecar(&[&flag]).await?;
    assert_eq!(sidecar.ask(&Method::GET, path, &[("concordat-token", &token)], "").await?.status, 200);
    let other = tempfile::tempdir()?;
    let flag = format!("--new-token-file={}", other.path().join("token").display());
    world.sidecar(&[&flag]).await?;
    ensure!(std::fs::read_to_string(other.path().join("token"))? != token, "each pod has its own");
    Ok(())
}
