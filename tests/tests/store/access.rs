//! Who may do what in etcd: users by their certificates, and the wall around a namespace.

use std::path::Path;

use anyhow::anyhow;
use concordat_protocol::{Entry, Lease, Plan, Range, record::Epoch};
use concordat_store::{
    Admin, AdminConfig, CommitError, Config, ConnectError, NotIsolated, Store, Tls, WatchEvent, access,
};
use concordat_tests::{
    etcd::{Etcd, Settings},
    process::eventually,
};
use etcd_client::{
    AlarmAction, AlarmType, Client, Compare, CompareOp, DeleteOptions, Error, GetOptions,
    LeaseTimeToLiveOptions, Permission, PutOptions, Txn, TxnOp, WatchOptions,
};
use tempfile::TempDir;

use crate::{acquire, change, config, key};

/// An etcd that knows users, and its root.
async fn guarded() -> (Etcd, Admin) {
    let etcd = Etcd::with(Settings { tls: true, ..Settings::default() }).await.unwrap();
    let admin = root(&etcd).await;
    admin.require_users().await.unwrap();
    (etcd, admin)
}

async fn root(etcd: &Etcd) -> Admin {
    let (_folder, tls) = identity(etcd, access::ROOT);
    let config = AdminConfig { endpoints: etcd.endpoints(), tls: Some(tls), ..AdminConfig::default() };
    Admin::connect(config).await.unwrap()
}

fn files(folder: &Path) -> Tls {
    let file = |name: &str| folder.join(name);
    Tls { ca: Some(file("ca.crt")), identity: Some((file("tls.crt"), file("tls.key"))), server_name: None }
}

fn identity(etcd: &Etcd, user: &str) -> (TempDir, Tls) {
    let folder = tempfile::tempdir().unwrap();
    etcd.issue(user, folder.path()).unwrap();
    let tls = files(folder.path());
    (folder, tls)
}

/// The configuration of a sidecar in a namespace, with the certificate of a user.
fn within(etcd: &Etcd, namespace: &str, tls: &Tls) -> Config {
    Config {
        namespace: namespace.into(),
        tls: Some(tls.clone()),
        isolated: true,
        ..config([etcd.endpoint(0)])
    }
}

fn breached(opened: Result<Store, ConnectError>) -> NotIsolated {
    match opened {
        Err(ConnectError::NotIsolated(breached)) => breached,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_namespace_s_user_does_all_that_a_sidecar_does_and_nothing_beyond() {
    let (etcd, admin) = guarded().await;
    assert!(admin.admit("a").await.unwrap());
    assert!(!admin.admit("a").await.unwrap(), "it is as it should be");
    let (_folder, tls) = identity(&etcd, &access::user_of("a"));
    let store = Store::connect(within(&etcd, "a", &tls)).await.unwrap();
    let mut watch = store.watch(Range::All);
    assert!(!watch.next().await.is_empty());
    let session = store.session().id;
    assert!(store.commit(acquire(&session, "leased")).await.unwrap().held);
    assert!(store.commit(change("kept", 0)).await.unwrap().held);
    assert!(store.space().await.unwrap().quota > 0);
    assert_eq!(store.count(Range::Locks).await.unwrap().0, 2);
    // Its certificate is good for no other namespace, proven or not.
    for isolated in [true, false] {
        let elsewhere = Config { isolated, request_timeout: 500, ..within(&etcd, "b", &tls) };
        let refused = Store::connect(elsewhere).await.unwrap_err();
        assert!(
            matches!(refused, ConnectError::Unreachable { .. } | ConnectError::NotIsolated(_)),
            "{refused}"
        );
    }
    store.close().await;
}

#[tokio::test]
async fn without_authentication_nobody_is_isolated() {
    let etcd = Etcd::start().await.unwrap();
    let open = Config { isolated: true, ..config([etcd.endpoint(0)]) };
    let breached = breached(Store::connect(open).await);
    assert!(!breached.refuses_plain);
    assert_eq!(breached.allowed.len(), 27, "{breached}");
    assert!(breached.to_string().contains("turn etcd's authentication on"), "{breached}");
    let client = etcd.client().await.unwrap();
    let left = client.kv_client().get("\0", Some(GetOptions::new().with_from_key())).await.unwrap();
    assert_eq!(left.count(), 0, "what was allowed changed nothing");
}

/// The bug that is planted: a role that reaches further than its namespace, in each of the ways in which one may.
#[tokio::test]
async fn a_role_that_is_too_wide_is_found_and_repaired() {
    let (etcd, admin) = guarded().await;
    let (_folder, tls) = identity(&etcd, &access::user_of("a"));
    let mut auth = etcd.client().await.unwrap().auth_client();
    for too_wide in [
        Permission::read_write("/concordat/").with_prefix(),
        Permission::read("/concordat/").with_prefix(),
        Permission::read_write("/concordat/a").with_prefix(),
        Permission::read_write("/concordat/a/").with_from_key(),
        Permission::read_write("/concordat/-/").with_prefix(),
        Permission::write("\0").with_from_key(),
        Permission::read("\0").with_from_key(),
    ] {
        assert!(admin.admit("a").await.unwrap());
        auth.role_grant_permission(access::user_of("a"), too_wide.clone()).await.unwrap();
        let breached = breached(Store::connect(within(&etcd, "a", &tls)).await);
        assert!(breached.to_string().contains("readwrite on /concordat/a/"), "{too_wide:?}: {breached}");
        assert!(admin.admit("a").await.unwrap(), "repaired");
        assert!(!admin.admit("a").await.unwrap());
        Store::connect(within(&etcd, "a", &tls)).await.unwrap().close().await;
        assert!(admin.dismiss("a").await.unwrap());
    }
    // A further role of the user, and its own gone.
    admin.admit("a").await.unwrap();
    auth.user_grant_role(access::user_of("a"), "root").await.unwrap();
    auth.user_revoke_role(access::user_of("a"), access::user_of("a")).await.unwrap();
    breached(Store::connect(within(&etcd, "a", &tls)).await);
    assert!(admin.admit("a").await.unwrap());
    Store::connect(within(&etcd, "a", &tls)).await.unwrap().close().await;
}

#[tokio::test]
async fn users_come_and_go_however_often_and_by_whomever_it_is_asked() {
    let (etcd, admin) = guarded().await;
    let other = root(&etcd).await;
    for _ in 0..2 {
        let both = futures::future::join4(
            admin.require_users(),
            other.require_users(),
            admin.admit("a"),
            other.admit("a"),
        );
        let (first, second, one, two) = both.await;
        first.and(second).unwrap();
        one.and(two).unwrap();
    }
    admin.admit("b-c").await.unwrap();
    let known = async || admin.admitted().await.unwrap().into_iter().collect::<Vec<_>>();
    assert_eq!(known().await, [("a".into(), true), ("b-c".into(), true)]);
    assert!(admin.dismiss("a").await.unwrap());
    assert!(!other.dismiss("a").await.unwrap());
    assert_eq!(known().await, [("b-c".into(), true)]);
    etcd.client().await.unwrap().user_delete(access::user_of("b-c")).await.unwrap();
    assert_eq!(known().await, [("b-c".into(), false)]);
    let (_folder, tls) = identity(&etcd, &access::user_of("a"));
    let gone = Store::connect(Config { request_timeout: 500, ..within(&etcd, "a", &tls) }).await;
    assert!(gone.is_err(), "{gone:?}");
}

/// What another's certificate may not do in etcd, asked as anybody could who has one.
#[tokio::test]
async fn a_tenant_can_neither_read_nor_write_another_s_keys() {
    let (etcd, admin) = guarded().await;
    for namespace in ["a", "b"] {
        admin.admit(namespace).await.unwrap();
    }
    let (_of_b, tls) = identity(&etcd, &access::user_of("b"));
    let victim = Store::connect(within(&etcd, "b", &tls)).await.unwrap();
    victim.commit(change("key", 0)).await.unwrap();
    let leases = etcd.client().await.unwrap().leases().await.unwrap();
    let victim_lease = leases.leases()[0].id();
    let (of_a, _) = identity(&etcd, &access::user_of("a"));
    let mut hostile = client(&etcd, of_a.path()).await;
    let key = "/concordat/b/lock/lock/key/holder";
    let put = |options| TxnOp::put(key, "mine", options);
    let range = || Some(GetOptions::new().with_prefix());
    denied("get", hostile.get(key, None).await);
    denied("range", hostile.get("/concordat/b/", range()).await);
    denied("everything", hostile.get("\0", Some(GetOptions::new().with_from_key())).await);
    denied("from its own on", hostile.get("/concordat/a/", Some(GetOptions::new().with_from_key())).await);
    denied("put", hostile.put(key, "mine", None).await);
    denied("delete", hostile.delete(key, Some(DeleteOptions::new().with_prev_key())).await);
    for (what, inner) in [
        ("get", TxnOp::get("/concordat/b/", range())),
        ("put", put(None)),
        ("PrevKv", put(Some(PutOptions::new().with_prev_key()))),
        ("delete", TxnOp::delete(key, Some(DeleteOptions::new().with_prev_key()))),
    ] {
        denied(what, hostile.txn(Txn::new().and_then([inner.clone()])).await);
        denied(what, hostile.txn(Txn::new().or_else([inner.clone()])).await);
        let nested = TxnOp::txn(Txn::new().and_then([TxnOp::txn(Txn::new().or_else([inner]))]));
        denied(what, hostile.txn(Txn::new().and_then([nested])).await);
    }
    denied("compare", hostile.txn(Txn::new().when([Compare::version(key, CompareOp::Greater, 0)])).await);
    for (from, options) in [
        (key, WatchOptions::new()),
        ("/concordat/b/", WatchOptions::new().with_prefix()),
        ("/concordat/a/", WatchOptions::new().with_from_key()),
        ("\0", WatchOptions::new().with_from_key()),
    ] {
        let mut stream = hostile.watch(from, Some(options)).await.unwrap();
        let answer = stream.message().await.unwrap().unwrap();
        assert!(answer.canceled(), "{answer:?}");
    }
    // A key of its own under another's lease would go with that lease, and its other keys be told to whoever asks for it.
    let attached = PutOptions::new().with_lease(victim_lease);
    denied("another's lease", hostile.put("/concordat/a/x", "", Some(attached)).await);
    let own = hostile.lease_grant(60, None).await.unwrap().id();
    denied("a leased put", hostile.put(key, "mine", Some(PutOptions::new().with_lease(own))).await);
    let in_its_own = TxnOp::put("/concordat/a/x", "", Some(PutOptions::new().with_lease(victim_lease)));
    let nested = TxnOp::txn(Txn::new().and_then([in_its_own]));
    denied("another's lease in a transaction", hostile.txn(Txn::new().and_then([nested])).await);
    denied("revoke", hostile.lease_revoke(victim_lease).await);
    denied("keep alive", hostile.lease_keep_alive(victim_lease).await);
    let with_keys = LeaseTimeToLiveOptions::new().with_keys();
    denied("whose lease it is", hostile.lease_time_to_live(victim_lease, Some(with_keys)).await);
    denied("leases", hostile.leases().await);
    denied("compact", hostile.compact(2, None).await);
    denied("defragment", hostile.defragment().await);
    denied("hash", hostile.hash_kv(0).await);
    denied("snapshot", hostile.snapshot().await.unwrap().message().await);
    denied("users", hostile.user_list().await);
    denied("let in", hostile.user_grant_role(access::user_of("a"), "root").await);
    denied("turn it off", hostile.auth_disable().await);
    // What etcd keeps from nobody who has a certificate of its authority; docs/security.md says so.
    assert!(hostile.status().await.unwrap().db_size() > 0);
    assert_eq!(hostile.member_list().await.unwrap().members().len(), 1);
    assert!(hostile.lease_time_to_live(victim_lease, None).await.unwrap().ttl() > 0);
    assert!(hostile.alarm(AlarmAction::Get, AlarmType::None, None).await.unwrap().alarms().is_empty());
    assert_eq!(victim.count(Range::Locks).await.unwrap().0, 1);
}

/// Namespaces come and go all the time, and each time etcd refuses what is on its way.
#[tokio::test]
async fn permissions_that_change_fail_nobody_s_request() {
    let (etcd, admin) = guarded().await;
    admin.admit("a").await.unwrap();
    let (_folder, tls) = identity(&etcd, &access::user_of("a"));
    let store = Store::connect(within(&etcd, "a", &tls)).await.unwrap();
    let changing = async {
        for number in 0..20 {
            admin.admit(&format!("n{number}")).await.unwrap();
        }
    };
    let writing = async |name: &str| {
        let mut revision = 0;
        loop {
            revision = store.commit(change(name, revision)).await.unwrap().revision;
        }
    };
    let reading = async || {
        loop {
            store.read(vec![Range::Locks]).await.unwrap();
            store.list_keys(Range::All).await.unwrap();
        }
    };
    tokio::select! {
        () = changing => {}
        () = writing("x") => {}
        () = writing("y") => {}
        () = reading() => {}
        () = reading() => {}
    }
}

#[tokio::test]
async fn certificates_that_are_renewed_in_their_files_are_used_without_a_restart() {
    let (mut etcd, admin) = guarded().await;
    admin.admit("a").await.unwrap();
    let (folder, tls) = identity(&etcd, &access::user_of("a"));
    let patient = Config { session_ttl: 300_000, request_timeout: 1_000, ..within(&etcd, "a", &tls) };
    let store = Store::connect(patient).await.unwrap();
    let session = store.session().id;
    let put = || Plan::new().put(key("a"), Epoch { holder: "us".into() }, Lease::Forever);
    store.commit(put()).await.unwrap();
    let mut watch = store.watch(Range::Locks);
    // Another's identity in the files: nothing cuts the connection, and etcd soon knows it for that other.
    etcd.issue("stranger", folder.path()).unwrap();
    eventually("etcd sees who asks now", async || match store.commit(put()).await {
        Err(CommitError::NotApplied(why)) if why == "etcd's user may not do this" => Ok(()),
        other => Err(anyhow!("{other:?}")),
    })
    .await
    .unwrap();
    etcd.issue(&access::user_of("a"), folder.path()).unwrap();
    eventually("it is let in again", async || Ok(store.commit(put()).await?)).await.unwrap();
    // Another authority: all that the old one signed is refused from then on.
    etcd.replace_authority().unwrap();
    etcd.kill(0).unwrap();
    etcd.restart(0).await.unwrap();
    let refused = Store::connect(Config { request_timeout: 1_000, ..within(&etcd, "a", &tls) }).await;
    assert!(matches!(refused, Err(ConnectError::Unreachable { .. })), "{refused:?}");
    assert!(store.commit(put()).await.is_err());
    // While a pair is being replaced it does not fit: nothing comes of that.
    let new = tempfile::tempdir().unwrap();
    etcd.issue(&access::user_of("a"), new.path()).unwrap();
    for name in ["tls.crt", "ca.crt", "tls.key"] {
        std::fs::copy(new.path().join(name), folder.path().join(name)).unwrap();
    }
    let answer = eventually("the new ones are used", async || Ok(store.commit(put()).await?)).await;
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

fn denied<T: std::fmt::Debug>(what: &str, result: Result<T, Error>) {
    match result {
        Err(Error::GRpcStatus(status)) if status.message() == "etcdserver: permission denied" => {}
        other => panic!("{what}: {other:?}"),
    }
}

async fn client(etcd: &Etcd, folder: &Path) -> Client {
    use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};
    let file = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let tls = TlsOptions::new()
        .ca_certificate(Certificate::from_pem(file("ca.crt")))
        .identity(Identity::from_pem(file("tls.crt"), file("tls.key")));
    Client::connect(etcd.endpoints(), Some(ConnectOptions::new().with_tls(tls))).await.unwrap()
}
