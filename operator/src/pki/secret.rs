//! Certificates in Secrets. Replicas write them without asking each other: a Secret is created or replaced only as it was
//! read, so the first one's stands and the others read it.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{Api, Client, api::PostParams};

use super::{Asked, Authority, Certificate, Error, Issued, Request};

/// The label of what the operator makes, and its value.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "concordat-operator");
/// The label, and its value, of all that is Concordat's: the chart has cert-manager put it on the Secrets that it makes.
pub const PART_OF: (&str, &str) = ("app.kubernetes.io/part-of", "concordat");
/// The annotation of the authority's Secret by which somebody asks for another one: the time, as in RFC 3339. Who was
/// made before is replaced, and then not trusted.
pub const DISTRUST: &str = "concordat.dev/distrust-before";
/// How often a write is tried that others' writes come before.
const ATTEMPTS: usize = 5;

/// Reads and writes Secrets of type `kubernetes.io/tls`.
#[derive(Clone)]
pub struct Secrets {
    client: Client,
}

/// Whether a Secret's data is as it should be, until it is to be renewed.
fn fresh(
    data: &BTreeMap<String, Vec<u8>>,
    request: &Request,
    authority: &Authority,
    now: Timestamp,
) -> Option<Issued> {
    let text = |name: &str| String::from_utf8(data.get(name)?.clone()).ok();
    let issued = Issued { certificate: text("tls.crt")?, key: text("tls.key")? };
    let certificate = Certificate::read(&issued.certificate).ok()?;
    let trusted = text("ca.crt")? == authority.trusted();
    (trusted && certificate.fits(request, &issued.key) && !certificate.life.due(now)).then_some(issued)
}

impl Secrets {
    /// With the rights of this client.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// The authority of a Secret: as it is there, or turned where its time has come or somebody asked for it; made where
    /// there is none, from `last` if a replica still knows it. Between two steps of a turn that was asked for lies at
    /// least `pause`; `known` says of an authority whether all know by now whom it has them trust.
    pub async fn authority(
        &self,
        namespace: &str,
        name: &str,
        last: Option<&Authority>,
        now: Timestamp,
        pause: Duration,
        known: impl Fn(&Authority) -> bool,
    ) -> Result<Authority, Error> {
        for _ in 0..ATTEMPTS {
            let found = self.get(namespace, name).await?;
            let wanted = match &found {
                Some(secret) => {
                    let read = Authority::read(&bytes(secret))
                        .map_err(|error| Error::Read(format!("Secret {name}: {error}")))?;
                    let since = distrusted_before(secret)?.filter(|since| *since <= now);
                    let asked = since.map(|since| Asked { since, pause });
                    match read.turn(now, asked, known(&read))? {
                        Some(turned) if is_ours(secret) => turned,
                        _ => return Ok(read),
                    }
                }
                None => last.cloned().map_or_else(|| Authority::new(now), Ok)?,
            };
            if self.put(namespace, name, found, wanted.data()).await? {
                return Ok(wanted);
            }
        }
        Err(Error::Read(format!("Secret {name} changes all the time")))
    }

    /// The authority of a Secret that somebody else makes and renews.
    pub async fn given(&self, namespace: &str, name: &str) -> Result<Authority, Error> {
        let found = self.get(namespace, name).await?.ok_or_else(|| Error::Awaited(name.to_owned()))?;
        Authority::read(&bytes(&found)).map_err(|error| Error::Read(format!("Secret {name}: {error}")))
    }

    /// A certificate of the authority's in a Secret (`ca.crt`, `tls.crt`, `tls.key`): the one that is there, or a new one
    /// where it is missing, is due, says something else, or is beside another authority's.
    pub async fn issued(
        &self,
        namespace: &str,
        name: &str,
        request: &Request,
        authority: &Authority,
        now: Timestamp,
    ) -> Result<Issued, Error> {
        for _ in 0..ATTEMPTS {
            let found = self.get(namespace, name).await?;
            if let Some(secret) = &found {
                if let Some(issued) = fresh(&bytes(secret), request, authority, now) {
                    return Ok(issued);
                }
                if !is_ours(secret) {
                    return Err(Error::Foreign(name.to_owned()));
                }
            }
            let issued = authority.issue(request, now)?;
            let texts = [
                ("ca.crt", authority.trusted()),
                ("tls.crt", issued.certificate.clone()),
                ("tls.key", issued.key.clone()),
            ];
            let data = texts.into_iter().map(|(name, text)| (name.to_owned(), text.into_bytes())).collect();
            if self.put(namespace, name, found, data).await? {
                return Ok(issued);
            }
        }
        Err(Error::Read(format!("Secret {name} changes all the time")))
    }

    async fn get(&self, namespace: &str, name: &str) -> Result<Option<Secret>, Error> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        api.get_opt(name).await.map_err(|why| Error::Kubernetes { what: format!("Secret {name}"), why })
    }

    /// Writes a Secret if it still is what was found; whether it was.
    async fn put(
        &self,
        namespace: &str,
        name: &str,
        found: Option<Secret>,
        data: BTreeMap<String, Vec<u8>>,
    ) -> Result<bool, Error> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let data = data.into_iter().map(|(name, bytes)| (name, ByteString(bytes))).collect();
        let params = PostParams { field_manager: Some("concordat-operator".into()), ..PostParams::default() };
        let written = match found {
            Some(secret) => api.replace(name, &params, &Secret { data: Some(data), ..secret }).await,
            None => {
                let mut secret =
                    Secret { data: Some(data), type_: Some("kubernetes.io/tls".into()), ..Secret::default() };
                secret.metadata.name = Some(name.to_owned());
                let labels = [MANAGED_BY, PART_OF];
                secret.metadata.labels = Some(labels.map(|(name, value)| (name.into(), value.into())).into());
                api.create(&params, &secret).await
            }
        };
        match written {
            Ok(_) => {
                tracing::info!(namespace, secret = name, "certificates were written");
                Ok(true)
            }
            // Another replica was first. One that was deleted in between is made again.
            Err(kube::Error::Api(status))
                if status.is_conflict() || status.is_already_exists() || status.is_not_found() =>
            {
                Ok(false)
            }
            Err(why) => Err(Error::Kubernetes { what: format!("Secret {name}"), why }),
        }
    }
}

fn bytes(secret: &Secret) -> BTreeMap<String, Vec<u8>> {
    secret.data.iter().flatten().map(|(name, bytes)| (name.clone(), bytes.0.clone())).collect()
}

/// What somebody asks of an authority by [`DISTRUST`].
fn distrusted_before(secret: &Secret) -> Result<Option<Timestamp>, Error> {
    let Some(text) = secret.metadata.annotations.as_ref().and_then(|of| of.get(DISTRUST)) else {
        return Ok(None);
    };
    let wrong =
        |why| Error::Read(format!("annotation {DISTRUST}: {text:?} is no time as in RFC 3339: {why}"));
    text.parse().map(Some).map_err(wrong)
}

fn is_ours(secret: &Secret) -> bool {
    let labels = secret.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(MANAGED_BY.0)).is_some_and(|by| by == MANAGED_BY.1)
}
