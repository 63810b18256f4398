//! All programs in one: it is the program by whose name it is called. In images the names are links to it.

use std::{env, ffi::OsString, path::Path, process::ExitCode};

/// As in dfdaemon.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().collect();
    let name = arguments.first().map(Path::new).and_then(Path::file_name).and_then(|name| name.to_str());
    match name {
        Some("dfcache") => damselfly_cli::main(arguments),
        Some("dfdaemon") => damselfly_node::command::main(),
        Some("dfmanager") => damselfly_manager::command::main(),
        Some("dfscheduler") => damselfly_scheduler::command::main(),
        _ => {
            eprintln!("damselfly: call it by the name of a program: dfcache, dfdaemon, dfmanager or dfscheduler");
            ExitCode::from(2)
        }
    }
}
