//! A real kube-apiserver on a real etcd of its own: no kubelet, no controllers, so nothing is garbage-collected
//! and no namespace ever finishes deleting.

pub mod pki;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};
use concordat_crds::manifest;
use k8s_openapi::{
    api::core::v1, apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{conditions, wait::await_condition},
};
use tokio::sync::OnceCell;

use self::pki::{Authority, Identity};
use crate::process::{Process, folder, free_port};

/// The script that builds kube-apiserver; it names the version.
const BUILD: &str = include_str!("../kubernetes/build");
/// A port may be taken between finding and using it.
const ATTEMPTS: usize = 5;

/// A Kubernetes API with Concordat's custom resources. Dropping it ends its processes.
pub struct Cluster {
    authority: Authority,
    program: PathBuf,
    port: u16,
    /// None while it is stopped.
    api_server: Option<Process>,
    etcd_url: String,
    _etcd: Process,
}

impl Cluster {
    /// The one cluster that the tests of this process share, each in a [`Namespace`] of its own. It ends with the
    /// process.
    pub async fn shared() -> Result<&'static Self> {
        static SHARED: OnceCell<Cluster> = OnceCell::const_new();
        SHARED.get_or_try_init(Self::start).await
    }

    /// A cluster of one's own, for a test that stops it.
    pub async fn start() -> Result<Self> {
        let program = program("kube-apiserver", "TEST_ASSET_KUBE_APISERVER")?;
        let authority = Authority::new()?;
        let (etcd, etcd_url) = retry(start_etcd).await.context("etcd for Kubernetes")?;
        let (api_server, port) = retry(async || {
            let port = free_port()?;
            Ok((start_api_server(&program, &authority, &etcd_url, port).await?, port))
        })
        .await
        .context("kube-apiserver")?;
        let cluster = Self { authority, program, port, api_server: Some(api_server), etcd_url, _etcd: etcd };
        cluster.install().await?;
        Ok(cluster)
    }

    /// Ends the API server as a crash does. What it stored stays.
    pub fn stop_api_server(&mut self) {
        self.api_server = None;
    }

    /// Starts the API server again after [`Cluster::stop_api_server`], at the same address.
    pub async fn start_api_server(&mut self) -> Result<()> {
        let server = start_api_server(&self.program, &self.authority, &self.etcd_url, self.port).await?;
        self.api_server = Some(server);
        Ok(())
    }

    /// A client that may do everything. It belongs to the runtime it is made in.
    pub async fn client(&self) -> Result<Client> {
        self.client_as("admin", Some("system:masters")).await
    }

    /// A client that logs in with a certificate as `user`, in `group` besides `system:authenticated`.
    pub async fn client_as(&self, user: &str, group: Option<&str>) -> Result<Client> {
        client(&self.kubeconfig(user, group)?).await
    }

    /// A kubeconfig (YAML, without references to files) with which a child process logs in as `user`.
    pub fn kubeconfig(&self, user: &str, group: Option<&str>) -> Result<String> {
        kubeconfig(&self.authority, self.port, user, group)
    }

    /// The real kubectl, logged in to do everything. Add arguments and run it.
    pub fn kubectl(&self) -> Result<Command> {
        let server = self.api_server.as_ref().context("the API server is stopped")?;
        let file = server.folder().join("admin.kubeconfig");
        fs::write(&file, self.kubeconfig("admin", Some("system:masters"))?)?;
        let mut command = Command::new(program("kubectl", "TEST_ASSET_KUBECTL")?);
        command.env("KUBECONFIG", file).env("HOME", server.folder());
        Ok(command)
    }

    /// A new namespace with a random name for the test called `test`.
    pub async fn namespace(&self, test: &str) -> Result<Namespace<'_>> {
        let name = format!("test-{:08x}", rand::random::<u32>());
        let namespace: v1::Namespace = serde_json::from_value(serde_json::json!({
            "metadata": { "name": name, "annotations": { "concordat.dev/test": test } },
        }))?;
        let client = self.client().await?;
        Api::<v1::Namespace>::all(client.clone()).create(&PostParams::default(), &namespace).await?;
        // What pods are given a token of; a controller makes it elsewhere.
        let account = serde_json::from_value(serde_json::json!({ "metadata": { "name": "default" } }))?;
        Api::<v1::ServiceAccount>::namespaced(client, &name).create(&PostParams::default(), &account).await?;
        Ok(Namespace { name, cluster: self })
    }

    /// Does what `kubectl apply --server-side -f crds/` does, and waits until the API serves every kind.
    async fn install(&self) -> Result<()> {
        let api: Api<CustomResourceDefinition> = Api::all(self.client().await?);
        for (file, definition) in manifest::definitions() {
            let name = definition.name_any();
            let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds").join(file))?;
            let applied: serde_json::Value = serde_saphyr::from_str(&text)?;
            api.patch(&name, &PatchParams::apply("concordat-tests"), &Patch::Apply(&applied))
                .await
                .with_context(|| format!("applying {file}"))?;
            await_condition(api.clone(), &name, conditions::is_crd_established()).await?;
        }
        Ok(())
    }
}

/// A test's own namespace. When the test fails, the end of the API server's log is printed.
pub struct Namespace<'a> {
    name: String,
    cluster: &'a Cluster,
}

impl Namespace<'_> {
    /// The namespace's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The cluster it is in.
    pub fn cluster(&self) -> &Cluster {
        self.cluster
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = self.cluster.api_server.as_ref().map(Process::log_tail).unwrap_or_default();
            eprintln!("namespace {}; kube-apiserver's log ends:\n{log}", self.name);
        }
    }
}

/// Runs `start` until it succeeds, a few times at most.
async fn retry<T>(start: impl AsyncFn() -> Result<T>) -> Result<T> {
    let mut last = anyhow!("never tried");
    for _ in 0..ATTEMPTS {
        match start().await {
            Ok(started) => return Ok(started),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn start_etcd() -> Result<(Process, String)> {
    let folder = folder("kube-etcd")?;
    let program = etcd_bin_vendored::etcd_bin_path().map_err(|error| anyhow!("{error}"))?;
    let url = format!("http://127.0.0.1:{}", free_port()?);
    let peer = format!("http://127.0.0.1:{}", free_port()?);
    let mut command = Command::new(program);
    command
        .args(["--name=kube", "--unsafe-no-fsync", "--log-level=warn"])
        .arg(format!("--data-dir={}", folder.path().join("data").display()))
        .args([format!("--listen-client-urls={url}"), format!("--advertise-client-urls={url}")])
        .args([format!("--listen-peer-urls={peer}"), format!("--initial-advertise-peer-urls={peer}")])
        .arg(format!("--initial-cluster=kube={peer}"));
    let mut server = Process::start_in(folder, "kube-etcd", command)?;
    server.answers(&format!("{url}/health")).await?;
    Ok((server, url))
}

async fn start_api_server(program: &Path, authority: &Authority, etcd: &str, port: u16) -> Result<Process> {
    let folder = folder("kube-apiserver")?;
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text)?;
        Ok::<_, std::io::Error>(path.display().to_string())
    };
    let Identity { certificate, key } = authority.server()?;
    let certificate = file("server.crt", &certificate)?;
    let key = file("server.key", &key)?;
    let mut command = Command::new(program);
    command.args([
        format!("--etcd-servers={etcd}"),
        "--bind-address=127.0.0.1".into(),
        format!("--secure-port={port}"),
        "--advertise-address=127.0.0.1".into(),
        "--endpoint-reconciler-type=none".into(),
        "--service-cluster-ip-range=10.0.0.0/24".into(),
        "--authorization-mode=RBAC".into(),
        "--allow-privileged=true".into(),
        format!("--client-ca-file={}", file("ca.crt", &authority.certificate)?),
        format!("--tls-cert-file={certificate}"),
        format!("--tls-private-key-file={key}"),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-account-key-file={certificate}"),
        format!("--service-account-signing-key-file={key}"),
    ]);
    let mut server = Process::start_in(folder, "kube-apiserver", command)?;
    let admin = client(&kubeconfig(authority, port, "admin", Some("system:masters"))?).await?;
    server
        .ready("is ready", async || {
            let answer = admin.request_text(axum::http::Request::get("/readyz").body(Vec::new())?).await?;
            ensure!(answer == "ok", "/readyz says {answer}");
            Ok(())
        })
        .await?;
    Ok(server)
}

fn kubeconfig(authority: &Authority, port: u16, user: &str, group: Option<&str>) -> Result<String> {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let Identity { certificate, key } = authority.user(user, group)?;
    let url = format!("https://127.0.0.1:{port}");
    let [authority, certificate, key] =
        [&authority.certificate, &certificate, &key].map(|pem| BASE64_STANDARD.encode(pem));
    Ok(serde_saphyr::to_string(&serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "tests", "cluster": { "server": url, "certificate-authority-data": authority } }],
        "users": [{ "name": user, "user": { "client-certificate-data": certificate, "client-key-data": key } }],
        "contexts": [{ "name": "tests", "context": { "cluster": "tests", "user": user } }],
        "current-context": "tests",
    }))?)
}

async fn client(kubeconfig: &str) -> Result<Client> {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// The real helm. Add arguments and run it.
pub fn helm() -> Result<Command> {
    Ok(Command::new(program("helm", "TEST_ASSET_HELM")?))
}

/// Where a program of Kubernetes is: where `variable` says, else in Kubebuilder's folder, in the one where
/// `tests/kubernetes/build` puts it, or on the PATH.
pub(crate) fn program(name: &str, variable: &str) -> Result<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(program) = set(variable) {
        ensure!(program.is_file(), "{variable} names {}, which is not there", program.display());
        return Ok(program);
    }
    let version = match env::var("KUBERNETES") {
        Ok(version) if !version.is_empty() => version,
        _ => pinned(BUILD, "KUBERNETES").context("the version")?.to_owned(),
    };
    let cache = set("CONCORDAT_CACHE").or_else(|| set("HOME").map(|home| home.join(".cache/concordat")));
    let built = cache.map(|cache| cache.join(format!("kubernetes-{version}/bin")));
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = set("KUBEBUILDER_ASSETS").into_iter().chain(built).chain(env::split_paths(&path));
    folders
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
        .with_context(|| format!("{name} is missing: run `tests/kubernetes/build {name}` (minutes)"))
}

/// What a script sets `variable` to unless it is set: `1.36.3` for `KUBERNETES=${KUBERNETES:-1.36.3}`.
fn pinned<'a>(script: &'a str, variable: &str) -> Option<&'a str> {
    let start = format!("{variable}=${{{variable}:-");
    script.lines().find_map(|line| line.strip_prefix(&start)?.strip_suffix('}'))
}
