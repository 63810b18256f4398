//! Who has dialled: the kernel knows which process has a socket.

use std::{
    fs,
    net::TcpStream,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use procfs::process::{FDTarget, Process};

/// The name of the program in the cluster's folder `dir` that is at the other end of `stream`, if it is one of them.
pub(super) fn name(dir: &Path, stream: &TcpStream) -> Option<String> {
    let (theirs, ours) = (stream.peer_addr().ok()?, stream.local_addr().ok()?);
    let sockets = procfs::net::tcp().ok()?;
    let inode = sockets.iter().find(|one| one.local_address == theirs && one.remote_address == ours)?.inode;
    programs(dir).into_iter().find(|(_, process)| has_socket(process, inode)).map(|(name, _)| name)
}

fn has_socket(process: &Process, inode: u64) -> bool {
    let open = process.fd().into_iter().flatten().flatten();
    open.into_iter().any(|open| open.target == FDTarget::Socket(inode))
}

/// The programs that run with a configuration in this folder.
fn programs(dir: &Path) -> Vec<(String, Process)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        Some((name_in(dir, &line)?, Process::new(pid).ok()?))
    })
    .collect()
}

/// The name in `--config DIR/NAME/config.toml` of a command line.
fn name_in(dir: &Path, line: &[u8]) -> Option<String> {
    let mut arguments = line.split(|byte| *byte == 0).skip_while(|argument| *argument != b"--config");
    let config = PathBuf::from(std::ffi::OsStr::from_bytes(arguments.nth(1)?));
    let folder = config.parent()?;
    (folder.parent()? == dir).then(|| folder.file_name()?.to_str().map(str::to_owned))?
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_name_is_in_the_command_line() {
        let line = b"/x/dfdaemon\0--config\0/c/node-1/config.toml\0";
        assert_eq!(name_in(Path::new("/c"), line).as_deref(), Some("node-1"));
        assert_eq!(name_in(Path::new("/d"), line), None, "of another cluster");
        assert_eq!(name_in(Path::new("/c"), b"/x/dfdaemon\0"), None);
    }

    #[test]
    fn a_socket_is_found_at_its_process() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bound");
        let client = TcpStream::connect(listener.local_addr().expect("an address")).expect("connected");
        let (accepted, _) = listener.accept().expect("accepted");
        let theirs = client.local_addr().expect("an address");
        let sockets = procfs::net::tcp().expect("read");
        let ours = accepted.local_addr().expect("an address");
        let socket = sockets.iter().find(|one| one.local_address == theirs && one.remote_address == ours);
        let me = Process::myself().expect("a process");
        assert!(has_socket(&me, socket.expect("known to the kernel").inode));
        assert_eq!(name(Path::new("/nowhere"), &accepted), None, "no program of a cluster");
    }
}
