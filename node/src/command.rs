//! The command line of dfdaemon.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use damselfly_transport::{
    error_chain,
    program::{
        config::{self, Override},
        http::check_ready,
        lifecycle::{self, Signals},
        logging::{self, LogFormat},
        membership::given_token,
        reload::Reloader,
    },
    trace::{self, Collector},
};

use crate::{config::NodeConfig, daemon::Daemon};

/// The settings among the arguments.
const SETTINGS: &[(&str, &str)] = &[
    ("data_dir", "data_dir"),
    ("socket", "socket"),
    ("listen", "listen"),
    ("advertise", "advertise"),
    ("role", "role"),
    ("tag", "tags"),
    ("allow_loopback", "allow_loopback"),
    ("log_filter", "log_filter"),
    ("upload_rate_limit", "upload_rate_limit"),
    ("download_rate_limit", "download_rate_limit"),
    ("http_listen", "http.listen"),
    ("insecure_http", "http.insecure_http"),
    ("http_tls_cert_file", "http.tls_cert_file"),
    ("http_tls_key_file", "http.tls_key_file"),
    ("http_tls_self_signed", "http.tls_self_signed"),
    ("http_allowed_host", "http.allowed_hosts"),
    ("otlp_endpoint", "otlp_endpoint"),
];

/// Keeps, serves, fetches and announces the files of this host for its cluster.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file, in TOML. Without one the defaults hold: local import and export work.
    #[arg(long, value_name = "FILE", env = "DFDAEMON_CONFIG")]
    config: Option<PathBuf>,
    /// Shows the effective configuration and the source of each value, and ends.
    #[arg(long)]
    print_config: bool,
    /// Asks the one that runs here with this configuration whether it is ready: exits 0, or 1 with the reasons.
    #[arg(long)]
    check_ready: bool,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t, env = "DFDAEMON_LOG_FORMAT")]
    log_format: LogFormat,
    /// What is logged, such as info,damselfly_node=debug.
    #[arg(long, value_name = "FILTER", env = "RUST_LOG")]
    log_filter: Option<String>,
    /// Where contents, the index and the host's key lie.
    #[arg(long, value_name = "DIR", env = "DFDAEMON_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// The local RPC's socket.
    #[arg(long, value_name = "PATH", env = "DFDAEMON_SOCKET")]
    socket: Option<PathBuf>,
    /// Where peers reach this host; may be given several times.
    #[arg(long, value_name = "MULTIADDR", env = "DFDAEMON_LISTEN", value_delimiter = ',')]
    listen: Vec<String>,
    /// What others are told to dial instead of what they see; may be given several times.
    #[arg(long, value_name = "MULTIADDR", env = "DFDAEMON_ADVERTISE", value_delimiter = ',')]
    advertise: Vec<String>,
    /// What the host is for: node or seed.
    #[arg(long, value_name = "ROLE", env = "DFDAEMON_ROLE")]
    role: Option<String>,
    /// Where the host is, such as zone=a or rack=r12, which decides from whom it fetches; may be given several times.
    #[arg(long, value_name = "NAME=VALUE", env = "DFDAEMON_TAGS", value_delimiter = ',')]
    tag: Vec<String>,
    /// Most bytes sent to peers per second, such as 50MiB/s.
    #[arg(long, value_name = "SIZE/s", env = "DFDAEMON_UPLOAD_RATE_LIMIT")]
    upload_rate_limit: Option<String>,
    /// Most bytes received from peers per second.
    #[arg(long, value_name = "SIZE/s", env = "DFDAEMON_DOWNLOAD_RATE_LIMIT")]
    download_rate_limit: Option<String>,
    /// Joins the cluster of this token, once: afterwards the host remembers. `@FILE` reads the token from a file.
    #[arg(long, value_name = "TOKEN", env = "DFDAEMON_JOIN", hide_env_values = true)]
    join: Option<String>,
    /// Allows to dial loopback addresses: for a cluster whose programs are all on one host.
    #[arg(long)]
    allow_loopback: bool,
    /// Where HTTP is served.
    #[arg(long, value_name = "ADDRESS:PORT", env = "DFDAEMON_HTTP_LISTEN")]
    http_listen: Option<String>,
    /// Allows HTTP on an address that other hosts reach, without encryption.
    #[arg(long)]
    insecure_http: bool,
    /// The certificate for HTTPS, in PEM; needs --http-tls-key-file.
    #[arg(long, value_name = "FILE", env = "DFDAEMON_HTTP_TLS_CERT_FILE")]
    http_tls_cert_file: Option<PathBuf>,
    /// The private key of the certificate for HTTPS, in PEM.
    #[arg(long, value_name = "FILE", env = "DFDAEMON_HTTP_TLS_KEY_FILE")]
    http_tls_key_file: Option<PathBuf>,
    /// HTTPS with a certificate that is made once and kept in the data directory.
    #[arg(long)]
    http_tls_self_signed: bool,
    /// A name with a dot under which clients reach HTTP, for requests' Host header; may be given several times.
    #[arg(long, value_name = "NAME", env = "DFDAEMON_HTTP_ALLOWED_HOSTS", value_delimiter = ',')]
    http_allowed_host: Vec<String>,
    /// The collector of traces, for OTLP/gRPC, such as http://127.0.0.1:4317: spans of exports go there.
    #[arg(long, value_name = "URL", env = trace::ENDPOINT)]
    otlp_endpoint: Option<String>,
}

/// Runs dfdaemon with the arguments of this process.
pub fn main() -> ExitCode {
    let (arguments, overrides) = config::parse_args::<Arguments>(SETTINGS);
    match run(arguments, overrides) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("dfdaemon: {}", error_chain::report(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments, overrides: Vec<Override>) -> anyhow::Result<ExitCode> {
    let loaded = match config::load::<NodeConfig>(arguments.config.as_deref(), &overrides) {
        Ok(loaded) => loaded,
        Err(error) => return Ok(unusable(&error)),
    };
    if arguments.print_config {
        damselfly_transport::stdio::print(&loaded.print())?;
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.check_ready {
        let NodeConfig { http, data_dir, .. } = &loaded.config;
        return Ok(tokio::runtime::Runtime::new()?.block_on(check_ready("dfdaemon", http, data_dir)));
    }
    let given = match given_token(arguments.join.as_deref(), &loaded.config.data_dir) {
        Ok(given) => given,
        Err(reason) => return Ok(unusable(&reason)),
    };
    lifecycle::raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let inside = runtime.enter();
    let collector = Collector::configured("dfdaemon", loaded.config.otlp_endpoint.as_deref())?;
    let log_filter = logging::init(arguments.log_format, loaded.config.log_filter.as_deref(), collector.as_ref());
    given.warn();
    drop(inside);
    let ended = runtime.block_on(async {
        let mut signals = Signals::catch()?;
        let mut reloader = Reloader::catch(arguments.config, overrides, loaded.config.clone())?;
        let mut daemon = Daemon::start(loaded.config, given.token).await?;
        lifecycle::ready();
        let ended = loop {
            tokio::select! {
                signal = signals.recv() => {
                    tracing::info!(signal, "the daemon ends");
                    break Ok(ExitCode::SUCCESS);
                }
                config = reloader.changed() => {
                    log_filter.set(config.log_filter.as_deref());
                    daemon.reload(&config);
                }
                ended = daemon.ended() => break Err(ended),
            }
        };
        lifecycle::shut_down(daemon.stop()).await;
        ended
    });
    collector.into_iter().for_each(Collector::stop);
    // A thread that waits for a pipe must not keep the daemon.
    runtime.shutdown_background();
    ended
}

/// The program cannot be started as it is told.
fn unusable(reason: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("dfdaemon: {reason}");
    ExitCode::from(config::EXIT_CODE)
}
