//! Who signs.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, date_time_ymd,
};

use super::{Certificate, Error, Life};

const DAY: i64 = 24 * 60 * 60;
/// How long an authority's certificate lives, seconds.
const AUTHORITY: i64 = 3_650 * DAY;
/// How long any other lives, seconds.
const LEAF: i64 = 30 * DAY;
/// How much earlier a certificate begins than it was made, seconds: clocks differ.
const SKEW: i64 = 60 * 60;

/// What a certificate is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Whose it is: for etcd, the user's name. etcd and rustls take one that is longer than the 64 of X.509.
    pub common_name: String,
    /// DNS names and addresses of a server. A client's has none: etcd would hold its address against them.
    pub names: Vec<String>,
    /// What it is good for.
    pub usage: Usage,
}

/// What a certificate is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// To be reached over TLS.
    Server,
    /// To be known by a server.
    Client,
    /// Both, as etcd's members are to each other.
    Peer,
}

/// A certificate and its key, both PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// Its key, PKCS #8.
    pub key: String,
}

/// Keys are not for logs.
impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// A turn that somebody asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Who was made earlier is to be followed by another, and then is not to be trusted.
    pub since: Timestamp,
    /// How long the next one is trusted before it signs, and after that the former one.
    pub pause: Duration,
}

/// The one who signs, the one who will, and those who did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    signer: Issued,
    /// Since when it signs, seconds since 1970.
    since: i64,
    next: Option<Issued>,
    /// Certificates (PEM) of those whose signatures are still good.
    former: Vec<String>,
}

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const TRUSTED: &str = "ca.crt";
const NEXT_CERTIFICATE: &str = "next.crt";
const NEXT_KEY: &str = "next.key";
const SINCE: &str = "signs-since";

impl Authority {
    /// A new one.
    pub fn new(now: Timestamp) -> Result<Self, Error> {
        Ok(Self { signer: authority(now)?, since: now.as_second(), next: None, former: Vec::new() })
    }

    /// Reads it from a Secret's data, as [`Authority::data`] wrote it.
    pub fn read(data: &BTreeMap<String, Vec<u8>>) -> Result<Self, Error> {
        let text = |name: &str| {
            let bytes = data.get(name).ok_or_else(|| Error::Read(format!("{name} is missing")))?;
            String::from_utf8(bytes.clone()).map_err(|_| Error::Read(format!("{name} is not text")))
        };
        let pair = |certificate, key| {
            let pair = Issued { certificate: text(certificate)?, key: text(key)? };
            let public = Certificate::read(&pair.certificate)?;
            let named =
                Request { common_name: public.common_name.clone(), names: Vec::new(), usage: Usage::Server };
            if !public.fits(&named, &pair.key) {
                return Err(Error::Read(format!("{key} is not the key of {certificate}")));
            }
            Ok(pair)
        };
        let signer = pair(CERTIFICATE, KEY)?;
        let next =
            data.contains_key(NEXT_CERTIFICATE).then(|| pair(NEXT_CERTIFICATE, NEXT_KEY)).transpose()?;
        let known = |pem: &String| {
            *pem == signer.certificate || next.as_ref().is_some_and(|next| *pem == next.certificate)
        };
        let trusted = text(TRUSTED).unwrap_or_default();
        let former = blocks(&trusted).filter(|pem| !known(pem)).collect();
        // Somebody else's does not say.
        let since = match text(SINCE).ok().and_then(|text| text.parse::<Timestamp>().ok()) {
            Some(since) => since.as_second(),
            None => made(&Certificate::read(&signer.certificate)?.life),
        };
        Ok(Self { signer, since, next, former })
    }

    /// What a Secret of type `kubernetes.io/tls` keeps of it: `tls.crt` and `tls.key` sign, `ca.crt` is trusted.
    pub fn data(&self) -> BTreeMap<String, Vec<u8>> {
        let trusted = self.trusted();
        let since = Timestamp::from_second(self.since).unwrap_or_default().to_string();
        let next =
            self.next.iter().flat_map(|next| [(NEXT_CERTIFICATE, &next.certificate), (NEXT_KEY, &next.key)]);
        [
            (CERTIFICATE, &self.signer.certificate),
            (KEY, &self.signer.key),
            (TRUSTED, &trusted),
            (SINCE, &since),
        ]
        .into_iter()
        .chain(next)
        .map(|(name, text)| (name.to_owned(), text.clone().into_bytes()))
        .collect()
    }

    /// The certificates (PEM) of all whose signatures are to be trusted, the one who signs first. Whoever holds a
    /// certificate of ours beside another text than this is to get a new one: somebody else signs now, or soon will.
    pub fn trusted(&self) -> String {
        let next = self.next.iter().map(|next| &next.certificate);
        std::iter::once(&self.signer.certificate)
            .chain(next)
            .chain(&self.former)
            .map(String::as_str)
            .collect()
    }

    /// The life of the certificate of the one who signs.
    pub fn life(&self) -> Result<Life, Error> {
        Ok(Certificate::read(&self.signer.certificate)?.life)
    }

    /// What is to become of it now, if anything: a next one is made, or signs, or a former one is over. `known` says that
    /// those who read only when they start whom to trust have read what is trusted now.
    pub fn turn(&self, now: Timestamp, asked: Option<Asked>, known: bool) -> Result<Option<Self>, Error> {
        let mut turned = self.clone();
        turned.former.retain(|pem| Certificate::read(pem).is_ok_and(|former| now <= former.life.not_after));
        let distrusted = |life: &Life| asked.is_some_and(|asked| made(life) < asked.since.as_second());
        let over =
            |since: i64| asked.is_some_and(|asked| now.as_second() >= since + asked.pause.as_secs() as i64);
        let life = self.life()?;
        let goes = distrusted(&life);
        let next = self.next.as_ref().map(|next| Certificate::read(&next.certificate)).transpose()?;
        match (turned.next.take(), next.map(|next| next.life)) {
            (Some(next), Some(of)) if !distrusted(&of) => {
                if known && (life.is_over(5, 6, now) || goes && over(made(&of))) {
                    let former = std::mem::replace(&mut turned.signer, next);
                    turned.former.push(former.certificate);
                    turned.since = now.as_second();
                } else {
                    turned.next = Some(next);
                }
            }
            _ if goes || life.due(now) => turned.next = Some(authority(now)?),
            _ => {}
        }
        if !goes && known && over(self.since) {
            turned.former.retain(|pem| Certificate::read(pem).is_ok_and(|former| !distrusted(&former.life)));
        }
        Ok((turned != *self).then_some(turned))
    }

    /// Signs a certificate that is good from an hour before now, for 30 days, with a new key.
    pub fn issue(&self, request: &Request, now: Timestamp) -> Result<Issued, Error> {
        use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
        let issuer =
            Issuer::from_ca_cert_pem(&self.signer.certificate, KeyPair::from_pem(&self.signer.key)?)?;
        let mut params = CertificateParams::new(request.names.clone())?;
        params.distinguished_name = named(&request.common_name);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match request.usage {
            Usage::Server => vec![ServerAuth],
            Usage::Client => vec![ClientAuth],
            Usage::Peer => vec![ServerAuth, ClientAuth],
        };
        let until = (now.as_second() + LEAF).min(self.life()?.not_after.as_second());
        last(&mut params, now.as_second() - SKEW, until);
        let key = KeyPair::generate()?;
        Ok(Issued { certificate: params.signed_by(&key, &issuer)?.pem(), key: key.serialize_pem() })
    }
}

fn authority(now: Timestamp) -> Result<Issued, Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    // Two that are trusted at a time are told apart by people, too.
    params.distinguished_name = named(&format!("concordat authority of {}", now.strftime("%Y-%m-%d")));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    last(&mut params, now.as_second() - SKEW, now.as_second() + AUTHORITY);
    Ok(Issued { certificate: params.self_signed(&key)?.pem(), key: key.serialize_pem() })
}

/// When one of ours was made, seconds since 1970.
fn made(life: &Life) -> i64 {
    life.not_before.as_second() + SKEW
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

fn last(params: &mut CertificateParams, from: i64, until: i64) {
    let time = |second: i64| date_time_ymd(1970, 1, 1) + Duration::from_secs(second.max(0) as u64);
    params.not_before = time(from);
    params.not_after = time(until);
}

/// The PEM blocks of a text.
pub(super) fn blocks(text: &str) -> impl Iterator<Item = String> {
    const END: &str = "-----END CERTIFICATE-----";
    text.split_inclusive(END)
        .filter(|block| block.contains(END))
        .map(|block| format!("{}\n", block.trim_start()))
}

#[cfg(test)]
mod tests;
