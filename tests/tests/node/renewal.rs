//! Certificates that are renewed and an authority that is replaced, while everything that shows or trusts them runs.

use std::{collections::BTreeMap, rc::Rc, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use concordat_operator::pki::{Authority, Certificate, Request, Usage};
use concordat_tests::{node::Node, process::eventually};
use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::{
        admissionregistration::v1::MutatingWebhookConfiguration,
        core::v1::{Pod, Secret},
    },
};
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::LocalSet,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::{
    bank::Bank,
    installation::{CHART, Installation, SYSTEM, set},
    kubectl::Plugin,
    traffic::{Held, Traffic},
};

type Made = BTreeMap<String, i64>;
/// A Secret's data, as text.
pub(crate) type Texts = BTreeMap<String, String>;

/// After how long a connection is tried anew.
const LOST: Duration = Duration::from_secs(5);
const DAY: i64 = 24 * 60 * 60;
/// The Secret of a namespace's certificate.
const CLIENT: &str = "concordat-etcd-client";
const APPS: [&str; 4] = ["accounts", "ledger", "worker", "teller"];

#[tokio::test]
async fn what_ends_is_renewed_and_the_authority_turns_while_the_bank_pays() -> Result<()> {
    LocalSet::new().run_until(story()).await
}

async fn story() -> Result<()> {
    let node = Node::shared().await?;
    let plugin = Plugin::new(node)?;
    // Longer than the kubelet takes to bring a Secret to a pod.
    let values = ["pki.operator.turnPause=30s"];
    let installation = Installation::of(node, CHART, &set(&values)).await?;
    let bank = Rc::new(Bank::open(node).await?);
    let mut made = BTreeMap::new();
    renewed(&installation, &bank, &mut made).await?;
    checked(&plugin, &bank).await?;
    turned(&installation, &bank, &mut made).await?;
    checked(&plugin, &bank).await?;
    installation.uninstall().await?;
    installation.left_nothing().await
}

/// What is about to end is renewed, and then shown by etcd and by sidecars, none of which is started anew.
async fn renewed(installation: &Installation<'_>, bank: &Rc<Bank>, made: &mut Made) -> Result<()> {
    let held = Held::take(bank).await?;
    let traffic = Traffic::start(bank, "renewed");
    let before = pods(installation, bank).await?;
    let authority = read(&texts(installation, SYSTEM, "concordat-ca").await?)?;
    let now = Timestamp::now();
    let ours = bank.namespace.name();
    let secrets = [
        (SYSTEM, "concordat-etcd-tls", Usage::Peer),
        (SYSTEM, "concordat-etcd-root", Usage::Client),
        (ours, CLIENT, Usage::Client),
    ];
    let mut aged = Vec::new();
    for (namespace, name, usage) in secrets {
        let said = Certificate::read(&texts(installation, namespace, name).await?["tls.crt"])?;
        let request =
            Request { common_name: said.common_name, names: said.names.into_iter().collect(), usage };
        let old = authority.issue(&request, now - jiff::SignedDuration::from_secs(25 * DAY))?;
        let data = json!({ "tls.crt": bytes(&old.certificate), "tls.key": bytes(&old.key) });
        let patch = Patch::Merge(json!({ "data": data }));
        api::<Secret>(installation, namespace).await?.patch(name, &PatchParams::default(), &patch).await?;
        aged.push(old.certificate);
    }
    for ((namespace, name, _), old) in secrets.iter().zip(&aged) {
        eventually("it is renewed", async || {
            let now = texts(installation, namespace, name).await?;
            ensure!(now["tls.crt"] != *old, "{name} is not");
            Ok(())
        })
        .await?;
    }
    let etcd = texts(installation, SYSTEM, "concordat-etcd-tls").await?;
    eventually("etcd shows it", async || {
        let shown = shown_by_etcd(installation, &texts(installation, ours, CLIENT).await?).await?;
        ensure!(shown == leaf(&etcd["tls.crt"])?, "it shows another");
        Ok(())
    })
    .await?;
    for app in APPS {
        eventually("its sidecar shows it", async || {
            let pod = format!("deployment/{app}");
            let log = bank.namespace.kubectl(&["logs", &pod, "--container=concordat"]).await?;
            ensure!(log.contains("etcd is asked with the new certificates"), "that of {app} does not");
            Ok(())
        })
        .await?;
    }
    traffic.goes_on(2).await?;
    ensure!(pods(installation, bank).await? == before, "pods were started anew");
    held.let_go(bank).await?;
    traffic.holds(made).await
}

/// Somebody asks for another authority: the old one is trusted until everybody has a certificate of the new one, and then
/// no longer. Only etcd is started anew.
async fn turned(installation: &Installation<'_>, bank: &Rc<Bank>, made: &mut Made) -> Result<()> {
    let held = Held::take(bank).await?;
    let traffic = Traffic::start(bank, "turned");
    let before = pods(installation, bank).await?;
    let ours = bank.namespace.name();
    let old = texts(installation, SYSTEM, "concordat-ca").await?;
    distrust(installation).await?;

    let next = eventually("a next one is trusted", async || {
        let ca = texts(installation, SYSTEM, "concordat-ca").await?;
        ensure!(ca["tls.crt"] == old["tls.crt"] && ca["ca.crt"].matches("BEGIN").count() == 2, "it is not");
        Ok(ca["next.crt"].clone())
    })
    .await?;
    patiently("it signs, after etcd was started anew", async || {
        let ca = texts(installation, SYSTEM, "concordat-ca").await?;
        ensure!(ca["tls.crt"] == next, "it does not");
        ensure!(ca["ca.crt"].contains(&old["tls.crt"]), "the old one is not trusted, and still used");
        Ok(())
    })
    .await?;
    traffic.goes_on(2).await?;
    patiently("the old one is not trusted", async || {
        let ca = texts(installation, SYSTEM, "concordat-ca").await?;
        ensure!(ca["ca.crt"] == next, "it is");
        Ok(())
    })
    .await?;
    trust_nobody_else(installation, bank, &old, &next).await?;
    traffic.goes_on(3).await?;

    // The webhook shows a certificate of the new one, too.
    installation.test().await?;
    let mut after = pods(installation, bank).await?;
    for (name, pod) in &mut after {
        if name.starts_with("concordat-etcd-") {
            ensure!(before.get(name) != Some(pod), "{name} was not started anew");
            pod.clone_from(before.get(name).context("another member")?);
        }
    }
    ensure!(after == before, "pods were started anew: {before:?}, {after:?}");
    held.let_go(bank).await?;
    traffic.holds(made).await?;
    ensure!(
        ends(installation).await? == Certificate::read(&next)?.life.not_after.as_second(),
        "metrics differ"
    );
    // New pods find all in order.
    bank.roll("worker").await?;
    ensure!(texts(installation, ours, CLIENT).await?["ca.crt"] == next, "it changed again");
    Ok(())
}

/// Asks for another authority than there is.
pub(crate) async fn distrust(installation: &Installation<'_>) -> Result<()> {
    let now = Timestamp::from_second(Timestamp::now().as_second() + 1)?;
    let distrust = format!("concordat.dev/distrust-before={now}");
    installation.kubectl(&["annotate", "secret", "concordat-ca", &distrust]).await.map(drop)
}

/// Waits until etcd, and all who talk to it and to the API server, know the new authority alone.
async fn trust_nobody_else(
    installation: &Installation<'_>,
    bank: &Bank,
    old: &Texts,
    new: &str,
) -> Result<()> {
    let ours = bank.namespace.name();
    for (namespace, name) in [(SYSTEM, "concordat-etcd-tls"), (SYSTEM, "concordat-etcd-root"), (ours, CLIENT)]
    {
        eventually("it is of the new one", async || {
            ensure!(texts(installation, namespace, name).await?["ca.crt"] == *new, "{name} is not");
            Ok(())
        })
        .await?;
    }
    let good = texts(installation, ours, CLIENT).await?;
    let said = Certificate::read(&good["tls.crt"])?;
    let request = Request { common_name: said.common_name, names: Vec::new(), usage: Usage::Client };
    let forged = read(old)?.issue(&request, Timestamp::now())?;
    let bad: Texts = [("tls.crt", forged.certificate), ("tls.key", forged.key), ("ca.crt", new.to_owned())]
        .map(|(name, text)| (name.to_owned(), text))
        .into();
    eventually("etcd refuses what the old one signs", async || {
        shown_by_etcd(installation, &good).await.context("what the new one signs is refused")?;
        ensure!(shown_by_etcd(installation, &bad).await.is_err(), "it takes it");
        Ok(())
    })
    .await?;
    let hooks: Api<MutatingWebhookConfiguration> = Api::all(installation.node.client().await?);
    eventually("the API server trusts it", async || {
        let hooks = hooks.get("concordat-injector").await?.webhooks.unwrap_or_default();
        let trusts = |bundle: Option<&ByteString>| bundle.is_some_and(|bundle| bundle.0 == new.as_bytes());
        ensure!(hooks.iter().all(|hook| trusts(hook.client_config.ca_bundle.as_ref())), "it does not");
        Ok(())
    })
    .await
}

/// [`eventually`], for what takes some pauses more.
pub(crate) async fn patiently<T>(what: &str, mut attempt: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    for _ in 0..2 {
        if let Ok(value) = eventually(what, &mut attempt).await {
            return Ok(value);
        }
    }
    eventually(what, attempt).await
}

/// `kubectl concordat check` finds all in order, certificates too.
async fn checked(plugin: &Plugin<'_>, bank: &Bank) -> Result<()> {
    let ours = ["concordat-ca", "concordat-etcd-tls", "concordat-etcd-root"];
    let mut certificates: Vec<_> = ours.iter().map(|name| format!("certificate {SYSTEM}/{name}")).collect();
    certificates.push(format!("certificate {}/{CLIENT}", bank.namespace.name()));
    plugin.finds_all_well(&certificates.iter().map(String::as_str).collect::<Vec<_>>()).await
}

/// When the authority's certificate ends, as an operator's metrics say.
async fn ends(installation: &Installation<'_>) -> Result<i64> {
    const METRIC: &str =
        r#"concordat_operator_certificate_not_after_timestamp_seconds{certificate="authority"}"#;
    let operators = ListParams::default().labels("app.kubernetes.io/component=operator");
    let pod = api::<Pod>(installation, SYSTEM).await?.list(&operators).await?.items.pop().context("none")?;
    let address = pod.status.and_then(|status| status.pod_ip).context("no address")?;
    let mut stream = TcpStream::connect((address, 4701)).await?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let line = answer.lines().find_map(|line| line.strip_prefix(METRIC)).context(answer.clone())?;
    Ok(line.trim().parse()?)
}

async fn api<K>(installation: &Installation<'_>, namespace: &str) -> Result<Api<K>>
where
    K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
{
    Ok(Api::namespaced(installation.node.client().await?, namespace))
}

pub(crate) async fn texts(installation: &Installation<'_>, namespace: &str, secret: &str) -> Result<Texts> {
    let data = api::<Secret>(installation, namespace).await?.get(secret).await?.data.context("no data")?;
    data.into_iter().map(|(name, bytes)| Ok((name, String::from_utf8(bytes.0)?))).collect()
}

fn bytes(text: &str) -> ByteString {
    ByteString(text.as_bytes().to_vec())
}

fn read(texts: &Texts) -> Result<Authority> {
    let data = texts.iter().map(|(name, text)| (name.clone(), text.clone().into_bytes())).collect();
    Ok(Authority::read(&data)?)
}

fn leaf(pem: &str) -> Result<CertificateDer<'static>> {
    Ok(CertificateDer::from_pem_slice(pem.as_bytes())?)
}

/// What tells a pod that was started anew from what it was: its uid, and how often its containers were.
pub(crate) async fn pods(installation: &Installation<'_>, bank: &Bank) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for namespace in [SYSTEM, bank.namespace.name()] {
        let all = api::<Pod>(installation, namespace).await?.list(&ListParams::default()).await?;
        for pod in all.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
            let status = pod.status.clone().unwrap_or_default();
            let containers = [status.init_container_statuses, status.container_statuses];
            let restarts: i32 = containers.iter().flatten().flatten().map(|one| one.restart_count).sum();
            found.insert(pod.name_any(), format!("{} {restarts}", pod.uid().unwrap_or_default()));
        }
    }
    Ok(found)
}

/// The certificate that etcd shows to whoever comes with these: it is trusted, and they are.
pub(crate) async fn shown_by_etcd(
    installation: &Installation<'_>,
    with: &Texts,
) -> Result<CertificateDer<'static>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(with["ca.crt"].as_bytes()) {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::from_pem_slice(with["tls.key"].as_bytes())?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![leaf(&with["tls.crt"])?], key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let pod = api::<Pod>(installation, SYSTEM).await?.get("concordat-etcd-0").await?;
    let address = pod.status.and_then(|status| status.pod_ip).context("no address")?;
    // The address of a pod that is gone answers nothing for minutes.
    let stream = timeout(LOST, TcpStream::connect((address, 2379))).await??;
    let name = ServerName::try_from(format!("concordat-etcd.{SYSTEM}.svc"))?;
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let shown = stream.get_ref().1.peer_certificates().context("nothing is shown")?[0].clone().into_owned();
    // With TLS 1.3 a server refuses a client only after the client is done.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
    let mut settings = [0; 9];
    stream.read_exact(&mut settings).await?;
    Ok(shown)
}
