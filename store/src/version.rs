//! Which etcd is safe to batch on.

use std::fmt;

/// The first safe patch release of each minor release that has one; every later minor release is safe.
const SAFE: [(u64, u64, u64); 3] = [(3, 5, 33), (3, 6, 14), (3, 7, 1)];

/// An etcd that is too old.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsupported {
    version: String,
}

impl std::error::Error for Unsupported {}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "etcd {} cannot be used: before 3.5.33, 3.6.14 and 3.7.1 etcd checks neither permissions (CVE-2026-33343) \
             nor the space quota inside nested transactions, in which every commit goes: upgrade etcd",
            self.version
        )
    }
}

/// Whether an etcd of this version (`3.7.2`, `3.6.0-rc.1`) may be used.
pub fn check(version: &str) -> Result<(), Unsupported> {
    let refuse = || Unsupported { version: version.to_owned() };
    let (release, pre) = version.split_once('-').map_or((version, false), |(release, _)| (release, true));
    let mut parts = release.split('.').map(|part| part.parse::<u64>().ok());
    let (Some(Some(major)), Some(Some(minor)), Some(Some(patch))) =
        (parts.next(), parts.next(), parts.next())
    else {
        return Err(refuse());
    };
    let newest = SAFE[SAFE.len() - 1];
    let safe = match SAFE.iter().find(|safe| (safe.0, safe.1) == (major, minor)) {
        // A pre-release of the first safe release came before it.
        Some(&(.., first)) => patch > first || (patch == first && !pre),
        None => (major, minor) > (newest.0, newest.1),
    };
    if safe { Ok(()) } else { Err(refuse()) }
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn only_releases_that_check_nested_transactions_are_accepted() {
        for version in ["3.5.33", "3.5.40", "3.6.14", "3.6.16", "3.7.1", "3.7.2", "3.8.0", "4.0.0"] {
            assert!(check(version).is_ok(), "{version}");
        }
        for version in ["3.4.45", "3.5.32", "3.6.13", "3.7.0", "3.7.1-rc.0", "2.3.8", "", "x", "3.7"] {
            assert!(check(version).is_err(), "{version}");
        }
        assert!(check("3.4.23").unwrap_err().to_string().contains("3.5.33"));
    }
}
