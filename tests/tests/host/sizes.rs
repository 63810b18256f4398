//! Contents of every interesting length, from one host to another.

use std::{fs, time::Instant};

use anyhow::{Context as _, ensure};
use damselfly_tests::{Cluster, Node, Options};

use crate::support::{PIECE, same_files};

const TWO_NODES: Options =
    Options { schedulers: 1, nodes: 2, seeds: 0, upload_rate_limit: None, environment: Vec::new() };
/// No daemon has more in memory, however long the content is.
const RESIDENT_BYTES_MAX: u64 = 200 << 20;

#[tokio::test]
async fn every_length_arrives() -> anyhow::Result<()> {
    Cluster::run(TWO_NODES, async |cluster| {
        let rows = [
            (0, 0, "nothing"),
            (1, 1, "one byte"),
            (PIECE - 1, 1, "a short piece"),
            (PIECE, 1, "one piece"),
            (PIECE + 1, 2, "a last piece of one byte"),
            (5 * PIECE, 5, "whole pieces"),
            (7 * PIECE + 12_345, 8, "a short last piece"),
        ];
        for (bytes, pieces, reason) in rows {
            arrives(cluster, bytes, pieces).await.context(reason)?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "takes a minute and 4 GB of disk"]
async fn a_gibibyte_arrives() -> anyhow::Result<()> {
    arrives_in_little_memory(1 << 30, 1024).await
}

#[tokio::test]
#[ignore = "takes minutes and 40 GB of disk"]
async fn ten_gibibytes_arrive() -> anyhow::Result<()> {
    arrives_in_little_memory(10 << 30, 10 * 1024).await
}

async fn arrives_in_little_memory(bytes: u64, pieces: u64) -> anyhow::Result<()> {
    Cluster::run(TWO_NODES, async |cluster| {
        arrives(cluster, bytes, pieces).await?;
        for node in cluster.nodes() {
            let peak = peak_resident_bytes(node)?;
            eprintln!("{} had up to {} MiB in memory", node.program().name(), peak >> 20);
            ensure!(peak <= RESIDENT_BYTES_MAX, "{peak} bytes");
        }
        Ok(())
    })
    .await
}

async fn arrives(cluster: &Cluster, bytes: u64, pieces: u64) -> anyhow::Result<()> {
    let cid = format!("{bytes} bytes");
    let (file, output) = (cluster.file(&cid, bytes)?, cluster.path("output"));
    let begun = Instant::now();
    let imported = cluster.node(0).import(&cid, &file).await?.ok()?;
    let importing = begun.elapsed();
    ensure!(imported["bytes"] == bytes && imported["announced"] == true, "{imported}");
    ensure!(imported["pieces"] == pieces && imported["piece_bytes"] == PIECE, "{imported}");
    let found = cluster.node(1).stat(&cid).await?.ok()?;
    ensure!(found["bytes"] == bytes && found["holders"] == 1 && found["local"] == false, "{found}");
    ensure!(found["content_id"] == imported["content_id"] && found["state"] == "available", "{found}");
    let begun = Instant::now();
    let exported = cluster.node(1).export(&cid, &output).await?.ok()?;
    let exporting = begun.elapsed();
    ensure!(exported["from_peers_bytes"] == bytes && exported["from_local_bytes"] == 0, "{exported}");
    ensure!(exported["pieces"] == pieces && exported["content_id"] == imported["content_id"], "{exported}");
    same_files(&file, &output)?;
    // It is a holder by now, and gives the same bytes again without anybody's help.
    let again = cluster.node(1).export(&cid, &output).await?.ok()?;
    ensure!(again["from_local_bytes"] == bytes && again["from_peers_bytes"] == 0 && again["peers"] == 0, "{again}");
    same_files(&file, &output)?;
    eprintln!("{cid}: imported in {importing:.2?}, exported on the other node in {exporting:.2?}");
    Ok(())
}

fn peak_resident_bytes(node: &Node) -> anyhow::Result<u64> {
    let pid = *node.program().pids().first().context("it does not run")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes << 10)
}
