//! `dfcache stat`.

use damselfly_transport::local::proto::{Availability, StatTaskRequest};
use serde::Serialize;

use crate::args::Named;
use crate::client::Context;
use crate::output::{Outcome, TaskKeys, print, printable, required};
use crate::units;

#[derive(Serialize)]
struct Found {
    #[serde(flatten)]
    task: TaskKeys,
    local: bool,
    holders: u32,
    state: &'static str,
}

/// Shows what is known of a task.
pub async fn run(context: &Context, args: Named) -> Outcome {
    let mut daemon = context.connect().await?;
    let request =
        StatTaskRequest { cid: args.cid.clone(), tag: args.tag, local: args.local, timeout_ms: context.timeout_ms() };
    let found = daemon.stat_task(context.request(request)).await?.into_inner();
    let state = match found.state() {
        Availability::Available => "available",
        Availability::Unavailable | Availability::Unspecified => "unavailable",
    };
    let task = required(found.task)?;
    if context.output.json {
        return context.output.object(&Found {
            task: TaskKeys::new(&task, Some(&args.cid)),
            local: found.local,
            holders: found.holders,
            state,
        });
    }
    let pieces = match task.pieces {
        0 | 1 => task.pieces.to_string(),
        pieces => format!("{pieces} of {}", units::size(task.piece_bytes)),
    };
    let rows = [
        ("cid", printable(&args.cid).into_owned()),
        ("tag", printable(&task.tag).into_owned()),
        ("content", task.content_id),
        ("task", task.task_id),
        ("size", format!("{} ({} bytes)", units::size(task.bytes), task.bytes)),
        ("pieces", pieces),
        ("local", if found.local { "yes" } else { "no" }.to_owned()),
        ("holders", found.holders.to_string()),
        ("state", state.to_owned()),
    ];
    let lines = rows.iter().map(|(key, value)| format!("{key:<9}{value}").trim_end().to_owned() + "\n");
    print(&lines.collect::<String>())
}
