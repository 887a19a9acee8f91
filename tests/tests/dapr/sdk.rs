//! Dapr's own SDKs, unchanged, as apps written for Dapr use them: `make dapr` installs them.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use concordat_tests::process::{Process, cache};

use crate::world::{STORE, World};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/dapr");
const INSTALL: &str = include_str!("../../dapr/install");

#[tokio::test]
async fn of_npm_over_http() -> Result<()> {
    let world = World::new().await?;
    let sidecar = world.serving("a").await?;
    let mut app = Command::new("node");
    app.arg(Path::new(FOLDER).join("lock.js"))
        .args([&sidecar.http.to_string(), STORE, "order 1/é"])
        .env("NODE_PATH", installed()?.join("npm/node_modules"));
    passes("an app on npm's SDK", app).await
}

#[tokio::test]
async fn of_pypi_over_grpc() -> Result<()> {
    let world = World::new().await?;
    let sidecar = world.serving("a").await?;
    let mut app = Command::new(installed()?.join("python/bin/python"));
    app.arg(Path::new(FOLDER).join("lock.py"))
        .args([STORE, "order 1/é"])
        .env("DAPR_HTTP_PORT", sidecar.http.to_string())
        .env("DAPR_GRPC_PORT", sidecar.grpc.to_string());
    passes("an app on PyPI's SDK", app).await
}

async fn passes(name: &str, app: Command) -> Result<()> {
    let mut app = Process::start(name, app)?;
    let status = app.wait().await?;
    ensure!(status.success(), "{name}: {status}\n{}", app.log_tail());
    Ok(())
}

/// Where `tests/dapr/install` has put the SDKs.
fn installed() -> Result<PathBuf> {
    let version = |name: &str| {
        let versions = INSTALL.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        versions.with_context(|| format!("no version of {name}"))
    };
    let folder = cache()?.join(format!("dapr/{}-{}", version("NPM")?, version("PYPI")?));
    ensure!(folder.join("complete").exists(), "Dapr's SDKs are not installed: run `make dapr`");
    Ok(folder)
}
