//! What a certificate says.

use std::{collections::BTreeSet, net::IpAddr};

use jiff::Timestamp;
use rcgen::{KeyPair, PublicKeyData};
use x509_parser::{pem::Pem, prelude::GeneralName, time::ASN1Time};

use super::{Error, Request};

/// From when until when a certificate is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// Its first second.
    pub not_before: Timestamp,
    /// Its last second.
    pub not_after: Timestamp,
}

impl Life {
    /// Whether so many parts of so many of it are over, or it has not begun.
    pub(super) fn is_over(&self, parts: i64, of: i64, now: Timestamp) -> bool {
        let whole = self.not_after.as_second() - self.not_before.as_second();
        now < self.not_before || now.as_second() >= self.not_before.as_second() + whole / of * parts
    }

    /// Whether the certificate is good now.
    pub fn holds(&self, now: Timestamp) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }

    /// Whether it is time to renew the certificate: two thirds of its life are over.
    pub fn due(&self, now: Timestamp) -> bool {
        self.is_over(2, 3, now)
    }
}

/// A certificate as far as anybody here asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// From when until when it is good.
    pub life: Life,
    /// Whose it is.
    pub common_name: String,
    /// DNS names and addresses that it is good for.
    pub names: BTreeSet<String>,
    /// The public key, DER.
    key: Vec<u8>,
}

impl Certificate {
    /// Reads the first certificate of a PEM text.
    pub fn read(pem: &str) -> Result<Self, Error> {
        let pem =
            Pem::iter_from_buffer(pem.as_bytes()).next().ok_or_else(|| wrong("there is no PEM block"))?;
        Self::parse(&pem.map_err(wrong)?)
    }

    fn parse(pem: &Pem) -> Result<Self, Error> {
        let certificate = pem.parse_x509().map_err(wrong)?;
        let time = |time: ASN1Time| Timestamp::from_second(time.timestamp()).map_err(wrong);
        let validity = certificate.validity();
        let common_name = certificate.subject().iter_common_name().next();
        let common_name = common_name.and_then(|name| name.as_str().ok()).unwrap_or_default().to_owned();
        let names = certificate.subject_alternative_name().map_err(wrong)?;
        Ok(Self {
            life: Life { not_before: time(validity.not_before)?, not_after: time(validity.not_after)? },
            common_name,
            names: names
                .iter()
                .flat_map(|names| &names.value.general_names)
                .filter_map(|name| match name {
                    GeneralName::DNSName(name) => Some((*name).to_owned()),
                    GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
                    _ => None,
                })
                .collect(),
            key: certificate.public_key().raw.to_vec(),
        })
    }

    /// Whether it says what is asked for, and `key` (PEM) is its key.
    pub fn fits(&self, request: &Request, key: &str) -> bool {
        let names: BTreeSet<&str> = request.names.iter().map(String::as_str).collect();
        self.common_name == request.common_name
            && self.names.iter().map(String::as_str).eq(names)
            && KeyPair::from_pem(key).is_ok_and(|key| key.subject_public_key_info() == self.key)
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

fn wrong(why: impl ToString) -> Error {
    Error::Read(format!("a certificate cannot be read: {}", why.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::Authority;

    #[test]
    fn a_certificate_is_due_at_two_thirds_of_its_life_and_before_it_begins() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let life = Life { not_before: at(1_000), not_after: at(1_300) };
        for (now, due) in
            [(999, true), (1_000, false), (1_199, false), (1_200, true), (1_300, true), (9_999, true)]
        {
            assert_eq!(life.due(at(now)), due, "{now}");
        }
        // One that lasts no time at all.
        assert!(Life { not_before: at(7), not_after: at(7) }.due(at(7)));
    }

    #[test]
    fn no_certificate_panics() {
        let authority = Authority::new(Timestamp::UNIX_EPOCH).unwrap().trusted();
        let good = Pem::iter_from_buffer(authority.as_bytes()).next().unwrap().unwrap();
        bolero::check!().with_type::<(usize, Vec<u8>)>().for_each(|(at, bytes)| {
            let _ = Certificate::read(&String::from_utf8_lossy(bytes));
            let mut bad = good.clone();
            let at = at % bad.contents.len();
            let until = bad.contents.len().min(at + bytes.len());
            bad.contents.splice(at..until, bytes.iter().copied());
            let _ = Certificate::parse(&bad);
        });
    }
}
