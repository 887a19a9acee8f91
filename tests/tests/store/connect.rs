//! How etcd is reached, and as whom.

use concordat_protocol::{Entry, Key, Lease, Plan, Range, record::Epoch, session::Session};
use concordat_store::{Admin, AdminConfig, Config, ConnectError, Store, Tls, WatchEvent};
use concordat_tests::{
    etcd::{Etcd, Settings},
    process::{eventually, free_port},
};

use crate::{change, config, key};

#[tokio::test]
async fn certificates_are_asked_for_and_given() {
    let etcd = Etcd::with(Settings { tls: true, ..Settings::default() }).await.unwrap();
    let (ca, certificate, key) = etcd.client_identity().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let tls = Tls {
        ca: Some(file("ca.pem", ca)),
        identity: Some((file("client.pem", certificate), file("client.key", key))),
        server_name: None,
    };
    let with = |tls: Tls| Config { tls: Some(tls), ..config([etcd.endpoint(0)]) };
    let store = Store::connect(with(tls.clone())).await.unwrap();
    assert!(store.commit(change("a", 0)).await.unwrap().held);
    assert_eq!(store.count(Range::Locks).await.unwrap().0, 1);
    let nobody = Store::connect(with(Tls { identity: None, ..tls.clone() })).await;
    assert!(matches!(nobody, Err(ConnectError::Unreachable { .. })), "{nobody:?}");
    let missing = Store::connect(with(Tls { ca: Some(folder.path().join("missing")), ..tls })).await;
    assert!(matches!(missing, Err(ConnectError::File { .. })), "{missing:?}");
}

#[tokio::test]
async fn a_name_and_a_password_are_asked_for_and_given() {
    let etcd = Etcd::start().await.unwrap();
    etcd.require_password("concordat", "secret").await.unwrap();
    let with = |password: &str| Config {
        user: Some(("concordat".into(), password.into())),
        ..config([etcd.endpoint(0)])
    };
    let store = Store::connect(with("secret")).await.unwrap();
    assert!(store.commit(change("a", 0)).await.unwrap().held);
    let mut watch = store.watch(Range::Locks);
    assert_eq!(watch.next().await.len(), 1);
    let wrong = Store::connect(with("wrong")).await;
    assert!(matches!(wrong, Err(ConnectError::Unreachable { .. })), "{wrong:?}");
    let none = Store::connect(config([etcd.endpoint(0)])).await;
    assert!(none.is_err(), "{none:?}");
}

/// etcd's simple tokens do not outlive its process, nor do they outlive their time.
#[tokio::test]
async fn an_etcd_that_forgot_whom_it_let_in_is_told_again() {
    let mut etcd = Etcd::start().await.unwrap();
    etcd.require_password("concordat", "secret").await.unwrap();
    let user = Some(("concordat".into(), "secret".into()));
    let store =
        Store::connect(Config { user, session_ttl: 60_000, ..config([etcd.endpoint(0)]) }).await.unwrap();
    let session = store.session().id;
    let mut watch = store.watch(Range::Locks);
    etcd.kill(0).unwrap();
    etcd.spawn(0).unwrap();
    let put = Plan::new().put(key("a"), Epoch { holder: "us".into() }, Lease::Forever);
    let answer = eventually("the store is let in again", async || Ok(store.commit(put.clone()).await?)).await;
    let revision = answer.unwrap().revision;
    assert_eq!(store.session().id, session, "its session is the one it had");
    let there = |entry: &Entry| entry.mod_revision >= revision;
    let seen = |event: WatchEvent| match event {
        WatchEvent::Put(entry) => there(&entry),
        WatchEvent::Snapshot { entries, .. } => entries.iter().any(there),
        _ => false,
    };
    while !watch.next().await.into_iter().any(seen) {}
}

#[tokio::test]
async fn a_member_that_is_down_is_passed_over() {
    let etcd = Etcd::start().await.unwrap();
    let down = format!("http://127.0.0.1:{}", free_port().unwrap());
    for endpoints in [[down.clone(), etcd.endpoint(0)], [etcd.endpoint(0), down.clone()]] {
        let store = Store::connect(config(endpoints)).await.unwrap();
        assert!(store.count(Range::All).await.is_ok());
        store.close().await;
    }
    let nowhere = Store::connect(config([down])).await;
    assert!(matches!(nowhere, Err(ConnectError::Unreachable { .. })), "{nowhere:?}");
    let nothing = Store::connect(config([])).await;
    assert!(matches!(nothing, Err(ConnectError::Config(_))), "{nothing:?}");
}

#[tokio::test]
async fn whoever_looks_after_it_finds_every_namespace() {
    let etcd = Etcd::start().await.unwrap();
    let admin =
        Admin::connect(AdminConfig { endpoints: etcd.endpoints(), ..AdminConfig::default() }).await.unwrap();
    assert_eq!(admin.namespaces().await.unwrap(), Vec::<String>::new());
    let epoch = Plan::new().put(Key::Epoch, Epoch { holder: "operator".into() }, Lease::Forever);
    admin.write("", epoch).await.unwrap();
    for namespace in ["a", "a-b", "a0", "b", "b"] {
        let key = Key::Session(namespace.into());
        let session = Session { pod: String::new(), app: "a".into(), accepts: true };
        admin.write(namespace, Plan::new().put(key, session, Lease::Forever)).await.unwrap();
    }
    assert_eq!(admin.namespaces().await.unwrap(), ["a-b", "a", "a0", "b"]);
}
