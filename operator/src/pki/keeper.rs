//! Keeps every certificate good, on every replica: the authority and those in Secrets together with the other replicas,
//! the webhook's for this one alone.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{ByteString, api::admissionregistration::v1::MutatingWebhookConfiguration};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::{
    sync::{oneshot, watch},
    time::sleep,
};

use super::{Authority, Certificate, Error, Issued, Request, Usage, members, secret::Secrets};
use crate::{
    admin::Health,
    metrics::Metrics,
    webhook::certificates::{Certificates, in_folder},
};

/// How often everything is looked at. What is renewed is so ten days early; what somebody took away is missed for as long.
const PACE: Duration = Duration::from_secs(10);
/// How soon what did not succeed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What is to be kept.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// The namespace of the operator's own Secrets.
    pub namespace: String,
    /// The authority, if certificates are issued at all.
    pub authority: Option<Source>,
    /// etcd's servers, if their certificates are the operator's to make.
    pub etcd: Option<Etcd>,
    /// StatefulSet of etcd's members, which trust the `ca.crt` of the Secret `<name>-tls`, whoever writes it.
    pub members: Option<String>,
    /// The webhook's certificate, if it is served.
    pub webhook: Option<Webhook>,
}

/// The Secret of the authority.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its name.
    pub secret: String,
    /// Somebody else makes it and renews it.
    pub given: bool,
    /// How long lies between two steps of a turn that somebody asked for.
    pub pause: Duration,
}

/// etcd in the cluster.
#[derive(Clone, Debug)]
pub struct Etcd {
    /// The headless Service, and the StatefulSet of the same name. Secrets are `<service>-tls` and `<service>-root`.
    pub service: String,
    /// How many members there are.
    pub replicas: u16,
    /// Where this replica keeps what etcd knows it by (`ca.crt`, `tls.crt`, `tls.key`), for its client.
    pub folder: PathBuf,
}

/// Where the webhook's certificate comes from.
#[derive(Clone, Debug)]
pub enum Webhook {
    /// Somebody else writes `tls.crt` and `tls.key` here, and sees to it that the API server trusts them.
    Folder(PathBuf),
    /// The authority, for this Service.
    Issued {
        /// Its name.
        service: String,
        /// The MutatingWebhookConfiguration that is to trust the authority.
        configuration: Option<String>,
    },
}

/// Keeps certificates.
pub struct Keeper {
    client: Client,
    secrets: Secrets,
    kept: Kept,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    certificates: Arc<Certificates>,
    authority: watch::Sender<Option<Authority>>,
    /// What the webhook shows, and what was trusted when it was made.
    shown: Option<(Issued, Certificate, String)>,
    /// What this replica needs for etcd is there.
    known_to_etcd: bool,
    /// Whom all of etcd's members trust, by name.
    trusted_by_etcd: Option<String>,
}

impl Keeper {
    /// Has nothing yet.
    pub fn new(client: Client, kept: Kept, health: Arc<Health>, metrics: Arc<Metrics>) -> Self {
        health.uncertified.store(kept.webhook.is_some(), Ordering::Relaxed);
        Self {
            known_to_etcd: kept.etcd.is_none(),
            secrets: Secrets::new(client.clone()),
            client,
            kept,
            health,
            metrics,
            certificates: Arc::default(),
            authority: watch::Sender::default(),
            shown: None,
            trusted_by_etcd: None,
        }
    }

    /// What the webhook shows.
    pub fn certificates(&self) -> Arc<Certificates> {
        self.certificates.clone()
    }

    /// The authority, once it is known, and whenever it turns.
    pub fn authority(&self) -> watch::Receiver<Option<Authority>> {
        self.authority.subscribe()
    }

    /// Keeps them until it is dropped. Tells once what this replica needs for etcd is there.
    pub async fn run(mut self, made: oneshot::Sender<()>) {
        let mut made = Some(made);
        loop {
            let passed = self.pass(Timestamp::now()).await;
            if self.known_to_etcd
                && let Some(made) = made.take()
            {
                let _ = made.send(());
            }
            if let Err(error) = passed {
                tracing::warn!(%error, "not every certificate is as it should be");
                sleep(RETRY).await;
            } else {
                sleep(PACE).await;
            }
        }
    }

    /// Looks at everything once; the first thing that went wrong, after all was tried.
    pub async fn pass(&mut self, now: Timestamp) -> Result<(), Error> {
        let authority = self.look_up(now).await;
        let etcd = match (&authority, self.kept.etcd.clone()) {
            (Ok(Some(authority)), Some(etcd)) => self.serve_etcd(&etcd, authority, now).await,
            _ => Ok(()),
        };
        self.known_to_etcd |= authority.is_ok() && etcd.is_ok();
        let members = self.see_to_members().await;
        let webhook = match (&authority, self.kept.webhook.clone()) {
            (_, Some(Webhook::Folder(folder))) => self.read_folder(&folder),
            (Ok(Some(authority)), Some(Webhook::Issued { service, configuration })) => {
                self.serve_webhook(&service, configuration.as_deref(), authority, now).await
            }
            _ => Ok(()),
        };
        let good = self.shown.as_ref().is_some_and(|(_, certificate, _)| certificate.life.holds(now));
        self.health.uncertified.store(self.kept.webhook.is_some() && !good, Ordering::Relaxed);
        authority.map(drop).and(etcd).and(members).and(webhook)
    }

    async fn see_to_members(&mut self) -> Result<(), Error> {
        self.trusted_by_etcd = None;
        if let Some(service) = &self.kept.members {
            self.trusted_by_etcd = members::trust(&self.client, &self.kept.namespace, service).await?;
        }
        Ok(())
    }

    async fn look_up(&self, now: Timestamp) -> Result<Option<Authority>, Error> {
        let Some(Source { secret, given, pause }) = &self.kept.authority else { return Ok(None) };
        let known = self.authority.borrow().clone();
        let authority = if *given {
            self.secrets.given(&self.kept.namespace, secret).await?
        } else {
            let trusted = self.trusted_by_etcd.as_deref();
            let knows = |authority: &Authority| {
                self.kept.members.is_none() || trusted == Some(&members::name(&authority.trusted()))
            };
            let namespace = &self.kept.namespace;
            self.secrets.authority(namespace, secret, known.as_ref(), now, *pause, knows).await?
        };
        self.metrics.certified("authority", authority.life()?);
        if known.as_ref() != Some(&authority) {
            self.authority.send_replace(Some(authority.clone()));
        }
        Ok(Some(authority))
    }

    /// Sees to etcd's servers, and to what etcd knows this operator by.
    async fn serve_etcd(&self, etcd: &Etcd, authority: &Authority, now: Timestamp) -> Result<(), Error> {
        let namespace = &self.kept.namespace;
        let root = Request { common_name: "root".into(), names: Vec::new(), usage: Usage::Client };
        for (certificate, suffix, request) in
            [("etcd", "tls", members(etcd, namespace)), ("etcd-root", "root", root)]
        {
            let secret = format!("{}-{suffix}", etcd.service);
            let issued = self.secrets.issued(namespace, &secret, &request, authority, now).await?;
            self.metrics.certified(certificate, Certificate::read(&issued.certificate)?.life);
            if suffix == "root" {
                keep(&etcd.folder, &authority.trusted(), &issued).map_err(|error| {
                    Error::File(format!("--pki-dir: cannot write to {}: {error}", etcd.folder.display()))
                })?;
            }
        }
        Ok(())
    }

    /// Sees to this replica's webhook.
    async fn serve_webhook(
        &mut self,
        service: &str,
        configuration: Option<&str>,
        authority: &Authority,
        now: Timestamp,
    ) -> Result<(), Error> {
        let trusted = authority.trusted();
        let stands = |(_, certificate, by): &(Issued, Certificate, String)| {
            *by == trusted && !certificate.life.due(now)
        };
        if !self.shown.as_ref().is_some_and(stands) {
            let namespace = &self.kept.namespace;
            let names = [format!("{service}.{namespace}.svc"), "localhost".into(), "127.0.0.1".into()];
            let request = Request { common_name: service.into(), names: names.into(), usage: Usage::Server };
            let issued = authority.issue(&request, now)?;
            self.show(issued, trusted.clone())?;
        }
        match configuration {
            Some(name) => self.trust(name, &trusted).await,
            None => Ok(()),
        }
    }

    fn read_folder(&mut self, folder: &Path) -> Result<(), Error> {
        let (issued, _) = in_folder(folder)?;
        if self.shown.as_ref().is_some_and(|(shown, ..)| *shown == issued) {
            return Ok(());
        }
        self.show(issued, String::new())
    }

    fn show(&mut self, issued: Issued, trusted: String) -> Result<(), Error> {
        let certificate = Certificate::read(&issued.certificate)?;
        self.certificates.show(&issued)?;
        tracing::info!(until = %certificate.life.not_after, "the webhook shows a new certificate");
        self.metrics.certified("webhook", certificate.life);
        self.shown = Some((issued, certificate, trusted));
        Ok(())
    }

    /// Has the API server trust the authority at every webhook of a configuration.
    async fn trust(&self, name: &str, trusted: &str) -> Result<(), Error> {
        let api: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        let wrong = |why| Error::Kubernetes { what: format!("MutatingWebhookConfiguration {name}"), why };
        let found = api.get(name).await.map_err(wrong)?;
        let bundle = ByteString(trusted.as_bytes().to_vec());
        let others =
            found.webhooks.iter().flatten().filter(|of| of.client_config.ca_bundle.as_ref() != Some(&bundle));
        let changed: Vec<_> =
            others.map(|of| json!({ "name": of.name, "clientConfig": { "caBundle": bundle } })).collect();
        if changed.is_empty() {
            return Ok(());
        }
        let params =
            PatchParams { field_manager: Some("concordat-operator".into()), ..PatchParams::default() };
        api.patch(name, &params, &Patch::Strategic(json!({ "webhooks": changed }))).await.map_err(wrong)?;
        tracing::info!(configuration = name, "the API server is told whom to trust");
        Ok(())
    }
}

/// What etcd's members show to their clients and to each other.
fn members(Etcd { service, replicas, .. }: &Etcd, namespace: &str) -> Request {
    let domain = format!("{service}.{namespace}.svc");
    let members = (0..*replicas).map(|member| format!("{service}-{member}.{domain}"));
    let names = members.chain([domain.clone(), "localhost".into(), "127.0.0.1".into()]).collect();
    Request { common_name: service.clone(), names, usage: Usage::Peer }
}

/// Writes a certificate where it is not yet so. Each file is whole at any time; a pair that was read in between is not a
/// pair, and is read again.
fn keep(folder: &Path, trusted: &str, issued: &Issued) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for (name, text) in [("ca.crt", trusted), ("tls.crt", &issued.certificate), ("tls.key", &issued.key)] {
        let file = folder.join(name);
        if fs::read(&file).is_ok_and(|bytes| bytes == text.as_bytes()) {
            continue;
        }
        let new = folder.join(format!(".{name}"));
        write_privately(&new, text)?;
        fs::rename(new, file)?;
    }
    Ok(())
}

fn write_privately(file: &Path, text: &str) -> io::Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let _ = fs::remove_file(file);
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?.write_all(text.as_bytes())
}
