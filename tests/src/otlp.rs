//! A collector of traces: the service of OpenTelemetry's own protocol files, and what it was sent.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context, Result};
use axum::Router;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{self, span::SpanKind, status::StatusCode},
};
use parking_lot::Mutex;
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status};

use crate::kube::pki::{Authority, Identity};

/// Where a collector's one method is.
const PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// A span as it was exported; ids are in hexadecimal.
#[derive(Clone, Debug)]
pub struct Span {
    /// Of what it is called.
    pub name: String,
    /// What it is to others.
    pub kind: SpanKind,
    /// Its trace.
    pub trace: String,
    /// Itself.
    pub id: String,
    /// What it is part of, empty for nothing.
    pub parent: String,
    /// What is said of it.
    pub attributes: BTreeMap<String, String>,
    /// What is said of who exported it.
    pub resource: BTreeMap<String, String>,
    /// Spans of other traces that it is tied to: trace and id.
    pub links: Vec<(String, String)>,
    /// Whether it came to nothing.
    pub failed: bool,
}

impl Span {
    /// What is said of it by this name, empty for nothing.
    pub fn says(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }

    /// What is said by this name of who exported it, empty for nothing.
    pub fn of(&self, name: &str) -> &str {
        self.resource.get(name).map_or("", String::as_str)
    }

    /// The `traceparent` of what is a child of it.
    pub fn traceparent(&self) -> String {
        format!("00-{}-{}-01", self.trace, self.id)
    }
}

/// A collector; it ends when it is dropped.
pub struct Collector {
    /// Where sidecars find it.
    pub endpoint: String,
    received: Arc<Mutex<Vec<Span>>>,
    _end: DropGuard,
}

impl Collector {
    /// On any port that is free.
    pub async fn start() -> Result<Self> {
        Self::start_at(0).await
    }

    /// On this port of 127.0.0.1.
    pub async fn start_at(port: u16) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.context("the collector's port")?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let (received, end) = (Arc::default(), CancellationToken::new());
        let service = TraceServiceServer::new(Service(Arc::clone(&received)));
        let router = Router::new().route_service(PATH, service);
        tokio::spawn(concordat_sidecar::serve::serve(listener, router, end.clone()));
        Ok(Self { endpoint, received, _end: end.drop_guard() })
    }

    /// One that is asked by TLS, as `localhost` of this authority.
    pub async fn start_of(authority: &Authority) -> Result<Self> {
        let collector = Self::start().await?;
        let plain = collector.endpoint.trim_start_matches("http://").to_owned();
        let Identity { certificate, key } = authority.server()?;
        let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<_, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let endpoint = format!("https://localhost:{}", listener.local_addr()?.port());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, plain) = (acceptor.clone(), plain.clone());
                tokio::spawn(async move {
                    let mut from = acceptor.accept(stream).await?;
                    copy_bidirectional(&mut from, &mut TcpStream::connect(plain).await?).await
                });
            }
        });
        Ok(Self { endpoint, ..collector })
    }

    /// All that came so far, in the order of its coming.
    pub fn spans(&self) -> Vec<Span> {
        self.received.lock().clone()
    }

    /// Those of a trace.
    pub fn trace(&self, trace: &str) -> Vec<Span> {
        self.spans().into_iter().filter(|span| span.trace == trace).collect()
    }
}

struct Service(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut received = self.0.lock();
        for of in request.into_inner().resource_spans {
            let resource = of.resource.map(|resource| said(&resource.attributes)).unwrap_or_default();
            let spans = of.scope_spans.into_iter().flat_map(|of| of.spans);
            received.extend(spans.map(|span| read(&span, &resource)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn read(span: &v1::Span, resource: &BTreeMap<String, String>) -> Span {
    Span {
        name: span.name.clone(),
        kind: span.kind(),
        trace: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        attributes: said(&span.attributes),
        resource: resource.clone(),
        links: span.links.iter().map(|link| (hex(&link.trace_id), hex(&link.span_id))).collect(),
        failed: span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error),
    }
}

fn said(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Option<AnyValue>| match value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(yes)) => yes.to_string(),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|said| (said.key.clone(), text(&said.value))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}
