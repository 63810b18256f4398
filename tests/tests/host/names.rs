//! A name is any text of up to 1024 bytes, and a content is stored once whatever it is called.

use std::fs;

use anyhow::{Context as _, ensure};

use crate::support::{Host, holds, random, run_fails, same_bytes, text};

#[tokio::test]
async fn any_text_is_a_name() -> anyhow::Result<()> {
    Host::run(async |host| {
        let longest = "ä".repeat(512);
        let rows = [
            (" two  words ", "spaces count"),
            ("/models/7b/../weights//", "it looks like a path"),
            ("../../etc/passwd", "it looks like an attack"),
            (".", "not a folder"),
            ("--force", "it looks like an option"),
            ("-", "it looks like stdin"),
            ("日本語 🦋 ñ", "Unicode"),
            ("n\u{303}", "as it is typed: ñ in two parts"),
            ("ñ", "is another name than in two parts"),
            ("line\nbreak\ttab\u{1b}[31m", "control characters"),
            ("sha256", "nearly a digest"),
            ("a", "one byte"),
            (&longest, "1024 bytes"),
        ];
        for (number, (cid, reason)) in rows.iter().enumerate() {
            let bytes = format!("file {number}").into_bytes();
            let file = host.path("file");
            fs::write(&file, &bytes)?;
            // As one argument: names may begin with a dash.
            let named = format!("--cid={cid}");
            let imported = host.run(&["import", &named, &text(&file)]).await?.ok().context(*reason)?;
            ensure!(imported["cid"] == *cid, "{reason}: {imported}");
            let found = host.run(&["stat", "-l", &named]).await?.ok().context(*reason)?;
            ensure!(found["content_id"] == imported["content_id"] && found["cid"] == *cid, "{reason}: {found}");
            let output = host.path("output");
            host.run(&["export", "-l", "-f", &named, &text(&output)]).await?.ok().context(*reason)?;
            same_bytes(&fs::read(&output)?, &bytes).context(*reason)?;
            ensure!(host.entry(cid).await?.is_some(), "{reason}: not listed");
        }
        holds(&host.data(), rows.len())?;
        // As text, every entry is one line.
        let mut command = host.command();
        let listed = command.arg("ls").output().await?.stdout;
        let listed = String::from_utf8(listed)?;
        ensure!(listed.lines().count() == rows.len() + 1 && !listed.contains('\u{1b}'), "{listed:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn too_long_or_empty_names_are_refused() -> anyhow::Result<()> {
    Host::run(async |host| {
        let file = text(&host.file("file", 10)?);
        let (long, longer) = ("x".repeat(1025), "ä".repeat(600));
        for cid in ["", &long, &longer] {
            run_fails(host, &["import", "-i", cid, &file], 2, "1 to 1024 bytes").await?;
            run_fails(host, &["stat", "-i", cid], 2, "1 to 1024 bytes").await?;
            run_fails(host, &["export", "-i", cid, "output"], 2, "1 to 1024 bytes").await?;
            run_fails(host, &["delete", "-i", cid], 2, "1 to 1024 bytes").await?;
        }
        run_fails(host, &["import", "-i", "x", "-t", &"t".repeat(257), &file], 2, "at most 256 bytes").await?;
        host.run(&["import", "-i", "x", "-t", &"t".repeat(256), &file]).await?.ok()?;
        holds(&host.data(), 1)
    })
    .await
}

#[tokio::test]
async fn cid_and_tag_are_two_parts() -> anyhow::Result<()> {
    Host::run(async |host| {
        let pairs = [("a", "bc"), ("ab", "c"), ("abc", ""), ("a", "")];
        let mut tasks = Vec::new();
        for (cid, tag) in pairs {
            let file = host.path("file");
            fs::write(&file, format!("{cid}/{tag}"))?;
            let imported = host.run(&["import", "-i", cid, "-t", tag, &text(&file)]).await?.ok()?;
            tasks.push(imported["task_id"].to_string());
        }
        for (cid, tag) in pairs {
            let output = host.path("output");
            host.run(&["export", "-l", "-f", "-i", cid, "-t", tag, &text(&output)]).await?.ok()?;
            ensure!(fs::read_to_string(&output)? == format!("{cid}/{tag}"));
        }
        tasks.sort();
        tasks.dedup();
        ensure!(tasks.len() == pairs.len(), "{tasks:?}");
        let listed = host.run(&["ls", "-t", "bc"]).await?.ok()?;
        ensure!(listed["entries"].as_array().map(Vec::len) == Some(1), "{listed}");
        host.run(&["stat", "-l", "-i", "ab", "-t", "bc"]).await?.exits(3).map(drop)
    })
    .await
}

#[tokio::test]
async fn the_same_bytes_are_stored_once() -> anyhow::Result<()> {
    Host::run(async |host| {
        let file = host.file("file", 3_000_000)?;
        let expected = random("file", 3_000_000);
        for cid in ["one", "two", "one"] {
            host.import(cid, &file).await?.ok()?;
            holds(&host.data(), 1)?;
        }
        ensure!(host.entries().await?.len() == 2);
        let stored = fs::metadata(host.store().join(&crate::support::list(&host.store())?[0]))?.len();
        ensure!(stored == 3_000_000, "the content is a file of {stored} bytes");
        host.delete("one").await?.ok()?;
        host.exports("two", &expected).await?;
        host.delete("two").await?.ok()?;
        host.is_empty().await
    })
    .await
}
