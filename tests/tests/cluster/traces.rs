//! A collector of traces sees an export whole: from the command line by way of the schedulers to the parent.

use std::{
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use damselfly_tests::{Cluster, Node, Options, until};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    trace::v1::{Span, status::StatusCode},
};
use tokio::{net::TcpListener, task::AbortHandle, time::timeout};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

/// By then programs have sent what they had.
const COLLECTED: Duration = Duration::from_secs(30);

/// Pieces of the file.
const PIECES: usize = 9;

/// A collector that keeps each span with the program that sent it.
#[derive(Debug, Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<(String, Span)>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of_program in request.into_inner().resource_spans {
            let attributes = of_program.resource.unwrap_or_default().attributes;
            let name = attributes.into_iter().find(|attribute| attribute.key == "service.name");
            let Some(Value::StringValue(program)) = name.and_then(|name| name.value?.value) else { continue };
            let spans = of_program.scope_spans.into_iter().flat_map(|scope| scope.spans);
            let mut kept = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend(spans.map(|span| (program.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Listens on a free port; its URL, and what ends it.
    async fn start(&self) -> anyhow::Result<(String, AbortHandle)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let server = Server::builder().add_service(TraceServiceServer::new(self.clone()));
        let serving = tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Ok((url, serving.abort_handle()))
    }

    /// The spans of a trace.
    fn of(&self, trace: &[u8]) -> Vec<(String, Span)> {
        let kept = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().filter(|(_, span)| span.trace_id == trace).cloned().collect()
    }
}

/// A trace as a caller of dfcache would have begun it.
fn caller(number: u8) -> (String, [u8; 16], [u8; 8]) {
    let (trace, span) = ([number; 16], [number + 1; 8]);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    (format!("00-{}-{}-01", hex(&trace), hex(&span)), trace, span)
}

/// Exports with a collector, as a part of a trace; the exit code.
async fn export(node: &Node, cid: &str, url: &str, traceparent: &str, output: &std::path::Path) -> anyhow::Result<i32> {
    let mut command = node.command();
    command.args(["export", "-f", "-i", cid]).arg(output).stdin(Stdio::null());
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", url).env("TRACEPARENT", traceparent);
    let done = command.output().await?;
    done.status.code().context("it was killed")
}

/// The spans with this name, and that they are this program's.
fn named<'a>(spans: &'a [(String, Span)], program: &str, name: &str) -> anyhow::Result<Vec<&'a Span>> {
    let of_name: Vec<_> = spans.iter().filter(|(_, span)| span.name == name).collect();
    ensure!(!of_name.is_empty(), "no {name}");
    ensure!(of_name.iter().all(|(of, _)| of == program), "{name} is not of {program}: {of_name:?}");
    Ok(of_name.into_iter().map(|(_, span)| span).collect())
}

/// Each of the spans was made within one of the others.
fn within(inner: &[&Span], outer: &[&Span]) -> anyhow::Result<()> {
    for span in inner {
        let is_parent = |outer: &&Span| outer.span_id == span.parent_span_id;
        ensure!(outer.iter().any(is_parent), "{} is not within {}", span.name, outer[0].name);
    }
    Ok(())
}

#[tokio::test]
async fn an_export_is_followed_to_its_parent() -> anyhow::Result<()> {
    let collector = Collector::default();
    let (url, serving) = collector.start().await?;
    let environment = vec![("OTEL_EXPORTER_OTLP_ENDPOINT", url.clone()), ("OTEL_BSP_SCHEDULE_DELAY", "100".to_owned())];
    let options = Options { schedulers: 1, nodes: 2, environment, ..Options::default() };
    Cluster::run(options, async |cluster| {
        let file = cluster.file("file", (PIECES as u64) << 20)?;
        cluster.node(0).import("file", &file).await?.ok()?;
        let (traceparent, trace, span) = caller(7);
        let exit = export(cluster.node(1), "file", &url, &traceparent, &cluster.path("out")).await?;
        ensure!(exit == 0, "exit {exit}");
        until("the whole trace is there", COLLECTED, async || {
            let spans = collector.of(&trace);
            let command = named(&spans, "dfcache", "dfcache export")?;
            ensure!(command.len() == 1 && command[0].parent_span_id == span, "it is within its caller: {command:?}");
            let call = named(&spans, "dfdaemon", "ExportTask")?;
            within(&call, &command)?;
            let asked = named(&spans, "dfdaemon", "ask a scheduler")?;
            within(&named(&spans, "dfscheduler", "schedule")?, &asked)?;
            let download = named(&spans, "dfdaemon", "download")?;
            within(&download, &call)?;
            let (manifest, fetched) =
                (named(&spans, "dfdaemon", "fetch the manifest")?, named(&spans, "dfdaemon", "fetch from a parent")?);
            within(&manifest, &call)?;
            within(&fetched, &download)?;
            let served = named(&spans, "dfdaemon", "serve")?;
            within(&served, &[manifest, fetched].concat())?;
            ensure!(served.len() > PIECES, "{} answers of the parent, which gave a manifest too", served.len());
            Ok(())
        })
        .await?;

        let (traceparent, trace, _) = caller(9);
        let exit = export(cluster.node(1), "nothing", &url, &traceparent, &cluster.path("none")).await?;
        ensure!(exit == 3, "exit {exit}");
        until("a failure is told", COLLECTED, async || {
            let spans = collector.of(&trace);
            for (program, name) in [("dfcache", "dfcache export"), ("dfdaemon", "ExportTask")] {
                for span in named(&spans, program, name)? {
                    let status = span.status.clone().unwrap_or_default();
                    ensure!(status.code == StatusCode::Error as i32, "{name}: {status:?}");
                    ensure!(status.message.contains("no host holds such a task"), "{name}: {status:?}");
                }
            }
            Ok(())
        })
        .await?;

        // A collector that takes connections and says nothing holds up nothing for long, and fails nothing.
        let silent = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", silent.local_addr()?);
        let output = cluster.path("again");
        let exported = export(cluster.node(1), "file", &url, &traceparent, &output);
        let exit = timeout(COLLECTED, exported).await.context("it waits for the collector")??;
        ensure!(exit == 0, "exit {exit}");
        serving.abort();
        Ok(())
    })
    .await
}
