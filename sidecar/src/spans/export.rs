//! From spans to a collector: batches by OTLP over gRPC, from a thread of their own.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use opentelemetry::{InstrumentationScope, KeyValue, trace::TracerProvider};
use opentelemetry_otlp::{
    WithExportConfig, WithTonicConfig,
    tonic_types::transport::{Certificate, ClientTlsConfig},
};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    trace::{SdkTracerProvider, SpanData, SpanExporter},
};
use tokio::runtime::{Builder, Runtime};

use super::TRACER;
use crate::args::{Refused, Settings, Traces};

/// How long a batch may take with all its attempts. What is traced meanwhile waits in a queue with an end; what finds it
/// full is dropped.
const LONGEST: Duration = Duration::from_secs(30);
/// How long the last batches may take at the end.
const FLUSH: Duration = Duration::from_secs(2);

/// Exports spans until it is ended.
pub struct Export(Option<SdkTracerProvider>);

/// Begins to export, if an endpoint is set.
///
/// # Errors
/// What is to be changed.
pub fn start(settings: &Settings) -> Result<Export, Refused> {
    let Some(traces) = &settings.traces else { return Ok(Export(None)) };
    let exporter = Exporter::new(traces)?;
    let provider = SdkTracerProvider::builder()
        .with_sampler(traces.sampler.clone())
        .with_resource(resource(settings))
        .with_batch_exporter(exporter)
        .build();
    let scope = InstrumentationScope::builder("concordat-sidecar").with_version(env!("CARGO_PKG_VERSION"));
    // There is but one start.
    let _ = TRACER.set(provider.tracer_with_scope(scope.build()));
    tracing::info!(endpoint = traces.endpoint, sampler = ?traces.sampler, "exporting traces");
    Ok(Export(Some(provider)))
}

impl Export {
    /// Exports what is left; a collector that does not answer is not waited for.
    pub fn end(self) {
        if let Some(provider) = self.0
            && let Err(error) = provider.shutdown_with_timeout(FLUSH)
        {
            tracing::debug!(%error, "the last spans were not exported");
        }
    }
}

/// Who traces. What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say goes before.
fn resource(settings: &Settings) -> Resource {
    let own = Resource::builder_empty().with_attributes([
        KeyValue::new("service.name", "concordat-sidecar"),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", settings.pod.clone()),
        KeyValue::new("k8s.namespace.name", settings.namespace.clone()),
        KeyValue::new("k8s.pod.name", settings.pod.clone()),
        KeyValue::new("concordat.app", settings.app.to_string()),
    ]);
    let said = Resource::builder().build();
    let said = said.iter().filter(|(key, value)| {
        key.as_str() != "service.name" || !value.as_str().starts_with("unknown_service")
    });
    own.with_attributes(said.map(|(key, value)| KeyValue::new(key.clone(), value.clone()))).build()
}

/// Exports batches on its own runtime, and says once that it cannot. The SDK calls it on a thread of its own, one batch at
/// a time: requests never wait for it.
#[derive(Debug)]
struct Exporter {
    inner: opentelemetry_otlp::SpanExporter,
    runtime: Runtime,
    endpoint: String,
    away: AtomicBool,
}

impl Exporter {
    fn new(traces: &Traces) -> Result<Self, Refused> {
        let refused = |why: String| Refused::Value { flag: "otlp-endpoint", why };
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| refused(format!("cannot start a runtime: {error}")))?;
        let mut builder =
            opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(traces.endpoint.clone());
        if let Some(file) = &traces.ca_file {
            let ca = fs::read_to_string(file)
                .map_err(|error| refused(format!("cannot read {}: {error}", file.display())))?;
            let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
            builder = builder.with_tls_config(tls);
        }
        let inner = {
            let _entered = runtime.enter();
            builder.build().map_err(|error| refused(error.to_string()))?
        };
        Ok(Self { inner, runtime, endpoint: traces.endpoint.clone(), away: AtomicBool::new(false) })
    }

    fn told(&self, exported: &OTelSdkResult) {
        let away = exported.is_err();
        if self.away.swap(away, Ordering::Relaxed) == away {
            return;
        }
        match exported {
            Err(error) => {
                let endpoint = &self.endpoint;
                tracing::warn!(endpoint, %error, "traces are not exported, and are dropped until they are");
            }
            Ok(()) => tracing::info!(endpoint = self.endpoint, "traces are exported again"),
        }
    }
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let exported =
            self.runtime.block_on(async { tokio::time::timeout(LONGEST, self.inner.export(batch)).await });
        let exported = exported.unwrap_or(Err(OTelSdkError::Timeout(LONGEST)));
        self.told(&exported);
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}
