//! Stdin and stdout as files, pipes and whatever else a shell makes of them.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    process::Stdio,
};

use anyhow::{Context as _, ensure};
use tokio::{io::AsyncWriteExt as _, process::Command};

use crate::support::{Host, output, random, same_bytes, tells_object, text};

const BYTES: u64 = 3_500_000;

fn export(host: &Host) -> Command {
    let mut command = host.command();
    command.args(["export", "-i", "task", "-O", "-"]);
    command
}

#[tokio::test]
async fn bytes_to_stdout() -> anyhow::Result<()> {
    Host::run(async |host| {
        let file = host.file("task", BYTES)?;
        let expected = random("task", BYTES);
        host.import("task", &file).await?.ok()?;

        // A pipe.
        let done = output(export(host)).await?;
        ensure!(done.status.success());
        same_bytes(&done.stdout, &expected)?;
        let stderr = String::from_utf8(done.stderr)?;
        ensure!(stderr.lines().count() == 1 && stderr.starts_with("exported 3.3 MiB in"), "{stderr:?}");

        // A file, and the end of one, as with > and >>.
        let path = host.path("output");
        export(host).stdout(File::create(&path)?).status().await?;
        same_bytes(&fs::read(&path)?, &expected)?;
        fs::write(&path, "before ")?;
        export(host).stdout(OpenOptions::new().append(true).open(&path)?).status().await?;
        same_bytes(&fs::read(&path)?, &[b"before ", expected.as_slice()].concat())?;

        // A file that several write to, one after another.
        let mut shared = File::create(&path)?;
        shared.write_all(b"before ")?;
        export(host).stdout(shared.try_clone()?).status().await?;
        shared.write_all(b" between ")?;
        export(host).stdout(shared.try_clone()?).status().await?;
        shared.write_all(b" after")?;
        let all = [b"before ", expected.as_slice(), b" between ", &expected, b" after"].concat();
        same_bytes(&fs::read(&path)?, &all)?;
        // The same for an empty one, which can be handed over as it is.
        let mut shared = File::create(&path)?;
        export(host).stdout(shared.try_clone()?).status().await?;
        shared.write_all(b" after")?;
        same_bytes(&fs::read(&path)?, &[expected.as_slice(), b" after"].concat())?;

        // A device.
        ensure!(export(host).stdout(Stdio::null()).status().await?.success());

        // A socket.
        let (mut ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        let reading = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            ours.read_to_end(&mut bytes).map(|_| bytes)
        });
        ensure!(export(host).stdout(std::os::fd::OwnedFd::from(theirs)).status().await?.success());
        same_bytes(&reading.join().ok().context("the reader failed")??, &expected)
    })
    .await
}

#[tokio::test]
async fn stdout_carries_nothing_else() -> anyhow::Result<()> {
    Host::run(async |host| {
        let file = host.file("task", BYTES)?;
        host.import("task", &file).await?.ok()?;
        // The object gives way.
        let mut command = export(host);
        command.arg("--json");
        let done = output(command).await?;
        same_bytes(&done.stdout, &random("task", BYTES))?;
        let object: serde_json::Value = serde_json::from_slice(&done.stderr)?;
        ensure!(object["output"] == "-" && object["bytes"] == BYTES, "{object}");
        // And when it fails, nothing is on stdout.
        let mut command = host.command();
        command.args(["export", "--json", "-l", "-i", "none", "-O", "-"]);
        let failed = output(command).await?;
        ensure!(failed.stdout.is_empty());
        tells_object(failed.status, &failed.stderr, 3, "")
    })
    .await
}

#[tokio::test]
async fn a_reader_that_has_enough() -> anyhow::Result<()> {
    Host::run(async |host| {
        let file = host.file("task", BYTES)?;
        host.import("task", &file).await?.ok()?;
        let mut child = export(host).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut stdout = child.stdout.take().context("no stdout")?;
        tokio::io::AsyncReadExt::read_exact(&mut stdout, &mut [0; 1000]).await?;
        drop(stdout);
        let ended = tokio::time::timeout(std::time::Duration::from_secs(5), child.wait_with_output()).await??;
        // As `cat | head` does: no word about it.
        ensure!(ended.status.code() == Some(141), "{}", ended.status);
        ensure!(ended.stderr.is_empty(), "{}", String::from_utf8_lossy(&ended.stderr));
        host.exports("task", &random("task", BYTES)).await
    })
    .await
}

#[tokio::test]
async fn bytes_from_stdin() -> anyhow::Result<()> {
    Host::run(async |host| {
        let file = host.file("file", BYTES)?;
        let expected = random("file", BYTES);
        let import = |cid: &str| {
            let mut command = host.command();
            command.args(["import", "-i", cid, "-"]).stdout(Stdio::piped()).stderr(Stdio::piped());
            command
        };

        // A pipe, filled in parts.
        let mut child = import("pipe").stdin(Stdio::piped()).spawn()?;
        let mut stdin = child.stdin.take().context("no stdin")?;
        for part in expected.chunks(333_333) {
            stdin.write_all(part).await?;
        }
        drop(stdin);
        let done = child.wait_with_output().await?;
        ensure!(done.status.success() && done.stdout == b"pipe\n", "{}", String::from_utf8_lossy(&done.stderr));
        let stderr = String::from_utf8(done.stderr)?;
        // Progress is for terminals.
        ensure!(stderr.lines().count() == 1 && stderr.starts_with("imported 3.3 MiB in"), "{stderr:?}");
        host.exports("pipe", &expected).await?;

        // A file from its beginning, and the rest of one that somebody else has begun to read.
        ensure!(import("file").stdin(File::open(&file)?).output().await?.status.success());
        host.exports("file", &expected).await?;
        let mut begun = File::open(&file)?;
        begun.seek(SeekFrom::Start(1_234_567))?;
        ensure!(import("rest").stdin(begun).output().await?.status.success());
        host.exports("rest", &expected[1_234_567..]).await?;

        // Nothing at all.
        ensure!(import("null").stdin(Stdio::null()).output().await?.status.success());
        host.exports("null", b"").await?;

        // A socket.
        let (mut ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        let bytes = expected.clone();
        let writing = std::thread::spawn(move || ours.write_all(&bytes));
        ensure!(import("socket").stdin(std::os::fd::OwnedFd::from(theirs)).output().await?.status.success());
        writing.join().ok().context("the writer failed")??;
        host.exports("socket", &expected).await?;

        // A pipe with a name, as a shell opens it.
        let fifo = host.path("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
        let (path, bytes) = (fifo.clone(), expected.clone());
        let writing = std::thread::spawn(move || fs::write(path, bytes));
        let reader = tokio::task::spawn_blocking(move || File::open(fifo)).await??;
        ensure!(import("fifo").stdin(reader).output().await?.status.success());
        writing.join().ok().context("the writer failed")??;
        host.exports("fifo", &expected).await
    })
    .await
}

#[tokio::test]
async fn nothing_is_done_for_a_closed_stream() -> anyhow::Result<()> {
    Host::run(async |host| {
        let file = text(&host.file("file", BYTES)?);
        let rows: [(&str, &[&str]); 2] = [("<&-", &["import", "-i", "x", "-"]), (">&-", &["import", "-i", "x", &file])];
        for (redirection, arguments) in rows {
            let mut command = Command::new("sh");
            command.arg("-c").arg(format!("exec \"$0\" \"$@\" {redirection}"));
            command.arg(host.programs().path("dfcache")).arg("--socket").arg(host.socket()).args(arguments);
            let done = output(command).await?;
            ensure!(done.status.code() == Some(1), "{redirection}: {}", done.status);
            host.is_empty().await?;
        }
        for program in ["dfdaemon", "dfscheduler", "dfmanager"] {
            let mut command = Command::new("sh");
            command.args(["-c", "exec \"$0\" --print-config >&-"]).arg(host.programs().path(program));
            let done = output(command).await?;
            ensure!(!done.status.success(), "{program} writes its configuration to nowhere");
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn quiet_is_quiet() -> anyhow::Result<()> {
    Host::run(async |host| {
        let file = text(&host.file("file", BYTES)?);
        let target = text(&host.path("output"));
        let rows: [(&[&str], &str); 3] = [
            (&["import", "-q", "-i", "x", &file], "x\n"),
            (&["export", "-q", "-i", "x", &target], ""),
            (&["delete", "-q", "-i", "x"], "deleted x from 1 host\n"),
        ];
        for (arguments, expected) in rows {
            let mut command = host.command();
            command.args(arguments);
            let done = output(command).await?;
            ensure!(done.status.success() && done.stderr.is_empty(), "{}", String::from_utf8_lossy(&done.stderr));
            ensure!(String::from_utf8_lossy(&done.stdout) == expected, "{}", String::from_utf8_lossy(&done.stdout));
        }
        Ok(())
    })
    .await
}
