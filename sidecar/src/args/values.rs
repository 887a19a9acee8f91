//! Values that flags take.

use std::str::FromStr;

use tracing_subscriber::EnvFilter;

/// A DNS-1123 label.
#[derive(Clone, Debug)]
pub(super) struct Label(pub(super) String);

impl FromStr for Label {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let edges = !text.starts_with('-') && !text.ends_with('-');
        if (1..=63).contains(&text.len()) && text.bytes().all(allowed) && edges {
            return Ok(Self(text.to_owned()));
        }
        Err("write 1 to 63 of a-z, 0-9 and '-', with no '-' at either end".into())
    }
}

/// `http://` or `https://` addresses, all of one kind.
#[derive(Clone, Debug)]
pub(super) struct Endpoints(pub(super) Vec<String>);

impl FromStr for Endpoints {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let endpoints: Vec<String> = text.split(',').map(|endpoint| endpoint.trim().to_owned()).collect();
        for endpoint in &endpoints {
            let uri: http::Uri = endpoint.parse().map_err(|error| format!("{endpoint:?}: {error}"))?;
            let scheme = uri.scheme_str();
            if !matches!(scheme, Some("http" | "https")) || uri.path().len() > 1 || uri.query().is_some() {
                return Err(format!("{endpoint:?}: write it as in http://etcd-0:2379"));
            }
        }
        let secure = endpoints.iter().filter(|endpoint| endpoint.starts_with("https://")).count();
        if secure != 0 && secure != endpoints.len() {
            return Err("either all are https:// or none is".into());
        }
        Ok(Self(endpoints))
    }
}

/// Directives of a log filter.
#[derive(Clone, Debug)]
pub(super) struct Filter(pub(super) String);

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        EnvFilter::try_new(text).map(|_| Self(text.to_owned())).map_err(|error| error.to_string())
    }
}
