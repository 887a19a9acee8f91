//! A real Kubernetes of one node: containerd, kubelet, kube-proxy and CoreDNS beside the API server, so that pods run,
//! services have addresses and names, claims get volumes, and what is deleted is collected. `tests/kubernetes/node`
//! starts and ends it; one is on a machine at a time.

use std::{
    env,
    fmt::Debug,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1;
use kube::{
    Api, Client, Config, Resource,
    api::{Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::{DynamicObject, GroupVersionKind, NamespaceResourceScope},
    discovery,
    runtime::wait::{Condition, await_condition},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, sync::OnceCell};

use crate::{kube::program, process::forget_package};

/// The image of a pod to send requests from: busybox, curl and jq.
pub const SHELL: &str = "concordat.test/shell:1";
/// The image of the services of `examples/bank`.
pub const BANK: &str = concat!("concordat.test/bank:", env!("CARGO_PKG_VERSION"));
/// The image of the real etcd, which is at /usr/local/bin/etcd and has no entry point.
pub const ETCD: &str = "concordat.test/etcd:3.7.2";
/// The image of the operator, under the name that the chart has for it.
pub const OPERATOR: &str = concat!("ghcr.io/concordat-dev/operator:", env!("CARGO_PKG_VERSION"));
/// The image of the sidecar, under the name that the chart has for it.
pub const SIDECAR: &str = concat!("ghcr.io/concordat-dev/sidecar:", env!("CARGO_PKG_VERSION"));

/// How long [`until`] waits: for a machine that is busy with other builds. Never a measure of anything.
const PATIENCE: Duration = Duration::from_mins(3);
/// How many lines of each container's log are shown when a test failed.
const TAIL: &str = "--tail=60";

/// A node that is ready, with the images of what is checked out now. It ends with this process, however that ends.
pub struct Node {
    kubeconfig: PathBuf,
    /// Holds the node as long as its standard input is open.
    _holder: Child,
}

impl Node {
    /// The one node that the tests of this process share, each in a [`Namespace`] of its own. While another process has
    /// one, this waits.
    pub async fn shared() -> Result<&'static Self> {
        static SHARED: OnceCell<Node> = OnceCell::const_new();
        SHARED.get_or_try_init(async || tokio::task::spawn_blocking(Self::start).await?).await
    }

    fn start() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        // This test is <target>/<profile>/deps/<test>.
        let target = env::current_exe()?.ancestors().nth(3).context("no target folder")?.to_owned();
        let mut make = Command::new("make");
        make.args(["--silent", "images"]).current_dir(&root).env("CARGO_TARGET_DIR", &target);
        forget_package(&mut make);
        let made = make.output().context("starting make")?;
        ensure!(made.status.success(), "make images failed:\n{}", String::from_utf8_lossy(&made.stderr));
        let mut holder = Command::new(root.join("tests/kubernetes/node"))
            .arg("hold")
            .env("CARGO_TARGET_DIR", &target)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C is for the tests; the node ends after them.
            .process_group(0)
            .spawn()
            .context("starting tests/kubernetes/node")?;
        let mut line = String::new();
        BufReader::new(holder.stdout.take().context("no output")?).read_line(&mut line)?;
        let Some(kubeconfig) = line.split_whitespace().find_map(|word| word.strip_prefix("KUBECONFIG="))
        else {
            bail!("tests/kubernetes/node ended with {}; what it said is above", holder.wait()?);
        };
        Ok(Self { kubeconfig: kubeconfig.into(), _holder: holder })
    }

    /// A client that may do everything. It belongs to the runtime it is made in.
    pub async fn client(&self) -> Result<Client> {
        let kubeconfig = Kubeconfig::read_from(&self.kubeconfig)?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(Client::try_from(config)?)
    }

    /// The file with which programs log in to do everything.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// What kubectl prints for these arguments. Fails with what it says when it fails.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.run(self.kubectl_command()?, arguments, "").await
    }

    /// The same, with this on its standard input.
    pub async fn kubectl_reads(&self, arguments: &[&str], input: &str) -> Result<String> {
        self.run(self.kubectl_command()?, arguments, input).await
    }

    /// What Helm prints for these arguments. Fails with what it says when it fails.
    pub async fn helm(&self, arguments: &[&str]) -> Result<String> {
        self.run(self.command("helm", "TEST_ASSET_HELM")?, arguments, "").await
    }

    /// kubectl, logged in to do everything. Add arguments and run it.
    pub fn kubectl_command(&self) -> Result<tokio::process::Command> {
        self.command("kubectl", "TEST_ASSET_KUBECTL")
    }

    fn command(&self, name: &str, variable: &str) -> Result<tokio::process::Command> {
        let mut command = tokio::process::Command::new(program(name, variable)?);
        command.env("KUBECONFIG", &self.kubeconfig);
        Ok(command)
    }

    async fn run(
        &self,
        mut command: tokio::process::Command,
        arguments: &[&str],
        input: &str,
    ) -> Result<String> {
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let mut stdin = child.stdin.take().context("no standard input")?;
        let writing = async move {
            // Who does not read it to its end says why.
            let _ = stdin.write_all(input.as_bytes()).await;
            drop(stdin);
        };
        let ((), output) = tokio::join!(writing, child.wait_with_output());
        let output = output?;
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = String::from_utf8_lossy(&output.stderr);
        let command = command.as_std();
        ensure!(output.status.success(), "{command:?} ended with {}:\n{said}{out}", output.status);
        Ok(out)
    }

    /// Brings cert-manager to the node, built from its Go module where it is not yet.
    pub async fn bring_cert_manager(&self) -> Result<()> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("kubernetes/node");
        let brought = tokio::process::Command::new(script).arg("cert-manager").output().await?;
        ensure!(
            brought.status.success(),
            "no cert-manager:\n{}{}",
            String::from_utf8_lossy(&brought.stderr),
            self.look("cert-manager")
        );
        Ok(())
    }

    /// Takes it away again, with all that it knows.
    pub async fn take_cert_manager_away(&self) -> Result<()> {
        let definitions = self.kubectl(&["get", "customresourcedefinitions", "--output=name"]).await?;
        let definitions = definitions.lines().filter(|name| name.ends_with(".cert-manager.io"));
        self.kubectl(&[&["delete"][..], &definitions.collect::<Vec<_>>()].concat()).await?;
        let rest = ["namespace/cert-manager", "clusterrolebinding/cert-manager"];
        let hooks =
            ["validating", "mutating"].map(|kind| format!("{kind}webhookconfiguration/cert-manager-webhook"));
        let hooks = [&*hooks[0], &*hooks[1], "--timeout=3m"];
        self.kubectl(&[&["delete"][..], &rest, &hooks].concat()).await.map(drop)
    }

    /// A new namespace with a random name for the test called `test`, with these labels.
    pub async fn namespace(&self, test: &str, labels: &[(&str, &str)]) -> Result<Namespace<'_>> {
        let name = format!("test-{:08x}", rand::random::<u32>());
        let labels: serde_json::Map<String, Value> =
            labels.iter().map(|&(key, value)| (key.to_owned(), json!(value))).collect();
        let namespace: v1::Namespace = serde_json::from_value(json!({
            "metadata": { "name": name, "annotations": { "concordat.dev/test": test }, "labels": labels },
        }))?;
        let client = self.client().await?;
        Api::<v1::Namespace>::all(client.clone()).create(&PostParams::default(), &namespace).await?;
        let namespace = Namespace { name, node: self, client };
        // No pod is admitted before its account is there.
        until(&namespace.api::<v1::ServiceAccount>(), "default", "is there", |account: Option<&_>| {
            account.is_some()
        })
        .await?;
        Ok(namespace)
    }

    /// What a person would look at in a namespace where something went wrong: pods, events and the ends of logs.
    pub fn look(&self, namespace: &str) -> String {
        let kubectl = |arguments: &[&str]| {
            let output = program("kubectl", "TEST_ASSET_KUBECTL").and_then(|program| {
                let mut command = Command::new(program);
                command.env("KUBECONFIG", &self.kubeconfig).args(["--namespace", namespace]).args(arguments);
                Ok(command.output()?)
            });
            output.map_or_else(
                |error| error.to_string(),
                |output| {
                    [output.stdout, output.stderr]
                        .map(|text| String::from_utf8_lossy(&text).into_owned())
                        .concat()
                },
            )
        };
        let mut seen = kubectl(&["get", "pods,persistentvolumeclaims", "--output=wide"]);
        seen += &kubectl(&["get", "events", "--sort-by=.metadata.creationTimestamp"]);
        for pod in kubectl(&["get", "pods", "--output=name"]).lines() {
            seen.extend(["--- the log of ", pod, " ends:\n"]);
            seen += &kubectl(&["logs", pod, "--all-containers", "--ignore-errors", "--prefix", TAIL]);
        }
        seen
    }
}

/// A test's own namespace. It is deleted when the test is done; when the test failed, its pods, events and the ends of
/// their logs are printed.
pub struct Namespace<'a> {
    name: String,
    node: &'a Node,
    client: Client,
}

impl Namespace<'_> {
    /// The namespace's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node it is on.
    pub fn node(&self) -> &Node {
        self.node
    }

    /// Its objects of one kind.
    pub fn api<K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// Does what `kubectl apply --server-side` does with an object of any kind.
    pub async fn apply(&self, object: Value) -> Result<()> {
        let object: DynamicObject = serde_json::from_value(object)?;
        let name = object.metadata.name.clone().context("an object without a name")?;
        let kind = GroupVersionKind::try_from(object.types.as_ref().context("an object without a kind")?)?;
        let (resource, _) = discovery::pinned_kind(&self.client, &kind).await?;
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &self.name, &resource);
        let patch = PatchParams::apply("concordat-tests");
        api.patch(&name, &patch, &Patch::Apply(&object)).await.with_context(|| format!("applying {name}"))?;
        Ok(())
    }

    /// Waits until a pod is ready.
    pub async fn ready(&self, pod: &str) -> Result<v1::Pod> {
        until(&self.api(), pod, "is ready", is_ready).await?.context("the pod is gone")
    }

    /// What a command prints that is run in a container of a pod. Fails with what it says when it fails.
    pub async fn exec(&self, pod: &str, container: &str, command: &[&str]) -> Result<String> {
        let place = ["--namespace", &self.name, "exec", pod, "--container", container, "--"];
        self.node.kubectl(&[&place, command].concat()).await
    }

    /// Runs kubectl in this namespace; see [`Node::kubectl`].
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.node.kubectl(&[&["--namespace", &self.name], arguments].concat()).await
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- namespace {}:\n{}", self.name, self.node.look(&self.name));
        }
        if let Ok(program) = program("kubectl", "TEST_ASSET_KUBECTL") {
            let _ = Command::new(program)
                .args(["delete", "namespace", "--wait=false", &self.name])
                .env("KUBECONFIG", &self.node.kubeconfig)
                .output();
        }
    }
}

/// Whether a pod is ready.
pub fn is_ready(pod: Option<&v1::Pod>) -> bool {
    let conditions = pod.and_then(|pod| pod.status.as_ref()?.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
}

/// Watches an object until the condition holds of it (None: there is no such object), and returns it. Fails with how it
/// is instead when that takes more than a generous limit; `what` says what was waited for.
pub async fn until<K>(api: &Api<K>, name: &str, what: &str, condition: impl Condition<K>) -> Result<Option<K>>
where
    K: Resource + Clone + Debug + Send + DeserializeOwned + serde::Serialize + 'static,
{
    let Ok(reached) = tokio::time::timeout(PATIENCE, await_condition(api.clone(), name, condition)).await
    else {
        let seen = serde_json::to_string_pretty(&api.get_opt(name).await?)?;
        bail!("not within {PATIENCE:?}: {name} {what}. It is {seen}");
    };
    Ok(reached?)
}
