//! A client with one connection, as light as it gets: the generator shares the cores with what it measures.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode, client::conn::http1};
use hyper_util::rt::TokioIo;

/// One kept-alive connection.
pub(super) struct Http {
    sender: http1::SendRequest<Full<Bytes>>,
}

impl Http {
    /// Connects to a port of 127.0.0.1.
    pub(super) async fn connect(port: u16) -> Result<Self> {
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    /// One request; its answer must have one of the statuses.
    pub(super) async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
        expected: &[u16],
    ) -> Result<(StatusCode, Bytes)> {
        let mut request = Request::builder().method(method).uri(path).header("host", "127.0.0.1");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = self.sender.send_request(request.body(Full::new(body.into()))?).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        ensure!(
            expected.contains(&status.as_u16()),
            "{path} answered {status}: {}",
            String::from_utf8_lossy(&body)
        );
        Ok((status, body))
    }
}

/// The first text of this name in a JSON body, found by looking for it: to parse what is thrown away would take the
/// generator as long as all the rest that it does.
pub(super) fn text<'a>(json: &'a [u8], field: &str) -> Result<&'a str> {
    let json = std::str::from_utf8(json)?;
    let name = format!("\"{field}\":\"");
    let found = json.find(&name).and_then(|at| json[at + name.len()..].split('"').next());
    found.with_context(|| format!("no {field} in {json}"))
}
