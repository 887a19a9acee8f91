//! HTTP/1.1 and HTTP/2 over TLS, within bounds that nobody on the other side can widen.

use std::{pin::pin, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use hyper::{Request, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustls::{ServerConfig, crypto::ring::default_provider};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

use super::{
    certificates::Certificates,
    guests::{Guest, Guests},
};

/// Connections at a time; for the next one the one goes that was not heard for longest. API servers are few.
const MOST_CONNECTIONS: usize = 512;
/// Requests of one HTTP/2 connection at a time.
const MOST_STREAMS: u32 = 250;
/// A TLS handshake must be whole within this, and then a head of HTTP/1, whether it was begun or not.
const BEGINNING: Duration = Duration::from_secs(10);
/// A connection of HTTP/2 that says nothing for so long is asked whether anybody is there.
const QUIET: Duration = Duration::from_secs(30);
/// Longer than any answer takes: a connection that is to end has ended then.
const LEAVING: Duration = Duration::from_secs(30);
/// After a failed accept (no file descriptor is left, say) waiting is better than spinning.
const BACK_OFF: Duration = Duration::from_millis(100);

/// HTTP/2 among the protocols of a handshake.
const H2: &[u8] = b"h2";

/// Serves until `stop`; then takes no further connection, lets each one finish the requests it is in, and returns.
pub(super) async fn serve(
    listener: TcpListener,
    certificates: Arc<Certificates>,
    router: Router,
    stop: CancellationToken,
) {
    match tls(certificates) {
        Ok(tls) => accept(listener, &tls, &router, MOST_CONNECTIONS, &stop).await,
        Err(error) => tracing::error!(%error, "the webhook cannot be served"),
    }
}

async fn accept(
    listener: TcpListener,
    tls: &TlsAcceptor,
    router: &Router,
    most: usize,
    stop: &CancellationToken,
) {
    let (guests, connections) = (Guests::new(most), TaskTracker::new());
    loop {
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
        let guest = tokio::select! {
            () = stop.cancelled() => break,
            guest = guests.enter() => guest,
        };
        let _ = stream.set_nodelay(true);
        let (tls, router, stop) = (tls.clone(), router.clone(), stop.clone());
        connections.spawn(async move {
            if let Err(error) = connection(stream, tls, router, guest, stop).await {
                tracing::debug!(%error, "a connection ended");
            }
        });
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    tls: TlsAcceptor,
    router: Router,
    guest: Guest,
    stop: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let leave = guest.leave().clone();
    let ends = async || tokio::select! { () = leave.cancelled() => {}, () = stop.cancelled() => {} };
    let stream = tokio::select! {
        stream = timeout(BEGINNING, tls.accept(stream)) => stream??,
        () = ends() => return Ok(()),
    };
    let guest = Arc::new(guest);
    let service = service_fn(move |request: Request<Incoming>| {
        let (question, answer) = (guest.asks(), router.clone().oneshot(request.map(Body::new)));
        async move {
            let answer = answer.await;
            drop(question);
            answer
        }
    });
    let server = server(stream.get_ref().1.alpn_protocol() == Some(H2));
    let mut connection = pin!(server.serve_connection(TokioIo::new(stream), service).into_owned());
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = ends() => connection.as_mut().graceful_shutdown(),
    }
    timeout(LEAVING, connection).await?
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

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use jiff::Timestamp;
    use rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    };
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        net::TcpStream,
        time::Instant,
    };
    use tokio_rustls::{TlsConnector, client::TlsStream};

    use super::*;
    use crate::pki::{Authority, Usage};

    const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

    /// A server's side and a client's.
    fn both() -> (TlsAcceptor, TlsConnector) {
        let authority = Authority::new(Timestamp::now()).unwrap();
        let request =
            crate::pki::Request { common_name: "a".into(), names: vec!["a".into()], usage: Usage::Server };
        let certificates = Certificates::default();
        certificates.show(&authority.issue(&request, Timestamp::now()).unwrap()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.trusted().as_bytes()).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        (tls(Arc::new(certificates)).unwrap(), TlsConnector::from(Arc::new(config)))
    }

    fn router() -> Router {
        Router::new().route("/", get(async || "here"))
    }

    async fn shake<S: AsyncRead + AsyncWrite + Unpin>(client: &TlsConnector, stream: S) -> TlsStream<S> {
        client.connect(ServerName::try_from("a").unwrap(), stream).await.unwrap()
    }

    async fn ask<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut TlsStream<S>) -> String {
        stream.write_all(GET).await.unwrap();
        let mut answer = vec![0; 4_096];
        let read = stream.read(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer[..read]).into_owned()
    }

    #[tokio::test]
    async fn connections_that_say_nothing_keep_nobody_out() {
        let (tls, client) = both();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let ended = stop.clone();
        let serving = tokio::spawn(async move { accept(listener, &tls, &router(), 4, &ended).await });
        let mut first = shake(&client, TcpStream::connect(address).await.unwrap()).await;
        let mut silent = Vec::new();
        for _ in 0..3 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        assert!(ask(&mut first).await.ends_with("here"));
        let mut next = shake(&client, TcpStream::connect(address).await.unwrap()).await;
        assert!(ask(&mut next).await.ends_with("here"));
        // One went for it, and nobody's time was over.
        let closed = |stream: &&TcpStream| matches!(stream.try_read(&mut [0]), Ok(0));
        assert_eq!(silent.iter().filter(closed).count(), 1);
        assert!(ask(&mut first).await.ends_with("here"));
        stop.cancel();
        serving.await.unwrap();
    }

    /// What a server makes of a connection on which a client does this; how long it lets it.
    async fn lasts(client: impl AsyncFnOnce(TlsConnector, DuplexStream)) -> Duration {
        let (tls, connector) = both();
        let (ours, theirs) = duplex(1 << 16);
        let guest = Guests::new(1).enter().await;
        let serving = tokio::spawn(connection(theirs, tls, router(), guest, CancellationToken::new()));
        let began = Instant::now();
        client(connector, ours).await;
        let _ = serving.await.unwrap();
        began.elapsed()
    }

    /// Reads until the other side ends it.
    async fn end(mut stream: impl AsyncRead + Unpin) {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_a_request_ends_in_time() {
        let millisecond = Duration::from_millis(1);
        let handshake = lasts(async |_, stream| end(stream).await).await;
        let head = lasts(async |client, stream| end(shake(&client, stream).await).await).await;
        let half = lasts(async |client, stream| {
            let mut stream = shake(&client, stream).await;
            stream.write_all(&GET[..GET.len() - 2]).await.unwrap();
            stream.flush().await.unwrap();
            end(stream).await;
        });
        let after = lasts(async |client, stream| {
            let mut stream = shake(&client, stream).await;
            assert!(ask(&mut stream).await.ends_with("here"));
            end(stream).await;
        });
        for (what, lasted) in [
            ("no handshake", handshake),
            ("no head", head),
            ("half a head", half.await),
            ("a second", after.await),
        ] {
            // Timers of tokio are of milliseconds.
            assert!(lasted >= BEGINNING && lasted <= BEGINNING + 2 * millisecond, "{what}: {lasted:?}");
        }
    }
}
