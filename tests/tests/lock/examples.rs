//! The examples of docs/recipes, as they are shipped: they are apps like any other.

use std::{
    fs::File,
    io::Write,
    path::Path,
    process::{Command, ExitStatus},
};

use anyhow::{Result, ensure};
use concordat_protocol::lock::Mode;
use concordat_tests::process::{Process, binary, folder, free_port};

use crate::world::{Sidecar, World, settings};

/// An editor with its Enter key.
struct Editor {
    process: Process,
    keys: File,
}

impl Editor {
    /// Starts one that writes what it calls itself, and waits until it has the lock.
    async fn start(name: &str, sidecar: &Sidecar, resource: &str, ttl: &str) -> Result<Self> {
        let folder = folder(name)?;
        let terminal = folder.path().join("keys");
        ensure!(Command::new("mkfifo").arg(&terminal).status()?.success());
        let keys = File::options().read(true).write(true).open(&terminal)?;
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$0\" \"$@\" < \"$KEYS\""]).env("KEYS", &terminal);
        command.arg(binary("concordat-locks")?).args(["edit", "--sidecar-port", &sidecar.port().to_string()]);
        command.args(["--resource", resource, "--document", "poem", "--text", name, "--ttl", ttl]);
        let mut process = Process::start_in(folder, name, command)?;
        process.says("editing with fence ").await?;
        Ok(Self { process, keys })
    }

    async fn enter(&mut self) -> Result<ExitStatus> {
        writeln!(self.keys)?;
        self.process.wait().await
    }
}

async fn resource(database: &Path) -> Result<(Process, String)> {
    let port = free_port()?;
    let mut command = Command::new(binary("concordat-locks")?);
    command.args(["resource", "--port", &port.to_string(), "--database"]).arg(database);
    let mut process = Process::start("resource", command)?;
    process.listens(port).await?;
    Ok((process, format!("http://127.0.0.1:{port}")))
}

#[tokio::test]
async fn a_resource_refuses_the_late_write_of_an_editor_that_slept() -> Result<()> {
    let world = World::one().await?;
    world.define("documents", settings()).await?;
    let (first, second) = (world.sidecar("first").await?, world.sidecar("second").await?);
    let database = tempfile::tempdir()?;
    let (_resource, url) = resource(&database.path().join("documents.db")).await?;

    let mut slow = Editor::start("slow", &first, &url, "2s").await?;
    slow.process.pause()?;
    // Granted only once the sleeper's time is over.
    let mut quick = Editor::start("quick", &second, &url, "1m").await?;
    ensure!(quick.enter().await?.success(), "{}", quick.process.log());
    slow.process.resume()?;
    ensure!(!slow.enter().await?.success(), "{}", slow.process.log());
    ensure!(slow.process.log().contains("refused: somebody with a later fence"), "{}", slow.process.log());
    let document = reqwest::get(format!("{url}/documents/poem")).await?.text().await?;
    assert_eq!(document, "quick");

    // Who comes in time is not refused.
    let mut slow = Editor::start("slower", &first, &url, "1m").await?;
    ensure!(slow.enter().await?.success(), "{}", slow.process.log());
    Ok(())
}

#[tokio::test]
async fn another_candidate_leads_when_the_leader_or_its_sidecar_is_gone() -> Result<()> {
    let world = World::one().await?;
    let fair = concordat_protocol::lock::Settings { mode: Mode::FairQueue, ttl: 4_000, ..settings() };
    world.define("leaders", fair).await?;
    let mut sidecars = [world.sidecar("first").await?, world.sidecar("second").await?];
    let candidate = |name: &str, sidecar: &Sidecar| -> Result<Process> {
        let mut command = Command::new(binary("concordat-locks")?);
        command.args(["lead", "--name", name, "--sidecar-port", &sidecar.port().to_string()]);
        Process::start(name, command)
    };
    let mut ada = candidate("ada", &sidecars[0])?;
    ada.says("ada leads, fence ").await?;
    let mut bob = candidate("bob", &sidecars[1])?;
    ada.kill()?;
    bob.says("bob leads, fence ").await?;

    let mut eve = candidate("eve", &sidecars[0])?;
    sidecars[1].process.kill()?;
    bob.says("bob leads no more: ").await?;
    eve.says("eve leads, fence ").await?;
    Ok(())
}
