//! The trace of a command, for who collects traces: begun here, or gone on with where a caller has begun it.

use std::env;
use std::fmt::Display;
use std::time::Duration;

use damselfly_messages::trace::TraceContext;
use damselfly_transport::span;
use damselfly_transport::trace::{self, Collector};
use tokio::time::timeout;
use tracing::Span;

use crate::args::Command;
use crate::output::{Output, Stop};

/// Says which span of a caller a command is run by, as in the header of this name.
const CALLER: &str = "TRACEPARENT";

/// How long the end of a command waits for the collector.
const SENT_WITHIN: Duration = Duration::from_secs(2);

/// One command's span and where it goes.
pub struct Trace {
    collector: Option<Collector>,
    span: Span,
    caller: Option<TraceContext>,
}

impl Trace {
    /// Begins it, within a runtime. Without a collector there is no span, and the daemon goes on with the caller's.
    pub fn begin(command: &Command, output: Output) -> Self {
        let endpoint = env::var(trace::ENDPOINT).ok();
        let collector = Collector::configured("dfcache", endpoint.as_deref()).unwrap_or_else(|error| {
            output.warning(&error);
            None
        });
        collector.iter().for_each(Collector::install);
        let caller = env::var(CALLER).ok().and_then(|caller| caller.parse().ok());
        let span = span!("client", "dfcache", otel.name = format!("dfcache {}", command.name()));
        Self { collector, span: trace::asked_by(span, caller), caller }
    }

    /// What the work of the command is to be done in.
    pub fn span(&self) -> Span {
        self.span.clone()
    }

    /// What its requests are sent by.
    pub fn context(&self) -> Option<TraceContext> {
        trace::of(&self.span).or(self.caller)
    }

    /// Sends it. A collector that does not take it costs two seconds and a warning.
    pub async fn end(self, outcome: Result<(), &Stop>, output: Output) {
        if let Err(Stop::Failed(failure)) = outcome {
            trace::fail(&self.span, failure);
        }
        drop(self.span);
        let Some(collector) = self.collector else { return };
        let sent = timeout(SENT_WITHIN, tokio::task::spawn_blocking(move || collector.send())).await;
        match sent {
            Ok(Ok(Err(error))) => output.warning(&error),
            Ok(_) => {}
            Err(_) => output.warning(&"the collector of traces does not answer"),
        }
    }
}

impl Output {
    /// The command is as good without it.
    fn warning(&self, error: &dyn Display) {
        self.summary(&format!("warning: {error}"));
    }
}
