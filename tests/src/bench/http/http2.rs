//! HTTP/2 without TLS, by prior knowledge (RFC 9113, 3.3): clients share a connection, each request is a stream of it.

use anyhow::Result;
use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use hyper::{Method, Request, StatusCode};
use tokio::net::TcpStream;

/// What may come of all answers, and of one, before it is read: no answer waits for the generator to say that it may come.
const WINDOW: u32 = 16 << 20;

/// A client; its clones share the connection.
#[derive(Clone)]
pub(in crate::bench) struct Http2 {
    requests: SendRequest<Bytes>,
    answered: Vec<u8>,
}

impl Http2 {
    /// Connects to a port of 127.0.0.1.
    pub(super) async fn connect(port: u16) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        let mut builder = Builder::new();
        builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW);
        let (requests, connection) = builder.handshake(stream).await?;
        // How it ends is what requests are told.
        tokio::spawn(async { drop(connection.await) });
        Ok(Self { requests, answered: Vec::new() })
    }

    /// One request, and its answer.
    pub(super) async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<(StatusCode, &[u8])> {
        let mut request = Request::builder().method(method).uri(format!("http://127.0.0.1{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        std::future::poll_fn(|context| self.requests.poll_ready(context)).await?;
        let (answer, mut sending) = self.requests.send_request(request.body(())?, body.is_empty())?;
        if !body.is_empty() {
            sending.send_data(body, true)?;
        }
        let (head, mut body) = answer.await?.into_parts();
        self.answered.clear();
        while let Some(part) = body.data().await {
            let part = part?;
            body.flow_control().release_capacity(part.len())?;
            self.answered.extend_from_slice(&part);
        }
        Ok((head.status, &self.answered))
    }
}
