//! HTTP/1.1, by a connection of the client's own. Each request is one write, each answer one read or a few; answers tell
//! their length, as those of a sidecar do.

use anyhow::{Context, Result, bail, ensure};
use hyper::{Method, StatusCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// One kept-alive connection.
pub(in crate::bench) struct Http1 {
    stream: TcpStream,
    asked: Vec<u8>,
    /// The answer before, up to `length`, and what is read of the next one.
    answered: Vec<u8>,
    length: usize,
}

impl Http1 {
    /// Connects to a port of 127.0.0.1.
    pub(super) async fn connect(port: u16) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, asked: Vec::new(), answered: Vec::with_capacity(4096), length: 0 })
    }

    /// One request, and its answer.
    pub(super) async fn send(
        &mut self,
        method: &Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<(StatusCode, &[u8])> {
        self.asked.clear();
        for part in [method.as_str(), " ", path, " HTTP/1.1\r\nhost: 127.0.0.1\r\n"] {
            self.asked.extend_from_slice(part.as_bytes());
        }
        for (name, value) in headers {
            for part in [name, ": ", value, "\r\n"] {
                self.asked.extend_from_slice(part.as_bytes());
            }
        }
        if !body.is_empty() {
            self.asked.extend_from_slice(format!("content-length: {}\r\n", body.len()).as_bytes());
        }
        self.asked.extend_from_slice(b"\r\n");
        self.asked.extend_from_slice(body);
        self.stream.write_all(&self.asked).await?;

        self.answered.drain(..self.length);
        let (status, head, length) = loop {
            if let Some(head) = find(&self.answered, b"\r\n\r\n") {
                let (status, length) = read_head(&self.answered[..head])?;
                break (status, head + 4, length);
            }
            self.read().await?;
        };
        self.length = head + length;
        while self.answered.len() < self.length {
            self.read().await?;
        }
        Ok((status, &self.answered[head..self.length]))
    }

    async fn read(&mut self) -> Result<()> {
        if self.stream.read_buf(&mut self.answered).await? == 0 {
            bail!("the sidecar closed the connection");
        }
        Ok(())
    }
}

/// Status and length of the body, from a head without its empty line.
fn read_head(head: &[u8]) -> Result<(StatusCode, usize)> {
    let head = std::str::from_utf8(head)?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("no status")?;
    let status: StatusCode = status.parse()?;
    let length = lines.filter_map(|line| line.split_once(':'));
    let length = length.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length = length.map(|(_, value)| value.trim().parse()).next();
    // RFC 9110, 8.6: an answer without content has none.
    ensure!(length.is_some() || status == StatusCode::NO_CONTENT, "an answer without its length: {head}");
    Ok((status, length.transpose()?.unwrap_or(0)))
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|found| found == wanted)
}
