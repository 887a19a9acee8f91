//! HTTP/1.1 and HTTP/2 over TLS, within bounds that nobody on the other side can widen.

use std::{sync::Arc, time::Duration};

use axum::{Router, body::Body};
use hyper::{Request, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
};
use rustls::{ServerConfig, crypto::ring::default_provider};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::certificates::Certificates;

/// Connections at a time; the next one waits. API servers are few, and keep theirs.
const MOST_CONNECTIONS: usize = 512;
/// Requests of one HTTP/2 connection at a time.
const MOST_STREAMS: u32 = 250;
/// A TLS handshake, and then each head that was begun, must be whole within this.
const BEGINNING: Duration = Duration::from_secs(10);
/// A connection that says nothing for so long is asked whether anybody is there.
const QUIET: Duration = Duration::from_secs(30);
/// After a failed accept (no file descriptor is left, say) waiting is better than spinning.
const BACK_OFF: Duration = Duration::from_millis(100);

/// HTTP/2 among the protocols of a handshake.
const H2: &[u8] = b"h2";

/// Serves until `stop`; then takes no further connection, lets each one finish the request it is in, and returns.
pub(super) async fn serve(
    listener: TcpListener,
    certificates: Arc<Certificates>,
    router: Router,
    stop: CancellationToken,
) {
    let tls = match tls(certificates) {
        Ok(tls) => tls,
        Err(error) => return tracing::error!(%error, "the webhook cannot be served"),
    };
    let graceful = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { break };
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                sleep(BACK_OFF).await;
                continue;
            }
        };
        let (tls, router, watcher) = (tls.clone(), router.clone(), graceful.watcher());
        tokio::spawn(async move {
            let _slot = slot;
            if let Err(error) = connection(stream, tls, router, watcher).await {
                tracing::debug!(%error, "a connection ended");
            }
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

async fn connection(
    stream: TcpStream,
    tls: TlsAcceptor,
    router: Router,
    watcher: Watcher,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let _ = stream.set_nodelay(true);
    let stream = timeout(BEGINNING, tls.accept(stream)).await??;
    let service =
        service_fn(move |request: Request<Incoming>| router.clone().oneshot(request.map(Body::new)));
    let server = server(stream.get_ref().1.alpn_protocol() == Some(H2));
    let connection = server.serve_connection(TokioIo::new(stream), service).into_owned();
    watcher.watch(connection).await
}

/// A server of the HTTP that the handshake agreed on: one that waited to see which it is would wait for ever.
fn server(http2: bool) -> auto::Builder<TokioExecutor> {
    let server = auto::Builder::new(TokioExecutor::new());
    let mut server = if http2 { server.http2_only() } else { server.http1_only() };
    server.http1().timer(TokioTimer::new()).header_read_timeout(BEGINNING);
    server
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MOST_STREAMS)
        .keep_alive_interval(QUIET)
        .keep_alive_timeout(BEGINNING);
    server
}

fn tls(certificates: Arc<Certificates>) -> Result<TlsAcceptor, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![H2.to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
