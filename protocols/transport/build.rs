//! Generates the local RPC from `proto/dfdaemon.proto`, without a `protoc` binary.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto/dfdaemon.proto");
    let files = protox::compile(["proto/dfdaemon.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
