//! What a hostile pod of another namespace can do with all that it has: its own sidecar's certificate and token.

use anyhow::{Context, Result, ensure};
use concordat_tests::node::{Namespace, Node};
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, DeleteOptions, Error, GetOptions, Identity,
    PutOptions, TlsOptions, Txn, TxnOp, WatchOptions,
};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::Api;

use crate::{
    bank::Bank,
    installation::SYSTEM,
    life::{pod, sidecar},
};

/// Everything that it tries is refused.
pub(crate) async fn holds(node: &'static Node, bank: &Bank) -> Result<()> {
    let mallory = node.namespace("mallory", &[("concordat.dev/inject", "enabled")]).await?;
    mallory.apply(pod("mallory", &serde_json::json!({}))).await?;
    mallory.ready("mallory").await?;
    let mut etcd = as_sidecar_of(node, &mallory).await?;
    let theirs = format!("/concordat/{}/", bank.namespace.name());
    keys(&mut etcd, &mallory, &theirs).await?;
    others(&mut etcd).await?;
    pods(&mallory, bank).await
}

/// etcd, as the sidecars of a namespace know it.
async fn as_sidecar_of(node: &Node, namespace: &Namespace<'_>) -> Result<Client> {
    let secret = namespace.api::<Secret>().get("concordat-etcd-client").await?.data.context("no data")?;
    let file = |name: &str| secret.get(name).map(|bytes| bytes.0.clone()).context(name.to_owned());
    // Its Service has no address of its own.
    let pod = Api::<Pod>::namespaced(node.client().await?, SYSTEM).get("concordat-etcd-0").await?;
    let address = pod.status.and_then(|status| status.pod_ip).context("no address")?;
    let tls = TlsOptions::new()
        .ca_certificate(Certificate::from_pem(file("ca.crt")?))
        .identity(Identity::from_pem(file("tls.crt")?, file("tls.key")?))
        .domain_name(format!("concordat-etcd.{SYSTEM}.svc"));
    let options = ConnectOptions::new().with_tls(tls);
    Ok(Client::connect([format!("https://{address}:2379")], Some(options)).await?)
}

fn refused<T>(what: &str, answer: Result<T, Error>) -> Result<()> {
    match answer {
        Ok(_) => anyhow::bail!("{what} was not refused"),
        Err(error) => {
            let said = error.to_string();
            let denied = said.contains("permission denied") || said.contains("PermissionDenied");
            ensure!(denied, "{what} failed otherwise: {said}");
            Ok(())
        }
    }
}

/// The keys of another namespace.
async fn keys(etcd: &mut Client, mallory: &Namespace<'_>, theirs: &str) -> Result<()> {
    let own = format!("/concordat/{}/probe", mallory.name());
    etcd.put(own.clone(), "mine", None).await.context("its own keys are its own")?;
    let one = format!("{theirs}def/lock/accounts");
    let range = || GetOptions::new().with_prefix();
    refused("a get", etcd.get(one.clone(), None).await)?;
    refused("a range", etcd.get(theirs, Some(range())).await)?;
    refused("a range from its own on", etcd.get(own.clone(), Some(GetOptions::new().with_from_key())).await)?;
    refused("a count of all", etcd.get("", Some(GetOptions::new().with_all_keys().with_count_only())).await)?;
    refused("a put", etcd.put(one.clone(), "x", None).await)?;
    refused(
        "a put that tells the value before",
        etcd.put(one.clone(), "x", Some(PutOptions::new().with_prev_key())).await,
    )?;
    let before = DeleteOptions::new().with_prev_key();
    refused("a deletion that tells the value before", etcd.delete(one.clone(), Some(before)).await)?;
    let within = |op: TxnOp| Txn::new().and_then([TxnOp::txn(Txn::new().and_then([op]))]);
    refused("a nested get", etcd.txn(within(TxnOp::get(one.clone(), None))).await)?;
    refused("a nested put", etcd.txn(within(TxnOp::put(one.clone(), "x", None))).await)?;
    let told = TxnOp::put(one.clone(), "x", Some(PutOptions::new().with_prev_key()));
    refused("a nested put that tells the value before", etcd.txn(within(told)).await)?;
    let compare = Txn::new().when([Compare::create_revision(one.clone(), CompareOp::Greater, 0)]);
    refused("a comparison", etcd.txn(compare.and_then([TxnOp::put(own.clone(), "x", None)])).await)?;
    let lease = etcd.lease_grant(30, None).await?.id();
    let leased = PutOptions::new().with_lease(lease);
    refused("a leased put", etcd.put(one.clone(), "x", Some(leased)).await)?;
    for (what, options) in [
        ("a watch", WatchOptions::new().with_prefix()),
        ("a watch from there on", WatchOptions::new().with_from_key()),
    ] {
        let mut watch = etcd.watch(theirs, Some(options)).await;
        let ended = match &mut watch {
            Err(_) => true,
            Ok(stream) => {
                let answer = stream.message().await;
                answer.map_or(true, |answer| answer.is_none_or(|answer| answer.canceled()))
            }
        };
        ensure!(ended, "{what} was not refused");
    }
    Ok(())
}

/// What is nobody's namespace.
async fn others(etcd: &mut Client) -> Result<()> {
    refused("a compaction", etcd.compact(1, None).await)?;
    refused("a list of users", etcd.user_list().await)?;
    refused("a role", etcd.role_grant_permission("root", etcd_client::Permission::read("/")).await)?;
    refused("auth's end", etcd.auth_disable().await)?;
    refused(
        "a snapshot",
        match etcd.snapshot().await {
            Err(error) => Err(error),
            Ok(mut stream) => stream.message().await,
        },
    )?;
    refused("a defragmentation", etcd.defragment().await)
}

/// Another pod's sidecar, its token, and the API server.
async fn pods(mallory: &Namespace<'_>, bank: &Bank) -> Result<()> {
    let address = sidecar(bank, "accounts").await?.address;
    let try_it =
        |script: String| async move { mallory.exec("mallory", "shell", &["/bin/sh", "-c", &script]).await };
    try_it(format!("curl -fsS -m 5 http://{address}:4701/live")).await.context("the address is right")?;
    let there = try_it(format!("curl -sS -m 5 http://{address}:4700/v1/locks/accounts/ada")).await;
    ensure!(there.is_err(), "another pod's sidecar answered: {there:?}");
    let own = "curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:4700/v1/locks/accounts/ada";
    ensure!(try_it(own.into()).await? == "401", "without the token it is answered");
    let files = try_it("ls /etc/concordat /var/run/secrets/kubernetes.io 2>&1; true".into()).await?;
    ensure!(files.matches("No such file").count() == 2, "the app sees {files}");
    Ok(())
}
