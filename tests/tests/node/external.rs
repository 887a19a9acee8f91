//! With an etcd that is there already, has users, and is asked by certificates of an authority that is not ours.

use std::{collections::BTreeMap, rc::Rc};

use anyhow::{Context, Result, ensure};
use concordat_tests::{
    kube::pki::{Authority, Identity},
    node::{ETCD, Namespace, Node},
    process::eventually,
};
use etcd_client::{Certificate, Client, ConnectOptions, GetOptions, Permission, TlsOptions, UserAddOptions};
use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};
use tokio::task::LocalSet;

use crate::{
    bank::Bank,
    installation::{CHART, Installation, SYSTEM, set},
    kubectl::Plugin,
    traffic::{Held, Traffic},
};

#[tokio::test]
async fn an_etcd_that_is_there_already_is_used_and_left_as_it_is() -> Result<()> {
    LocalSet::new().run_until(story()).await
}

async fn story() -> Result<()> {
    let node = Node::shared().await?;
    let plugin = Plugin::new(node)?;
    let installation = Installation::begin(node, SYSTEM).await?;
    let mut etcd = Etcd::start(node).await?;
    let namespace = Bank::namespace(node).await?;
    let here = namespace.name().to_owned();

    // What the page asks of who has that etcd.
    etcd.knows("root", None).await?;
    etcd.knows(&format!("concordat:{here}"), Some(&format!("/concordat/{here}/"))).await?;
    etcd.client.auth_enable().await?;
    etcd.secret(node, SYSTEM, "etcd-root", "root").await?;
    etcd.secret(node, &here, "concordat-etcd-client", &format!("concordat:{here}")).await?;

    let endpoints = format!("etcd.external.endpoints={{{}}}", etcd.url);
    let name = format!("etcd.external.serverName={}", etcd.name);
    let values = ["etcd.mode=external", "etcd.external.secretName=etcd-root", &endpoints, &name];
    let installation = installation.helm_install(CHART, &set(&values)).await?;
    installation.test().await?;
    let bank = Rc::new(Bank::open_in(namespace).await?);
    let certificate = format!("certificate {SYSTEM}/etcd-root");
    plugin.finds_all_well(&["operator", "webhook", "etcd", &certificate]).await?;
    let locks = plugin.prints(&["get", "locks", "-n", &here]).await?;
    ensure!(locks.contains("accounts   True"), "{locks}");

    let mut made = BTreeMap::new();
    let held = Held::take(&bank).await?;
    let traffic = Traffic::start(&bank, "external");
    traffic.goes_on(3).await?;
    bank.roll("accounts").await?;
    traffic.goes_on(2).await?;
    held.let_go(&bank).await?;
    traffic.holds(&mut made).await?;

    installation.uninstall().await?;
    // What is not ours stays.
    let given = [(&*here, "concordat-etcd-client"), (SYSTEM, "etcd-root")];
    for (namespace, name) in given {
        node.kubectl(&["--namespace", namespace, "get", "secret", name]).await?;
    }
    installation.left_nothing_but(&given).await?;
    let prefix = format!("/concordat/{here}/def/");
    let kept = etcd.client.get(prefix, Some(GetOptions::new().with_prefix().with_keys_only())).await?;
    ensure!(kept.count() == 3, "of the bank's three definitions {} are left", kept.count());
    for namespace in [&here, SYSTEM] {
        node.kubectl(&["delete", "namespace", namespace, "--timeout=3m"]).await?;
    }
    Ok(())
}

/// An etcd that is none of Concordat's.
struct Etcd {
    authority: Authority,
    /// Its address, which its certificate does not bear.
    url: String,
    /// The name that it does bear.
    name: String,
    /// As its user root.
    client: Client,
    _namespace: Namespace<'static>,
}

impl Etcd {
    async fn start(node: &'static Node) -> Result<Self> {
        let namespace =
            node.namespace("etcd", &[("pod-security.kubernetes.io/enforce", "restricted")]).await?;
        let authority = Authority::new()?;
        let name = format!("etcd.{}.svc", namespace.name());
        let Identity { certificate, key } = authority.server_of(&[&name])?;
        let files = json!({"ca.crt": authority.certificate, "tls.crt": certificate, "tls.key": key});
        namespace
            .apply(json!({
                "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "etcd"}, "stringData": files,
            }))
            .await?;
        namespace
            .apply(json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": "etcd"},
                "spec": {"selector": {"app": "etcd"}, "ports": [{"port": 2379}]},
            }))
            .await?;
        namespace.apply(pod()).await?;
        namespace.ready("etcd").await?;
        let service = namespace.api::<Service>().get("etcd").await?;
        let address = service.spec.and_then(|spec| spec.cluster_ip).context("no address")?;
        let url = format!("https://{address}:2379");
        let Identity { certificate, key } = authority.user("root", None)?;
        let tls = TlsOptions::new()
            .ca_certificate(Certificate::from_pem(&authority.certificate))
            .identity(etcd_client::Identity::from_pem(certificate, key))
            .domain_name(name.clone());
        let client = eventually("it answers", async || {
            let options = ConnectOptions::new().with_tls(tls.clone());
            let mut client = Client::connect([url.clone()], Some(options)).await?;
            client.status().await?;
            Ok(client)
        })
        .await?;
        Ok(Self { authority, url, name, client, _namespace: namespace })
    }

    /// A user who is known by a certificate, and may do all of this prefix, or all.
    async fn knows(&mut self, user: &str, prefix: Option<&str>) -> Result<()> {
        self.client.role_add(user).await?;
        if let Some(prefix) = prefix {
            let permission = Permission::read_write(prefix).with_prefix();
            self.client.role_grant_permission(user, permission).await?;
        }
        let without = UserAddOptions::new().with_no_pwd();
        self.client.user_add(user, "", Some(without)).await?;
        self.client.user_grant_role(user, user).await?;
        Ok(())
    }

    /// Puts a user's certificate into a Secret, as `kubectl create secret generic --from-file` does.
    async fn secret(&self, node: &Node, namespace: &str, name: &str, user: &str) -> Result<()> {
        let Identity { certificate, key } = self.authority.user(user, None)?;
        let files = json!({"ca.crt": self.authority.certificate, "tls.crt": certificate, "tls.key": key});
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace}, "stringData": files,
        });
        node.kubectl_reads(&["apply", "--filename", "-"], &secret.to_string()).await.map(drop)
    }
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "etcd", "labels": {"app": "etcd"}},
        "spec": {
            "automountServiceAccountToken": false,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65532, "fsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "etcd", "image": ETCD,
                "securityContext": {
                    "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
                },
                "command": [
                    "/usr/local/bin/etcd", "--data-dir=/data/etcd",
                    "--listen-client-urls=https://0.0.0.0:2379", "--advertise-client-urls=https://etcd:2379",
                    "--client-cert-auth", "--trusted-ca-file=/tls/ca.crt", "--cert-file=/tls/tls.crt",
                    "--key-file=/tls/tls.key", "--enable-grpc-gateway=false",
                    "--listen-metrics-urls=http://0.0.0.0:2381",
                ],
                "readinessProbe": {"httpGet": {"path": "/readyz", "port": 2381}, "periodSeconds": 1},
                "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "tls", "mountPath": "/tls"}],
            }],
            "volumes": [
                {"name": "data", "emptyDir": {}},
                {"name": "tls", "secret": {"secretName": "etcd", "defaultMode": 0o440}},
            ],
        },
    })
}
