//! dfmanager: signs and publishes the cluster's configuration.

use std::process::ExitCode;

fn main() -> ExitCode {
    damselfly_manager::command::main()
}
