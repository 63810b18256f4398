//! Names that are digests are checked, and are one name however they are written.

use std::fs;

use anyhow::{Context as _, ensure};
use damselfly_tests::{Cluster, Options};

use crate::support::{Host, output, run_fails, same_bytes, text};

/// Of the bytes `abc`, as published.
const SHA256: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
const SHA256_CID: &str = "bafkreif2pall7dybz7vecqka3zo24irdwabwdi4wc55jznaq75q7eaavvu";
const SHA256_CID_HEX: &str = "f01551220ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
const BLAKE3: &str = "blake3:6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";
const BLAKE3_CID: &str = "bafkr4ideg6z2yocgkez77nr3outtvdnvjdcvqrs5phnqh7jvtrwnlpm5qu";
const BLAKE3_CID_HEX: &str = "f01551e206437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";
/// Of 3 MiB and five bytes, all zero.
const ZEROS_SHA256: &str = "sha256:be58603025b9752289c4917b47da4d9290bbdd9c11d0d1a5213388cd7101432e";
const ZEROS_BYTES: usize = (3 << 20) + 5;

#[tokio::test]
async fn only_the_right_bytes_get_a_digest_as_their_name() -> anyhow::Result<()> {
    Host::run(async |host| {
        let (right, wrong) = (host.path("right"), host.path("wrong"));
        fs::write(&right, "abc")?;
        fs::write(&wrong, "abd")?;
        for cid in [SHA256, SHA256_CID, SHA256_CID_HEX, BLAKE3, BLAKE3_CID, BLAKE3_CID_HEX] {
            run_fails(host, &["import", "-i", cid, &text(&wrong)], 5, "do not match the digest").await?;
            host.is_empty().await.context(cid)?;
            let imported = host.import(cid, &right).await?.ok()?;
            ensure!(imported["cid"] == cid && imported["content_id"] == BLAKE3_CID, "{imported}");
            host.exports(cid, b"abc").await?;
            // The wrong bytes do no harm to the right ones either.
            host.import(cid, &wrong).await?.exits(5)?;
            host.exports(cid, b"abc").await?;
            host.delete(cid).await?.ok()?;
            host.is_empty().await.context(cid)?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn all_spellings_are_one_task() -> anyhow::Result<()> {
    Host::run(async |host| {
        let file = host.path("file");
        fs::write(&file, "abc")?;
        let upper = |text: &str| text.split_once(':').map(|(hash, hex)| format!("{hash}:{}", hex.to_uppercase()));
        for (cid, others) in [(SHA256, [SHA256_CID, SHA256_CID_HEX]), (BLAKE3, [BLAKE3_CID, BLAKE3_CID_HEX])] {
            let task = host.import(cid, &file).await?.ok()?["task_id"].clone();
            let upper = upper(cid).context("no digest")?;
            for other in [&upper, others[0], others[1]] {
                let found = host.run(&["stat", "-l", "-i", other]).await?.ok()?;
                ensure!(found["task_id"] == task && found["cid"] == *other, "{other}: {found}");
                host.exports(other, b"abc").await?;
            }
        }
        // Without a name the content ID is the name.
        let unnamed = host.run(&["import", &text(&file)]).await?.ok()?;
        let named = host.run(&["stat", "-l", "-i", BLAKE3]).await?.ok()?;
        ensure!(unnamed["cid"] == BLAKE3_CID && unnamed["task_id"] == named["task_id"], "{unnamed} {named}");
        ensure!(host.entries().await?.len() == 2);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn bad_digests_are_refused() -> anyhow::Result<()> {
    Host::run(async |host| {
        let file = text(&host.file("file", 10)?);
        let rows = [
            ("sha256:abcd", "too short"),
            ("blake3:", "empty"),
            ("sha256:zz7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "not hexadecimal"),
            ("f01701220ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "not of raw bytes: dag-pb"),
            ("f015511145a97ca5a97ca5a97ca5a97ca5a97ca5a97ca5a97", "another hash: SHA-1"),
        ];
        for (cid, reason) in rows {
            run_fails(host, &["import", "-i", cid, &file], 2, "").await.context(reason)?;
            run_fails(host, &["stat", "-l", "-i", cid], 2, "").await.context(reason)?;
        }
        host.is_empty().await
    })
    .await
}

#[tokio::test]
async fn digests_are_checked_on_the_other_node_too() -> anyhow::Result<()> {
    Cluster::run(Options { schedulers: 1, nodes: 2, ..Options::default() }, async |cluster| {
        let [importer, exporter] = [cluster.node(0), cluster.node(1)];
        let (abc, zeros) = (cluster.path("abc"), cluster.path("zeros"));
        fs::write(&abc, "abc")?;
        fs::write(&zeros, vec![0; ZEROS_BYTES])?;
        for (cid, file, wrong) in [(SHA256, &abc, &zeros), (BLAKE3_CID, &abc, &zeros), (ZEROS_SHA256, &zeros, &abc)] {
            importer.import(cid, wrong).await?.exits(5)?;
            ensure!(exporter.stat(cid).await?.exits(3).is_ok(), "a false import is known elsewhere");
            importer.import(cid, file).await?.ok()?;
            let path = cluster.path("output");
            exporter.export(cid, &path).await?.ok()?;
            let expected = fs::read(file)?;
            same_bytes(&fs::read(&path)?, &expected)?;
            // Once more from the other side, and as a stream from peers.
            exporter.run(&["delete", "-l", "-i", cid]).await?.ok()?;
            let mut command = exporter.command();
            command.args(["export", "-q", "-i", cid, "-O", "-"]);
            let done = output(command).await?;
            ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            same_bytes(&done.stdout, &expected)?;
            ensure!(done.stderr.is_empty(), "quiet is quiet");
        }
        Ok(())
    })
    .await
}
