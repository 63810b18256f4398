//! testnet: a whole cluster on one machine.

use std::process::ExitCode;

use clap::Parser as _;
use damselfly_testnet::args::{self, Arguments};

/// One thread: the kernel ends a cluster process when the *thread* that started it ends.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match args::run(arguments).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("testnet: {error:#}");
            ExitCode::FAILURE
        }
    }
}
