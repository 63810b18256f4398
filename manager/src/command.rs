//! The command line of dfmanager.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use damselfly_transport::{
    error_chain,
    program::{
        config::{self, Override},
        http::check_ready,
        lifecycle::{self, Signals},
        logging::{self, LogFormat},
        reload::Reloader,
    },
};

use crate::{
    backup,
    config::ManagerConfig,
    join_token_cmd::{Wanted, invite},
    server::Server,
};

/// The settings among the arguments.
const SETTINGS: &[(&str, &str)] = &[
    ("data_dir", "data_dir"),
    ("database_url", "database_url"),
    ("listen", "listen"),
    ("join_listen", "join_listen"),
    ("join_advertise", "join_advertise"),
    ("allow_loopback", "allow_loopback"),
    ("log_filter", "log_filter"),
    ("http_listen", "http.listen"),
    ("insecure_http", "http.insecure_http"),
    ("http_tls_cert_file", "http.tls_cert_file"),
    ("http_tls_key_file", "http.tls_key_file"),
    ("http_tls_self_signed", "http.tls_self_signed"),
    ("http_allowed_host", "http.allowed_hosts"),
];

/// Signs and publishes the configuration of a Damselfly cluster.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file, in TOML.
    #[arg(long, global = true, value_name = "FILE", env = "DFMANAGER_CONFIG")]
    config: Option<PathBuf>,
    /// Shows the effective configuration and the source of each value, and ends.
    #[arg(long)]
    print_config: bool,
    /// Asks the one that runs here with this configuration whether it is ready: exits 0, or 1 with the reasons.
    #[arg(long)]
    check_ready: bool,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t, env = "DFMANAGER_LOG_FORMAT")]
    log_format: LogFormat,
    /// What is logged, such as info,damselfly_manager=debug.
    #[arg(long, value_name = "FILTER", env = "RUST_LOG")]
    log_filter: Option<String>,
    /// Where the keys lie, and the database unless there is a --database-url.
    #[arg(long, global = true, value_name = "DIR", env = "DFMANAGER_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// A PostgreSQL database, which several managers may share. Other users see command lines: prefer the variable.
    #[arg(long, value_name = "URL", env = "DFMANAGER_DATABASE_URL", hide_env_values = true)]
    database_url: Option<String>,
    /// Where peers reach the manager; may be given several times.
    #[arg(long, value_name = "MULTIADDR", env = "DFMANAGER_LISTEN", value_delimiter = ',')]
    listen: Vec<String>,
    /// Where new hosts join.
    #[arg(long, value_name = "ADDRESS:PORT", env = "DFMANAGER_JOIN_LISTEN")]
    join_listen: Option<String>,
    /// Where join tokens say that this is; may be given several times.
    #[arg(long, value_name = "MULTIADDR", env = "DFMANAGER_JOIN_ADVERTISE", value_delimiter = ',')]
    join_advertise: Vec<String>,
    /// Allows to dial loopback addresses: for a cluster whose programs are all on one host.
    #[arg(long)]
    allow_loopback: bool,
    /// Where HTTP is served.
    #[arg(long, value_name = "ADDRESS:PORT", env = "DFMANAGER_HTTP_LISTEN")]
    http_listen: Option<String>,
    /// Allows HTTP on an address that other hosts reach, without encryption.
    #[arg(long)]
    insecure_http: bool,
    /// The certificate for HTTPS, in PEM; needs --http-tls-key-file.
    #[arg(long, value_name = "FILE", env = "DFMANAGER_HTTP_TLS_CERT_FILE")]
    http_tls_cert_file: Option<PathBuf>,
    /// The private key of the certificate for HTTPS, in PEM.
    #[arg(long, value_name = "FILE", env = "DFMANAGER_HTTP_TLS_KEY_FILE")]
    http_tls_key_file: Option<PathBuf>,
    /// HTTPS with a certificate that is made once and kept in the data directory.
    #[arg(long)]
    http_tls_self_signed: bool,
    /// A name with a dot under which clients reach HTTP, for requests' Host header; may be given several times.
    #[arg(long, value_name = "NAME", env = "DFMANAGER_HTTP_ALLOWED_HOSTS", value_delimiter = ',')]
    http_allowed_host: Vec<String>,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What dfmanager does instead of running. Its settings come before the command, but for --config and --data-dir, which may
/// stand after it too.
#[derive(Debug, Subcommand)]
enum Command {
    /// Copies keys and database into a new directory; the manager may run.
    Backup {
        /// The directory, which must not exist.
        #[arg(long, value_name = "DIR")]
        output: PathBuf,
    },
    /// Brings a backup back into a data directory that has no keys and no database.
    Restore {
        /// The directory that `backup` made.
        #[arg(long, value_name = "DIR")]
        from: PathBuf,
    },
    /// Makes join tokens, by asking the manager that runs here with this configuration.
    #[command(after_help = "Examples:\n  dfmanager join-token scheduler --uses 3\n  \
                      dfmanager join-token node,zone=a --uses 100 --ttl 1day\n  \
                      dfmanager join-token scheduler@/run/s node+seed@/run/n    # into files that only this user reads")]
    JoinToken {
        /// What a host becomes: roles, the tags of its credential, and the file for the token; printed without one.
        #[arg(required = true, value_name = "ROLE[+ROLE][,TAG=VALUE]...[@FILE]")]
        wanted: Vec<Wanted>,
        /// For how many hosts each token is good.
        #[arg(long, value_name = "N", default_value_t = 1)]
        uses: u32,
        /// For how long.
        #[arg(long, value_name = "DUR", default_value = "1h", value_parser = humantime::parse_duration)]
        ttl: Duration,
    },
}

/// Runs dfmanager with the arguments of this process.
pub fn main() -> ExitCode {
    let (arguments, overrides) = config::parse_args::<Arguments>(SETTINGS);
    let ended =
        tokio::runtime::Runtime::new().context("no runtime").and_then(|it| it.block_on(run(arguments, overrides)));
    match ended {
        Ok(code) => code,
        Err(error) => {
            eprintln!("dfmanager: {}", error_chain::report(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments, overrides: Vec<Override>) -> anyhow::Result<ExitCode> {
    let loaded = match config::load::<ManagerConfig>(arguments.config.as_deref(), &overrides) {
        Ok(loaded) => loaded,
        Err(error) => {
            eprintln!("dfmanager: {error}");
            return Ok(ExitCode::from(config::EXIT_CODE));
        }
    };
    if arguments.print_config {
        damselfly_transport::stdio::print(&loaded.print())?;
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.check_ready {
        return Ok(check_ready("dfmanager", &loaded.config.http, &loaded.config.data_dir).await);
    }
    match arguments.command {
        Some(Command::Backup { output }) => {
            backup::backup(&loaded.config, &output).await?;
            return Ok(ExitCode::SUCCESS);
        }
        Some(Command::Restore { from }) => {
            let restored = backup::restore(&loaded.config, &from).await?;
            println!("cluster {} at epoch {}", restored.cluster, restored.epoch);
            return Ok(ExitCode::SUCCESS);
        }
        Some(Command::JoinToken { wanted, uses, ttl }) => {
            invite(&loaded.config, &wanted, uses, ttl).await?;
            return Ok(ExitCode::SUCCESS);
        }
        None => {}
    }
    let log_filter = logging::init(arguments.log_format, loaded.config.log_filter.as_deref(), None);
    let mut signals = Signals::catch()?;
    let mut reloader = Reloader::catch(arguments.config, overrides, loaded.config.clone())?;
    let server = tokio::select! {
        started = Server::start(loaded.config) => started?,
        // It may be waiting for its database.
        signal = signals.recv() => {
            tracing::info!(signal, "the manager ends before it has started");
            return Ok(ExitCode::SUCCESS);
        }
    };
    lifecycle::ready();
    let signal = loop {
        tokio::select! {
            signal = signals.recv() => break signal,
            config = reloader.changed() => log_filter.set(config.log_filter.as_deref()),
        }
    };
    tracing::info!(signal, "the manager ends");
    lifecycle::shut_down(server.stop()).await;
    Ok(ExitCode::SUCCESS)
}
