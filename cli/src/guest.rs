//! A sidecar of this command's own: what only a sidecar can tell or do is asked of its API, as apps ask theirs. It takes
//! part in nothing, adopts nothing, and takes along all that it leased when it ends.

use std::{
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, Response, StatusCode};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStderr},
    time::{Instant, sleep, timeout},
};

use crate::{etcd::Endpoint, guard, secret::Secret};

/// The app it says it is of.
const APP: &str = "concordat-cli";
/// How long it may take to start, to know what is defined, or to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long one call may take.
const CALL: Duration = Duration::from_secs(90);
/// All that means something in a path.
const IN_A_PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A running sidecar.
pub(crate) struct Guest {
    child: Child,
    url: String,
    token: String,
    client: reqwest::Client,
    /// What it last warned of.
    warned: Arc<Mutex<String>>,
    _token: Secret,
}

impl Guest {
    /// Starts it, and waits until it serves.
    pub(crate) async fn start(etcd: &Endpoint, namespace: &str) -> Result<Self> {
        let token = token()?;
        // Others on this machine can reach its port: only who can read this file may ask.
        let file = Secret::new(token.as_bytes())?;
        let mut command = guard::subcommand("sidecar")?;
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CONCORDAT_"))
        {
            command.env_remove(name);
        }
        let pod = format!("{APP}-{}", std::process::id());
        let mut child = command
            .args(["--guest", "--namespace", namespace, "--app", APP, "--pod", &pod])
            .args(["--api-port", "0", "--admin-port", "0", "--admin-address", "127.0.0.1"])
            .arg("--token-file")
            .arg(file.path())
            .args(["--session-ttl", "5s", "--drain-grace", "5s"])
            .args(["--log", "warn,concordat_sidecar::run=info", "--log-format", "json"])
            .args(&etcd.flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start a sidecar")?;
        let stderr = child.stderr.take().context("a sidecar without stderr")?;
        let mut lines = BufReader::new(stderr).lines();
        let url = match timeout(PATIENCE, serves(&mut lines)).await {
            Ok(served) => served?,
            Err(_) => bail!("the sidecar that was started to ask does not answer"),
        };
        let warned = Arc::new(Mutex::new(String::new()));
        tokio::spawn(listen(lines, warned.clone()));
        let client = reqwest::Client::builder().no_proxy().timeout(CALL).build()?;
        Ok(Self { child, url, token, client, warned, _token: file })
    }

    /// What it answers to `GET` of a path, given in segments, with a query.
    pub(crate) async fn get(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Value> {
        self.ask(Method::GET, path, query, None).await
    }

    /// What it answers to `POST` of a path, given in segments, with a query and a body.
    pub(crate) async fn post(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Value> {
        self.ask(Method::POST, path, query, body).await
    }

    async fn ask(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Value> {
        let url = format!("{}/v1/{}", self.url, encoded(path)?);
        let until = Instant::now() + PATIENCE;
        loop {
            let mut request = self.client.request(method.clone(), &url).query(query);
            request = request.header("Concordat-Token", &self.token);
            if let Some(body) = body {
                request = request.json(body);
            }
            let response = request.send().await.with_context(|| self.silent())?;
            match answer(response).await? {
                Answer::Document(document) => return Ok(document),
                // It does not know yet what is defined.
                Answer::Starting if Instant::now() < until => sleep(Duration::from_millis(20)).await,
                Answer::Starting => bail!("{}", self.silent()),
            }
        }
    }

    fn silent(&self) -> String {
        let warned = self.warned.lock().map(|warned| warned.clone()).unwrap_or_default();
        format!("the sidecar that was started to ask does not answer; it last said {warned:?}")
    }

    /// Ends it, and waits until it has let go of its session.
    pub(crate) async fn stop(mut self) -> Result<()> {
        if let Some(pid) = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            kill_process(pid, Signal::TERM)?;
        }
        let ended = timeout(PATIENCE, self.child.wait()).await.context("the sidecar does not end")??;
        ensure!(ended.success(), "the sidecar that was started to ask ended with {ended}: {}", self.silent());
        Ok(())
    }
}

enum Answer {
    Document(Value),
    Starting,
}

async fn answer(response: Response) -> Result<Answer> {
    let status = response.status();
    let text = response.text().await?;
    let document: Value = serde_json::from_str(&text).unwrap_or_default();
    if status.is_success() {
        return Ok(Answer::Document(document));
    }
    if status == StatusCode::SERVICE_UNAVAILABLE && document["code"] == "starting" {
        return Ok(Answer::Starting);
    }
    let part = |name: &str| document[name].as_str().unwrap_or_default().to_owned();
    let (title, detail, code) = (part("title"), part("detail"), part("code"));
    let told = if title.is_empty() { text } else { format!("{title}: {detail} ({code})") };
    Err(anyhow!("{told}"))
}

/// The address that it says it serves at; what it warns of before that keeps it from serving.
async fn serves(lines: &mut Lines<BufReader<ChildStderr>>) -> Result<String> {
    while let Some(line) = lines.next_line().await? {
        let Ok(said) = serde_json::from_str::<Value>(&line) else {
            bail!("the sidecar that was started to ask: {line}");
        };
        if let (Some("serving"), Some(api)) = (said["message"].as_str(), said["api"].as_str()) {
            return Ok(format!("http://{api}"));
        }
        if matches!(said["level"].as_str(), Some("WARN" | "ERROR")) {
            bail!("{}", said["message"].as_str().unwrap_or(&line));
        }
    }
    bail!("the sidecar that was started to ask ended at once")
}

async fn listen(mut lines: Lines<BufReader<ChildStderr>>, warned: Arc<Mutex<String>>) {
    while let Ok(Some(line)) = lines.next_line().await {
        let said: Value = serde_json::from_str(&line).unwrap_or_default();
        if matches!(said["level"].as_str(), Some("WARN" | "ERROR"))
            && let Ok(mut warned) = warned.lock()
        {
            said["message"].as_str().unwrap_or(&line).clone_into(&mut warned);
        }
    }
}

fn token() -> Result<String> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}

/// Segments of a path as a URL has them.
fn encoded(path: &[&str]) -> Result<String> {
    for segment in path {
        ensure!(!matches!(*segment, "" | "." | ".."), "{segment:?} names nothing that can be asked for");
    }
    let encoded: Vec<String> =
        path.iter().map(|segment| utf8_percent_encode(segment, IN_A_PATH).to_string()).collect();
    Ok(encoded.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_stays_one_whatever_is_in_it() {
        assert_eq!(
            encoded(&["locks", "orders", "a/b ?#ä.1"]).unwrap(),
            "locks/orders/a%2Fb%20%3F%23%C3%A4.1"
        );
        for nothing in ["", ".", ".."] {
            assert!(encoded(&["locks", nothing]).is_err(), "{nothing:?}");
        }
    }
}
