//! `dfcache`, what people type.
//!
//! Every command is one module: [`import`], [`export`], [`stat`], [`delete`], [`ls`], [`health`].
//! Each gets a [`client::Context`], opens what it needs of the user's files itself ([`source`],
//! [`damselfly_transport::local::Target`]), asks the daemon, and writes through [`output`]. A command ends with an
//! [`output::Stop`] when it cannot finish; [`main`] makes an exit code of it.

pub mod args;
pub mod client;
pub mod delete;
pub mod export;
pub mod health;
pub mod import;
pub mod ls;
pub mod output;
pub mod progress;
pub mod source;
pub mod stat;
pub mod stdio;
mod trace;
pub mod units;

use std::ffi::OsString;
use std::process::ExitCode;
use std::task::Poll;
use std::time::Duration;

use damselfly_transport::local::{Code, Failure};
use damselfly_transport::stdio as standard;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::Instrument as _;

use args::{Args, Command, Parsed};
use client::Context;
use output::{Outcome, Output, Stop};
use trace::Trace;

/// After a call was given up: time for the connection to say so, before files and pipes close.
pub(crate) const CANCEL_TIME: Duration = Duration::from_millis(50);

/// Runs `dfcache` with these arguments, the first being the program's name.
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    let (output, outcome) = match args::parse(&arguments) {
        Parsed::Run(args) => {
            let output = Output::new(&args);
            (output, run(output, *args))
        }
        Parsed::Print(text) => (Output::default(), output::print(&text)),
        Parsed::Wrong { failure, json } => (Output { json, ..Output::default() }, Err(failure.into())),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(stop) => ExitCode::from(output.stopped(stop)),
    }
}

fn run(output: Output, args: Args) -> Outcome {
    if args.writes_stdout() && standard::stdout_is_closed() {
        // Told before anything is done, because the result would be lost.
        return Err(Failure::new(Code::Failed, "stdout is closed")
            .with_hint("redirect it to where the result is to go, or to /dev/null")
            .into());
    }
    if let Command::Completions { shell } = args.command {
        return output::print(&args::completions(shell));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::io("cannot start", &e))?;
    let outcome = runtime.block_on(async {
        let trace = Trace::begin(&args.command, output);
        let context = Context::new(output, &args.global, trace.context());
        // Before anything is made that is to be removed again.
        let signals = Signals::catch();
        let work = async {
            tokio::select! {
                outcome = dispatch(&context, args.command) => outcome,
                failure = signals.interrupted() => cancelled(failure).await,
                failure = context.out_of_time() => cancelled(failure).await,
            }
        };
        let outcome = work.instrument(trace.span()).await;
        trace.end(outcome.as_ref().copied(), output).await;
        outcome
    });
    // What still looks up the name of a collector is not waited for.
    runtime.shutdown_timeout(CANCEL_TIME);
    outcome
}

async fn dispatch(context: &Context, command: Command) -> Outcome {
    match command {
        Command::Import(import) => import::run(context, import).await,
        Command::Stat(stat) => stat::run(context, stat).await,
        Command::Export(export) => export::run(context, export).await,
        Command::Delete(delete) => delete::run(context, delete).await,
        Command::Ls(ls) => ls::run(context, ls).await,
        Command::Health => health::run(context).await,
        Command::Completions { .. } => Ok(()),
    }
}

/// The work was dropped, and with it its temporary files; the daemon is to hear of it as well.
async fn cancelled(failure: Failure) -> Outcome {
    tokio::time::sleep(CANCEL_TIME).await;
    Err(Stop::Failed(failure))
}

/// The signals that end a run cleanly: its temporary files go, and the daemon hears of it.
struct Signals(Vec<Signal>);

impl Signals {
    /// Catches them from now on. Those that cannot be caught end the process as they always do.
    fn catch() -> Self {
        let mut kinds = vec![SignalKind::interrupt(), SignalKind::terminate(), SignalKind::quit()];
        // Under `nohup` it goes on when its terminal is gone.
        if !is_ignored(SignalKind::hangup()) {
            kinds.push(SignalKind::hangup());
        }
        Self(kinds.into_iter().filter_map(|kind| signal(kind).ok()).collect())
    }

    /// Waits for one of them.
    async fn interrupted(mut self) -> Failure {
        std::future::poll_fn(|context| match self.0.iter_mut().any(|signal| signal.poll_recv(context).is_ready()) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
        Failure::new(Code::Interrupted, "interrupted")
    }
}

/// Whether the program was started with this signal ignored.
fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    ignored.is_some_and(|ignored| ignored >> (kind.as_raw_value() - 1) & 1 == 1)
}
