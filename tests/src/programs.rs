//! Finds the programs, and builds them once per test process.

use std::{
    env,
    fs::File,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use anyhow::{Context as _, bail, ensure};
use damselfly_testnet::cargo;
use rustix::fs::{FlockOperation, flock};

/// Names a folder with programs to test; nothing is built then.
const FOLDER_VARIABLE: &str = "DAMSELFLY_PROGRAMS";
const NAMES: [&str; 5] = ["dfmanager", "dfscheduler", "dfdaemon", "dfcache", "testnet"];

/// The folder with the programs, all there and up to date.
#[derive(Debug, Clone)]
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// The programs of the profile in which the running test was built.
    ///
    /// # Errors
    /// Why they cannot be built.
    pub fn get() -> anyhow::Result<Self> {
        static BUILT: OnceLock<Result<Programs, String>> = OnceLock::new();
        let built = BUILT.get_or_init(|| Self::build().map_err(|error| format!("{error:#}")));
        built.clone().map_err(anyhow::Error::msg)
    }

    /// The program called `name`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn build() -> anyhow::Result<Self> {
        if let Some(folder) = env::var_os(FOLDER_VARIABLE) {
            return Self { folder: std::path::absolute(folder)? }.complete();
        }
        let own = env::current_exe()?;
        let folder = own.parent().context("this test is nowhere")?;
        // Tests are in target/<profile>/deps.
        let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
        let target = folder.parent().context("no target folder")?;
        let lock = File::create(target.join("damselfly-tests.lock"))?;
        // Cargo has a lock of its own; this one keeps two test programs from copying over each other's.
        flock(&lock, FlockOperation::LockExclusive)?;
        let profile = match folder.file_name().and_then(|name| name.to_str()) {
            Some("debug") | None => "dev",
            Some(profile) => profile,
        };
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
        let mut cargo = cargo::command();
        cargo.args(["build", "--quiet", "--profile", profile, "--manifest-path"]).arg(manifest);
        cargo.arg("--target-dir").arg(target);
        // All in one, as `cargo test --workspace` does: then they share every dependency with it.
        cargo.args(NAMES.iter().flat_map(|name| ["--bin", *name]));
        let output = cargo.output().context("cannot run cargo")?;
        ensure!(output.status.success(), "cannot build the programs:\n{}", String::from_utf8_lossy(&output.stderr));
        Self { folder: folder.to_owned() }.complete()
    }

    fn complete(self) -> anyhow::Result<Self> {
        match NAMES.into_iter().find(|name| !self.path(name).is_file()) {
            None => Ok(self),
            Some(missing) => bail!("there is no {missing} in {}", self.folder.display()),
        }
    }
}
