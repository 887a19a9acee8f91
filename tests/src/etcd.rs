//! A real etcd, of one node or several, whose members can be killed, stopped and started again.

mod peers;
mod restore;
mod tls;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, anyhow, ensure};
use etcd_client::{
    AlarmAction, AlarmOptions, AlarmType, Certificate, Client, CompactionOptions, ConnectOptions,
    Identity as TlsIdentity, TlsOptions,
};
use tempfile::TempDir;

pub use self::restore::Backup;
use self::{peers::Peers, tls::Pki};
use crate::process::{Process, eventually, free_port};

/// A port may be taken between finding and using it.
const ATTEMPTS: usize = 5;

/// What an etcd is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many members.
    pub members: usize,
    /// Clients need a certificate, [`Etcd::client_identity`].
    pub tls: bool,
    /// The members can be parted from each other, as by [`Etcd::isolate`].
    pub parted: bool,
    /// Further flags of every member.
    pub flags: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { members: 1, tls: false, parted: false, flags: Vec::new() }
    }
}

impl Settings {
    /// With a flag, as in `--snapshot-count=100`.
    #[must_use]
    pub fn flag(mut self, flag: impl Into<String>) -> Self {
        self.flags.push(flag.into());
        self
    }

    /// With so many bytes until NOSPACE.
    #[must_use]
    pub fn quota(self, bytes: u64) -> Self {
        self.flag(format!("--quota-backend-bytes={bytes}"))
    }
}

/// A running etcd. Dropping it ends it; its data goes with it.
#[derive(Debug)]
pub struct Etcd {
    settings: Settings,
    members: Vec<Member>,
    pki: Option<Pki>,
    /// Another `--initial-cluster-token` than the one of its own.
    token: Option<String>,
    peers: Option<Peers>,
    folder: TempDir,
}

#[derive(Debug)]
struct Member {
    port: u16,
    /// Where it hears the others.
    peer: u16,
    process: Option<Process>,
}

impl Etcd {
    /// One node.
    pub async fn start() -> Result<Self> {
        Self::with(Settings::default()).await
    }

    /// Three nodes.
    pub async fn three() -> Result<Self> {
        Self::with(Settings { members: 3, ..Settings::default() }).await
    }

    /// As the settings say; back when every member is healthy.
    pub async fn with(settings: Settings) -> Result<Self> {
        let mut last = anyhow!("never tried");
        for _ in 0..ATTEMPTS {
            match Self::attempt(settings.clone()).await {
                Ok(etcd) => return Ok(etcd),
                Err(error) => last = error,
            }
        }
        Err(last.context("starting etcd"))
    }

    async fn attempt(settings: Settings) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("concordat-etcd-").tempdir()?;
        let mut members = Vec::new();
        for _ in 0..settings.members {
            members.push(Member { port: free_port()?, peer: free_port()?, process: None });
        }
        let pki = if settings.tls { Some(Pki::write(folder.path())?) } else { None };
        let peers: Vec<u16> = members.iter().map(|member| member.peer).collect();
        let peers = if settings.parted { Some(Peers::start(&peers).await?) } else { None };
        let mut etcd = Self { settings, members, pki, token: None, peers, folder };
        for member in 0..etcd.members.len() {
            etcd.spawn(member)?;
        }
        for member in 0..etcd.members.len() {
            etcd.healthy(member).await?;
        }
        Ok(etcd)
    }

    /// The URLs of all members.
    pub fn endpoints(&self) -> Vec<String> {
        (0..self.members.len()).map(|member| self.endpoint(member)).collect()
    }

    /// The URL of one member.
    pub fn endpoint(&self, member: usize) -> String {
        let scheme = if self.pki.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address(member))
    }

    /// The address of one member, without a scheme.
    pub fn address(&self, member: usize) -> String {
        format!("127.0.0.1:{}", self.members[member].port)
    }

    /// With TLS: the authority's certificate, a certificate of the user `root` and its key, PEM.
    pub fn client_identity(&self) -> Option<(&str, &str, &str)> {
        self.pki.as_ref().map(|pki| (&*pki.authority.certificate, &*pki.client.certificate, &*pki.client.key))
    }

    /// With TLS: the certificate and the key, PEM, of whom it believes who its clients are.
    pub fn authority(&self) -> Option<(&str, String)> {
        self.pki.as_ref().map(|pki| (&*pki.authority.certificate, pki.authority.key()))
    }

    /// With TLS: writes `ca.crt`, and `tls.crt` and `tls.key` of a user, to a folder.
    pub fn issue(&self, user: &str, folder: &Path) -> Result<()> {
        self.pki.as_ref().context("it asks for no certificates")?.issue(user, folder)
    }

    /// With TLS: another authority, and no longer the one there was. Members know it once they have started again.
    pub fn replace_authority(&mut self) -> Result<()> {
        self.pki = Some(Pki::write(self.folder.path())?);
        Ok(())
    }

    /// A client of all members, on connections of its own.
    pub async fn client(&self) -> Result<Client> {
        self.connect(self.endpoints()).await
    }

    /// A client of one member alone.
    pub async fn client_of(&self, member: usize) -> Result<Client> {
        self.connect(vec![self.endpoint(member)]).await
    }

    async fn connect(&self, endpoints: Vec<String>) -> Result<Client> {
        let options = self.pki.as_ref().map(|pki| {
            ConnectOptions::new().with_tls(
                TlsOptions::new()
                    .ca_certificate(Certificate::from_pem(&pki.authority.certificate))
                    .identity(TlsIdentity::from_pem(&pki.client.certificate, &pki.client.key)),
            )
        });
        Ok(Client::connect(endpoints, options).await?)
    }

    /// Kills a member as a crash would (SIGKILL). Its data stays.
    pub fn kill(&mut self, member: usize) -> Result<()> {
        match self.members[member].process.take() {
            Some(mut process) => process.kill(),
            None => Ok(()),
        }
    }

    /// Process id of a member that runs.
    pub fn process_id(&self, member: usize) -> Result<u32> {
        Ok(self.process(member)?.id())
    }

    /// Stops a member where it is (SIGSTOP).
    pub fn pause(&self, member: usize) -> Result<()> {
        self.process(member)?.pause()
    }

    /// Lets a stopped member go on (SIGCONT).
    pub fn resume(&self, member: usize) -> Result<()> {
        self.process(member)?.resume()
    }

    /// Ends a member in good order (SIGTERM).
    pub async fn terminate(&mut self, member: usize) -> Result<()> {
        if let Some(mut process) = self.members[member].process.take() {
            process.terminate().await?;
        }
        Ok(())
    }

    /// Starts a member that ended on its data, without waiting for it.
    pub fn spawn(&mut self, member: usize) -> Result<()> {
        let command = self.command(member)?;
        let process = Process::start(&format!("etcd-{member}"), command)?;
        if let Some(peers) = &self.peers {
            peers.runs(member, process.id());
        }
        self.members[member].process = Some(process);
        Ok(())
    }

    /// Starts a member that ended on its data, and waits until it is healthy.
    pub async fn restart(&mut self, member: usize) -> Result<()> {
        self.spawn(member)?;
        self.healthy(member).await
    }

    /// Waits until a member answers a linearizable read.
    pub async fn healthy(&mut self, member: usize) -> Result<()> {
        let client = self.client_of(member).await?;
        let process = self.members[member].process.as_mut().context("the member does not run")?;
        process
            .ready("answers a linearizable read", async || {
                client.clone().get("health", None).await.map(drop).map_err(Into::into)
            })
            .await
    }

    /// Which member leads.
    pub async fn leader(&self) -> Result<usize> {
        self.leader_beside(None).await
    }

    /// Which member leads but this one, once one does: the one that is parted or stopped does not know that it no longer
    /// leads.
    pub async fn next_leader(&self, before: usize) -> Result<usize> {
        self.leader_beside(Some(before)).await
    }

    async fn leader_beside(&self, not: Option<usize>) -> Result<usize> {
        let runs = |member: &usize| Some(*member) != not && self.members[*member].process.is_some();
        eventually("etcd has a leader", async || {
            for member in (0..self.members.len()).filter(runs) {
                // A member that is stopped does not answer: ask all that do.
                let Ok(Ok(id)) =
                    tokio::time::timeout(std::time::Duration::from_secs(1), self.member_id(member)).await
                else {
                    continue;
                };
                if id.1 == id.0 {
                    return Ok(member);
                }
            }
            Err(anyhow!("no member says that it leads"))
        })
        .await
    }

    /// Parts a member from all others until [`Etcd::reunite`]; clients still reach it.
    pub fn isolate(&self, member: usize) -> Result<()> {
        self.peers()?.part(|caller, called| caller == member || called == member);
        Ok(())
    }

    /// Parts every member from every other until [`Etcd::reunite`].
    pub fn part(&self) -> Result<()> {
        self.peers()?.part(|_, _| true);
        Ok(())
    }

    /// Lets all members reach each other.
    pub fn reunite(&self) -> Result<()> {
        self.peers()?.reunite();
        Ok(())
    }

    fn peers(&self) -> Result<&Peers> {
        self.peers.as_ref().context("these members cannot be parted")
    }

    /// The ids of a member and of the one that it says leads.
    async fn member_id(&self, member: usize) -> Result<(u64, u64)> {
        let status = self.client_of(member).await?.status().await?;
        let header = status.header().context("a status without header")?;
        Ok((header.member_id(), status.leader()))
    }

    /// Makes a member the leader; back when it is.
    pub async fn move_leader(&self, to: usize) -> Result<()> {
        let leader = self.leader().await?;
        let (id, _) = self.member_id(to).await?;
        if leader != to {
            self.client_of(leader).await?.move_leader(id).await?;
        }
        eventually("the leader moved", async || {
            ensure!(self.leader().await? == to, "another member leads");
            Ok(())
        })
        .await
    }

    /// How many members raise the NOSPACE alarm.
    pub async fn no_space_alarms(&self) -> Result<usize> {
        let response = self.client().await?.alarm(AlarmAction::Get, AlarmType::Nospace, None).await?;
        Ok(response.alarms().len())
    }

    /// Raises the NOSPACE alarm of a member, though it has space: nothing can be put until [`Self::disarm`].
    pub async fn raise_no_space(&self, member: usize) -> Result<()> {
        let (id, _) = self.member_id(member).await?;
        let mut options = AlarmOptions::new();
        options.with_member(id);
        self.client().await?.alarm(AlarmAction::Activate, AlarmType::Nospace, Some(options)).await?;
        Ok(())
    }

    /// Clears every NOSPACE alarm.
    pub async fn disarm(&self) -> Result<()> {
        let mut client = self.client().await?;
        for alarm in client.alarm(AlarmAction::Get, AlarmType::Nospace, None).await?.alarms() {
            let mut options = AlarmOptions::new();
            options.with_member(alarm.member_id());
            client.alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(options)).await?;
        }
        Ok(())
    }

    /// The current revision, by a linearizable read.
    pub async fn revision(&self) -> Result<i64> {
        let response = self.client().await?.get("revision", None).await?;
        Ok(response.header().context("an answer without header")?.revision())
    }

    /// Compacts everything before the current revision, physically, and answers that revision.
    pub async fn compact(&self) -> Result<i64> {
        let revision = self.revision().await?;
        let options = CompactionOptions::new().with_physical();
        self.client().await?.compact(revision, Some(options)).await?;
        Ok(revision)
    }

    /// How many bytes the database of each member has on its disk.
    pub async fn sizes(&self) -> Result<Vec<u64>> {
        let mut sizes = Vec::new();
        for member in 0..self.members.len() {
            sizes.push(self.client_of(member).await?.status().await?.db_size().try_into()?);
        }
        Ok(sizes)
    }

    /// Gives the space that compaction freed back to the disk, one member after another. A member compacts in its own time:
    /// see [`Self::sizes`] for whether it had.
    pub async fn defragment(&self) -> Result<()> {
        for member in 0..self.members.len() {
            self.client_of(member).await?.defragment().await?;
        }
        Ok(())
    }

    /// Makes etcd ask for a name and password from now on: `user` may do everything.
    pub async fn require_password(&self, user: &str, password: &str) -> Result<()> {
        let mut client = self.client().await?;
        client.role_add("root").await?;
        client.user_add("root", password, None).await?;
        client.user_grant_role("root", "root").await?;
        if user != "root" {
            client.user_add(user, password, None).await?;
            client.user_grant_role(user, "root").await?;
        }
        client.auth_enable().await?;
        Ok(())
    }

    /// All that a member wrote since it last started.
    pub fn log(&self, member: usize) -> Result<String> {
        Ok(self.process(member)?.log())
    }

    fn process(&self, member: usize) -> Result<&Process> {
        self.members[member].process.as_ref().context("the member does not run")
    }

    /// The port at which the others call a member.
    fn called_at(&self, member: usize) -> u16 {
        self.peers.as_ref().map_or(self.members[member].peer, |peers| peers.port(member))
    }

    fn command(&self, member: usize) -> Result<Command> {
        let program = etcd_bin_vendored::etcd_bin_path().map_err(|error| anyhow!("{error}"))?;
        let of_peer = |member| format!("m{member}=http://127.0.0.1:{}", self.called_at(member));
        let cluster: Vec<String> = (0..self.members.len()).map(of_peer).collect();
        let client_url = self.endpoint(member);
        let peer_url = format!("http://127.0.0.1:{}", self.members[member].peer);
        let advertised = format!("http://127.0.0.1:{}", self.called_at(member));
        let mut command = Command::new(program);
        command
            .args(["--name", &format!("m{member}"), "--data-dir"])
            .arg(self.folder.path().join(format!("m{member}")))
            .args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url])
            .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &advertised])
            .args([
                "--initial-cluster",
                &cluster.join(","),
                "--initial-cluster-token",
                self.token.as_ref().unwrap_or(&peer_url_token(&cluster)),
            ])
            .args(&self.settings.flags);
        if self.pki.is_some() {
            let file = |name: &str| -> PathBuf { self.folder.path().join(name) };
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(file("ca.pem"));
            command.arg("--cert-file").arg(file("server.pem")).arg("--key-file").arg(file("server.key"));
        }
        Ok(command)
    }
}

/// A name for the cluster that no other test's has, so that a port used again cannot mix two of them.
fn peer_url_token(cluster: &[String]) -> String {
    format!("{}-{}", std::process::id(), cluster.join("-").replace(['/', ':', '='], ""))
}
