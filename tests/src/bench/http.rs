//! Clients of a sidecar, as light as they get: the generator shares the cores with what it measures.

mod http1;
mod http2;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use hyper::Method;

use self::{http1::Http1, http2::Http2};

/// How many connections clients have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Connections {
    /// Each has its own; to a sidecar over HTTP/1.1.
    Own,
    /// All share one; to a sidecar over HTTP/2.
    Shared,
}

impl Connections {
    pub(super) const ALL: [Self; 2] = [Self::Own, Self::Shared];

    /// How many there are, where one protocol is spoken on them.
    pub(super) fn counted(self) -> &'static str {
        match self {
            Self::Own => "a connection a client",
            Self::Shared => "one connection",
        }
    }

    /// What is spoken on them with a sidecar.
    pub(super) fn spoken(self) -> &'static str {
        match self {
            Self::Own => "HTTP/1.1",
            Self::Shared => "HTTP/2",
        }
    }
}

/// One client.
pub(super) enum Http {
    Own(Http1),
    Shared(Http2),
}

impl Http {
    /// A client with a connection of its own to a port of 127.0.0.1.
    pub(super) async fn connect(port: u16) -> Result<Self> {
        Ok(Self::Own(Http1::connect(port).await?))
    }

    /// So many clients.
    pub(super) async fn several(connections: Connections, port: u16, count: usize) -> Result<Vec<Self>> {
        let mut clients = Vec::new();
        match connections {
            Connections::Own => {
                for _ in 0..count {
                    clients.push(Self::connect(port).await?);
                }
            }
            Connections::Shared => {
                let shared = Http2::connect(port).await?;
                clients.extend((0..count).map(|_| Self::Shared(shared.clone())));
            }
        }
        Ok(clients)
    }

    /// One request; its answer must have one of the statuses. Its body stays until the next request.
    pub(super) async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
        expected: &[u16],
    ) -> Result<&[u8]> {
        let body = body.into();
        let (status, answered) = match self {
            Self::Own(http) => http.send(&method, path, headers, &body).await?,
            Self::Shared(http) => http.send(method, path, headers, body).await?,
        };
        ensure!(
            expected.contains(&status.as_u16()),
            "{path} answered {status}: {}",
            String::from_utf8_lossy(answered)
        );
        Ok(answered)
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
