//! The channel to one member of etcd, on which a request is one system call.
//!
//! Without this it is three, and wakes etcd three times: for the head, which HTTP/2 sends as soon as it has opened the
//! stream; for the message; and for the end, which gRPC's client finds only by asking for another message.

use std::{
    io, mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use etcd_client::Channel;
use http_body::{Body, Frame};
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite, BufWriter, ReadBuf},
    net::TcpStream,
};
use tonic::{Status, transport::Endpoint};
use tower::{
    BoxError, ServiceExt as _,
    util::{BoxCloneSyncService, MapErr, MapRequest},
};

/// What is held back at most; more goes at once.
const HELD: usize = 16 << 10;

/// A channel that connects when it is first used, and again when it has to.
pub(crate) fn open(endpoint: &Endpoint) -> Channel {
    let mut tcp = HttpConnector::new();
    // TLS is tonic's, around this.
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let tcp = tcp.map_response(|stream: TokioIo<TcpStream>| TokioIo::new(Corked::new(stream.into_inner())));
    let channel = endpoint.connect_with_connector_lazy(tcp);
    let whole = |request: http::Request<tonic::body::Body>| {
        request.map(|body| tonic::body::Body::new(Whole::new(body)))
    };
    let channel = MapErr::new(MapRequest::new(channel, whole), BoxError::from);
    Channel::Custom(BoxCloneSyncService::new(channel))
}

/// A connection that sends what is written to it one turn of the scheduler later than it is told to, together with what
/// has been written by then.
struct Corked<S> {
    stream: BufWriter<S>,
    told: bool,
}

impl<S: AsyncWrite> Corked<S> {
    fn new(stream: S) -> Self {
        Self { stream: BufWriter::with_capacity(HELD, stream), told: false }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Corked<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.told && !self.stream.buffer().is_empty() {
            self.told = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        self.told = false;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// A request's body that looks one frame ahead, so that its last one is known to be the last.
struct Whole {
    body: tonic::body::Body,
    next: Poll<Option<Result<Frame<Bytes>, Status>>>,
}

impl Whole {
    fn new(body: tonic::body::Body) -> Self {
        Self { body, next: Poll::Pending }
    }
}

impl Body for Whole {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = match mem::replace(&mut self.next, Poll::Pending) {
            Poll::Ready(frame) => frame,
            Poll::Pending => ready!(Pin::new(&mut self.body).poll_frame(context)),
        };
        if frame.is_some() {
            self.next = Pin::new(&mut self.body).poll_frame(context);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.next, Poll::Ready(None))
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, StreamExt as _, channel::mpsc, task::noop_waker_ref};
    use http_body_util::{BodyExt as _, StreamBody};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[test]
    fn what_is_written_in_one_turn_goes_together() {
        let (stream, mut other) = tokio::io::duplex(64);
        let mut corked = Corked::new(stream);
        let mut read = || {
            let mut bytes = [0; 64];
            other.read(&mut bytes).now_or_never().map(|count| bytes[..count.unwrap()].to_vec())
        };
        for (head, body) in [(b"head", b"body"), (b"next", b"more")] {
            let mut context = Context::from_waker(noop_waker_ref());
            corked.write_all(head).now_or_never().unwrap().unwrap();
            assert!(Pin::new(&mut corked).poll_flush(&mut context).is_pending());
            assert_eq!(read(), None);
            corked.write_all(body).now_or_never().unwrap().unwrap();
            assert!(Pin::new(&mut corked).poll_flush(&mut context).is_ready());
            assert_eq!(read(), Some([&head[..], body].concat()));
        }
    }

    #[test]
    fn the_last_frame_is_known_to_be_the_last() {
        let (sender, frames) = mpsc::unbounded();
        let frames = frames.map(|text: &'static str| Ok::<_, Status>(Frame::data(Bytes::from(text))));
        let mut body = Whole::new(tonic::body::Body::new(StreamBody::new(frames)));
        let next = |body: &mut Whole| {
            let frame = body.frame().now_or_never()?;
            frame.map(|frame| frame.unwrap().into_data().unwrap())
        };
        sender.unbounded_send("one").unwrap();
        assert_eq!(next(&mut body).as_deref(), Some(&b"one"[..]));
        assert!(!body.is_end_stream());
        assert_eq!(next(&mut body), None);
        sender.unbounded_send("two").unwrap();
        sender.unbounded_send("three").unwrap();
        assert_eq!(next(&mut body).as_deref(), Some(&b"two"[..]));
        drop(sender);
        assert!(!body.is_end_stream());
        assert_eq!(next(&mut body).as_deref(), Some(&b"three"[..]));
        assert!(body.is_end_stream());
    }
}
