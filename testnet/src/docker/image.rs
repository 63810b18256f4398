//! The image: static programs, built by cargo on this host, and nothing else.

use std::{
    env, fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, bail};

use super::engine;
use crate::cargo;

/// The image that compose.yaml names when nobody says otherwise.
const IMAGE: &str = concat!("damselfly:", env!("CARGO_PKG_VERSION"));
/// Says of what an image was made.
const LABEL: &str = "damselfly.made-of";
/// Build scripts and macros cannot be static, so the target has to be named.
const TARGET: &str =
    if cfg!(target_arch = "aarch64") { "aarch64-unknown-linux-gnu" } else { "x86_64-unknown-linux-gnu" };
/// The one program that is all of them; the names are links to it.
const PROGRAM: &str = "damselfly";
const NAMES: [&str; 4] = ["dfmanager", "dfscheduler", "dfdaemon", "dfcache"];
const DOCKERFILE: &str = include_str!("../../Dockerfile.scratch");
const CONFIGS: [(&str, &str); 3] = [
    ("manager.toml", include_str!("../../image/etc/manager.toml")),
    ("scheduler.toml", include_str!("../../image/etc/scheduler.toml")),
    ("daemon.toml", include_str!("../../image/etc/daemon.toml")),
];
/// Empty folders that belong to the user of the image.
const FOLDERS: [&str; 3] = ["var/lib/damselfly", "run/damselfly", "run/tokens"];

/// Makes the image from what the sources are now, unless it is there already; gives its name.
///
/// Without the sources or cargo, an image that is there is taken as it is.
///
/// # Errors
/// Why there is none.
pub async fn ensure() -> anyhow::Result<&'static str> {
    engine::check().await?;
    let made_of = label().await;
    let Some(workspace) = workspace() else {
        return match made_of {
            Some(_) => Ok(IMAGE),
            None => {
                bail!("there is no image {IMAGE}, and no sources to make it of: run this in the repository, by cargo")
            }
        };
    };
    let program = build(&workspace)?;
    let digest = digest(&program)?;
    if made_of.as_ref() == Some(&digest) {
        return Ok(IMAGE);
    }
    let context = tempfile::tempdir().context("no folder for the image")?;
    fill(context.path(), &program)?;
    let mut command = engine::docker();
    // The classic builder needs no plugin, and there is nothing to run in parallel.
    command.env("DOCKER_BUILDKIT", "0").args(["build", "--quiet", "--tag", IMAGE, "--label"]);
    command.arg(format!("{LABEL}={digest}")).arg(context.path());
    engine::text(command).await.context("the image cannot be built")?;
    let bytes = engine::ask(["image", "inspect", "--format", "{{.Size}}", IMAGE]).await?;
    let bytes: u64 = bytes.trim().parse().context("docker tells no size")?;
    eprintln!("testnet: made the image {IMAGE}, {:.1} MiB", bytes as f64 / f64::from(1 << 20));
    Ok(IMAGE)
}

/// Of what the image that is there was made.
async fn label() -> Option<String> {
    let format = format!("{{{{index .Config.Labels \"{LABEL}\"}}}}");
    let text = engine::ask(["image", "inspect", "--format", &format, IMAGE]).await;
    text.ok().map(|text| text.trim().to_owned())
}

/// The folder with the sources: of the `cargo run` that started this, or above this program.
fn workspace() -> Option<PathBuf> {
    let from_cargo = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let own = env::current_exe().ok();
    let starts = [from_cargo.as_deref(), own.as_deref()];
    let folders = starts.into_iter().flatten().flat_map(Path::ancestors);
    folders.filter(|folder| folder.join("testnet/Dockerfile.scratch").is_file()).map(Path::to_owned).next()
}

/// Brings the static program up to date; gives its path.
fn build(workspace: &Path) -> anyhow::Result<PathBuf> {
    // A folder of its own: other flags for the same packages would make cargo build everything anew each time.
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), |dir| workspace.join(dir));
    let target = target.join("static");
    let program = target.join(TARGET).join("image").join(PROGRAM);
    if !program.is_file() {
        eprintln!("testnet: building a static program for the image (several minutes the first time) …");
    }
    let mut command = cargo::command();
    command.current_dir(workspace).args(["build", "--locked", "--package", "damselfly-image"]);
    command.args(["--profile", "image", "--target", TARGET, "--target-dir"]).arg(&target);
    command.env("RUSTFLAGS", "-C target-feature=+crt-static").stdout(Stdio::null());
    let status = command.status();
    let status =
        status.with_context(|| format!("cannot run {}, which builds it", cargo::program(&command).display()))?;
    if !status.success() {
        bail!("cargo could not build the static program ({status}); with linker errors: is there a static C library?");
    }
    Ok(program)
}

/// What the image is made of, in one number.
fn digest(program: &Path) -> anyhow::Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut file = fs::File::open(program).with_context(|| format!("no {}", program.display()))?;
    io::copy(&mut file, &mut hasher)?;
    hasher.update(DOCKERFILE.as_bytes());
    for (_, text) in CONFIGS {
        hasher.update(text.as_bytes());
    }
    Ok(hasher.finalize().to_hex()[..32].to_owned())
}

/// Puts together what the Dockerfile copies.
fn fill(context: &Path, program: &Path) -> anyhow::Result<()> {
    let write = |path: PathBuf, text: &str| fs::write(&path, text).with_context(|| format!("{}", path.display()));
    write(context.join("Dockerfile"), DOCKERFILE)?;
    let (bin, etc) = (context.join("bin"), context.join("etc"));
    fs::create_dir(&bin)?;
    fs::create_dir(&etc)?;
    fs::copy(program, bin.join(PROGRAM)).with_context(|| format!("no {}", program.display()))?;
    fs::set_permissions(bin.join(PROGRAM), fs::Permissions::from_mode(0o755))?;
    for name in NAMES {
        std::os::unix::fs::symlink(PROGRAM, bin.join(name))?;
    }
    for (name, text) in CONFIGS {
        write(etc.join(name), text)?;
    }
    for folder in FOLDERS {
        let folder = context.join("state").join(folder);
        // The last one is private, which the programs insist on.
        fs::create_dir_all(&folder)?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}
