//! One connection to etcd: to one member at a time, to the next one when it fails.
//!
//! A channel balanced over all members would keep handing a share of the requests to a member that is stopped; so
//! each connection stays with the member that answers.

use std::time::Duration;

use concordat_protocol::Millis;
use etcd_client::{Certificate, Client, ConnectOptions, Identity, KvClient, TlsOptions};
use futures::FutureExt;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{Config, ConnectError};

/// etcd refuses pings that come more often than every 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(6);
const PING_TIMEOUT: Duration = Duration::from_secs(3);
/// An answer may be as large as what a batch of reads finds.
const LARGEST_ANSWER: usize = 512 << 20;

/// How members are dialled.
#[derive(Clone)]
pub(crate) struct Dialer {
    endpoints: Vec<String>,
    options: ConnectOptions,
    timeout: Duration,
}

impl Dialer {
    pub(crate) async fn new(config: &Config) -> Result<Self, ConnectError> {
        if config.endpoints.is_empty() {
            return Err(ConnectError::Config("no endpoint of etcd is given".into()));
        }
        let timeout = Duration::from_millis(config.request_timeout);
        let mut options = ConnectOptions::new()
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            .with_keep_alive_while_idle(false)
            .with_connect_timeout(timeout.min(Duration::from_secs(2)))
            .with_require_leader(true);
        if let Some(tls) = &config.tls {
            let mut settings = TlsOptions::new();
            if let Some(ca) = &tls.ca {
                settings = settings.ca_certificate(Certificate::from_pem(read(ca).await?));
            }
            if let Some((certificate, key)) = &tls.identity {
                settings = settings.identity(Identity::from_pem(read(certificate).await?, read(key).await?));
            }
            if let Some(name) = &tls.server_name {
                settings = settings.domain_name(name);
            }
            options = options.with_tls(settings);
        }
        if let Some((name, password)) = &config.user {
            options = options.with_user(name, password).with_auto_token_refresh(true);
        }
        Ok(Self { endpoints: config.endpoints.clone(), options, timeout })
    }

    async fn dial(&self, index: usize) -> Result<Client, String> {
        let endpoint = &self.endpoints[index % self.endpoints.len()];
        let connect = Client::connect([endpoint], Some(self.options.clone()));
        match tokio::time::timeout(self.timeout, connect).await {
            Ok(client) => client.map_err(|error| format!("{endpoint}: {error}")),
            Err(_) => Err(format!("{endpoint}: no answer within {:?}", self.timeout)),
        }
    }
}

async fn read(path: &std::path::Path) -> Result<Vec<u8>, ConnectError> {
    tokio::fs::read(path).await.map_err(|source| ConnectError::File { path: path.to_owned(), source })
}

/// A connection that moves on to the next member for ever.
pub(crate) struct Connection {
    dialer: Dialer,
    current: Mutex<Current>,
    moving: tokio::sync::Mutex<()>,
    moved: watch::Sender<u64>,
}

struct Current {
    index: usize,
    client: Client,
    kv: KvClient,
}

impl Connection {
    /// Connects to the first member from `start` on that can be dialled.
    pub(crate) async fn open(dialer: Dialer, start: usize) -> Result<Self, ConnectError> {
        let mut why = String::new();
        for index in start..start + dialer.endpoints.len() {
            match dialer.dial(index).await {
                Ok(client) => {
                    let kv = large(&client);
                    return Ok(Self {
                        dialer,
                        current: Mutex::new(Current { index, client, kv }),
                        moving: tokio::sync::Mutex::new(()),
                        moved: watch::Sender::new(0),
                    });
                }
                Err(error) => why = error,
            }
        }
        Err(ConnectError::Unreachable { endpoints: dialer.endpoints.join(", "), why })
    }

    /// The client for everything but keys and values, and which move of the connection it belongs to.
    pub(crate) fn client(&self) -> (Client, u64) {
        (self.current.lock().client.clone(), *self.moved.borrow())
    }

    /// The client for keys and values.
    pub(crate) fn kv(&self) -> (KvClient, u64) {
        (self.current.lock().kv.clone(), *self.moved.borrow())
    }

    /// Tells when the connection moves.
    pub(crate) fn moves(&self) -> watch::Receiver<u64> {
        self.moved.subscribe()
    }

    /// Goes on to the next member, unless the connection has moved since `of` already.
    pub(crate) async fn failed(&self, of: u64) {
        let _moving = self.moving.lock().await;
        if *self.moved.borrow() != of {
            return;
        }
        let index = self.current.lock().index + 1;
        match self.dialer.dial(index).boxed().await {
            Ok(client) => {
                let kv = large(&client);
                *self.current.lock() = Current { index, client, kv };
            }
            Err(why) => {
                tracing::warn!(why, "etcd's member cannot be dialled");
                self.current.lock().index = index;
            }
        }
        self.moved.send_modify(|moved| *moved += 1);
    }

    /// How long one request may take.
    pub(crate) fn timeout(&self) -> Duration {
        self.dialer.timeout
    }
}

fn large(client: &Client) -> KvClient {
    client.kv_client().max_decoding_message_size(LARGEST_ANSWER)
}

/// The wait before the `attempt`-th repeat (from 0), milliseconds: doubled from 50 ms up to 2 s.
pub(crate) fn back_off(attempt: u32) -> Millis {
    (50 << attempt.min(6)).min(2_000)
}
