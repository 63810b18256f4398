//! The command line of `dfscheduler`.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::Parser;
use damselfly_messages::membership::JoinToken;
use damselfly_transport::{
    error_chain,
    program::{
        config::{self, Override},
        http::check_ready,
        lifecycle::{self, Signals},
        logging::{self, LogFilter, LogFormat},
        membership::{given_token, has_joined},
        reload::Reloader,
    },
    trace::{self, Collector},
};

use crate::{
    config::SchedulerConfig,
    program::{NO_CLUSTER, Scheduler},
};

/// Owns a part of the hash ring: who holds which task, and which parents a host should fetch from.
#[derive(Debug, Parser)]
#[command(name = "dfscheduler", version, max_term_width = 100)]
struct Arguments {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE", env = "DFSCHEDULER_CONFIG")]
    config: Option<PathBuf>,
    /// Show the effective configuration with the source of each value, and end
    #[arg(long)]
    print_config: bool,
    /// Ask the one that runs here with this configuration whether it is ready: exits 0, or 1 with the reasons
    #[arg(long)]
    check_ready: bool,
    /// How log lines look; RUST_LOG filters them
    #[arg(long, value_enum, default_value_t, env = "DFSCHEDULER_LOG_FORMAT")]
    log_format: LogFormat,
    /// Address to listen on, as a multiaddr; may be repeated
    #[arg(long, value_name = "MULTIADDR", env = "DFSCHEDULER_LISTEN", value_delimiter = ',')]
    listen: Vec<String>,
    /// Address at which others reach it, if not the one that the manager sees; may be repeated
    #[arg(long, value_name = "MULTIADDR", env = "DFSCHEDULER_ADVERTISE", value_delimiter = ',')]
    advertise: Vec<String>,
    /// What is logged, such as info,damselfly_scheduler=debug
    #[arg(long, value_name = "FILTER", env = "RUST_LOG")]
    log_filter: Option<String>,
    /// Directory for the key and the newest signed configuration
    #[arg(long, value_name = "DIR", env = "DFSCHEDULER_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Allow hosts at loopback addresses: only for tests and testnets
    #[arg(long)]
    allow_loopback: bool,
    /// Joins the cluster of this token, once: afterwards it is remembered; @FILE reads the token from a file
    #[arg(long, value_name = "TOKEN", env = "DFSCHEDULER_JOIN", hide_env_values = true)]
    join: Option<String>,
    /// Address for metrics and health
    #[arg(long, value_name = "ADDRESS:PORT", env = "DFSCHEDULER_HTTP_LISTEN")]
    http_listen: Option<String>,
    /// Allow HTTP without encryption on an address that other hosts reach
    #[arg(long)]
    insecure_http: bool,
    /// The certificate for HTTPS, in PEM; needs --http-tls-key-file
    #[arg(long, value_name = "FILE", env = "DFSCHEDULER_HTTP_TLS_CERT_FILE")]
    http_tls_cert_file: Option<PathBuf>,
    /// The private key of the certificate for HTTPS, in PEM
    #[arg(long, value_name = "FILE", env = "DFSCHEDULER_HTTP_TLS_KEY_FILE")]
    http_tls_key_file: Option<PathBuf>,
    /// HTTPS with a certificate that is made once and kept in the data directory
    #[arg(long)]
    http_tls_self_signed: bool,
    /// A name with a dot under which clients reach HTTP, for requests' Host header; may be given several times
    #[arg(long, value_name = "NAME", env = "DFSCHEDULER_HTTP_ALLOWED_HOSTS", value_delimiter = ',')]
    http_allowed_host: Vec<String>,
    /// The collector of traces, for OTLP/gRPC, such as http://127.0.0.1:4317: spans of exports go there
    #[arg(long, value_name = "URL", env = trace::ENDPOINT)]
    otlp_endpoint: Option<String>,
}

/// Arguments that are settings.
const SETTINGS: &[(&str, &str)] = &[
    ("listen", "listen"),
    ("advertise", "advertise"),
    ("data_dir", "data_dir"),
    ("allow_loopback", "allow_loopback"),
    ("log_filter", "log_filter"),
    ("http_listen", "http.listen"),
    ("insecure_http", "http.insecure_http"),
    ("http_tls_cert_file", "http.tls_cert_file"),
    ("http_tls_key_file", "http.tls_key_file"),
    ("http_tls_self_signed", "http.tls_self_signed"),
    ("http_allowed_host", "http.allowed_hosts"),
    ("otlp_endpoint", "otlp_endpoint"),
];

/// Files, listeners and the like beside the connections.
const OTHER_FILES: u64 = 256;

/// Runs `dfscheduler` with the arguments of this process.
pub fn main() -> ExitCode {
    let (arguments, overrides) = config::parse_args::<Arguments>(SETTINGS);
    match run(&arguments, &overrides) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("dfscheduler: {}", error_chain::report(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments, overrides: &[Override]) -> anyhow::Result<ExitCode> {
    let loaded = match config::load::<SchedulerConfig>(arguments.config.as_deref(), overrides) {
        Ok(loaded) => loaded,
        Err(error) => return Ok(unusable(&error)),
    };
    if arguments.print_config {
        damselfly_transport::stdio::print(&loaded.print())?;
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.check_ready {
        let SchedulerConfig { http, data_dir, .. } = &loaded.config;
        return Ok(tokio::runtime::Runtime::new()?.block_on(check_ready("dfscheduler", http, data_dir)));
    }
    let given = match given_token(arguments.join.as_deref(), &loaded.config.data_dir) {
        Ok(given) => given,
        Err(reason) => return Ok(unusable(&reason)),
    };
    if given.token.is_none() && !has_joined(&loaded.config.data_dir) {
        return Ok(unusable(&NO_CLUSTER));
    }
    let mut config = loaded.config;
    let loaded_config = config.clone();
    config.connections = config.connections.min(connections_max());
    let runtime = tokio::runtime::Runtime::new().context("no runtime")?;
    let inside = runtime.enter();
    let collector = Collector::configured("dfscheduler", config.otlp_endpoint.as_deref())?;
    let log_filter = logging::init(arguments.log_format, config.log_filter.as_deref(), collector.as_ref());
    let reloader = Reloader::catch(arguments.config.clone(), overrides.to_vec(), loaded_config)?;
    given.warn();
    drop(inside);
    let ended = runtime.block_on(serve(config, given.token, reloader, log_filter));
    collector.into_iter().for_each(Collector::stop);
    // Looking up the name of a collector must not keep the scheduler.
    runtime.shutdown_background();
    ended
}

/// The program cannot be started as it is told.
fn unusable(reason: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("dfscheduler: {reason}");
    ExitCode::from(config::EXIT_CODE)
}

async fn serve(
    config: SchedulerConfig,
    token: Option<JoinToken>,
    mut reloader: Reloader<SchedulerConfig>,
    log_filter: LogFilter,
) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::catch().context("signals cannot be caught")?;
    let mut scheduler = Scheduler::start(config, token).await?;
    lifecycle::ready();
    let failed = loop {
        tokio::select! {
            signal = signals.recv() => {
                tracing::info!(signal, "ending");
                break false;
            }
            config = reloader.changed() => log_filter.set(config.log_filter.as_deref()),
            () = scheduler.ended() => break true,
        }
    };
    let clean = lifecycle::shut_down(scheduler.stop()).await;
    Ok(if failed || !clean { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// How many connections fit, with the limit of open files as high as the system allows.
fn connections_max() -> u32 {
    u32::try_from(lifecycle::raise_file_limit().saturating_sub(OTHER_FILES).max(64)).unwrap_or(u32::MAX)
}
