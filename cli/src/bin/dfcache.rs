//! `dfcache`: imports, finds, exports and deletes files of the cluster.

use std::process::ExitCode;

fn main() -> ExitCode {
    damselfly_cli::main(std::env::args_os().collect())
}
