//! The sidecars: a process of this same program for each.

use std::{
    collections::BTreeSet,
    process::{ExitStatus, Stdio},
    str::FromStr,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use tokio::process::{Child, Command};

use super::etcd;

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

/// Refuses sidecars that would be in each other's way.
pub(super) fn check(specs: &[Spec]) -> Result<()> {
    let mut ports = BTreeSet::new();
    for spec in specs {
        ensure!(ports.insert(spec.port), "--sidecar: two sidecars want port {}", spec.port);
    }
    Ok(())
}

/// Running sidecars.
pub(super) struct Sidecars(Vec<(Spec, Child)>);

impl Sidecars {
    /// Starts all of them, and waits until each serves.
    pub(super) async fn start(specs: &[Spec], namespace: &str, etcd: &str) -> Result<Self> {
        let program = std::env::current_exe()?;
        let mut sidecars = Self(Vec::new());
        for (number, spec) in specs.iter().enumerate() {
            let child = Command::new(&program)
                .args(["sidecar", "--namespace", namespace, "--app", &spec.app])
                .args(["--pod", &format!("{}-{number}", spec.app), "--app-port", &spec.app_port.to_string()])
                .args([
                    "--api-port",
                    &spec.port.to_string(),
                    "--admin-port",
                    "0",
                    "--admin-address",
                    "127.0.0.1",
                ])
                .args(["--etcd-endpoints", etcd, "--log", "warn"])
                .stdin(Stdio::null())
                // Ctrl-C goes to the whole group: sidecars end when told, before etcd does.
                .process_group(0)
                .kill_on_drop(true)
                .spawn()
                .with_context(|| format!("cannot start {}", program.display()))?;
            sidecars.0.push((spec.clone(), child));
        }
        for (spec, child) in &mut sidecars.0 {
            serves(spec, child).await?;
            let (Spec { app, port, app_port }, pid) = (&spec, child.id().unwrap_or_default());
            println!(
                "sidecar   {app}  http://127.0.0.1:{port}  calls its app on 127.0.0.1:{app_port}  pid {pid}"
            );
        }
        Ok(sidecars)
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
        for (_, child) in &mut self.0 {
            etcd::stop(child, PATIENCE).await;
        }
    }
}

fn said(spec: &Spec, status: ExitStatus) -> String {
    format!("{} on port {} ended with {status}", spec.app, spec.port)
}

async fn serves(spec: &Spec, child: &mut Child) -> Result<()> {
    let url = format!("http://127.0.0.1:{}/openapi.json", spec.port);
    let answers = async {
        while reqwest::get(&url).await.and_then(reqwest::Response::error_for_status).is_err() {
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
