//! Certificates by cert-manager: the real one's controllers, injector and webhook, from its own module.

use std::{collections::BTreeMap, rc::Rc};

use anyhow::{Context, Result, bail, ensure};
use concordat_operator::pki::Certificate;
use concordat_tests::{node::Node, process::eventually};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::json;
use tokio::task::LocalSet;

use crate::{
    bank::Bank,
    installation::{CHART, Installation, SYSTEM, set},
    renewal::{Texts, pods, shown_by_etcd, texts},
    traffic::{Held, Traffic},
};

const CLIENT: &str = "concordat-etcd-client";

#[tokio::test]
async fn cert_manager_issues_what_an_installation_needs_and_renews_it_while_it_works() -> Result<()> {
    LocalSet::new().run_until(story()).await
}

async fn story() -> Result<()> {
    let node = Node::shared().await?;
    let installation = Installation::begin(node, SYSTEM).await?;
    node.bring_cert_manager().await?;
    eventually("its webhook is asked", async || refuses_nonsense(node).await).await?;
    let by_cert_manager = "pki.provider=cert-manager";
    let installation = installation.helm_install(CHART, &set(&[by_cert_manager])).await?;
    installation.test().await?;
    let bank = Rc::new(Bank::open(node).await?);
    let mut made = BTreeMap::new();
    let (status, paid) = bank.pay("first", 30).await?;
    ensure!(status == 200 && paid["outcome"] == "committed", "{status}: {paid}");
    made.insert("first".into(), 30);

    let held = Held::take(&bank).await?;
    let traffic = Traffic::start(&bank, "renewed");
    let before = pods(&installation, &bank).await?;
    leaves(&installation, &bank).await?;
    traffic.goes_on(2).await?;
    ensure!(pods(&installation, &bank).await? == before, "pods were started anew");
    authority(&installation, &bank).await?;
    traffic.goes_on(3).await?;
    let mut after = pods(&installation, &bank).await?;
    for (name, pod) in after.iter_mut().filter(|(name, _)| name.starts_with("concordat-etcd-")) {
        pod.clone_from(before.get(name).context("another member")?);
    }
    ensure!(after == before, "pods were started anew: {before:?}, {after:?}");
    held.let_go(&bank).await?;
    traffic.holds(&mut made).await?;
    bank.roll("worker").await?;
    another_key(&installation).await?;
    let paid = eventually("payments go on", async || {
        let (status, paid) = bank.pay("another-key", 1).await?;
        ensure!(status == 200 && paid["outcome"] == "committed", "{status}: {paid}");
        Ok(())
    });
    paid.await?;

    // Without a webhook, too, cert-manager alone makes and renews the authority.
    let ca = texts(&installation, SYSTEM, "concordat-ca").await?;
    installation.upgrade(&[by_cert_manager, "webhook.enabled=false"]).await?;
    let mut tries = 0;
    let paid = eventually("payments go on without a webhook", async || {
        tries += 1;
        let (status, paid) = bank.pay(&format!("last-{tries}"), 1).await?;
        ensure!(status == 200, "{status}: {paid}");
        Ok(())
    });
    paid.await?;
    ensure!(texts(&installation, SYSTEM, "concordat-ca").await? == ca, "the authority is another");

    installation.uninstall().await?;
    // What is owned by what is gone goes in its own time.
    eventually("nothing is left", async || installation.left_nothing().await).await?;
    let name = bank.namespace.name();
    node.kubectl(&["delete", "namespace", name, "--timeout=3m"]).await?;
    node.take_cert_manager_away().await
}

/// A Certificate that says nothing is refused by cert-manager's own webhook.
async fn refuses_nonsense(node: &Node) -> Result<()> {
    let file = tempfile::NamedTempFile::with_suffix(".json")?;
    let nonsense = json!({
        "apiVersion": "cert-manager.io/v1", "kind": "Certificate",
        "metadata": { "name": "nonsense", "namespace": "default" },
        "spec": { "secretName": "nonsense", "issuerRef": { "name": "nobody" }, "duration": "1s", "commonName": "a" },
    });
    std::fs::write(file.path(), nonsense.to_string())?;
    let path = file.path().to_str().context("a strange path")?;
    let made = node.kubectl(&["create", "--dry-run=server", "--filename", path]).await;
    let refusal = made.err().context("it is taken")?.to_string();
    ensure!(refusal.contains("webhook.cert-manager.io") && refusal.contains("spec.duration"), "{refusal}");
    Ok(())
}

/// As `cmctl renew` does it.
async fn renew(installation: &Installation<'_>, certificate: &str, secret: &str) -> Result<Texts> {
    let before = texts(installation, SYSTEM, secret).await?;
    let issuing = json!([{
        "op": "add", "path": "/status/conditions/-",
        "value": {
            "type": "Issuing", "status": "True", "reason": "ManuallyTriggered", "message": "the test asks for it",
            "lastTransitionTime": jiff::Timestamp::now().to_string(),
        },
    }]);
    let patch = ["--subresource=status", "--type=json", "--patch", &issuing.to_string()];
    installation.kubectl(&[&["patch", "certificate", certificate][..], &patch].concat()).await?;
    eventually("it is renewed", async || {
        let now = texts(installation, SYSTEM, secret).await?;
        ensure!(now["tls.crt"] != before["tls.crt"], "{secret} is not");
        Ok(now)
    })
    .await
}

/// Certificates of etcd, of the operator and of the webhook, renewed and taken away: whoever shows them goes over to new
/// ones.
async fn leaves(installation: &Installation<'_>, bank: &Bank) -> Result<()> {
    renew(installation, "concordat-etcd-root", "concordat-etcd-root").await?;
    let webhook = renew(installation, "concordat-webhook", "concordat-webhook-tls").await?;
    let until = Certificate::read(&webhook["tls.crt"])?.life.not_after.to_string();
    renew(installation, "concordat-etcd", "concordat-etcd-tls").await?;
    installation.kubectl(&["delete", "secret", "concordat-etcd-tls"]).await?;
    let etcd =
        eventually("it is made anew", async || texts(installation, SYSTEM, "concordat-etcd-tls").await)
            .await?;
    eventually("etcd shows it", async || {
        let client = texts(installation, bank.namespace.name(), CLIENT).await?;
        let shown = shown_by_etcd(installation, &client).await?;
        ensure!(shown == CertificateDer::from_pem_slice(etcd["tls.crt"].as_bytes())?, "it shows another");
        Ok(())
    })
    .await?;
    eventually("every operator shows the webhook's, and comes with its own", async || {
        let operators = "--selector=app.kubernetes.io/component=operator";
        let log = installation.kubectl(&["logs", operators, "--tail=-1", "--prefix"]).await?;
        let saying = |what: [&str; 2]| {
            let lines = log.lines().filter(|line| what.iter().all(|part| line.contains(part)));
            lines.filter_map(|line| line.split(' ').next()).collect::<std::collections::BTreeSet<_>>().len()
        };
        ensure!(saying(["the webhook shows a new certificate", &until]) == 2, "not all show it: {log}");
        ensure!(saying(["etcd is asked with the new certificates", ""]) == 2, "not all come with it: {log}");
        Ok(())
    })
    .await?;
    installation.test().await
}

/// What is to be done by hand for an authority with another key. cert-manager leaves what is of a former one as it is.
async fn another_key(installation: &Installation<'_>) -> Result<()> {
    let before = texts(installation, SYSTEM, "concordat-ca").await?;
    installation.kubectl(&["delete", "secret", "concordat-ca"]).await?;
    eventually("there is another one", async || {
        let ca = texts(installation, SYSTEM, "concordat-ca").await?;
        ensure!(ca["tls.key"] != before["tls.key"], "it is the old one");
        Ok(())
    })
    .await?;
    let others = ["concordat-etcd-tls", "concordat-etcd-root", "concordat-webhook-tls"];
    installation.kubectl(&[&["delete", "secret"][..], &others].concat()).await?;
    for name in others {
        eventually("it is of the authority that is there", async || {
            let [ca, made] = [
                texts(installation, SYSTEM, "concordat-ca").await?,
                texts(installation, SYSTEM, name).await?,
            ];
            if made["ca.crt"] != ca["tls.crt"] {
                installation.kubectl(&["delete", "secret", name]).await?;
                bail!("it was of another");
            }
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// The authority's certificate, renewed with its key: certificates of the old one and of the new one are good together.
/// etcd reads whom to trust when it starts, and is started anew when its Secret says another.
async fn authority(installation: &Installation<'_>, bank: &Bank) -> Result<()> {
    let ours = bank.namespace.name();
    let before = texts(installation, SYSTEM, "concordat-ca").await?;
    let ca = renew(installation, "concordat-ca", "concordat-ca").await?;
    ensure!(ca["tls.key"] == before["tls.key"], "it has another key");
    let client = eventually("the namespace's is of the new one", async || {
        let client = texts(installation, ours, CLIENT).await?;
        ensure!(client["ca.crt"] == ca["tls.crt"], "it is not");
        Ok(client)
    })
    .await?;
    shown_by_etcd(installation, &client).await.context("the old and the new one do not know each other")?;
    let member = pods(installation, bank).await?["concordat-etcd-0"].clone();
    let etcd = renew(installation, "concordat-etcd", "concordat-etcd-tls").await?;
    ensure!(etcd["ca.crt"] == ca["tls.crt"], "etcd's is of the old one");
    eventually("etcd is started anew", async || {
        let now = pods(installation, bank).await?;
        ensure!(now.get("concordat-etcd-0").is_some_and(|pod| *pod != member), "it is not");
        Ok(())
    })
    .await?;
    installation.rolled_out("statefulset/concordat-etcd").await
}
