//! A disk that gives other bytes than it got: they go nowhere.

use std::fs;

use anyhow::{Context as _, ensure};
use damselfly_tests::{Cluster, Node, Options, until};

use crate::support::{Host, SETTLED, flip, list, output, random, run_fails, same_bytes, same_files, text};

const BYTES: u64 = 5 * 1_000_000;

#[tokio::test]
async fn rotten_bytes_do_not_leave_the_store() -> anyhow::Result<()> {
    // At the beginning, within, and the very last byte; told first by a file, a stream, a start.
    for (at, way) in [(0, Way::File), (2_500_000, Way::Stream), (BYTES - 1, Way::File), (7, Way::Limited)] {
        Host::run(async |host| {
            let file = host.file("file", BYTES)?;
            host.import("task", &file).await?.ok()?;
            host.import("second name", &file).await?.ok()?;
            let stored = host.store().join(&list(&host.store())?[0]);
            flip(&stored, at)?;
            is_refused(host, way).await.with_context(|| format!("byte {at}"))?;
            for cid in ["task", "second name"] {
                let entry = host.entry(cid).await?.context("not listed")?;
                ensure!(entry["state"] == "damaged" && entry["bytes_held"] == 0, "{entry}");
            }
            ensure!(host.log().contains("is damaged"), "the log does not say so: {}", host.log());
            // It stays so after a start, and a good copy puts it right.
            host.kill().await?;
            host.start().await?;
            let left_out = ["export", "-l", "-i", "task", &text(&host.path("output"))].map(String::from);
            run_fails(host, &left_out, 1, "damaged").await?;
            host.import("task", &file).await?.ok()?;
            host.exports("task", &random("file", BYTES)).await?;
            host.exports("second name", &random("file", BYTES)).await?;
            let entry = host.entry("second name").await?.context("not listed")?;
            ensure!(entry["state"] != "damaged", "{entry}");
            ensure!(list(&host.data().join("damaged"))?.is_empty(), "the damaged copy is still there");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Way {
    File,
    Stream,
    Limited,
}

async fn is_refused(host: &Host, way: Way) -> anyhow::Result<()> {
    let folder = host.path("outputs");
    fs::create_dir(&folder)?;
    let path = text(&folder.join("output"));
    match way {
        Way::File => run_fails(host, &["export", "-l", "-i", "task", &path], 1, "damaged").await?,
        Way::Limited => {
            let arguments = ["export", "--rate-limit", "1GiB/s", "-l", "-i", "task", &path];
            run_fails(host, &arguments, 1, "damaged").await?;
        }
        Way::Stream => {
            let mut command = host.command();
            command.args(["export", "-l", "-i", "task", "-O", "-"]);
            let done = output(command).await?;
            ensure!(done.status.code() == Some(1), "{}", done.status);
            // What came before the damage is right, and nothing comes after it.
            let before = done.stdout.len();
            ensure!(before as u64 <= 2_500_000, "{before} bytes came out");
            same_bytes(&done.stdout, &random("file", BYTES)[..before])?;
        }
    }
    ensure!(list(&folder)?.is_empty(), "an output is left");
    // Without a peer that has it the way without -l is no better, and says why.
    let failed = host.run(&["export", "-i", "task", &path]).await?;
    ensure!(failed.exit == 1 && failed.message().contains("damaged"), "{failed}");
    ensure!(list(&folder)?.is_empty(), "an output is left");
    Ok(())
}

#[tokio::test]
async fn another_holder_makes_good_for_it() -> anyhow::Result<()> {
    Cluster::run(Options { schedulers: 1, nodes: 3, ..Options::default() }, async |cluster| {
        let [rotten, asker, sound] = [cluster.node(0), cluster.node(1), cluster.node(2)];
        let file = cluster.file("task", BYTES)?;
        rotten.import("task", &file).await?.ok()?;
        let stored = rotten.store().join(&list(rotten.store())?[0]);
        flip(&stored, BYTES / 2)?;

        // Nobody else has it: no wrong byte reaches another host.
        let output = cluster.path("output");
        let refused = asker.export("task", &output).await?;
        eprintln!("the only copy is rotten: {refused}");
        ensure!(refused.exit == 8, "{refused}");
        ensure!(!output.exists(), "a failed export left a file");
        until("the log says so", SETTLED, async || {
            ensure!(rotten.program().metric("damselfly_node_damaged_reads_total").await? > 0.0, "the metrics do not");
            ensure!(rotten.program().log().contains("is damaged"), "it does not");
            ensure!(state(rotten).await? == "damaged", "ls does not");
            Ok(())
        })
        .await?;
        // It is not announced any more.
        until("nobody is taken for a holder", SETTLED, async || {
            let found = asker.stat("task").await?;
            ensure!(found.exit == 3 || found.json["state"] == "unavailable", "{found}");
            Ok(())
        })
        .await?;

        // With another holder everybody gets the right bytes, the one with the rotten disk too.
        sound.import("task", &file).await?.ok()?;
        for node in [asker, rotten] {
            node.export("task", &output).await?.ok()?;
            same_files(&file, &output)?;
            until("it is stored", SETTLED, async || {
                ensure!(state(node).await? == "ok", "it is not");
                Ok(())
            })
            .await?;
        }
        let again = rotten.export("task", &output).await?.ok()?;
        ensure!(again["from_local_bytes"] == BYTES, "it was not kept: {again}");
        same_files(&file, &output)?;

        // Found out by the host's own user this time, who gets the right bytes at once.
        flip(&rotten.store().join(&list(rotten.store())?[0]), 1)?;
        let fetched = rotten.export("task", &output).await?.ok()?;
        ensure!(fetched["from_peers_bytes"].as_u64() > Some(0), "{fetched}");
        same_files(&file, &output)
    })
    .await
}

async fn state(node: &Node) -> anyhow::Result<String> {
    let entry = node.entry("task").await?.context("not listed")?;
    Ok(entry["state"].as_str().unwrap_or_default().to_owned())
}
