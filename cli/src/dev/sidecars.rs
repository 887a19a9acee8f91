//! The sidecars: a process of this same program for each.

use std::{
    collections::BTreeSet,
    net::TcpListener,
    process::{ExitStatus, Stdio},
    str::FromStr,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use reqwest::StatusCode;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::Child,
};

use super::etcd;
use crate::guard;

/// How long a sidecar may take to answer, or to drain.
const PATIENCE: Duration = Duration::from_secs(30);

/// `APP:SIDECAR_PORT:APP_PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spec {
    app: String,
    port: u16,
    app_port: u16,
}

impl FromStr for Spec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0);
        match text.split(':').collect::<Vec<_>>()[..] {
            [app, own, of_app] if !app.is_empty() => match (port(own), port(of_app)) {
                (Some(port), Some(app_port)) => Ok(Self { app: app.into(), port, app_port }),
                _ => Err("both ports must be numbers from 1 to 65535".into()),
            },
            _ => Err("write it as in accounts:4701:8081".into()),
        }
    }
}

/// Refuses sidecars that would be in each other's way, or in another program's.
pub(super) fn check(specs: &[Spec]) -> Result<()> {
    let mut ports = BTreeSet::new();
    for Spec { app, port, .. } in specs {
        ensure!(ports.insert(port), "--sidecar: two sidecars want port {port}");
        TcpListener::bind(("127.0.0.1", *port))
            .with_context(|| format!("--sidecar: port {port} is not free for {app}: give it another"))?;
    }
    Ok(())
}

/// Running sidecars.
#[derive(Default)]
pub(super) struct Sidecars(Vec<(Spec, Child)>);

impl Sidecars {
    /// Starts all of them, and waits until each serves.
    pub(super) async fn start(&mut self, specs: &[Spec], namespace: &str, etcd: &str) -> Result<()> {
        for (number, spec) in specs.iter().enumerate() {
            let mut child = guard::subcommand("sidecar")?
                .args(["--namespace", namespace, "--app", &spec.app])
                .args(["--pod", &format!("{}-{number}", spec.app), "--app-port", &spec.app_port.to_string()])
                .args(["--api-port", &spec.port.to_string()])
                .args(["--admin-port", "0", "--admin-address", "127.0.0.1"])
                .args(["--etcd-endpoints", etcd, "--log", "warn"])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                // Ctrl-C goes to the whole group: sidecars end when told, before etcd does.
                .process_group(0)
                .kill_on_drop(true)
                .spawn()
                .context("cannot start a sidecar")?;
            tokio::spawn(log(spec.app.clone(), child.stdout.take()));
            tokio::spawn(log(spec.app.clone(), child.stderr.take()));
            self.0.push((spec.clone(), child));
        }
        for (spec, child) in &mut self.0 {
            serves(spec, child).await?;
            let (Spec { app, port, app_port }, pid) = (&spec, child.id().unwrap_or_default());
            println!(
                "sidecar   {app}  http://127.0.0.1:{port}  calls its app on 127.0.0.1:{app_port}  pid {pid}"
            );
        }
        Ok(())
    }

    /// Waits until one of them ends by itself, and says which; for ever when none is left.
    pub(super) async fn ended(&mut self) -> String {
        loop {
            for at in 0..self.0.len() {
                if let Ok(Some(status)) = self.0[at].1.try_wait() {
                    let (spec, _) = self.0.remove(at);
                    return said(&spec, status);
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Stops all of them: each lets go what it holds.
    pub(super) async fn stop(mut self) {
        for (_, child) in &self.0 {
            etcd::terminate(child);
        }
        for (_, child) in &mut self.0 {
            etcd::stop(child, PATIENCE).await;
        }
    }
}

/// Prints what a sidecar writes, each line with its app's name.
async fn log(app: String, output: Option<impl AsyncRead + Unpin>) {
    let Some(output) = output else { return };
    let mut lines = BufReader::new(output).split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        println!("{app:<9} | {}", String::from_utf8_lossy(&line));
    }
}

fn said(spec: &Spec, status: ExitStatus) -> String {
    format!("{} on port {} ended with {status}", spec.app, spec.port)
}

async fn serves(spec: &Spec, child: &mut Child) -> Result<()> {
    // Its health is on a port that nobody knows. Until it has read what is defined, it answers whoever asks 503.
    let url = format!("http://127.0.0.1:{}/v1/queues/-", spec.port);
    let answers = async {
        while reqwest::get(&url).await.map_or(true, |told| told.status() == StatusCode::SERVICE_UNAVAILABLE) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = answers => Ok(()),
        status = child.wait() => bail!("the sidecar of {}", said(spec, status?)),
        () = tokio::time::sleep(PATIENCE) => bail!("the sidecar of {} does not answer", spec.app),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sidecar_is_written_in_three_parts() {
        let spec: Spec = "accounts:4701:8081".parse().unwrap();
        assert_eq!(spec, Spec { app: "accounts".into(), port: 4701, app_port: 8081 });
        for wrong in ["", "accounts", "accounts:4701", ":1:2", "a:0:1", "a:1:65536", "a:b:1", "a:1:2:3"] {
            assert!(wrong.parse::<Spec>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn two_sidecars_on_one_port_are_refused() {
        let specs: Vec<Spec> = ["a:1:2", "b:1:3"].iter().map(|text| text.parse().unwrap()).collect();
        assert!(check(&specs).is_err());
        assert!(check(&specs[..1]).is_ok());
    }
}
