//! Finds the programs of the cluster, and builds them where that is possible.

use std::{
    env,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, bail};

use crate::cargo;

/// What a cluster consists of.
const NAMES: [&str; 4] = ["dfmanager", "dfscheduler", "dfdaemon", "dfcache"];

/// The folder with the programs, all there.
#[derive(Debug, Clone)]
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// Finds the programs beside this one.
    ///
    /// Where this one was started by `cargo run`, which builds only what it runs, cargo brings the others up to date;
    /// it also builds missing ones if this one lies in a workspace's target folder.
    ///
    /// # Errors
    /// Which programs are missing, or why they cannot be built.
    pub fn find() -> anyhow::Result<Self> {
        let own = env::current_exe().context("this program does not know where it is")?;
        let folder = own.parent().context("this program is nowhere")?;
        // In a test this is a program in target/<profile>/deps.
        let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
        let programs = Self { folder: folder.to_owned() };
        let missing = programs.missing();
        if missing.is_empty() && env::var_os("CARGO").is_none() {
            return Ok(programs);
        }
        if let Some(manifest) = manifest(folder) {
            build(&manifest, folder, &missing)?;
        }
        match programs.missing() {
            missing if missing.is_empty() => Ok(programs),
            missing => bail!("{} not found in {}", missing.join(", "), folder.display()),
        }
    }

    /// The program called `name`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn missing(&self) -> Vec<&'static str> {
        NAMES.into_iter().filter(|name| !self.path(name).is_file()).collect()
    }
}

/// The workspace's Cargo.toml, if `folder` is the one of a profile in its target folder.
fn manifest(folder: &Path) -> Option<PathBuf> {
    let from_cargo = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let candidates = [from_cargo.as_deref().and_then(Path::parent), folder.parent().and_then(Path::parent)];
    let manifests = candidates.into_iter().flatten().map(|folder| folder.join("Cargo.toml"));
    let is_ours = |path: &PathBuf| path.with_file_name("testnet").join("Cargo.toml").is_file();
    manifests.filter(|path| path.is_file()).find(is_ours)
}

fn build(manifest: &Path, folder: &Path, missing: &[&str]) -> anyhow::Result<()> {
    let target = folder.parent().context("no target folder")?;
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(profile) => profile,
    };
    eprintln!("testnet: building {} …", NAMES.join(", "));
    // Not quiet: a first build takes minutes, and cargo shows how far it is.
    let mut command = cargo::command();
    command.arg("build").arg("--manifest-path").arg(manifest).arg("--target-dir").arg(target);
    command.args(["--profile", profile]).args(NAMES.iter().flat_map(|name| ["--bin", *name]));
    match command.stdout(Stdio::null()).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => bail!("cargo could not build the programs ({status})"),
        // No cargo, but nothing is missing: then take what is there.
        Err(_) if missing.is_empty() => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot run {}", cargo::program(&command).display())),
    }
}
