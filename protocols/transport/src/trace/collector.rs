//! Where spans go: an OTLP collector, over gRPC.

use std::{env, time::Duration};

use opentelemetry::{KeyValue, trace::TracerProvider as _};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::{
    Resource,
    resource::{EnvResourceDetector, TelemetryResourceDetector},
    trace::SdkTracerProvider,
};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tracing_subscriber::{
    Layer, filter::Targets, layer::SubscriberExt as _, registry::LookupSpan, util::SubscriberInitExt as _,
};

use super::TARGET;
use crate::error_chain::chain;

/// The variable that names the collector for programs of every kind.
pub const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// The variable that names a program; else it has its own name.
const SERVICE_NAME: &str = "OTEL_SERVICE_NAME";

/// How long the collector may take to be connected to, and for a batch of spans.
const EXPORT_WITHIN: Duration = Duration::from_secs(2);

/// How long the end of a program waits for it.
const STOP_WITHIN: Duration = Duration::from_secs(1);

/// There is no trace.
#[derive(Debug, thiserror::Error)]
pub enum CollectorError {
    /// The collector cannot be used as it is named.
    #[error("the collector of traces cannot be used: {0}")]
    Unusable(String),
    /// It is away, refuses, or is none. What the SDK says of it is not for people.
    #[error("the collector of traces did not take the span: is it there, and does it take OTLP over gRPC?")]
    Untaken,
}

/// Sends spans to a collector, in batches and from a thread of its own. What it cannot take is dropped: a collector that is
/// away or slow holds nothing up.
#[derive(Debug)]
pub struct Collector {
    provider: SdkTracerProvider,
}

impl Collector {
    /// The one that is configured, if any; an empty endpoint is none.
    ///
    /// # Errors
    /// As [`Collector::new`].
    pub fn configured(program: &'static str, endpoint: Option<&str>) -> Result<Option<Self>, CollectorError> {
        endpoint.filter(|endpoint| !endpoint.is_empty()).map(|endpoint| Self::new(program, endpoint)).transpose()
    }

    /// Sends the spans of `program` to `endpoint`. Only within a runtime, which has to live until [`Collector::stop`].
    ///
    /// # Errors
    /// [`CollectorError`]: it is no such address, or the environment has options for it that cannot be used.
    pub fn new(program: &'static str, endpoint: &str) -> Result<Self, CollectorError> {
        check_endpoint(endpoint).map_err(|reason| CollectorError::Unusable(format!("{endpoint:?} {reason}")))?;
        let channel = channel(endpoint).map_err(|error| CollectorError::Unusable(chain(&error)))?;
        let exporter = SpanExporter::builder().with_tonic().with_channel(channel).with_timeout(EXPORT_WITHIN).build();
        let exporter = exporter.map_err(|error| CollectorError::Unusable(error.to_string()))?;
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource(program)).build();
        Ok(Self { provider })
    }

    /// What takes the spans of [`span!`](crate::span) from tracing.
    pub fn layer<S>(&self) -> impl Layer<S>
    where
        S: tracing::Subscriber + for<'span> LookupSpan<'span>,
    {
        let spans = tracing_opentelemetry::layer().with_tracer(self.provider.tracer("damselfly"));
        // Where in the code a span was made, by which thread, and how long it was not entered, tells nobody anything.
        let spans = spans.with_location(false).with_threads(false).with_tracked_inactivity(false);
        spans.with_context_activation(false).with_filter(Targets::new().with_target(TARGET, tracing::Level::INFO))
    }

    /// Takes the spans of this process, which has no log.
    pub fn install(&self) {
        drop(tracing_subscriber::registry().with(self.layer()).try_init());
    }

    /// Sends the spans of a program that has made few, and ends. Blocks for as long as a batch may take; the runtime has to
    /// go on meanwhile.
    ///
    /// # Errors
    /// [`CollectorError::Untaken`]
    pub fn send(self) -> Result<(), CollectorError> {
        let sent = self.provider.force_flush();
        self.stop();
        sent.map_err(|error| {
            tracing::debug!(%error, "spans are lost");
            CollectorError::Untaken
        })
    }

    /// Sends what is left. Blocks for a second at most; the log tells what was lost.
    pub fn stop(self) {
        if let Err(error) = self.provider.shutdown_with_timeout(STOP_WITHIN) {
            tracing::warn!(%error, "the last spans may be lost");
        }
    }
}

/// A connection that is made when there is something to send, and again when it broke.
fn channel(endpoint: &str) -> Result<Channel, tonic::transport::Error> {
    let is_https = endpoint.starts_with("https:");
    let endpoint = Endpoint::from_shared(endpoint.to_owned())?.connect_timeout(EXPORT_WITHIN).timeout(EXPORT_WITHIN);
    let endpoint = match is_https {
        true => endpoint.tls_config(ClientTlsConfig::new().with_native_roots())?,
        false => endpoint,
    };
    Ok(endpoint.connect_lazy())
}

/// Whether a collector can be named so; empty is none.
///
/// # Errors
/// What is wrong with it, to be read after the value.
pub fn check_endpoint(endpoint: &str) -> Result<(), &'static str> {
    if endpoint.is_empty() {
        return Ok(());
    }
    let wrong = "must be a URL such as http://127.0.0.1:4317";
    let uri: http::Uri = endpoint.parse().map_err(|_| wrong)?;
    let has_scheme = uri.scheme_str().is_some_and(|scheme| ["http", "https"].contains(&scheme));
    if has_scheme && uri.host().is_some_and(|host| !host.is_empty()) { Ok(()) } else { Err(wrong) }
}

/// Who sends the spans. The environment adds to it, as everywhere: `OTEL_RESOURCE_ATTRIBUTES`.
fn resource(program: &'static str) -> Resource {
    let name = env::var(SERVICE_NAME).ok().filter(|name| !name.is_empty());
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let attributes = [KeyValue::new("service.version", env!("CARGO_PKG_VERSION")), KeyValue::new("host.name", host)];
    Resource::builder_empty()
        .with_service_name(name.unwrap_or_else(|| program.to_owned()))
        .with_attributes(attributes)
        .with_detectors(&[Box::new(TelemetryResourceDetector), Box::new(EnvResourceDetector::new())])
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        let table = [
            ("http://127.0.0.1:4317", true),
            ("https://collector.example.com", true),
            ("http://[::1]:4317/", true),
            ("127.0.0.1:4317", false),
            ("collector", false),
            ("file:///tmp/spans", false),
            ("", true),
        ];
        for (endpoint, can_be) in table {
            assert_eq!(check_endpoint(endpoint).is_ok(), can_be, "{endpoint}");
        }
    }
}
