//! Why an object cannot be put in force, and the checks that more than one field needs.
//!
//! The API server checks most of this by the rules in the CRDs. The checks here stand where it does not: objects
//! written before a rule was there, and `concordat dev`, which has no API server.

use std::{collections::BTreeSet, fmt, ops::RangeInclusive, time};

use concordat_crds::Duration;
use concordat_protocol::Millis;

/// What is wrong with an object, and what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {message}")]
pub struct Invalid {
    /// Path of the field: `spec.participants[1].timeout`.
    pub field: String,
    /// What it must be: `must be between 10ms and 1h, not 2h`.
    pub message: String,
}

impl Invalid {
    /// A field and what it must be.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

/// A value within bounds.
pub(crate) fn within<T: PartialOrd + fmt::Display>(
    field: &str,
    value: T,
    bounds: RangeInclusive<T>,
) -> Result<T, Invalid> {
    if bounds.contains(&value) {
        Ok(value)
    } else {
        let (min, max) = bounds.into_inner();
        Err(Invalid::new(field, format!("must be between {min} and {max}, not {value}")))
    }
}

/// A length of time within bounds, in milliseconds: rounded up, so that a short one never becomes none.
pub(crate) fn duration(
    field: &str,
    value: Duration,
    bounds: RangeInclusive<Duration>,
) -> Result<Millis, Invalid> {
    within(field, value, bounds)
        .map(|value| time::Duration::from(value).as_nanos().div_ceil(1_000_000) as Millis)
}

/// A DNS label (RFC 1123): 1 to 63 lower-case letters, digits and `-`, which neither begins nor ends it.
pub(crate) fn dns_label(field: &str, text: &str) -> Result<(), Invalid> {
    (text.len() <= 63 && is_label(text)).then_some(()).ok_or_else(|| {
        Invalid::new(
            field,
            format!(
                "must be a DNS label of at most 63 characters: lower-case letters, digits and '-', beginning and \
                 ending with a letter or digit; not {text:?}"
            ),
        )
    })
}

/// The name of an object as Kubernetes takes it: at most 253 characters, labels of any length with dots between them.
pub fn object_name(field: &str, name: &str) -> Result<(), Invalid> {
    if name.len() > 253 {
        return Err(Invalid::new(field, format!("must have at most 253 characters, not {}", name.len())));
    }
    name.split('.').all(is_label).then_some(()).ok_or_else(|| {
        Invalid::new(
            field,
            format!(
                "must be an object's name: lower-case letters, digits, '-' and '.', each part between dots beginning \
                 and ending with a letter or digit; not {name:?}"
            ),
        )
    })
}

fn is_label(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Something that is there once.
pub(crate) fn unique<'a>(
    field: &str,
    names: impl IntoIterator<Item = &'a str>,
) -> Result<BTreeSet<&'a str>, Invalid> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(Invalid::new(field, format!("must be unique: {name:?} is there twice")));
        }
    }
    Ok(seen)
}

/// So many seconds.
pub(crate) const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// So many milliseconds.
pub(crate) const fn milliseconds(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// So many hours.
pub(crate) const fn hours(count: u64) -> Duration {
    Duration::from_secs(count * 3600)
}
