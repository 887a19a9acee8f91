//! What happens to a cluster in its life, while the bank is at work.

use std::{collections::BTreeMap, fs, path::PathBuf, process::Command, rc::Rc};

use anyhow::{Context, Result, bail, ensure};
use concordat_tests::{
    node::{is_ready, until},
    process::eventually,
};
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::api::ListParams;
use serde_json::{Value, json};

use crate::{
    bank::{Bank, shell},
    installation::Installation,
    kubectl::Plugin,
    traffic::{Held, Traffic},
};

/// Memory in which a container can be started, and a sidecar not.
const TOO_LITTLE: &str = "6Mi";

type Made = BTreeMap<String, i64>;

/// New pods of the apps, sidecars of another image, new operators, a new revision of the chart.
pub(crate) async fn rolls(installation: &Installation<'_>, bank: &Rc<Bank>, made: &mut Made) -> Result<()> {
    let held = Held::take(bank).await?;
    let traffic = Traffic::start(bank, "rolls");
    for app in ["accounts", "ledger", "worker"] {
        bank.roll(app).await?;
        traffic.goes_on(1).await?;
    }
    let image = concat!("concordat.test/sidecar:", env!("CARGO_PKG_VERSION"));
    let annotations = json!({"config.concordat.dev/image": image});
    let patch = json!({"spec": {"template": {"metadata": {"annotations": annotations}}}}).to_string();
    bank.namespace.kubectl(&["patch", "deployment/accounts", "--patch", &patch]).await?;
    bank.rolled_out("accounts").await?;
    ensure!(sidecar(bank, "accounts").await?.image == image, "the sidecar is another");
    traffic.goes_on(1).await?;
    installation.kubectl(&["rollout", "restart", "deployment/concordat-operator"]).await?;
    installation.kubectl(&["rollout", "status", "deployment/concordat-operator", "--timeout=3m"]).await?;
    traffic.goes_on(1).await?;
    installation.upgrade(&["operator.log=debug", "etcd.log=info"]).await?;
    traffic.goes_on(1).await?;
    // Members that come later would be another cluster.
    let more = installation.upgrade(&["etcd.replicas=3"]).await.err().context("etcd has more members now")?;
    ensure!(format!("{more:#}").contains("cannot be changed from 1 to 3"), "{more:#}");
    traffic.goes_on(1).await?;
    held.let_go(bank).await?;
    traffic.holds(made).await
}

/// Without an operator pods go on, also when etcd or a sidecar is killed; a pod that asks for a sidecar waits for it to come
/// back, any other does not.
pub(crate) async fn no_operator(
    installation: &Installation<'_>,
    plugin: &Plugin<'_>,
    bank: &Rc<Bank>,
    made: &mut Made,
) -> Result<()> {
    let held = Held::take(bank).await?;
    let traffic = Traffic::start(bank, "no-operator");
    installation.operators(0).await?;
    plugin.finds("failed", "operator", "0 of 0 ready").await?;
    plugin.finds("failed", "webhook Service", "has no ready endpoint").await?;
    let asks = bank.namespace.apply(pod("asks", &json!({}))).await;
    let refusal = asks.err().context("a pod came in without the sidecar that it asks for")?;
    ensure!(format!("{refusal:#}").contains("inject.concordat.dev"), "{refusal:#}");
    bank.namespace.apply(pod("asks-not", &json!({"concordat.dev/inject": "disabled"}))).await?;
    bank.namespace.ready("asks-not").await?;
    let plain = bank.namespace.node().namespace("plain", &[]).await?;
    plain.apply(pod("plain", &json!({}))).await?;
    plain.ready("plain").await?;
    traffic.goes_on(3).await?;
    traffic.holds(made).await?;
    etcd_killed(installation, bank, made).await?;
    sidecar_killed(bank, made).await?;
    installation.operators(2).await?;
    // That they answer comes to be known by the node's proxy in its own time.
    eventually("the webhook answers", async || bank.namespace.apply(pod("asks", &json!({}))).await).await?;
    bank.namespace.ready("asks").await?;
    let typo = plain.apply(pod("typo", &json!({"concordat.dev/inject": "true"}))).await;
    let refusal = typo.err().context("a pod came in whose label nobody understands")?;
    ensure!(format!("{refusal:#}").contains("write enabled or disabled"), "{refusal:#}");
    held.let_go(bank).await
}

/// etcd's pod is killed; its member comes back with what it knew.
async fn etcd_killed(installation: &Installation<'_>, bank: &Rc<Bank>, made: &mut Made) -> Result<()> {
    let traffic = Traffic::start(bank, "etcd-killed");
    installation.kubectl(&["delete", "pod", "concordat-etcd-0", "--grace-period=0", "--force"]).await?;
    installation.kubectl(&["rollout", "status", "statefulset/concordat-etcd", "--timeout=3m"]).await?;
    traffic.goes_on(3).await?;
    traffic.holds(made).await
}

/// A sidecar is killed as for want of memory, time and again. The app keeps its token.
async fn sidecar_killed(bank: &Rc<Bank>, made: &mut Made) -> Result<()> {
    let traffic = Traffic::start(bank, "sidecar-killed");
    for app in ["ledger", "ledger", "accounts"] {
        let before = sidecar(bank, app).await?;
        let killed = Command::new("kill").args(["-KILL", &before.process()?]).status()?;
        ensure!(killed.success(), "not killed");
        eventually("the sidecar is there again", async || {
            let now = sidecar(bank, app).await?;
            ensure!(now.restarts > before.restarts && now.ready, "it is not");
            Ok(())
        })
        .await?;
        traffic.goes_on(2).await?;
    }
    traffic.holds(made).await
}

/// A sidecar that has too little memory is killed time and again: its app waits for it, and payments that it takes part in,
/// until it is given enough. The others go on.
pub(crate) async fn short_of_memory(bank: &Rc<Bank>, made: &mut Made) -> Result<()> {
    let traffic = Traffic::start(bank, "short-of-memory");
    let memory = async |bytes: Value| {
        let annotations =
            json!({"config.concordat.dev/memory-request": bytes, "config.concordat.dev/memory-limit": bytes});
        let patch = json!({"spec": {"template": {"metadata": {"annotations": annotations}}}}).to_string();
        bank.namespace.kubectl(&["patch", "deployment/ledger", "--patch", &patch]).await
    };
    memory(json!(TOO_LITTLE)).await?;
    eventually("it is killed time and again", async || {
        let pods = bank.namespace.api::<Pod>().list(&ListParams::default().labels("app=ledger")).await?;
        let statuses = pods.items.iter().filter_map(|pod| pod.status.as_ref());
        let mut inits = statuses.flat_map(|status| status.init_container_statuses.iter().flatten());
        let killed = inits.any(|one| {
            let last = one.last_state.as_ref().and_then(|state| state.terminated.as_ref());
            one.restart_count > 1 && last.and_then(|last| last.reason.as_deref()) == Some("OOMKilled")
        });
        ensure!(killed, "it is not");
        Ok(())
    })
    .await
    .with_context(|| bank.namespace.node().look(bank.namespace.name()))?;
    traffic.goes_on(2).await?;
    memory(Value::Null).await?;
    bank.rolled_out("ledger").await?;
    traffic.goes_on(2).await?;
    traffic.holds(made).await
}

/// The node is drained of an app, whose pods come back when it takes pods again.
pub(crate) async fn drained(bank: &Rc<Bank>, made: &mut Made) -> Result<()> {
    let traffic = Traffic::start(bank, "drained");
    let node = bank.namespace.node();
    let drain = ["drain", "node", "--pod-selector=app in (ledger, worker)", "--delete-emptydir-data"];
    node.kubectl(&[&drain[..], &["--ignore-daemonsets", "--timeout=3m"]].concat()).await?;
    node.kubectl(&["uncordon", "node"]).await?;
    for app in ["ledger", "worker"] {
        bank.rolled_out(app).await?;
    }
    traffic.goes_on(1).await?;
    traffic.holds(made).await
}

/// A Job with a sidecar ends when its own container does.
pub(crate) async fn job_ends(bank: &Bank) -> Result<()> {
    let mut template = shell("job")["spec"]["template"].clone();
    template["spec"]["restartPolicy"] = json!("Never");
    let take = r#"curl -fsS -X POST -H "Concordat-Token: $(cat $CONCORDAT_TOKEN_FILE)" \
        http://127.0.0.1:$CONCORDAT_PORT/v1/locks/accounts/job"#;
    template["spec"]["containers"][0]["command"] = json!(["/bin/sh", "-c", take]);
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"},
        "spec": {"backoffLimit": 0, "template": template},
    });
    bank.namespace.apply(job).await?;
    let complete = |job: Option<&Job>| {
        let conditions = job.and_then(|job| job.status.as_ref()?.conditions.as_ref());
        conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Complete" && one.status == "True"))
    };
    until(&bank.namespace.api::<Job>(), "job", "is complete", complete).await?;
    // It let go of what it held: its sidecar ended in order.
    eventually("its lock is free", async || {
        let (status, shown) = bank.sidecar("teller", "GET", "locks/accounts/job", &[], None).await?;
        ensure!(status == 200 && shown["holders"] == json!([]), "{status}: {shown}");
        Ok(())
    })
    .await
}

/// A pod of its own, with these labels.
pub(crate) fn pod(name: &str, labels: &Value) -> Value {
    let template = &shell(name)["spec"]["template"];
    let mut labels = labels.clone();
    labels["app"] = json!(name);
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": template["spec"],
    })
}

/// The sidecar of an app's pod.
pub(crate) struct Sidecar {
    pub(crate) image: String,
    pub(crate) address: String,
    pod_uid: String,
    restarts: i32,
    ready: bool,
}

/// As the pod of an app that is not about to end has it.
pub(crate) async fn sidecar(bank: &Bank, app: &str) -> Result<Sidecar> {
    let of_app = ListParams::default().labels(&format!("app={app}"));
    let pods = bank.namespace.api::<Pod>().list(&of_app).await?;
    let lives = |pod: &&Pod| pod.metadata.deletion_timestamp.is_none();
    let pod = pods.items.iter().find(lives).context("no pod")?;
    let status = pod.status.as_ref().context("no status")?;
    let mut inits = status.init_container_statuses.iter().flatten();
    let of = inits.find(|one| one.name == "concordat").context("no sidecar")?;
    let image = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let image = image.filter(|one| one.name == "concordat").find_map(|one| one.image.clone());
    Ok(Sidecar {
        image: image.context("no image")?,
        address: status.pod_ip.clone().context("no address")?,
        pod_uid: pod.metadata.uid.clone().context("no uid")?,
        restarts: of.restart_count,
        ready: of.ready && is_ready(Some(pod)),
    })
}

impl Sidecar {
    /// Its process on this machine, which is the node.
    fn process(&self) -> Result<String> {
        for folder in fs::read_dir("/proc")? {
            let folder: PathBuf = folder?.path();
            let read = |file| fs::read_to_string(folder.join(file)).unwrap_or_default();
            if read("comm").starts_with("concordat-sidec") && read("cgroup").contains(&self.pod_uid) {
                return Ok(folder.file_name().context("no name")?.to_string_lossy().into_owned());
            }
        }
        bail!("no process of pod {}", self.pod_uid)
    }
}
