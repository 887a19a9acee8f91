//! Namespaces as users of etcd: on a real etcd that knows its clients by certificates of the operator's authority, and a
//! Kubernetes of the test's own, for the operator looks after all of it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use concordat_crds::Lock;
use concordat_operator::{
    inject::{IDENTITY, INJECT},
    pki::Certificate,
};
use concordat_store::access;
use concordat_tests::{
    etcd::{Etcd, Settings},
    kube::Cluster,
    process::{eventually, free_port},
};
use etcd_client::{
    Certificate as Authority, Client, ConnectOptions, Error, Identity, Permission, TlsOptions, UserAddOptions,
};
use k8s_openapi::api::{
    core::v1::{Namespace, Pod, Secret},
    events::v1::Event,
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    injection::pod,
    world::{Operator, World},
};

/// A world whose etcd believes whom the operator's authority signed.
struct Guarded {
    world: World,
    /// Where etcd tells what it was asked.
    metrics: String,
    /// What etcd knows the operator by.
    root: TempDir,
}

impl Guarded {
    async fn start(cluster: &Cluster, namespace: &str) -> Self {
        let metrics = format!("http://127.0.0.1:{}", free_port().unwrap());
        let settings = Settings { tls: true, ..Settings::default() };
        let settings = settings.flag(format!("--listen-metrics-urls={metrics}"));
        let etcd = Etcd::with(settings).await.unwrap();
        let root = tempfile::tempdir().unwrap();
        etcd.issue(access::ROOT, root.path()).unwrap();
        let (certificate, key) = etcd.authority().unwrap();
        let authority = json!({
            "metadata": { "name": "ca" },
            "stringData": { "tls.crt": certificate, "tls.key": key, "ca.crt": certificate },
        });
        let world = World::on(etcd, cluster, namespace).await;
        let secrets: Api<Secret> = world.api();
        secrets.create(&PostParams::default(), &serde_json::from_value(authority).unwrap()).await.unwrap();
        Self { world, metrics, root }
    }

    /// An operator of all namespaces, or as these flags say besides.
    async fn operator(&self, more: &[&str]) -> Operator {
        let file =
            |flag: &str, name: &str| format!("--etcd-{flag}={}", self.root.path().join(name).display());
        let endpoints = self.world.etcd.endpoints().join(",");
        let files = [file("ca-file", "ca.crt"), file("cert-file", "tls.crt"), file("key-file", "tls.key")];
        let flags = ["--ca-secret=ca", "--identities", "--etcd-endpoints", &endpoints];
        let files = files.iter().map(String::as_str);
        let flags: Vec<&str> = flags.into_iter().chain(files).chain(more.iter().copied()).collect();
        let mut operator = self.world.operator_of("operator", self.world.kubeconfig(), &flags).await;
        operator.ready().await;
        operator
    }

    fn secrets(&self, namespace: &str) -> Api<Secret> {
        Api::namespaced(self.world.client.clone(), namespace)
    }

    /// Waits until a namespace has its Secret; answers what is in it.
    async fn served(&self, namespace: &str) -> BTreeMap<String, String> {
        eventually(&format!("{namespace} has an identity"), async || {
            let data = self.secrets(namespace).get(IDENTITY).await?.data.context("no data")?;
            let text =
                |(name, bytes): (String, k8s_openapi::ByteString)| Ok((name, String::from_utf8(bytes.0)?));
            let texts: BTreeMap<String, String> = data.into_iter().map(text).collect::<Result<_>>()?;
            let certificate = Certificate::read(&texts["tls.crt"])?;
            ensure!(certificate.common_name == access::user_of(namespace), "{certificate:?}");
            Ok(texts)
        })
        .await
        .unwrap()
    }

    /// etcd, as the sidecars of a namespace know it.
    async fn client(&self, identity: &BTreeMap<String, String>) -> Client {
        let tls = TlsOptions::new()
            .ca_certificate(Authority::from_pem(&identity["ca.crt"]))
            .identity(Identity::from_pem(&identity["tls.crt"], &identity["tls.key"]));
        let options = ConnectOptions::new().with_tls(tls);
        Client::connect(self.world.etcd.endpoints(), Some(options)).await.unwrap()
    }

    /// The users of etcd.
    async fn users(&self) -> Result<Vec<String>> {
        Ok(self.world.etcd.client().await?.user_list().await?.users().to_vec())
    }

    /// What a role may do: key, end of the range, and type.
    async fn permissions(&self, role: &str) -> Result<Vec<(Vec<u8>, Vec<u8>, i32)>> {
        let found = self.world.etcd.client().await?.role_get(role).await?.permissions();
        Ok(found.iter().map(|one| (one.key().to_vec(), one.range_end().to_vec(), one.get_type())).collect())
    }

    /// What etcd tells of itself: the lines of a metric that have this in them, summed.
    async fn metric(&self, name: &str, has: &str) -> Result<u64> {
        let text = reqwest::get(format!("{}/metrics", self.metrics)).await?.text().await?;
        let lines = text.lines().filter(|line| line.starts_with(name) && line.contains(has));
        let values = lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
        Ok(values.sum::<f64>() as u64)
    }

    /// How often etcd has answered a request about users.
    async fn asked(&self, method: &str) -> Result<u64> {
        self.metric("grpc_server_handled_total", &format!("grpc_method=\"{method}\"")).await
    }
}

/// A namespace with labels.
async fn namespace(cluster: &Cluster, test: &str, labels: Value) -> String {
    let name = cluster.namespace(test).await.unwrap().name().to_owned();
    let patch = Patch::Merge(json!({ "metadata": { "labels": labels } }));
    let api: Api<Namespace> = Api::all(cluster.client().await.unwrap());
    api.patch(&name, &PatchParams::default(), &patch).await.unwrap();
    name
}

#[tokio::test]
async fn a_namespace_that_uses_it_is_a_user_of_etcd_from_then_on_until_it_is_gone() {
    let test = "a_namespace_that_uses_it_is_a_user_of_etcd_from_then_on_until_it_is_gone";
    let cluster = Cluster::start().await.unwrap();
    let system = namespace(&cluster, test, json!({})).await;
    let guarded = Guarded::start(&cluster, &system).await;
    let client = &guarded.world.client;
    // Others' users, of names that are nearly ours.
    let mut root = guarded.world.etcd.client().await.unwrap();
    let others = ["backup", "concordat", "concordat-a", "xconcordat:a"];
    for other in others {
        root.role_add(other).await.unwrap();
        root.role_grant_permission(other, Permission::read("\0").with_from_key()).await.unwrap();
        root.user_add(other, "", Some(UserAddOptions::new().with_no_pwd())).await.unwrap();
        root.user_grant_role(other, other).await.unwrap();
    }
    // One of which there is no namespace any more.
    let gone = access::user_of("gone-long-ago");
    root.user_add(gone.clone(), "", Some(UserAddOptions::new().with_no_pwd())).await.unwrap();
    let _operator = guarded.operator(&[]).await;

    let idle = namespace(&cluster, test, json!({})).await;
    let refuses = namespace(&cluster, test, json!({ INJECT: "disabled" })).await;
    let labelled = namespace(&cluster, test, json!({ INJECT: "enabled" })).await;
    // A pod is let in before its namespace has anything: the kubelet waits for the Secret.
    let with_pod = namespace(&cluster, test, json!({})).await;
    let asks = pod("asks", json!({ "labels": { "app": "bank", INJECT: "enabled" } }));
    let pods: Api<Pod> = Api::namespaced(client.clone(), &with_pod);
    pods.create(&PostParams::default(), &asks).await.unwrap();
    let with_object = namespace(&cluster, test, json!({})).await;
    let lock = json!({
        "apiVersion": "concordat.dev/v1alpha1", "kind": "Lock", "metadata": { "name": "orders" },
        "spec": { "mode": "CompareAndSwap" },
    });
    let locks: Api<Lock> = Api::namespaced(client.clone(), &with_object);
    locks.create(&PostParams::default(), &serde_json::from_value(lock).unwrap()).await.unwrap();
    for name in [&labelled, &with_pod, &with_object] {
        let mut own = guarded.client(&guarded.served(name).await).await;
        // etcd may say first that users have changed meanwhile.
        eventually("its own it may write", async || {
            Ok(own.put(format!("/concordat/{name}/probe"), "", None).await.map(drop)?)
        })
        .await
        .unwrap();
        eventually("elsewhere it is denied", async || {
            match own.put(format!("/concordat/{idle}/probe"), "", None).await {
                Ok(_) => panic!("{name} writes for {idle}"),
                Err(Error::GRpcStatus(status)) if status.message().contains("permission denied") => Ok(()),
                Err(error) => bail!("{error}"),
            }
        })
        .await
        .unwrap();
    }
    // None of those who ask for nothing has a user; all that was there before is as it was.
    let users = guarded.users().await.unwrap();
    for name in [&idle, &refuses, &system] {
        assert!(!users.contains(&access::user_of(name)), "{users:?}");
        assert!(guarded.secrets(name).get_opt(IDENTITY).await.unwrap().is_none(), "{name}");
    }
    assert!(!users.contains(&gone), "{users:?}");

    // Whose Secret has another owner is told so, and keeps nobody from theirs.
    let taken = cluster.namespace(test).await.unwrap().name().to_owned();
    let foreign = json!({ "metadata": { "name": IDENTITY }, "stringData": { "a": "b" } });
    let foreign: Secret = serde_json::from_value(foreign).unwrap();
    guarded.secrets(&taken).create(&PostParams::default(), &foreign).await.unwrap();
    label(&guarded.world, &taken, json!({ INJECT: "enabled" })).await;
    let events: Api<Event> = Api::namespaced(client.clone(), &taken);
    eventually("it is told", async || {
        let told = events.list(&ListParams::default()).await?.items;
        let of = |event: &Event| {
            let secret = event.regarding.as_ref().and_then(|of| of.name.as_deref()) == Some(IDENTITY);
            let note = event.note.as_deref().unwrap_or_default();
            secret
                && event.type_.as_deref() == Some("Warning")
                && note.contains("was not made by the operator")
        };
        ensure!(told.iter().any(of), "told: {told:?}");
        Ok(())
    })
    .await
    .unwrap();
    let late = namespace(&cluster, test, json!({ INJECT: "enabled" })).await;
    guarded.served(&late).await;
    let kept = guarded.secrets(&taken).get(IDENTITY).await.unwrap();
    assert!(kept.data.unwrap().contains_key("a"), "it is another's");
    guarded.secrets(&taken).delete(IDENTITY, &DeleteParams::default()).await.unwrap();
    guarded.served(&taken).await;

    // A namespace that asks no more keeps its user, and goes with it.
    label(&guarded.world, &labelled, json!({ INJECT: null })).await;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces.delete(&late, &DeleteParams::default()).await.unwrap();
    finalize(&guarded.world, &late).await;
    eventually("its user is gone with it, and what the user may do", async || {
        let (users, roles) = (guarded.users().await?, root.clone().role_list().await?.roles().to_vec());
        let gone = access::user_of(&late);
        ensure!(!users.contains(&gone) && !roles.contains(&gone), "{users:?} {roles:?}");
        Ok(())
    })
    .await
    .unwrap();
    let users = guarded.users().await.unwrap();
    assert!(users.contains(&access::user_of(&labelled)), "{users:?}");
    for other in others {
        assert!(users.iter().any(|user| user == other), "{other}: {users:?}");
        assert_eq!(guarded.permissions(other).await.unwrap().len(), 1, "{other}");
    }
}

/// Labels a namespace.
async fn label(world: &World, namespace: &str, labels: Value) {
    let patch = Patch::Merge(json!({ "metadata": { "labels": labels } }));
    let api: Api<Namespace> = Api::all(world.client.clone());
    api.patch(namespace, &PatchParams::default(), &patch).await.unwrap();
}

/// Does what Kubernetes' controller does once nothing is left in a namespace that was deleted.
async fn finalize(world: &World, name: &str) {
    let api: Api<Namespace> = Api::all(world.client.clone());
    let mut namespace = api.get(name).await.unwrap();
    namespace.spec.as_mut().unwrap().finalizers = Some(Vec::new());
    let _: Namespace =
        api.replace_subresource("finalize", name, &PostParams::default(), &namespace).await.unwrap();
}

#[tokio::test]
async fn what_somebody_changed_is_put_right_and_a_pass_that_finds_nothing_writes_nothing() {
    let test = "what_somebody_changed_is_put_right_and_a_pass_that_finds_nothing_writes_nothing";
    let cluster = Cluster::start().await.unwrap();
    let system = namespace(&cluster, test, json!({})).await;
    let guarded = Guarded::start(&cluster, &system).await;
    let mut names = Vec::new();
    for _ in 0..4 {
        names.push(namespace(&cluster, test, json!({ INJECT: "enabled" })).await);
    }
    let _operator = guarded.operator(&[]).await;
    let mut identities = Vec::new();
    for name in &names {
        identities.push(guarded.served(name).await);
    }
    // A pass looks at all of them, and at root.
    const WRITES: [&str; 9] = [
        "UserAdd",
        "UserDelete",
        "UserGrantRole",
        "UserRevokeRole",
        "RoleAdd",
        "RoleDelete",
        "RoleGrantPermission",
        "RoleRevokePermission",
        "UserChangePassword",
    ];
    let writes = async || {
        let mut sum = 0;
        for method in WRITES {
            sum += guarded.asked(method).await.unwrap();
        }
        sum
    };
    let (wrote, looked) = (writes().await, guarded.asked("RoleGet").await.unwrap());
    let revision = guarded.metric("etcd_debugging_auth_revision", "").await.unwrap();
    assert!(wrote > 0 && revision > 0);
    eventually("a pass has come", async || {
        let looks = guarded.asked("RoleGet").await? - looked;
        ensure!(looks >= 5, "it has looked {looks} times");
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(writes().await, wrote);
    assert_eq!(guarded.metric("etcd_debugging_auth_revision", "").await.unwrap(), revision);

    let mut root = guarded.world.etcd.client().await.unwrap();
    let [wide, high, lost, bare] = [0, 1, 2, 3].map(|of: usize| access::user_of(&names[of]));
    let all = Permission::read("/concordat/").with_prefix();
    root.role_grant_permission(wide.clone(), all).await.unwrap();
    root.user_grant_role(high.clone(), "root").await.unwrap();
    root.user_delete(lost.clone()).await.unwrap();
    root.role_delete(bare.clone()).await.unwrap();
    guarded.secrets(&names[0]).delete(IDENTITY, &DeleteParams::default()).await.unwrap();
    // And nobody need show who they are.
    root.auth_disable().await.unwrap();
    eventually("all is as it was", async || {
        let elsewhere = format!("/concordat/{}/", names[1]);
        match guarded.client(&identities[0]).await.get(elsewhere, None).await {
            Err(Error::GRpcStatus(status)) if status.message().contains("permission denied") => {}
            other => bail!("{other:?}"),
        }
        for (name, identity) in names.iter().zip(&identities) {
            let user = access::user_of(name);
            let own = format!("/concordat/{name}/");
            let permissions = guarded.permissions(&user).await?;
            ensure!(permissions.len() == 1 && permissions[0].0 == own.as_bytes(), "{user}: {permissions:?}");
            let roles = guarded.world.etcd.client().await?.user_get(user.clone()).await?.roles().to_vec();
            ensure!(roles == [user], "{roles:?}");
            guarded.client(identity).await.put(format!("{own}probe"), "", None).await?;
        }
        Ok(())
    })
    .await
    .unwrap();
    guarded.served(&names[0]).await;
}

#[tokio::test]
async fn an_operator_of_one_namespace_leaves_all_others_alone() {
    let test = "an_operator_of_one_namespace_leaves_all_others_alone";
    let cluster = Cluster::start().await.unwrap();
    let guarded = Guarded::start(&cluster, &namespace(&cluster, test, json!({})).await).await;
    let [own, other] = [
        namespace(&cluster, test, json!({})).await,
        namespace(&cluster, test, json!({ INJECT: "enabled" })).await,
    ];
    // Another operator's on the same etcd.
    let mut root = guarded.world.etcd.client().await.unwrap();
    let theirs = access::user_of("elsewhere");
    root.user_add(theirs.clone(), "", Some(UserAddOptions::new().with_no_pwd())).await.unwrap();
    let _operator = guarded.operator(&["--namespace", &own]).await;
    label(&guarded.world, &own, json!({ INJECT: "enabled" })).await;
    guarded.served(&own).await;
    let users = guarded.users().await.unwrap();
    assert!(users.contains(&theirs) && !users.contains(&access::user_of(&other)), "{users:?}");
    assert!(guarded.secrets(&other).get_opt(IDENTITY).await.unwrap().is_none());
}
