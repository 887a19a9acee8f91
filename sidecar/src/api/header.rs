//! The headers of the API. Each name is made once: one that is looked up by its text is parsed every time.

use http::{HeaderMap, HeaderName};

use crate::problem::Problem;

macro_rules! names {
    ($($constant:ident = $name:literal;)*) => {
        $(pub(crate) static $constant: HeaderName = HeaderName::from_static($name);)*
    };
}

names! {
    CONCORDAT_TOKEN = "concordat-token";
    DELAY = "delay";
    IDEMPOTENCY_KEY = "idempotency-key";
    LOCK_TOKEN = "lock-token";
    MESSAGE_KEY = "message-key";
    PRODUCER_ID = "producer-id";
    PRODUCER_SEQ = "producer-seq";
    TRACEPARENT = "traceparent";
    TRACESTATE = "tracestate";
    TRANSACTION_ID = "transaction-id";
    TTL = "ttl";
}

/// A header's text; refused when it is given twice or is not UTF-8.
pub fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Problem> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Problem::invalid(format!("header {name} is given more than once")));
    }
    match std::str::from_utf8(value.as_bytes()) {
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(Problem::invalid(format!("header {name} is not UTF-8"))),
    }
}

/// A header's text, which must be there.
pub fn required<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<&'a str, Problem> {
    text(headers, name)?.ok_or_else(|| Problem::invalid(format!("header {name} is required")))
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, header::HOST};

    use super::*;

    #[test]
    fn headers_are_given_once_and_are_text() {
        let mut headers = HeaderMap::new();
        assert_eq!(text(&headers, &LOCK_TOKEN), Ok(None));
        assert!(required(&headers, &LOCK_TOKEN).is_err());
        headers.append("Lock-Token", HeaderValue::from_static("a"));
        assert_eq!(required(&headers, &LOCK_TOKEN), Ok("a"));
        headers.append("lock-token", HeaderValue::from_static("a"));
        assert!(text(&headers, &LOCK_TOKEN).is_err());
        headers.insert(HOST, HeaderValue::from_bytes(b"\xff").unwrap());
        assert!(text(&headers, &HOST).is_err());
    }
}
