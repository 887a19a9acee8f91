//! Clients of a sidecar, as light as they get: the generator shares the cores with what it measures.

mod one;
mod two;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use hyper::Method;

use self::{one::One, two::Two};

/// How clients reach a sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wire {
    /// HTTP/1.1, a connection a client: apps of one thread each, or a pool as large as the load.
    One,
    /// HTTP/2, one connection for all clients, as an app's clients of etcd share one.
    Two,
}

impl Wire {
    pub(super) const ALL: [Self; 2] = [Self::One, Self::Two];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::One => "HTTP/1.1",
            Self::Two => "HTTP/2",
        }
    }
}

/// One client.
pub(super) enum Http {
    One(One),
    Two(Two),
}

impl Http {
    /// A client with a connection of its own to a port of 127.0.0.1.
    pub(super) async fn connect(port: u16) -> Result<Self> {
        Ok(Self::One(One::connect(port).await?))
    }

    /// So many clients.
    pub(super) async fn several(wire: Wire, port: u16, count: usize) -> Result<Vec<Self>> {
        let mut clients = Vec::new();
        match wire {
            Wire::One => {
                for _ in 0..count {
                    clients.push(Self::connect(port).await?);
                }
            }
            Wire::Two => {
                let shared = Two::connect(port).await?;
                clients.extend((0..count).map(|_| Self::Two(shared.clone())));
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
            Self::One(one) => one.send(&method, path, headers, &body).await?,
            Self::Two(two) => two.send(method, path, headers, body).await?,
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
