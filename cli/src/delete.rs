//! `dfcache delete`.

use damselfly_transport::local::proto::DeleteTaskRequest;
use serde::Serialize;

use crate::args::Named;
use crate::client::Context;
use crate::output::{Outcome, print, printable};

#[derive(Serialize)]
struct Deleted {
    deleted: bool,
    holders: u32,
}

/// Deletes a task in the cluster, or this host's copy.
pub async fn run(context: &Context, args: Named) -> Outcome {
    let mut daemon = context.connect().await?;
    let request =
        DeleteTaskRequest { cid: args.cid.clone(), tag: args.tag, local: args.local, timeout_ms: context.timeout_ms() };
    let done = daemon.delete_task(context.request(request)).await?.into_inner();
    if context.output.json {
        return context.output.object(&Deleted { deleted: done.deleted, holders: done.holders });
    }
    let cid = printable(&args.cid);
    print(&match (done.deleted, args.local, done.holders) {
        (false, false, _) => format!("nothing to delete: there is no {cid}\n"),
        (false, true, _) => format!("nothing to delete: this host has no copy of {cid}\n"),
        (true, true, _) => format!("deleted this host's copy of {cid}\n"),
        (true, false, 1) => format!("deleted {cid} from 1 host\n"),
        (true, false, holders) => format!("deleted {cid} from {holders} hosts\n"),
    })
}
