//! The webhook when something is wrong with it, or slow, and the check that a chart's test runs.

use std::process::Command;

use anyhow::{Context, ensure};
use concordat_operator::inject::INJECT;
use concordat_tests::{
    process::{Process, binary, eventually, free_port},
    proxy::Proxy,
};
use serde_json::json;

use crate::{
    injection::{injects, label, made, pod, refusal, register},
    uninstall::run,
    world::{Operator, World},
};

/// An operator that serves the webhook at this port.
async fn serving(world: &World, kubeconfig: &std::path::Path, port: u16, name: &str) -> Operator {
    let endpoints = world.etcd.endpoints().join(",");
    let (listen, webhook) = (format!("--webhook-listen=127.0.0.1:{port}"), format!("--webhook-name={name}"));
    let flags = [
        "--namespace",
        &world.namespace,
        &listen,
        &webhook,
        "--ca-secret=ca",
        "--etcd-endpoints",
        &endpoints,
    ];
    world.operator_of("operator", kubeconfig, &flags).await
}

/// The API server is told why, instead of giving up.
#[tokio::test]
async fn a_namespace_that_cannot_be_read_is_told_before_the_api_server_gives_up() {
    let world = World::start("a_namespace_that_cannot_be_read_is_told_before_the_api_server_gives_up").await;
    label(&world, json!({ INJECT: "enabled" })).await;
    let port = free_port().unwrap();
    let name = register(&world, port, 2).await;
    let text = std::fs::read_to_string(world.kubeconfig()).unwrap();
    let server = text.lines().find_map(|line| line.trim().strip_prefix("server: https://"));
    let server = server.context("no server").unwrap().trim().to_owned();
    let proxy = Proxy::start(server.clone()).await.unwrap();
    let through = tempfile::NamedTempFile::with_prefix("concordat-kubeconfig-").unwrap();
    std::fs::write(through.path(), text.replace(&server, &format!("127.0.0.1:{}", proxy.port()))).unwrap();
    let mut operator = serving(&world, through.path(), port, &name).await;
    operator.ready().await;
    injects(&world).await;
    proxy.hold();
    eventually("why is told", async || {
        let why = refusal(made(&world, &pod("waits", json!({}))).await);
        ensure!(why.contains("cannot be read: the Kubernetes API does not answer in time"), "{why}");
        Ok(())
    })
    .await
    .unwrap();
    proxy.heal();
    injects(&world).await;
}

#[tokio::test]
async fn whether_pods_get_sidecars_is_checked_without_making_one() {
    let world = World::start("whether_pods_get_sidecars_is_checked_without_making_one").await;
    label(&world, json!({ INJECT: "enabled", "pod-security.kubernetes.io/enforce": "restricted" })).await;
    let once = ["check-injection", "--patience=0s", "--namespace", &world.namespace];
    let check = || run(world.kubeconfig(), &once);
    let (done, told) = check();
    assert!(
        !done && told.contains("in without a sidecar: is there a MutatingWebhookConfiguration"),
        "{told}"
    );

    // It waits for what is being installed.
    let mut command = Command::new(binary("concordat-operator").unwrap());
    command.env("KUBECONFIG", world.kubeconfig());
    command.args(["check-injection", "--patience=5m", "--namespace", &world.namespace]);
    let mut patient = Process::start("check-injection", command).unwrap();
    patient.says("not yet: the API server lets a pod").await.unwrap();
    let port = free_port().unwrap();
    let name = register(&world, port, 5).await;
    patient.says("failed calling webhook").await.unwrap();
    let (done, told) = check();
    assert!(!done && told.contains("failed calling webhook \"inject.concordat.dev\""), "{told}");
    let mut operator = serving(&world, world.kubeconfig(), port, &name).await;
    operator.ready().await;
    assert!(patient.wait().await.unwrap().success());
    let (done, told) = check();
    assert!(done && told.contains("a pod that asks for a sidecar gets one"), "{told}");
    let pods = world.api::<k8s_openapi::api::core::v1::Pod>().list(&Default::default()).await.unwrap();
    assert!(pods.items.is_empty(), "none is made");
}
