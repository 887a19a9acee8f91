//! A port of a pod, on 127.0.0.1.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// A forwarded port. It is closed when this is dropped.
pub(crate) struct Forward {
    /// On 127.0.0.1.
    pub(crate) port: u16,
    task: JoinHandle<()>,
}

impl Forward {
    /// Opens it, once, to see that it can be.
    pub(crate) async fn open(pods: Api<Pod>, pod: String, port: u16) -> Result<Self> {
        pods.portforward(&pod, &[port]).await.with_context(|| {
            format!(
                "forwarding port {port} of pod {pod}: it takes the right to get and create pods/portforward there"
            )
        })?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let local = listener.local_addr()?.port();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (pods, pod) = (pods.clone(), pod.clone());
                tokio::spawn(async move {
                    // Who connected sees it end, and tries again.
                    let _ = pass(stream, &pods, &pod, port).await;
                });
            }
        });
        Ok(Self { port: local, task })
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(mut from: TcpStream, pods: &Api<Pod>, pod: &str, port: u16) -> Result<()> {
    let mut forwarded = pods.portforward(pod, &[port]).await?;
    let mut to = forwarded.take_stream(port).context("no stream")?;
    copy_bidirectional(&mut from, &mut to).await?;
    drop(to);
    forwarded.join().await?;
    Ok(())
}
