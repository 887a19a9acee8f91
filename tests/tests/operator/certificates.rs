//! The operator's certificates: one authority for all replicas, and none that ends while it is shown.

use std::{collections::BTreeMap, path::Path, process::Command, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use concordat_operator::{
    admin::Health,
    inject,
    metrics::Metrics,
    pki::{
        Authority, Certificate, Error, Request, Usage,
        keeper::{Etcd, Keeper, Kept, Source, Webhook},
        secret::Secrets,
    },
    webhook,
};
use concordat_tests::process::{Process, eventually, folder, free_port};
use futures::future::try_join_all;
use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Secret},
};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;

use crate::world::World;

const DAY: Duration = Duration::from_hours(24);

fn kept(world: &World, folder: &Path) -> Kept {
    Kept {
        namespace: world.namespace.clone(),
        authority: Some(Source { secret: "ca".into(), given: false, pause: Duration::from_mins(1) }),
        members: None,
        etcd: Some(Etcd { service: "etcd".into(), replicas: 3, folder: folder.to_owned() }),
        webhook: Some(Webhook::Issued { service: "webhook".into(), configuration: None }),
    }
}

fn keeper(world: &World, kept: Kept) -> (Keeper, Arc<Health>) {
    let health = Arc::new(Health::default());
    (Keeper::new(world.client.clone(), kept, health.clone(), Arc::default()), health)
}

fn authority(keeper: &Keeper) -> Authority {
    keeper.authority().borrow().clone().unwrap()
}

/// A Secret's data, as text.
async fn texts(world: &World, secret: &str) -> BTreeMap<String, String> {
    let data = world.api::<Secret>().get(secret).await.unwrap().data.unwrap();
    data.into_iter().map(|(name, bytes)| (name, String::from_utf8(bytes.0).unwrap())).collect()
}

#[tokio::test]
async fn replicas_that_start_at_once_share_one_authority() {
    let world = World::start("replicas_that_start_at_once_share_one_authority").await;
    let folder = tempfile::tempdir().unwrap();
    let mut keepers: Vec<_> = (0..6).map(|_| keeper(&world, kept(&world, folder.path())).0).collect();
    let now = Timestamp::now();
    try_join_all(keepers.iter_mut().map(|keeper| keeper.pass(now))).await.unwrap();
    let one = authority(&keepers[0]);
    assert!(keepers.iter().all(|keeper| authority(keeper) == one));
    let etcd = texts(&world, "etcd-tls").await;
    assert_eq!(etcd["ca.crt"], one.trusted());
    // Nobody writes what another one wrote.
    try_join_all(keepers.iter_mut().map(|keeper| keeper.pass(now))).await.unwrap();
    assert_eq!(texts(&world, "etcd-tls").await, etcd);

    // One that was deleted is made again as it was, for all that it signed is still in use.
    world.delete::<Secret>("ca").await;
    try_join_all(keepers.iter_mut().map(|keeper| keeper.pass(now))).await.unwrap();
    assert!(keepers.iter().all(|keeper| authority(keeper) == one));
    assert_eq!(texts(&world, "etcd-tls").await, etcd);
}

#[tokio::test]
async fn what_somebody_else_made_is_never_written() {
    let world = World::start("what_somebody_else_made_is_never_written").await;
    let now = Timestamp::now();
    let secrets = Secrets::new(world.client.clone());
    let namespace = &world.namespace;
    assert!(matches!(secrets.given(namespace, "ca").await, Err(Error::Awaited(_))));
    let long_ago = Authority::new(now - 3_000 * DAY).unwrap();
    let foreign = |data: BTreeMap<String, Vec<u8>>| -> Secret {
        let data: BTreeMap<String, ByteString> =
            data.into_iter().map(|(name, bytes)| (name, ByteString(bytes))).collect();
        let mut secret: Secret = serde_json::from_value(json!({ "type": "kubernetes.io/tls" })).unwrap();
        secret.data = Some(data);
        secret
    };
    for (name, data) in [
        ("ca", long_ago.data()),
        ("leaf", [("tls.crt", "a"), ("tls.key", "b")].map(|(name, text)| (name.into(), text.into())).into()),
    ] {
        let mut secret = foreign(data);
        secret.metadata.name = Some(name.into());
        world.api::<Secret>().create(&PostParams::default(), &secret).await.unwrap();
    }
    // It is due, and it is theirs to renew it.
    let read = secrets.authority(namespace, "ca", None, now, Duration::ZERO, |_| true).await.unwrap();
    assert_eq!(read, long_ago);
    assert_eq!(secrets.given(namespace, "ca").await.unwrap(), long_ago);
    let request = Request { common_name: "root".into(), names: Vec::new(), usage: Usage::Client };
    let issued = secrets.issued(namespace, "leaf", &request, &long_ago, now).await;
    assert!(matches!(issued, Err(Error::Foreign(_))), "{issued:?}");
    assert_eq!(texts(&world, "leaf").await["tls.crt"], "a");
}

/// Connects as the API server does; what is shown, if it is trusted.
async fn connect(port: u16, trusted: &str) -> Result<(TlsStream<TcpStream>, CertificateDer<'static>)> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(trusted.as_bytes()) {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let name = ServerName::try_from("127.0.0.1")?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let shown = stream.get_ref().1.peer_certificates().context("nothing is shown")?[0].clone().into_owned();
    Ok((stream, shown))
}

/// Sends what is no review, and reads how that is answered.
async fn answered(stream: &mut TlsStream<TcpStream>) -> String {
    let request = b"POST /inject HTTP/1.1\r\nhost: localhost\r\ncontent-length: 4\r\n\r\nnull";
    stream.write_all(request).await.unwrap();
    let mut answer = vec![0; 4_096];
    let read = stream.read(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer[..read]).into_owned()
}

#[tokio::test]
async fn what_is_due_is_renewed_while_it_is_served() {
    let world = World::start("what_is_due_is_renewed_while_it_is_served").await;
    let folder = tempfile::tempdir().unwrap();
    let configuration = format!("{}-injector", world.namespace);
    let hooks: Api<MutatingWebhookConfiguration> = Api::all(world.client.clone());
    let nobody =
        json!({ "matchLabels": { "kubernetes.io/metadata.name": world.namespace, "nobody": "asks" } });
    let entry = |name: &str| {
        json!({
            "name": name, "clientConfig": { "url": "https://127.0.0.1:1/" }, "admissionReviewVersions": ["v1"],
            "sideEffects": "None", "namespaceSelector": nobody,
        })
    };
    let both = json!({ "metadata": { "name": configuration }, "webhooks": [entry("a.b.c"), entry("d.e.f")] });
    hooks.create(&PostParams::default(), &serde_json::from_value(both).unwrap()).await.unwrap();
    let mut kept = kept(&world, folder.path());
    kept.webhook =
        Some(Webhook::Issued { service: "webhook".into(), configuration: Some(configuration.clone()) });
    let (mut keeper, health) = keeper(&world, kept);
    let uncertified = || health.uncertified.load(std::sync::atomic::Ordering::Relaxed);

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let settings = inject::Settings {
        image: String::new(),
        pull_policy: None,
        log: String::new(),
        resources: Default::default(),
        etcd_endpoints: Vec::new(),
        etcd_server_name: None,
        otlp_endpoint: None,
        trace_ratio: "1".into(),
    };
    let hook =
        webhook::Webhook { client: world.client.clone(), settings, metrics: Arc::new(Metrics::default()) };
    let stop = CancellationToken::new();
    let serving = tokio::spawn(webhook::serve(listener, keeper.certificates(), Arc::new(hook), stop.clone()));
    assert!(uncertified());
    connect(port, &Authority::new(Timestamp::now()).unwrap().trusted()).await.unwrap_err();

    // Twenty days ago: what was made then is good still, and due.
    let now = Timestamp::now();
    keeper.pass(now - 20 * DAY).await.unwrap();
    let trusted = authority(&keeper).trusted();
    let (mut stream, first) = connect(port, &trusted).await.unwrap();
    let before = (texts(&world, "etcd-tls").await, texts(&world, "etcd-root").await);
    assert!(!uncertified());

    keeper.pass(now).await.unwrap();
    let (_, second) = connect(port, &trusted).await.unwrap();
    assert_ne!(first, second);
    let answer = answered(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "a connection of before is served on: {answer}");
    let after = (texts(&world, "etcd-tls").await, texts(&world, "etcd-root").await);
    for (before, after) in [(&before.0, &after.0), (&before.1, &after.1)] {
        assert_eq!(before["ca.crt"], after["ca.crt"]);
        let life = |texts: &BTreeMap<String, String>| Certificate::read(&texts["tls.crt"]).unwrap().life;
        assert!(life(before).due(now) && !life(after).due(now));
    }
    for (name, text) in &after.1 {
        assert_eq!(&std::fs::read_to_string(folder.path().join(name)).unwrap(), text, "{name}");
    }

    // What is not due stays. What somebody else changed is put right.
    let spoil = json!({ "webhooks": [{ "name": "d.e.f", "clientConfig": { "caBundle": null } }] });
    hooks.patch(&configuration, &PatchParams::default(), &Patch::Strategic(spoil)).await.unwrap();
    keeper.pass(now).await.unwrap();
    assert_eq!(connect(port, &trusted).await.unwrap().1, second);
    let bundles = hooks.get(&configuration).await.unwrap().webhooks.unwrap_or_default();
    let trusts =
        |bundle: &Option<ByteString>| bundle.as_ref().is_some_and(|bundle| bundle.0 == trusted.as_bytes());
    assert!(bundles.iter().all(|webhook| trusts(&webhook.client_config.ca_bundle)));

    // Nothing could be renewed for a month: it says so itself.
    hooks.delete(&configuration, &DeleteParams::default()).await.unwrap();
    keeper.pass(now).await.unwrap_err();
    assert!(!uncertified());
    stop.cancel();
    drop(stream);
    serving.await.unwrap();
}

#[tokio::test]
async fn a_folder_s_certificate_is_shown_when_it_changes() {
    let world = World::start("a_folder_s_certificate_is_shown_when_it_changes").await;
    let folder = tempfile::tempdir().unwrap();
    let kept = Kept { webhook: Some(Webhook::Folder(folder.path().to_owned())), ..Kept::default() };
    let (mut keeper, health) = keeper(&world, kept);
    let uncertified = || health.uncertified.load(std::sync::atomic::Ordering::Relaxed);
    let now = Timestamp::now();
    keeper.pass(now).await.unwrap_err();
    assert!(uncertified());
    let authority = Authority::new(now).unwrap();
    let request = Request { common_name: "a".into(), names: vec!["127.0.0.1".into()], usage: Usage::Server };
    for days in [25, 0] {
        let issued = authority.issue(&request, now - days * DAY).unwrap();
        std::fs::write(folder.path().join("tls.crt"), &issued.certificate).unwrap();
        // The certificate came before its key: the last pair is shown on.
        assert!(keeper.pass(now).await.is_err());
        assert_eq!(uncertified(), days == 25);
        std::fs::write(folder.path().join("tls.key"), &issued.key).unwrap();
        keeper.pass(now).await.unwrap();
        assert!(!uncertified());
    }
    // Whoever should have renewed it did not.
    keeper.pass(now + 31 * DAY).await.unwrap();
    assert!(uncertified());
}

#[tokio::test]
async fn an_operator_makes_the_certificates_that_its_etcd_waits_for() {
    let world = World::start("an_operator_makes_the_certificates_that_its_etcd_waits_for").await;
    let own = tempfile::tempdir().unwrap();
    let (client, peer) = (free_port().unwrap(), free_port().unwrap());
    let url = format!("https://127.0.0.1:{client}");
    let pki_dir = own.path().join("pki");
    let args = ["--etcd-endpoints", &url, "--ca-secret=ca", "--etcd-service=etcd", "--pki-dir"];
    let args: Vec<&str> = args.into_iter().chain(pki_dir.to_str()).collect();
    let mut operator = world.operator_with("operator", &args).await;
    eventually("etcd's certificate is made", async || {
        ensure!(world.api::<Secret>().get_opt("etcd-tls").await?.is_some(), "it is not there");
        Ok(())
    })
    .await
    .unwrap();

    let folder = folder("certified-etcd").unwrap();
    for (name, text) in texts(&world, "etcd-tls").await {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let file = |name: &str| folder.path().join(name).display().to_string();
    let peers = format!("https://127.0.0.1:{peer}");
    let mut command = Command::new(etcd_bin_vendored::etcd_bin_path().unwrap());
    command
        .args([
            "--name=a",
            "--unsafe-no-fsync",
            "--log-level=warn",
            "--client-cert-auth",
            "--peer-client-cert-auth",
        ])
        .arg(format!("--data-dir={}", file("data")))
        .args([format!("--listen-client-urls={url}"), format!("--advertise-client-urls={url}")])
        .args([format!("--listen-peer-urls={peers}"), format!("--initial-advertise-peer-urls={peers}")])
        .arg(format!("--initial-cluster=a={peers}"))
        .args([
            format!("--trusted-ca-file={}", file("ca.crt")),
            format!("--peer-trusted-ca-file={}", file("ca.crt")),
        ])
        .args([format!("--cert-file={}", file("tls.crt")), format!("--peer-cert-file={}", file("tls.crt"))])
        .args([format!("--key-file={}", file("tls.key")), format!("--peer-key-file={}", file("tls.key"))]);
    let _etcd = Process::start_in(folder, "certified-etcd", command).unwrap();
    operator.ready().await;
    operator.leads(true).await;
}
