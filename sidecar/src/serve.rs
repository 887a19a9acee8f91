//! Serves HTTP/1.1 and h2c on a listener, within bounds that nobody on the other side can widen.

use std::{
    convert::Infallible,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{body::Body, response::Response};
use http::Request;
use hyper::{
    body::Incoming,
    rt::{Read, ReadBufCursor, Write},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt};

/// Connections at a time; the next one waits.
const MOST_CONNECTIONS: usize = 4_096;
/// Requests of one HTTP/2 connection at a time: as many as of all HTTP/1.1 connections, for an app may have one client for
/// all that it asks, and what lets go must come past those that wait.
const MOST_STREAMS: u32 = MOST_CONNECTIONS as u32;
/// A head is far smaller; what a connection may make us buffer.
const LARGEST_HEAD: usize = 64 * 1024;
/// A connection must send a first request, and then each head that it has begun, within this.
const HEAD_TIMEOUT: Duration = Duration::from_mins(1);
/// After a failed accept (no file descriptor is left, say) waiting is better than spinning.
const ACCEPT_BACK_OFF: Duration = Duration::from_millis(100);

/// Serves until `stop`; then takes no further connection, lets each one finish the request it is in, and returns when
/// the last has ended.
pub async fn serve<S>(listener: TcpListener, service: S, stop: CancellationToken)
where
    S: Service<Request<Body>, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let (server, graceful) = (server(), GracefulShutdown::new());
    let slots = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&listener, &slots) => accepted,
        };
        let Some((stream, slot)) = accepted else { continue };
        let (spoke, service) = (Arc::new(AtomicBool::new(false)), service.clone());
        let speaks = spoke.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            speaks.store(true, Ordering::Relaxed);
            service.clone().oneshot(request.map(Body::new))
        });
        let connection =
            graceful.watch(server.serve_connection(Flat(TokioIo::new(stream)), service).into_owned());
        tokio::spawn(async move {
            let _slot = slot;
            tokio::pin!(connection);
            let ended = tokio::select! {
                ended = &mut connection => ended,
                // hyper's own time-out begins only once it knows which HTTP it is.
                () = silent(&spoke) => return,
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection ended");
            }
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

/// Ends when a connection has not sent one request in its time. Of one that has, the timer is not looked at again.
async fn silent(spoke: &AtomicBool) {
    let mut timer = pin!(tokio::time::sleep(HEAD_TIMEOUT));
    poll_fn(|context| {
        if spoke.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        timer.as_mut().poll(context)
    })
    .await;
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let slot = slots.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => {
            // Answers are small and waited for.
            let _ = stream.set_nodelay(true);
            Some((stream, slot))
        }
        Err(error) => {
            tracing::warn!(%error, "a connection was not accepted");
            tokio::time::sleep(ACCEPT_BACK_OFF).await;
            None
        }
    }
}

/// A connection that is written to by one buffer at a time. Told that it takes several, HTTP/2 hands over each body of more
/// than 256 bytes by a system call of its own; so those of up to 1,024 bytes go together.
struct Flat(TokioIo<TcpStream>);

impl Read for Flat {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl Write for Flat {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

fn server() -> auto::Builder<TokioExecutor> {
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(LARGEST_HEAD);
    server
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MOST_STREAMS)
        .max_header_list_size(LARGEST_HEAD as u32);
    server
}

#[cfg(test)]
mod tests {
    use axum::{Router, routing::get};
    use http_body_util::{BodyExt, Empty};
    use hyper::client::conn::http2;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn started(
        router: Router,
    ) -> (std::net::SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        (address, stop.clone(), tokio::spawn(serve(listener, router, stop)))
    }

    fn app() -> Router {
        Router::new().route("/", get("yes"))
    }

    async fn send(address: std::net::SocketAddr, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    }

    // The clock is paused: it goes to the next timer whenever nothing else can happen.
    #[tokio::test(start_paused = true)]
    async fn whoever_does_not_finish_a_head_is_let_go() {
        let (address, _stop, _server) = started(app()).await;
        for said in ["", "P", "PRI * HTTP/2.0\r\n", "GET / HT", "GET / HTTP/1.1\r\nhost: local"] {
            let mut stream = send(address, said.as_bytes()).await;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            assert!(!answer.starts_with(b"HTTP/1.1 200"), "{said:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_asked_is_answered_however_long_that_takes() {
        let handler = async || {
            tokio::time::sleep(3 * HEAD_TIMEOUT).await;
            "yes"
        };
        let (address, _stop, _server) = started(Router::new().route("/", get(handler))).await;
        let request = b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        let (mut stream, mut answer) = (send(address, request).await, Vec::new());
        stream.read_to_end(&mut answer).await.unwrap();
        assert!(answer.ends_with(b"yes"), "{:?}", String::from_utf8_lossy(&answer));
    }

    #[tokio::test]
    async fn a_head_that_is_too_large_is_refused() {
        let (address, _stop, _server) = started(app()).await;
        let head = format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "x".repeat(LARGEST_HEAD));
        let mut stream = send(address, head.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(
            answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"),
            "{:?}",
            String::from_utf8_lossy(&answer)
        );
    }

    #[tokio::test]
    async fn http_2_is_spoken_without_tls() {
        let (address, _stop, _server) = started(app()).await;
        let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let (mut client, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get(format!("http://{address}/")).body(Empty::<bytes::Bytes>::new()).unwrap();
        let response = client.send_request(request).await.unwrap();
        assert_eq!(response.version(), http::Version::HTTP_2);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "yes");
    }

    #[tokio::test]
    async fn a_request_under_way_is_answered_before_the_end() {
        let (begun, go_on) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
        let (of, waits) = (begun.clone(), go_on.clone());
        let handler = async move || {
            of.notify_one();
            waits.notified().await;
            "yes"
        };
        let (address, stop, server) = started(Router::new().route("/", get(handler))).await;
        let _idle = send(address, b"GET /no HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        let mut stream = send(address, b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        begun.notified().await;
        stop.cancel();
        tokio::task::yield_now().await;
        assert!(!server.is_finished());
        go_on.notify_one();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert!(answer.ends_with(b"yes"), "{:?}", String::from_utf8_lossy(&answer));
        server.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }
}
