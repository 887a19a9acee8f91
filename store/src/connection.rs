//! One connection to etcd: to one member at a time, to the next one when it fails.
//!
//! A channel balanced over all members would keep handing a share of the requests to a member that is stopped; so
//! each connection stays with the member that answers.

use std::time::Duration;

use concordat_protocol::Millis;
use etcd_client::{Channel, Client, ConnectOptions, KvClient};
use futures::FutureExt;
use parking_lot::Mutex;
use tokio::sync::watch;
use tonic::transport::Endpoint;

use crate::{Config, ConnectError, Tls, certificates::Certificates, channel};

/// etcd refuses pings that come more often than every 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(6);
const PING_TIMEOUT: Duration = Duration::from_secs(3);
/// An answer may be as large as what a batch of reads finds.
const LARGEST_ANSWER: usize = 512 << 20;

/// How often it is looked whether there are new certificates.
const LOOK: Duration = Duration::from_secs(5);

/// How members are dialled.
#[derive(Clone)]
pub(crate) struct Dialer {
    endpoints: Vec<String>,
    options: ConnectOptions,
    tls: Option<Tls>,
    timeout: Duration,
}

impl Dialer {
    pub(crate) fn new(config: &Config) -> Result<Self, ConnectError> {
        if config.endpoints.is_empty() {
            return Err(ConnectError::Config("no endpoint of etcd is given".into()));
        }
        let timeout = Duration::from_millis(config.request_timeout);
        let mut options = ConnectOptions::new().with_require_leader(true);
        config.tls.as_ref().map(Certificates::read).transpose()?;
        if let Some((name, password)) = &config.user {
            options = options.with_user(name, password).with_auto_token_refresh(true);
        }
        Ok(Self { endpoints: config.endpoints.clone(), options, tls: config.tls.clone(), timeout })
    }

    /// What the files of certificates hold now, if there are any.
    fn certificates(&self) -> Result<Option<Certificates>, String> {
        self.tls.as_ref().map(Certificates::read).transpose().map_err(|error| error.to_string())
    }

    /// The channel to a member, with these certificates.
    fn channel(
        &self,
        endpoint: &str,
        certificates: Option<&Certificates>,
    ) -> Result<Channel, tonic::transport::Error> {
        let mut member = Endpoint::from_shared(endpoint.to_owned())?
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(false)
            .connect_timeout(self.timeout.min(Duration::from_secs(2)));
        if endpoint.starts_with("https://") {
            let server_name = self.tls.as_ref().and_then(|tls| tls.server_name.as_deref());
            let tls = certificates.map(|certificates| certificates.options(server_name));
            member = member.tls_config(tls.unwrap_or_default())?;
        }
        Ok(channel::open(&member))
    }

    /// Dials a member with the certificates that are in their files now.
    async fn dial(&self, index: usize) -> Result<Current, String> {
        let endpoint = &self.endpoints[index % self.endpoints.len()];
        let certificates = self.certificates()?;
        let channel = self.channel(endpoint, certificates.as_ref());
        let channel = channel.map_err(|error| format!("{endpoint}: {error}"))?;
        let connect = Client::from_channel(channel, Some(self.options.clone()));
        match tokio::time::timeout(self.timeout, connect.boxed()).await {
            Ok(Ok(client)) => {
                let kv = client.kv_client().max_decoding_message_size(LARGEST_ANSWER);
                Ok(Current { index, client, kv, certificates })
            }
            Ok(Err(error)) => Err(format!("{endpoint}: {error}")),
            Err(_) => Err(format!("{endpoint}: no answer within {:?}", self.timeout)),
        }
    }
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
    /// Those it was dialled with.
    certificates: Option<Certificates>,
}

impl Connection {
    /// Connects to the first member from `start` on that can be dialled.
    pub(crate) async fn open(dialer: Dialer, start: usize) -> Result<Self, ConnectError> {
        let mut why = String::new();
        for index in start..start + dialer.endpoints.len() {
            match dialer.dial(index).await {
                Ok(current) => {
                    return Ok(Self {
                        dialer,
                        current: Mutex::new(current),
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
        match self.dialer.dial(index).await {
            Ok(current) => *self.current.lock() = current,
            Err(why) => {
                tracing::warn!(why, "etcd's member cannot be dialled");
                self.current.lock().index = index;
            }
        }
        self.moved.send_modify(|moved| *moved += 1);
    }

    /// Goes over to new certificates whenever their files hold some that etcd takes, for ever. What is under way ends on
    /// the connection it began on.
    pub(crate) async fn renew(&self) {
        if self.dialer.tls.is_none() {
            return;
        }
        let mut told = String::new();
        loop {
            tokio::time::sleep(LOOK).await;
            // What cannot be read is being replaced.
            let Ok(found) = self.dialer.certificates() else { continue };
            let index = {
                let current = self.current.lock();
                if current.certificates == found {
                    continue;
                }
                current.index
            };
            let _moving = self.moving.lock().await;
            let fresh = match self.dialer.dial(index).await {
                Ok(mut fresh) => {
                    match tokio::time::timeout(self.dialer.timeout, fresh.client.status().boxed()).await {
                        Ok(Ok(_)) => Ok(fresh),
                        Ok(Err(error)) => Err(error.to_string()),
                        Err(_) => Err("etcd did not answer in time".to_owned()),
                    }
                }
                Err(why) => Err(why),
            };
            match fresh {
                Ok(fresh) => {
                    tracing::info!("etcd is asked with the new certificates");
                    *self.current.lock() = fresh;
                    self.moved.send_modify(|moved| *moved += 1);
                    told.clear();
                }
                Err(why) => {
                    if why != told {
                        tracing::warn!(
                            why,
                            "etcd was not reached with the new certificates: the old ones stay"
                        );
                    }
                    told = why;
                }
            }
        }
    }

    /// How long one request may take.
    pub(crate) fn timeout(&self) -> Duration {
        self.dialer.timeout
    }
}

/// The wait before the `attempt`-th repeat (from 0), milliseconds: doubled from 50 ms up to 2 s.
pub(crate) fn back_off(attempt: u32) -> Millis {
    (50 << attempt.min(6)).min(2_000)
}
