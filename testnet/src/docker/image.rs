//! The image: static programs, built by cargo on this host, and nothing else.

use std::{
    env, fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

use super::engine;

/// The image that compose.yaml names when nobody says otherwise.
const IMAGE: &str = concat!("damselfly:", env!("CARGO_PKG_VERSION"));
/// Says of what an image was made.
const LABEL: &str = "damselfly.made-of";
/// Build scripts and macros cannot be static, so the target has to be named.
const TARGET: &str =
    if cfg!(target_arch = "aarch64") { "aarch64-unknown-linux-gnu" } else { "x86_64-unknown-linux-gnu" };
const PROGRAMS: [(&str, &str); 4] = [
    ("damselfly-manager", "dfmanager"),
    ("damselfly-scheduler", "dfscheduler"),
    ("damselfly-node", "dfdaemon"),
    ("damselfly-cli", "dfcache"),
];
const DOCKERFILE: &str = include_str!("../../Dockerfile.scratch");
const CONFIGS: [(&str, &str); 3] = [
    ("manager.toml", include_str!("../../image/manager.toml")),
    ("scheduler.toml", include_str!("../../image/scheduler.toml")),
    ("daemon.toml", include_str!("../../image/daemon.toml")),
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
    let programs = build(&workspace)?;
    let digest = digest(&programs)?;
    if made_of.as_ref() == Some(&digest) {
        return Ok(IMAGE);
    }
    let context = tempfile::tempdir().context("no folder for the image")?;
    fill(context.path(), &programs)?;
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

/// Brings the static programs up to date; gives the folder with them.
fn build(workspace: &Path) -> anyhow::Result<PathBuf> {
    let target = env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace.join("target"), |dir| workspace.join(dir))
        .join("static");
    let programs = target.join(TARGET).join("image");
    if !programs.join("dfdaemon").is_file() {
        eprintln!("testnet: building static programs for the image (several minutes the first time) …");
    }
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(&cargo);
    command.current_dir(workspace).args(["build", "--locked", "--profile", "image", "--bins", "--target", TARGET]);
    command.arg("--target-dir").arg(&target).args(PROGRAMS.iter().flat_map(|(package, _)| ["--package", *package]));
    command.env("RUSTFLAGS", "-C target-feature=+crt-static").stdin(Stdio::null()).stdout(Stdio::null());
    // What the `cargo run` that started this has set is not meant for other targets.
    command.env_remove("CARGO_TARGET_DIR");
    let status = command.status();
    let status = status.with_context(|| format!("cannot run {}, which builds the programs", cargo.display()))?;
    if !status.success() {
        bail!("cargo could not build the static programs ({status}); does the C compiler have a static C library?");
    }
    Ok(programs)
}

/// What the image is made of, in one number.
fn digest(programs: &Path) -> anyhow::Result<String> {
    let mut hasher = blake3::Hasher::new();
    for (_, program) in PROGRAMS {
        let path = programs.join(program);
        let mut file = fs::File::open(&path).with_context(|| format!("no {}", path.display()))?;
        io::copy(&mut file, &mut hasher)?;
    }
    hasher.update(DOCKERFILE.as_bytes());
    for (_, text) in CONFIGS {
        hasher.update(text.as_bytes());
    }
    Ok(hasher.finalize().to_hex()[..32].to_owned())
}

/// Puts together what the Dockerfile copies.
fn fill(context: &Path, programs: &Path) -> anyhow::Result<()> {
    let write = |path: PathBuf, text: &str| fs::write(&path, text).with_context(|| format!("{}", path.display()));
    write(context.join("Dockerfile"), DOCKERFILE)?;
    fs::create_dir(context.join("bin"))?;
    fs::create_dir(context.join("etc"))?;
    for (_, program) in PROGRAMS {
        let to = context.join("bin").join(program);
        fs::copy(programs.join(program), &to).with_context(|| format!("no {program}"))?;
        fs::set_permissions(to, fs::Permissions::from_mode(0o755))?;
    }
    for (name, text) in CONFIGS {
        write(context.join("etc").join(name), text)?;
    }
    for folder in FOLDERS {
        let folder = context.join("state").join(folder);
        // The last one is private, which the programs insist on.
        fs::create_dir_all(&folder)?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}
