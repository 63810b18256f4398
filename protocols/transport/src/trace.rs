//! Spans that follow an export from the command line to the parents, for who collects traces.
//!
//! They have a [target](TARGET) of their own and are in no log. Without a [`Collector`] none is made: [`span!`](crate::span)
//! gives one that does nothing, [`current`] is `None`, and no request says more than before.

use std::fmt::Display;

use damselfly_messages::trace::TraceContext;
use opentelemetry::{
    Context,
    trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState},
};
use tracing::{Instrument as _, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

mod collector;

pub use collector::{Collector, CollectorError, ENDPOINT, check_endpoint};

/// The target of these spans, and of nothing else.
pub const TARGET: &str = "damselfly_trace";

/// The metadata of a local RPC that says which span it is sent by.
pub const TRACEPARENT: &str = "traceparent";

/// A span under the current one: its kind (`client` asks another program, `server` answers one, `internal`), its name, and
/// fields as tracing has them.
#[macro_export]
macro_rules! span {
    ($kind:literal, $name:literal $(, $($fields:tt)*)?) => {
        $crate::trace::__private::info_span!(
            target: $crate::trace::TARGET,
            $name,
            otel.kind = $kind,
            otel.status_code = $crate::trace::__private::Empty,
            otel.status_description = $crate::trace::__private::Empty,
            $($($fields)*)?
        )
    };
}

#[doc(hidden)]
pub mod __private {
    pub use tracing::{field::Empty, info_span};
}

/// `span`, asked for by `caller`. It must not have been entered.
pub fn asked_by(span: Span, caller: Option<TraceContext>) -> Span {
    if let Some(caller) = caller.filter(|_| !span.is_disabled()) {
        let flags = if caller.is_sampled() { TraceFlags::SAMPLED } else { TraceFlags::default() };
        let (trace, id) = (TraceId::from_bytes(caller.trace()), SpanId::from_bytes(caller.span()));
        let parent = SpanContext::new(trace, id, flags, true, TraceState::default());
        // It fails for a span that is not collected.
        drop(span.set_parent(Context::new().with_remote_span_context(parent)));
    }
    span
}

/// `span` when what it is for is traced at all, else one that does nothing. Called with a closure, so that nothing is made
/// in vain.
pub fn when_traced(span: impl FnOnce() -> Span) -> Span {
    if Span::current().is_disabled() { Span::none() } else { span() }
}

/// What the current task's requests are sent by; `None` when nobody collects it.
pub fn current() -> Option<TraceContext> {
    of(&Span::current())
}

/// What requests of `span` are sent by; `None` when nobody collects it.
pub fn of(span: &Span) -> Option<TraceContext> {
    if span.is_disabled() {
        return None;
    }
    let context = span.context();
    let context = context.span();
    let context = context.span_context();
    TraceContext::new(context.trace_id().to_bytes(), context.span_id().to_bytes(), context.is_sampled())
}

/// Does `work` in `span`, and notes there when it fails.
pub async fn traced<T, E: Display>(span: Span, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    let result = work.instrument(span.clone()).await;
    if let Err(error) = &result {
        fail(&span, error);
    }
    result
}

/// Notes in `span` that what it is for has failed.
pub fn fail(span: &Span, reason: &impl Display) {
    if !span.is_disabled() {
        span.record("otel.status_code", "ERROR");
        span.record("otel.status_description", reason.to_string());
    }
}
