//! `dfscheduler`.

use std::process::ExitCode;

fn main() -> ExitCode {
    damselfly_scheduler::command::main()
}
