//! What happens when a host's disk is full.

use anyhow::{Context as _, ensure};
use serde_json::json;

use super::{
    harness::Harness,
    scenarios::{CONVERGES_WITHIN, Figures, figures},
};
use crate::cluster::SmallDisk;

/// Exit code of `dfcache`: no room for it.
const NO_ROOM: i32 = 10;
const MIB: usize = 1 << 20;
/// Of the last node's disk.
pub(super) const DISK: SmallDisk = SmallDisk { bytes: 48 << 20, floor_bytes: 1 << 20 };

/// The last node's disk is small: it says so before it writes, keeps what it has acknowledged, and goes on serving.
pub(super) async fn full(harness: &mut Harness, rounds: usize) -> anyhow::Result<Figures> {
    let users = harness.users.clone();
    let nodes = users.all();
    let small = *nodes.last().context("no node")?;
    let large = harness.fill(1, 64 * MIB, &[0]).await?.pop().context("a file")?;
    let (mut kept, mut refused) = (0, 0);
    for round in 0..rounds {
        users.export_fails(small, &large, NO_ROOM).await.with_context(|| format!("round {round}"))?;
        let fits = harness.fill(1, 4 * MIB, &[0]).await?.pop().context("a file")?;
        users.export(small, &fits).await.context("what has room")?;
        let mut names = vec![fits];
        loop {
            let (name, content) = harness.file(4 * MIB);
            if !users.import_if(small, &name, &content, NO_ROOM).await? {
                refused += 1;
                break;
            }
            names.push(name);
            ensure!(names.len() < 16, "64 MiB are on a disk of 48");
        }
        ensure!(names.len() > 4, "only {} files of 4 MiB are on a disk of 48", names.len());
        kept += names.len();
        for name in &names {
            users.export(0, name).await.context("from a host whose disk is full")?;
        }
        for name in &names {
            users.delete(small, name).await?;
        }
    }
    // An export of what is there already needs no room.
    users.export(1, &large).await?;
    let settled = harness.converged(&nodes, CONVERGES_WITHIN).await?;
    Ok(figures([
        ("rounds", json!(rounds)),
        ("kept_until_full", json!(kept)),
        ("imports_refused", json!(refused)),
        ("converged_seconds", json!(settled.as_secs_f64())),
    ]))
}
