//! dfdaemon: one on each host; keeps, serves, fetches and announces contents.

use std::process::ExitCode;

/// glibc gives every large buffer back to the kernel and gets it anew, which halves the speed of a transfer.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    damselfly_node::command::main()
}
