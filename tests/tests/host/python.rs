//! A client in another language: Python, with stubs made from the repository's .proto.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use tokio::process::Command;

use crate::support::{Host, NOBODY, holds, is_root, list, random, same_bytes, text};

/// How long the packages may take to arrive.
const INSTALL_TIME: Duration = Duration::from_secs(90);

/// Python with everything it needs.
struct Python {
    path: String,
    script: PathBuf,
}

impl Python {
    /// Installs the packages unless an earlier run has, and makes the stubs; an error says what is missing.
    async fn get(folder: &Path) -> anyhow::Result<Self> {
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("python");
        let packages = packages(&scripts.join("requirements.txt")).await?;
        let protos = Path::new(env!("CARGO_MANIFEST_DIR")).join("../protocols/transport/proto");
        let mut protoc = python();
        protoc.env("PYTHONPATH", &packages).args(["-m", "grpc_tools.protoc", "-I"]).arg(&protos);
        protoc.arg("--python_out").arg(folder).arg("--grpc_python_out").arg(folder).arg("dfdaemon.proto");
        succeeds(protoc).await.context("the stubs cannot be made")?;
        let path = env::join_paths([folder, &packages])?.to_string_lossy().into_owned();
        Ok(Self { path, script: scripts.join("client.py") })
    }

    /// Makes one call and returns what it printed.
    async fn call(&self, host: &Host, arguments: &[&str]) -> anyhow::Result<Value> {
        let mut command = python();
        command.env("PYTHONPATH", &self.path).arg(&self.script).arg("--socket").arg(host.socket()).args(arguments);
        let printed = succeeds(command).await?.stdout;
        serde_json::from_slice(&printed).with_context(|| String::from_utf8_lossy(&printed).into_owned())
    }

    /// As [`Python::call`], when it must succeed.
    async fn ok(&self, host: &Host, arguments: &[&str]) -> anyhow::Result<Value> {
        let answer = self.call(host, arguments).await?;
        ensure!(answer["status"] == "OK" || arguments.contains(&"health"), "{arguments:?}: {answer}");
        Ok(answer)
    }

    /// As [`Python::call`], when it must fail with this status and code name.
    async fn fails(&self, host: &Host, arguments: &[&str], status: &str, reason: &str) -> anyhow::Result<()> {
        let answer = self.call(host, arguments).await?;
        ensure!(answer["status"] == status && answer["reason"] == reason, "{arguments:?}: {answer}");
        ensure!(answer["domain"] == "damselfly" && answer["message"] != "", "{arguments:?}: {answer}");
        Ok(())
    }
}

fn python() -> Command {
    let mut command = Command::new("python3");
    command.env("PYTHONDONTWRITEBYTECODE", "1").env_remove("PYTHONHOME").stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn succeeds(mut command: Command) -> anyhow::Result<Output> {
    let output = tokio::time::timeout(INSTALL_TIME, command.output()).await.context("it takes too long")??;
    if !output.status.success() {
        bail!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output)
}

/// A folder with the packages; kept for the next run.
async fn packages(requirements: &Path) -> anyhow::Result<PathBuf> {
    static INSTALLING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _one = INSTALLING.lock().await;
    let mut version = python();
    version.args(["-c", "import sys; print('%d.%d' % sys.version_info[:2])"]);
    let version = succeeds(version).await.context("there is no python3")?.stdout;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let kept = folder.join(format!("python-{}", String::from_utf8(version)?.trim()));
    let (wanted, note) = (fs::read(requirements)?, kept.join("requirements.txt"));
    if fs::read(&note).is_ok_and(|installed| installed == wanted) {
        return Ok(kept);
    }
    let new = tempfile::Builder::new().prefix("python-").tempdir_in(folder)?;
    let mut pip = python();
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"]);
    pip.args(["--retries", "1", "--timeout", "10", "--target"]).arg(new.path()).arg("-r").arg(requirements);
    succeeds(pip).await.context("the packages cannot be installed")?;
    fs::write(new.path().join("requirements.txt"), wanted)?;
    // What is there is from other requirements, or another run has just made the same.
    let _ = fs::remove_dir_all(&kept);
    fs::rename(new.path(), &kept).or_else(|error| if note.exists() { Ok(()) } else { Err(error) })?;
    Ok(kept)
}

/// Python when there is one with its packages; else says why not.
async fn get(host: &Host) -> anyhow::Result<Option<Python>> {
    let stubs = host.path("stubs");
    fs::create_dir(&stubs)?;
    match Python::get(&stubs).await {
        Ok(python) => Ok(Some(python)),
        Err(error) => {
            eprintln!("left out: a client in Python: {error:#}");
            Ok(None)
        }
    }
}

#[tokio::test]
async fn a_client_in_python() -> anyhow::Result<()> {
    Host::run(async |host| {
        let Some(python) = get(host).await? else { return Ok(()) };
        for service in ["", "damselfly.v1.Daemon"] {
            let health = python.ok(host, &["--cid", service, "health"]).await?;
            ensure!(health["status"] == "SERVING", "{health}");
        }
        let health = python.ok(host, &["daemon-health"]).await?;
        ensure!(health["member"] == false && health["problems"][0]["code"] == "not_a_member", "{health}");

        let (file, output) = (text(&host.file("file", 2_500_000)?), text(&host.path("output")));
        let named = ["--cid", "from python", "--tag", "t"];
        let with = |more: &[&'static str]| [&named[..], more].concat();
        python.fails(host, &with(&["export", "--path", "/nowhere/output"]), "UNKNOWN", "failed").await?;
        let imported = python.ok(host, &[&named[..], &["--path", &file, "import"]].concat()).await?;
        ensure!(imported["task"]["bytes"] == "2500000" && imported["announced"] == false, "{imported}");
        let found = python.ok(host, &with(&["stat"])).await?;
        ensure!(found["task"] == imported["task"] && found["local"] == true, "{found}");
        let exported = python.ok(host, &[&named[..], &["--path", &output, "export"]].concat()).await?;
        ensure!(exported["from_local_bytes"] == "2500000", "{exported}");
        same_bytes(&fs::read(&output)?, &random("file", 2_500_000))?;
        let ours = host.run(&["stat", "-l", "-i", "from python", "-t", "t"]).await?.ok()?;
        ensure!(ours["content_id"] == imported["task"]["content_id"], "{ours}");
        let listed = python.ok(host, &["list"]).await?;
        ensure!(listed["entries"][0]["task"] == imported["task"], "{listed}");

        // Failures have the status, the code name and the hint of the table in the .proto.
        let rows: [(&[&str], &str, &str); 8] = [
            (&["--path", &output, "export"], "UNKNOWN", "failed"),
            (&["--path", "relative", "import"], "INVALID_ARGUMENT", "usage"),
            (&["--path", "/", "import"], "UNKNOWN", "failed"),
            (&["--path", "/dev/null", "import"], "UNKNOWN", "failed"),
            (&["--path", &text(&host.path("stubs/dfdaemon_pb2.py")), "import"], "ALREADY_EXISTS", "conflict"),
            (&["--cid", "", "stat"], "INVALID_ARGUMENT", "usage"),
            (&["--cid", "none", "stat"], "NOT_FOUND", "not_found"),
            (&["--cid", "none", "--path", "/tmp", "export"], "UNKNOWN", "failed"),
        ];
        for (arguments, status, reason) in rows {
            python.fails(host, &[&named[..], arguments].concat(), status, reason).await?;
        }
        let not_built = python.call(host, &["--path", "https://localhost/", "download"]).await?;
        ensure!(not_built["status"] == "UNIMPLEMENTED", "{not_built}");
        let wrong = format!("blake3:{}", "0".repeat(64));
        python.fails(host, &["--cid", &wrong, "--path", &file, "import"], "DATA_LOSS", "digest_mismatch").await?;
        holds(&host.data(), 1)?;

        let forced = python.ok(host, &[&named[..], &["--path", &output, "--force", "export"]].concat()).await?;
        ensure!(forced["task"] == imported["task"], "{forced}");
        let deleted = python.ok(host, &with(&["delete"])).await?;
        ensure!(deleted["deleted"] == true, "{deleted}");
        host.is_empty().await
    })
    .await
}

#[tokio::test]
async fn the_paths_of_another_user_are_refused() -> anyhow::Result<()> {
    if !is_root("another user's paths") {
        return Ok(());
    }
    Host::run(async |host| {
        let Some(python) = get(host).await? else { return Ok(()) };
        let file = host.file("file", 1000)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
        host.import("task", &file).await?.ok()?;
        let folder = host.path("outputs");
        fs::create_dir(&folder)?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777))?;
        // The socket is for its owner and group.
        let closed = python.call(host, &["--uid", NOBODY, "--cid", "task", "stat"]).await?;
        ensure!(closed["status"] == "UNAVAILABLE", "{closed}");
        fs::set_permissions(host.socket(), fs::Permissions::from_mode(0o666))?;
        // Even of files that the user may read or write: the daemon cannot tell.
        let (file, output) = (text(&file), text(&folder.join("output")));
        let rows: [&[&str]; 3] = [
            &["--cid", "mine", "--path", &file, "import"],
            &["--cid", "mine", "--path", "/etc/shadow", "import"],
            &["--cid", "task", "--path", &output, "export"],
        ];
        for arguments in rows {
            let arguments = [&["--uid", NOBODY], arguments].concat();
            python.fails(host, &arguments, "PERMISSION_DENIED", "permission_denied").await?;
        }
        ensure!(list(&folder)?.is_empty());
        holds(&host.data(), 1)?;
        // What needs no path works.
        let found = python.ok(host, &["--uid", NOBODY, "--cid", "task", "stat"]).await?;
        ensure!(found["local"] == true, "{found}");
        Ok(())
    })
    .await
}
