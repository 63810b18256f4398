//! What an operator sees of the cluster, and does to it, by way of the manager.

use anyhow::{Context as _, ensure};
use damselfly_tests::{Cluster, Options, until};
use serde_json::Value;

use crate::support::{SETTLED, exports, gone_everywhere};

async fn get(cluster: &Cluster, resource: &str) -> anyhow::Result<Value> {
    let answer = cluster.manage("GET", resource, None).await?;
    ensure!(answer.status == 200, "{resource}: {} {}", answer.status, answer.body);
    Ok(serde_json::from_str(&answer.body)?)
}

#[tokio::test]
async fn the_manager_sees_hosts_schedulers_and_tasks_and_deletes() -> anyhow::Result<()> {
    Cluster::run(Options { nodes: 2, seeds: 1, ..Options::default() }, async |cluster| {
        let (one, other) = (cluster.file("one", 3 << 20)?, cluster.file("other", 1 << 10)?);
        let imported = cluster.node(0).import("models/one", &one).await?.ok()?;
        cluster.node(0).import("other", &other).await?.ok()?;
        exports(cluster, cluster.node(1), "models/one", &one).await?;
        until("the overview is complete", SETTLED, async || {
            let seen = get(cluster, "overview").await?;
            let counts = ["hosts_up", "seeds_up", "schedulers_up", "tasks", "contents"].map(|key| seen[key].as_u64());
            ensure!(counts == [3, 1, 2, 2, 3].map(Some), "{seen}");
            ensure!(seen["stored_bytes"] == (6 << 20) + (1 << 10) && seen["roll_out_percent"] == 100.0, "{seen}");
            Ok(())
        })
        .await?;

        let task_id = imported["task_id"].as_str().context("a task")?;
        let found = get(cluster, "tasks?cid=models/one").await?;
        let task = &found["items"][0];
        ensure!(task["task_id"] == task_id && task["cid"] == "models/one", "{found}");
        let candidate = &task["candidates"][0];
        ensure!(candidate["holders"] == 2 && candidate["state"] == "available", "{found}");
        ensure!(candidate["content_id"] == imported["content_id"], "{found}");
        let content = imported["content_id"].as_str().context("a content")?;
        ensure!(
            get(cluster, &format!("tasks?content_id={content}")).await?["items"].as_array().map(Vec::len) == Some(1)
        );
        let by_prefix = get(cluster, "tasks?cid_prefix=models/").await?;
        ensure!(by_prefix["items"].as_array().map(Vec::len) == Some(1), "{by_prefix}");
        ensure!(by_prefix["items"][0]["cid"] == "models/one" && by_prefix["items"][0]["tag"] == "", "{by_prefix}");
        let without_tag = get(cluster, "tasks?tag=").await?;
        ensure!(without_tag["items"].as_array().map(Vec::len) == Some(2), "{without_tag}");
        let first = get(cluster, "tasks?limit=1").await?;
        let next = first["next"].as_str().context("another part")?;
        let second = get(cluster, &format!("tasks?limit=1&cursor={next}")).await?;
        ensure!(second["next"].is_null() && second["items"][0]["task_id"] != first["items"][0]["task_id"], "{second}");
        ensure!(get(cluster, "tasks?cid=none").await?["items"].as_array().is_some_and(Vec::is_empty));
        for wrong in
            ["tasks?cid=x&cid_prefix=x", "tasks?content_id=x", "tasks?limit=0", "tasks?cid=", "hosts?role=king"]
        {
            ensure!(cluster.manage("GET", wrong, None).await?.status == 400, "{wrong}");
        }

        let schedulers = get(cluster, "schedulers").await?;
        let schedulers = schedulers["items"].as_array().context("a list")?;
        ensure!(schedulers.len() == 2 && schedulers.iter().all(|one| one["up"] == true), "{schedulers:?}");
        let hosts = get(cluster, "hosts").await?;
        let up: Vec<_> =
            hosts["items"].as_array().context("a list")?.iter().filter(|host| host["up"] == true).collect();
        ensure!(up.len() == 3 && up.iter().all(|host| host["live"]["epoch"] == 1), "{hosts}");

        let epoch = cluster.change_settings(|settings| settings.candidate_parents = 3).await?;
        until("the change is everywhere", SETTLED, async || {
            let seen = get(cluster, "overview").await?;
            ensure!(seen["epoch"] == epoch && seen["roll_out_percent"] == 100.0, "{seen}");
            Ok(())
        })
        .await?;

        let answer = cluster.manage("DELETE", &format!("tasks/{task_id}"), None).await?;
        let deleted: Value = serde_json::from_str(&answer.body)?;
        ensure!(deleted["deleted"] == true && deleted["dropped"] == 2 && deleted["unreachable"] == 0, "{deleted}");
        ensure!(get(cluster, "tasks?cid=models/one").await?["items"].as_array().is_some_and(Vec::is_empty), "at once");
        gone_everywhere(cluster, "models/one").await?;
        let again = cluster.manage("DELETE", &format!("tasks/{task_id}"), None).await?;
        ensure!(again.status == 200, "what is not there is deleted already: {}", again.body);
        ensure!(cluster.manage("GET", &format!("tasks/{task_id}"), None).await?.status == 404);

        cluster.node(1).program().kill().await?;
        until("a host that is gone is not up", SETTLED, async || {
            let seen = get(cluster, "overview").await?;
            ensure!(seen["hosts_up"] == 2 && seen["hosts"] == 3, "{seen}");
            Ok(())
        })
        .await
    })
    .await
}
