//! A TCP proxy between a client and etcd or a sidecar, for what a network and a dying server do.
//!
//! It reads HTTP/2 just far enough to tell one reply from the next, so that a connection can be cut exactly where a
//! reply would have passed: the server did what was asked and the client does not learn of it. Of any other protocol a
//! reply is what comes after something was asked.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Chunks in flight one way of one connection.
const IN_FLIGHT: usize = 64;
const FRAME_HEADER: usize = 9;
const DATA: u8 = 0;
const SETTINGS: u8 = 4;

/// A proxy to one address. Dropping it cuts every connection.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    _stop: DropGuard,
}

#[derive(Debug)]
struct Shared {
    upstream: String,
    state: watch::Sender<State>,
    replies: AtomicU64,
    drop_at: AtomicU64,
    stop: CancellationToken,
}

#[derive(Clone, Debug)]
struct State {
    mode: Mode,
    /// When this mode began.
    since: Instant,
    delay: Duration,
    /// Cancelled to cut the connections there are.
    connections: CancellationToken,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// All passes.
    Pass,
    /// Nothing passes and nothing is lost.
    Hold,
    /// All is taken and nothing passes.
    Swallow,
    /// There are no connections, and no new ones.
    Refuse,
}

impl Proxy {
    /// A proxy to `upstream`, as in `127.0.0.1:2379`. It lives in the runtime it is started in.
    pub async fn start(upstream: impl Into<String>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let stop = CancellationToken::new();
        let state = State {
            mode: Mode::Pass,
            since: Instant::now(),
            delay: Duration::ZERO,
            connections: CancellationToken::new(),
        };
        let shared = Arc::new(Shared {
            upstream: upstream.into(),
            state: watch::Sender::new(state),
            replies: AtomicU64::new(0),
            drop_at: AtomicU64::new(0),
            stop: stop.clone(),
        });
        tokio::spawn(stop.clone().run_until_cancelled_owned(accept(listener, Arc::clone(&shared))));
        Ok(Self { port, shared, _stop: stop.drop_guard() })
    }

    /// What a client connects to.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The port of 127.0.0.1 that a client connects to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Carries a connection that somebody else took.
    pub(crate) fn carry(&self, client: TcpStream) {
        carry(client, Arc::clone(&self.shared));
    }

    /// Lets everything pass again. Connections from which bytes were swallowed are cut.
    pub fn heal(&self) {
        if self.shared.state.borrow().mode == Mode::Swallow {
            self.cut();
        }
        self.set(Mode::Pass);
    }

    /// Holds all that is sent, either way, until [`Proxy::heal`].
    pub fn hold(&self) {
        self.set(Mode::Hold);
    }

    /// Takes all that is sent, either way, and passes nothing on, until [`Proxy::heal`].
    pub fn swallow(&self) {
        self.set(Mode::Swallow);
    }

    /// Cuts every connection and takes no new one, until [`Proxy::heal`].
    pub fn refuse(&self) {
        self.set(Mode::Refuse);
        self.cut();
    }

    /// Waits until it has been closed, however that was done, for so long: for a fault that is a span of time.
    pub async fn closed_for(&self, time: Duration) {
        let since = self.shared.state.borrow().since;
        tokio::time::sleep_until(since + time).await;
    }

    /// Cuts every connection there is; new ones may come.
    pub fn cut(&self) {
        self.shared.state.send_modify(|state| {
            std::mem::replace(&mut state.connections, CancellationToken::new()).cancel();
        });
    }

    /// From now on everything arrives so much later, either way.
    pub fn delay(&self, delay: Duration) {
        self.shared.state.send_modify(|state| state.delay = delay);
    }

    /// How many replies passed or were dropped: of HTTP/2 DATA frames from the server, be they the answer to a call or a
    /// message of a stream.
    pub fn replies(&self) -> u64 {
        self.shared.replies.load(Ordering::SeqCst)
    }

    /// Instead of passing the `nth` reply from now on (from 1), cuts the connection it came on. Once.
    pub fn drop_reply(&self, nth: u64) {
        self.shared.drop_at.store(self.replies() + nth, Ordering::SeqCst);
    }

    fn set(&self, mode: Mode) {
        self.shared.state.send_modify(|state| {
            state.mode = mode;
            state.since = Instant::now();
        });
    }
}

impl Shared {
    /// A reply has come: an error when it is the one to drop.
    fn reply(&self) -> Result<()> {
        let reply = self.replies.fetch_add(1, Ordering::SeqCst) + 1;
        anyhow::ensure!(reply != self.drop_at.load(Ordering::SeqCst), "reply {reply} is dropped");
        Ok(())
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        carry(client, Arc::clone(&shared));
    }
}

/// Carries a connection, unless none is taken.
fn carry(client: TcpStream, shared: Arc<Shared>) {
    let state = shared.state.borrow().clone();
    if state.mode == Mode::Refuse {
        return;
    }
    tokio::spawn(async move {
        tokio::select! {
            () = shared.stop.cancelled() => {}
            () = state.connections.cancelled() => {}
            _ = serve(client, &shared) => {}
        }
    });
}

/// Serves one connection, until either end or a dropped reply ends it.
async fn serve(client: TcpStream, shared: &Shared) -> Result<()> {
    let server = TcpStream::connect(&shared.upstream).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let asked = AtomicBool::new(false);
    let asks = || {
        asked.store(true, Ordering::SeqCst);
        Ok(())
    };
    tokio::select! {
        done = pass(to_server, |chunks| read_chunks(from_client, chunks, asks), shared) => done,
        done = pass(to_client, |chunks| read_frames(from_server, chunks, &asked, shared), shared) => done,
    }
}

/// One way of a connection: what `read` finds goes out in order when it is due.
async fn pass<F: Future<Output = Result<()>>>(
    to: impl AsyncWrite + Unpin,
    read: impl FnOnce(mpsc::Sender<Chunk>) -> F,
    shared: &Shared,
) -> Result<()> {
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    let (read, written) = tokio::join!(read(sender), write(to, receiver, shared));
    read.and(written)
}

/// Bytes, and when they came.
type Chunk = (Instant, Vec<u8>);

async fn write(
    mut to: impl AsyncWrite + Unpin,
    mut chunks: mpsc::Receiver<Chunk>,
    shared: &Shared,
) -> Result<()> {
    let mut state = shared.state.subscribe();
    while let Some((came, chunk)) = chunks.recv().await {
        let State { mode, delay, .. } = state.wait_for(|state| state.mode != Mode::Hold).await?.clone();
        tokio::time::sleep_until(came + delay).await;
        if mode == Mode::Pass {
            to.write_all(&chunk).await?;
        }
    }
    Ok(())
}

/// Reads whatever comes; `comes` is told before it is passed on.
async fn read_chunks(
    mut from: impl AsyncRead + Unpin,
    chunks: mpsc::Sender<Chunk>,
    comes: impl Fn() -> Result<()>,
) -> Result<()> {
    loop {
        let mut chunk = Vec::with_capacity(16 * 1024);
        if from.read_buf(&mut chunk).await? == 0 {
            return Ok(());
        }
        comes()?;
        chunks.send((Instant::now(), chunk)).await?;
    }
}

/// Reads what a server sends frame by frame. A server of HTTP/2 begins with a frame of settings: what one that does not
/// sends is a reply when the client has `asked` since.
async fn read_frames(
    mut from: impl AsyncRead + Unpin,
    chunks: mpsc::Sender<Chunk>,
    asked: &AtomicBool,
    shared: &Shared,
) -> Result<()> {
    let replies = || if asked.swap(false, Ordering::SeqCst) { shared.reply() } else { Ok(()) };
    let mut first = true;
    loop {
        let mut frame = vec![0; FRAME_HEADER];
        from.read_exact(&mut frame).await?;
        let length = u32::from_be_bytes([0, frame[0], frame[1], frame[2]]) as usize;
        let kind = frame[3];
        if std::mem::take(&mut first) && kind != SETTINGS {
            replies()?;
            chunks.send((Instant::now(), frame)).await?;
            return read_chunks(from, chunks, replies).await;
        }
        frame.resize(FRAME_HEADER + length, 0);
        from.read_exact(&mut frame[FRAME_HEADER..]).await?;
        if kind == DATA && length > 0 {
            shared.reply()?;
        }
        chunks.send((Instant::now(), frame)).await?;
    }
}
