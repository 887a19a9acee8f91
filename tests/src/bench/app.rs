//! A participant's app that agrees to everything.

use std::convert::Infallible;

use anyhow::Result;
use bytes::Bytes;
use http_body_util::Empty;
use hyper::{Response, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;

/// Serves until the process ends.
pub async fn serve(port: u16) -> Result<()> {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let service = service_fn(|_| async { Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())) });
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
