//! Logs on standard error, and spans to a collector of traces.

use std::io;

use tracing_subscriber::{
    EnvFilter, Layer as _, Registry, fmt, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

use crate::trace::{Collector, TARGET};

/// The library of gossip warns of what is usual here: only one side of a connection names the other as an explicit peer, and
/// the other one offers itself all the same.
const GOSSIP: &str = "libp2p_gossipsub";

/// What is logged when nothing is said.
const DEFAULT_FILTER: &str = "info,libp2p_swarm=warn";

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Lines for a person.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Changes what is logged while the program runs.
#[derive(Debug, Clone)]
pub struct LogFilter(reload::Handle<EnvFilter, Registry>);

impl LogFilter {
    /// Logs what `directives` say, as in `RUST_LOG`; without any, the default.
    pub fn set(&self, directives: Option<&str>) {
        let (filter, wrong) = read(directives);
        if let Err(error) = self.0.reload(filter) {
            tracing::warn!(%error, "the log filter stays as it is");
        }
        report(wrong);
    }
}

/// Sends logs to standard error, filtered by `directives` as `RUST_LOG` has them (default: info), and spans to `collector`.
///
/// Call it once; a second call has no effect.
pub fn init(format: LogFormat, directives: Option<&str>, collector: Option<&Collector>) -> LogFilter {
    let (filter, wrong) = read(directives);
    let (filter, handle) = reload::Layer::new(filter);
    let lines = fmt::layer().with_writer(io::stderr).with_ansi(false);
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    let lines = lines.with_filter(filter);
    let set = tracing_subscriber::registry().with(lines).with(collector.map(Collector::layer)).try_init();
    drop(set);
    report(wrong);
    LogFilter(handle)
}

/// The filter, and why `directives` are not used.
fn read(directives: Option<&str>) -> (EnvFilter, Option<String>) {
    let no_spans = format!("{TARGET}=off").parse().expect("a directive");
    let given = directives.filter(|directives| !directives.trim().is_empty()).map(str::parse::<EnvFilter>);
    let (filter, wrong) = match given {
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (EnvFilter::new(DEFAULT_FILTER), Some(error.to_string())),
        None => (EnvFilter::new(DEFAULT_FILTER), None),
    };
    let filter = match directives {
        Some(directives) if directives.contains(GOSSIP) => filter,
        _ => filter.add_directive(format!("{GOSSIP}=error").parse().expect("a directive")),
    };
    (filter.add_directive(no_spans), wrong)
}

fn report(wrong: Option<String>) {
    if let Some(error) = wrong {
        tracing::warn!(error, "the log filter is not used: write it such as info,damselfly_node=debug");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_and_nonsense_are_the_default() {
        let default = read(None).0.to_string();
        assert!(default.contains("info"), "{default}");
        for (directives, is_default, is_wrong) in [
            (Some(""), true, false),
            (Some(" "), true, false),
            (Some("warn"), false, false),
            (Some("a=b=c"), true, true),
        ] {
            let (filter, wrong) = read(directives);
            assert_eq!((filter.to_string() == default, wrong.is_some()), (is_default, is_wrong), "{directives:?}");
        }
    }
}
