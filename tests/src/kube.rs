//! A real kube-apiserver on a real etcd of its own: no kubelet, no controllers, so nothing is garbage-collected
//! and no namespace ever finishes deleting.

mod pki;
mod server;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
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

use self::{
    pki::{Authority, Identity},
    server::{Server, free_port},
};

/// The script that builds kube-apiserver; it names the version.
const BUILD: &str = include_str!("../kubernetes/build");
/// A port may be taken between finding and using it.
const ATTEMPTS: usize = 5;

/// A Kubernetes API with Concordat's custom resources. Dropping it ends its processes.
pub struct Cluster {
    authority: Authority,
    url: String,
    api_server: Server,
    _etcd: Server,
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
        let program = api_server_program()?;
        let authority = Authority::new()?;
        let (etcd, etcd_url) = retry(async || start_etcd().await).await.context("etcd for Kubernetes")?;
        let (api_server, url) = retry(async || start_api_server(&program, &authority, &etcd_url).await)
            .await
            .context("kube-apiserver")?;
        let cluster = Self { authority, url, api_server, _etcd: etcd };
        cluster.install().await?;
        Ok(cluster)
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
        kubeconfig(&self.authority, &self.url, user, group)
    }

    /// A new namespace with a random name for the test called `test`.
    pub async fn namespace(&self, test: &str) -> Result<Namespace<'_>> {
        let name = format!("test-{:08x}", rand::random::<u32>());
        let namespace: v1::Namespace = serde_json::from_value(serde_json::json!({
            "metadata": { "name": name, "annotations": { "concordat.dev/test": test } },
        }))?;
        Api::<v1::Namespace>::all(self.client().await?).create(&PostParams::default(), &namespace).await?;
        Ok(Namespace { name, cluster: self })
    }

    /// Does what `kubectl apply --server-side -f crds/` does, and waits until the API serves every kind.
    async fn install(&self) -> Result<()> {
        let api: Api<CustomResourceDefinition> = Api::all(self.client().await?);
        for (file, definition) in manifest::definitions() {
            let name = definition.name_any();
            let applied: serde_json::Value = serde_saphyr::from_str(&manifest::yaml(&definition)?)?;
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
            eprintln!(
                "namespace {}; kube-apiserver's log ends:\n{}",
                self.name,
                self.cluster.api_server.log_tail()
            );
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

async fn start_etcd() -> Result<(Server, String)> {
    let folder = tempfile::Builder::new().prefix("concordat-kube-etcd-").tempdir()?.keep();
    let program = etcd_bin_vendored::etcd_bin_path().map_err(|error| anyhow!("{error}"))?;
    let url = format!("http://127.0.0.1:{}", free_port()?);
    let peer = format!("http://127.0.0.1:{}", free_port()?);
    let mut command = Command::new(program);
    command
        .args(["--name=kube", "--unsafe-no-fsync", "--log-level=warn"])
        .arg(format!("--data-dir={}", folder.join("data").display()))
        .args([format!("--listen-client-urls={url}"), format!("--advertise-client-urls={url}")])
        .args([format!("--listen-peer-urls={peer}"), format!("--initial-advertise-peer-urls={peer}")])
        .arg(format!("--initial-cluster=kube={peer}"));
    let mut server = Server::start(command, &folder)?;
    let health = format!("{url}/health");
    server
        .ready(async || {
            reqwest::get(&health).await?.error_for_status()?;
            Ok(())
        })
        .await?;
    Ok((server, url))
}

async fn start_api_server(program: &Path, authority: &Authority, etcd: &str) -> Result<(Server, String)> {
    let folder = tempfile::Builder::new().prefix("concordat-kube-apiserver-").tempdir()?.keep();
    let file = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text)?;
        Ok::<_, std::io::Error>(path.display().to_string())
    };
    let Identity { certificate, key } = authority.server()?;
    let certificate = file("server.crt", &certificate)?;
    let key = file("server.key", &key)?;
    let port = free_port()?;
    let mut command = Command::new(program);
    command.args([
        format!("--etcd-servers={etcd}"),
        "--bind-address=127.0.0.1".into(),
        format!("--secure-port={port}"),
        "--advertise-address=127.0.0.1".into(),
        "--endpoint-reconciler-type=none".into(),
        "--service-cluster-ip-range=10.0.0.0/24".into(),
        "--authorization-mode=RBAC".into(),
        // Nothing makes the default service account that this plug-in waits for.
        "--disable-admission-plugins=ServiceAccount".into(),
        "--allow-privileged=true".into(),
        format!("--client-ca-file={}", file("ca.crt", &authority.certificate)?),
        format!("--tls-cert-file={certificate}"),
        format!("--tls-private-key-file={key}"),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-account-key-file={certificate}"),
        format!("--service-account-signing-key-file={key}"),
    ]);
    let mut server = Server::start(command, &folder)?;
    let url = format!("https://127.0.0.1:{port}");
    let admin = client(&kubeconfig(authority, &url, "admin", Some("system:masters"))?).await?;
    server
        .ready(async || {
            let answer = admin.request_text(axum::http::Request::get("/readyz").body(Vec::new())?).await?;
            ensure!(answer == "ok", "/readyz says {answer}");
            Ok(())
        })
        .await?;
    Ok((server, url))
}

fn kubeconfig(authority: &Authority, url: &str, user: &str, group: Option<&str>) -> Result<String> {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let Identity { certificate, key } = authority.user(user, group)?;
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

/// Where kube-apiserver is: as Kubebuilder's variables say, else where `tests/kubernetes/build` puts it.
fn api_server_program() -> Result<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let program = if let Some(program) = set("TEST_ASSET_KUBE_APISERVER") {
        program
    } else if let Some(folder) = set("KUBEBUILDER_ASSETS") {
        folder.join("kube-apiserver")
    } else {
        let version =
            BUILD.lines().find_map(|line| line.strip_prefix("KUBERNETES=")).context("the version")?;
        let cache = set("CONCORDAT_CACHE")
            .or_else(|| set("HOME").map(|home| home.join(".cache/concordat")))
            .context("neither CONCORDAT_CACHE nor HOME is set")?;
        cache.join(format!("kubernetes-{version}/bin/kube-apiserver"))
    };
    if !program.is_file() {
        bail!("{} is missing: run tests/kubernetes/build (about 4 minutes)", program.display());
    }
    Ok(program)
}
