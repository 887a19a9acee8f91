//! Who may ask, and how much: what stands before every route.
//!
//! The API listens on 127.0.0.1, which a browser on the same host and a request forged through the app can reach. A
//! foreign `Host` (DNS rebinding) and any `Origin` (a web page) are refused, and where a token file is given the token is
//! asked for, by a header that neither can set.

use std::sync::Arc;

use axum::extract::Request;
use http::{
    Method, StatusCode, Uri,
    header::{CONTENT_LENGTH, HOST, ORIGIN},
};
use sha2::{Digest, Sha256};

use super::header;
use crate::problem::Problem;

/// The largest body in bytes: etcd takes no larger request.
pub const LARGEST_BODY: usize = 1_536 * 1024;

/// The token that every request must show, kept as a digest: comparing digests takes the same time whatever is shown.
#[derive(Clone)]
pub struct Token(Arc<[u8; 32]>);

impl Token {
    /// Of the token's text.
    pub fn new(text: &str) -> Self {
        Self(Arc::new(Sha256::digest(text).into()))
    }

    /// Whether this is the token.
    pub fn admits(&self, shown: &[u8]) -> bool {
        let shown: [u8; 32] = Sha256::digest(shown).into();
        self.0.iter().zip(shown).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
    }
}

/// Checks a request's head.
///
/// # Errors
/// 400, 401, 403, 413 and 421 with what to change.
pub(super) fn admit(request: &Request, token: Option<&Token>) -> Result<(), Problem> {
    admit_local(request)?;
    let headers = request.headers();
    if let Some(token) = token {
        let shown = header::text(headers, &header::CONCORDAT_TOKEN)?;
        if !shown.is_some_and(|shown| token.admits(shown.as_bytes())) {
            return Err(Problem::new(
                StatusCode::UNAUTHORIZED,
                "token-required",
                "The sidecar's token is missing or wrong",
            )
            .detail("send the header Concordat-Token with the contents of the sidecar's token file"));
        }
    }
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: u64| length > LARGEST_BODY as u64) {
        return Err(body_too_large());
    }
    Ok(())
}

/// Checks that a request is for this host and comes from no web page.
///
/// # Errors
/// 400, 403 and 421 with what to change.
pub fn admit_local(request: &Request) -> Result<(), Problem> {
    let headers = request.headers();
    // HTTP/2 has the host in the URI.
    let host = match request.uri().authority() {
        Some(authority) => Some(authority.as_str()),
        None => header::text(headers, &HOST)?,
    };
    if !host.is_some_and(is_local) {
        return Err(Problem::new(
            StatusCode::MISDIRECTED_REQUEST,
            "foreign-host",
            "The request is for another host",
        )
        .detail("ask 127.0.0.1, localhost or [::1]"));
    }
    if headers.contains_key(ORIGIN) {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "origin-refused",
            "Web pages may not ask the sidecar",
        )
        .detail("send no Origin header"));
    }
    Ok(())
}

fn is_local(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    ["127.0.0.1", "localhost", "[::1]"].iter().any(|local| name.eq_ignore_ascii_case(local))
}

/// 413 for any body that is too large for every route.
pub fn body_too_large() -> Problem {
    Problem::too_large(format!("a body has at most {LARGEST_BODY} bytes"))
}

/// 404 for a path that is no route.
pub fn unknown_route(uri: &Uri) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "no-such-route", "There is no such route")
        .detail(format!("{} is not a route; GET /openapi.json lists all of them", uri.path()))
}

/// 405 for a method that a route does not have.
pub fn wrong_method(method: &Method, uri: &Uri) -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "The route does not have this method")
        .detail(format!("{} does not take {method}; GET /openapi.json lists what it takes", uri.path()))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn request(headers: &[(&str, &str)]) -> Request {
        let mut request = Request::get("/v1/locks/a");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Body::empty()).unwrap()
    }

    fn refusal(headers: &[(&str, &str)], token: Option<&str>) -> Option<u16> {
        let token = token.map(Token::new);
        admit(&request(headers), token.as_ref()).err().map(|problem| problem.status.as_u16())
    }

    #[test]
    fn only_a_local_host_is_ours() {
        for host in ["127.0.0.1", "127.0.0.1:4700", "localhost", "LOCALHOST:1", "[::1]", "[::1]:4700"] {
            assert_eq!(refusal(&[("host", host)], None), None, "{host}");
        }
        for host in [
            "",
            "example.com",
            "127.0.0.1.nip.io",
            "localhost.evil:4700",
            "10.0.0.1:4700",
            "::1",
            "127.0.0.1:x",
        ] {
            assert_eq!(refusal(&[("host", host)], None), Some(421), "{host}");
        }
        for (uri, expected) in
            [("http://localhost:4700/v1/locks/a", None), ("http://example.com/v1/locks/a", Some(421))]
        {
            // As HTTP/2 has it, whose clients may send a header besides.
            let request = Request::get(uri).header("host", "localhost").body(Body::empty()).unwrap();
            assert_eq!(admit(&request, None).err().map(|problem| problem.status.as_u16()), expected, "{uri}");
        }
        assert_eq!(refusal(&[], None), Some(421), "no host");
        assert_eq!(refusal(&[("host", "localhost"), ("host", "localhost")], None), Some(400), "two hosts");
    }

    #[test]
    fn a_web_page_is_refused_even_a_local_one() {
        for origin in ["https://example.com", "http://127.0.0.1:4700", "null"] {
            assert_eq!(refusal(&[("host", "localhost"), ("origin", origin)], None), Some(403));
        }
    }

    #[test]
    fn the_token_is_asked_for_where_there_is_one() {
        let local = ("host", "localhost");
        assert_eq!(refusal(&[local], Some("secret")), Some(401));
        for wrong in ["", "secre", "secret2", "SECRET", " secret"] {
            assert_eq!(refusal(&[local, ("concordat-token", wrong)], Some("secret")), Some(401), "{wrong:?}");
        }
        assert_eq!(refusal(&[local, ("concordat-token", "secret")], Some("secret")), None);
        assert_eq!(refusal(&[local, ("concordat-token", "anything")], None), None);
    }

    #[test]
    fn a_body_announced_as_too_large_is_not_read() {
        let local = ("host", "localhost");
        assert_eq!(refusal(&[local, ("content-length", "1572864")], None), None);
        assert_eq!(refusal(&[local, ("content-length", "1572865")], None), Some(413));
        assert_eq!(refusal(&[local, ("content-length", "18446744073709551615")], None), Some(413));
    }
}
