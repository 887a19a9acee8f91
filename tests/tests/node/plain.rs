//! Without Helm's hand on it: `kubectl apply` of the definitions and of what the chart says, with three members of etcd
//! of which one goes, all roll, and all get another authority.

use std::{collections::BTreeMap, rc::Rc};

use anyhow::{Context, Result, ensure};
use concordat_tests::{
    node::{Node, is_ready, until},
    process::eventually,
};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt};
use tokio::task::LocalSet;

use crate::{
    bank::Bank,
    installation::{CHART, Installation, PLAIN, RELEASE, set},
    kubectl::Plugin,
    renewal::{distrust, patiently, texts},
    traffic::{Held, Traffic},
};

const CRDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../crds/");
/// What a cluster of one small node has not got: three nodes, and room.
const SMALL: [&str; 5] = [
    "etcd.affinity=null",
    "etcd.persistence.size=8Gi",
    "etcd.resources.requests.cpu=50m",
    "etcd.resources.requests.memory=128Mi",
    // Longer than the kubelet takes to bring a Secret to a pod.
    "pki.operator.turnPause=30s",
];

#[tokio::test]
async fn plain_manifests_bring_three_members_and_take_all_away() -> Result<()> {
    LocalSet::new().run_until(story()).await
}

async fn story() -> Result<()> {
    let node = Node::shared().await?;
    let plugin = Plugin::new(node)?;
    let installation = Installation::begin(node, PLAIN).await?;
    node.kubectl(&["apply", "--filename", CRDS]).await?;
    apply(&installation, &manifests(&installation, &[]).await?).await?;
    for what in ["statefulset/concordat-etcd", "deployment/concordat-operator"] {
        installation.rolled_out(what).await?;
    }
    let bank = Rc::new(Bank::open(node).await?);
    plugin.finds_all_well(&["operator", "webhook", "etcd members", "etcd"]).await?;
    plugin.finds("ok", "etcd members", "3 of 3 ready").await?;
    plugin.finds("ok", "operator", "3 of 3 ready").await?;

    let mut made = BTreeMap::new();
    members_go(&installation, &bank, &mut made).await?;
    authority_turns(&installation, &bank, &mut made).await?;
    plugin.finds("ok", "etcd members", "3 of 3 ready").await?;

    take_away(&installation).await?;
    installation.left_nothing().await?;
    node.kubectl(&["delete", "--filename", CRDS, "--timeout=2m"]).await?;
    for namespace in [bank.namespace.name(), PLAIN] {
        node.kubectl(&["delete", "namespace", namespace, "--timeout=3m"]).await?;
    }
    Ok(())
}

/// What the chart says, but for what only Helm knows when to make.
async fn manifests(installation: &Installation<'_>, values: &[&str]) -> Result<String> {
    template(installation, &[&["--no-hooks"][..], &set(values)].concat()).await
}

async fn template(installation: &Installation<'_>, more: &[&str]) -> Result<String> {
    let of_three = format!("{CHART}/values-ha.yaml");
    let arguments = ["template", RELEASE, CHART, "--namespace", PLAIN, "--values", &of_three];
    // They were applied by themselves.
    let values = set(&["crds.enabled=false"]);
    installation.node.helm(&[&arguments[..], &values, &set(&SMALL), more].concat()).await
}

async fn apply(installation: &Installation<'_>, manifests: &str) -> Result<()> {
    let applied = installation.node.kubectl_reads(&["apply", "--filename", "-"], manifests).await;
    applied.with_context(|| installation.look()).map(drop)
}

/// One member is killed, then each gives way to another of a new revision. The bank goes on, and what it holds it holds.
async fn members_go(
    installation: &Installation<'_>,
    bank: &Rc<Bank>,
    made: &mut BTreeMap<String, i64>,
) -> Result<()> {
    let held = Held::take(bank).await?;
    let traffic = Traffic::start(bank, "members");
    traffic.goes_on(2).await?;
    let members: Api<Pod> = Api::namespaced(installation.node.client().await?, PLAIN);
    let killed = members.get("concordat-etcd-1").await?.uid();
    installation.kubectl(&["delete", "pod", "concordat-etcd-1", "--grace-period=0", "--force"]).await?;
    traffic.goes_on(2).await?;
    let is_back = |pod: Option<&Pod>| is_ready(pod) && pod.is_some_and(|pod| pod.uid() != killed);
    until(&members, "concordat-etcd-1", "is back", is_back).await?;

    apply(installation, &manifests(installation, &["etcd.podAnnotations.revision=next"]).await?).await?;
    installation.rolled_out("statefulset/concordat-etcd").await?;
    for member in 0..3 {
        let pod = members.get(&format!("concordat-etcd-{member}")).await?;
        ensure!(pod.annotations().get("revision").is_some_and(|of| of == "next"), "{member} is of before");
    }
    // The webhook is trusted still.
    bank.roll("worker").await?;
    traffic.goes_on(2).await?;
    held.let_go(bank).await?;
    traffic.holds(made).await
}

/// Somebody asks for another authority: members are started anew for it one by one, and two of three go on all the time.
async fn authority_turns(
    installation: &Installation<'_>,
    bank: &Rc<Bank>,
    made: &mut BTreeMap<String, i64>,
) -> Result<()> {
    let held = Held::take(bank).await?;
    let traffic = Traffic::start(bank, "authority");
    let members: Api<Pod> = Api::namespaced(installation.node.client().await?, PLAIN);
    let uids = async || {
        let of = async |member| anyhow::Ok(members.get(&format!("concordat-etcd-{member}")).await?.uid());
        anyhow::Ok([of(0).await?, of(1).await?, of(2).await?])
    };
    let before = uids().await?;
    let old = texts(installation, PLAIN, "concordat-ca").await?;
    distrust(installation).await?;
    patiently("another one alone is trusted", async || {
        let ca = texts(installation, PLAIN, "concordat-ca").await?;
        ensure!(ca["tls.crt"] != old["tls.crt"] && ca["ca.crt"] == ca["tls.crt"], "it is not");
        Ok(())
    })
    .await?;
    // For it alone they are started once more.
    installation.rolled_out("statefulset/concordat-etcd").await?;
    traffic.goes_on(3).await?;
    let after = uids().await?;
    ensure!(before.iter().zip(&after).all(|(before, after)| before != after), "{before:?} are still there");
    held.let_go(bank).await?;
    traffic.holds(made).await
}

/// As the chart's README says: what only Helm knows when to do is done by hand.
async fn take_away(installation: &Installation<'_>) -> Result<()> {
    let job = template(installation, &["--show-only", "templates/uninstall/job.yaml"]).await?;
    // While operators look after objects it does nothing.
    apply(installation, &job).await?;
    eventually("it says why", async || {
        let said = installation.kubectl(&["logs", "job/concordat-uninstall"]).await?;
        ensure!(said.contains("delete its Deployment first"), "{said}");
        Ok(())
    })
    .await?;
    installation.node.kubectl_reads(&["delete", "--filename", "-"], &job).await?;
    let authority = installation.kubectl(&["get", "secret", "concordat-ca"]).await?;
    ensure!(authority.contains("concordat-ca"), "{authority}");

    let manifests = manifests(installation, &[]).await?;
    installation.node.kubectl_reads(&["delete", "--filename", "-", "--timeout=3m"], &manifests).await?;
    apply(installation, &job).await?;
    let done = ["wait", "--for=condition=complete", "job/concordat-uninstall", "--timeout=3m"];
    installation.kubectl(&done).await.with_context(|| installation.look())?;
    installation.node.kubectl_reads(&["delete", "--filename", "-"], &job).await.map(drop)
}
