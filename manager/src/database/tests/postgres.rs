//! A PostgreSQL for tests, where it is installed.

use std::{fs, path::PathBuf, process::Command};

/// A PostgreSQL of a test's own, on a socket in a folder of its own.
pub struct Server {
    folder: tempfile::TempDir,
    programs: PathBuf,
}

impl Server {
    /// Starts it; `None` where PostgreSQL is not installed.
    pub fn start() -> Option<Self> {
        let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
        let programs = versions.filter_map(|entry| Some(entry.ok()?.path().join("bin"))).max()?;
        if !programs.join("initdb").exists() {
            return None;
        }
        let folder = tempfile::tempdir().expect("a folder");
        if is_root() {
            let owned = Command::new("chown").arg("postgres").arg(folder.path()).status().expect("run");
            assert!(owned.success(), "no user postgres");
        }
        let server = Self { folder, programs };
        let data = server.folder.path().join("data");
        server.run("initdb", &format!("-A trust -U postgres -N -D {}", data.display()));
        server.begin();
        Some(server)
    }

    /// Starts it, also once more.
    pub fn begin(&self) {
        let (data, socket) = (self.folder.path().join("data"), self.folder.path());
        let options = format!("-c listen_addresses= -c fsync=off -c unix_socket_directories={}", socket.display());
        let log = socket.join("log");
        self.run("pg_ctl", &format!("-w -D {} -l {} -o '{options}' start", data.display(), log.display()));
    }

    /// Ends it at once.
    pub fn end(&self) {
        self.run("pg_ctl", &format!("-m immediate -D {} stop", self.folder.path().join("data").display()));
    }

    /// Where it is.
    pub fn url(&self) -> String {
        let socket = self.folder.path().display().to_string().replace('/', "%2F");
        format!("postgres://postgres@{socket}/postgres")
    }

    fn run(&self, program: &str, arguments: &str) {
        let line = format!("cd / && {} {arguments} >/dev/null 2>&1", self.programs.join(program).display());
        let mut command = match is_root() {
            true => Command::new("su"),
            false => Command::new("sh"),
        };
        if is_root() {
            command.args(["postgres", "-s", "/bin/sh"]);
        }
        assert!(command.args(["-c", &line]).status().expect("run").success(), "{line}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}
