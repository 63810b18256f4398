//! Logs on standard error, and spans to a collector of traces.

use std::{env, io};

use tracing_subscriber::{EnvFilter, Layer as _, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::trace::{Collector, TARGET};

/// The library of gossip warns of what is usual here: only one side of a connection names the other as an explicit peer, and
/// the other one offers itself all the same.
const GOSSIP: &str = "libp2p_gossipsub";

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Lines for a person.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Sends logs to standard error, filtered by `RUST_LOG` (default: info), and spans to `collector`.
///
/// Call it once; a second call has no effect.
pub fn init(format: LogFormat, collector: Option<&Collector>) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,libp2p_swarm=warn"));
    let filter = match env::var(EnvFilter::DEFAULT_ENV) {
        Ok(wanted) if wanted.contains(GOSSIP) => filter,
        _ => filter.add_directive(format!("{GOSSIP}=error").parse().expect("a directive")),
    };
    let no_spans = format!("{TARGET}=off").parse().expect("a directive");
    let lines = fmt::layer().with_writer(io::stderr).with_ansi(false);
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    let lines = lines.with_filter(filter.add_directive(no_spans));
    let set = tracing_subscriber::registry().with(lines).with(collector.map(Collector::layer)).try_init();
    drop(set);
}
