//! `dfcache ls`.

use std::io::{self, IsTerminal};

use comfy_table::{ContentArrangement, Table, presets};
use damselfly_transport::local::Failure;
use damselfly_transport::local::proto::{Entry, EntryState, ListTasksRequest, ListTasksResponse};
use serde::Serialize;
use serde_json::json;
use tonic::Streaming;

use crate::args::Ls;
use crate::client::Context;
use crate::output::{Outcome, Stop, TaskKeys, error_value, print, printable};
use crate::units;

const COLUMNS: [&str; 6] = ["CID", "TAG", "SIZE", "STATE", "LAST USED", "EXPIRES"];
/// Entries of one table; the widths of its columns are only known when all are there.
const TABLE_ENTRIES: usize = 1024;

#[derive(Serialize)]
struct Listed {
    #[serde(flatten)]
    task: TaskKeys,
    last_used: Option<String>,
    pinned: bool,
    expires: Option<String>,
    state: &'static str,
    bytes_held: u64,
}

/// Lists the local entries, as they arrive.
pub async fn run(context: &Context, args: Ls) -> Outcome {
    let mut daemon = context.connect().await?;
    let request = ListTasksRequest { tag: args.tag, timeout_ms: context.timeout_ms() };
    let stream = daemon.list_tasks(request).await?.into_inner();
    match (context.output.json, io::stdout().is_terminal()) {
        (true, _) => objects(context, stream).await,
        (false, true) => tables(stream).await,
        (false, false) => lines(stream).await,
    }
}

/// One object, written piece by piece. When the stream breaks, the object still ends well, with the
/// error as a second key.
async fn objects(context: &Context, mut stream: Streaming<ListTasksResponse>) -> Outcome {
    let mut first = true;
    loop {
        let batch = match stream.message().await {
            Ok(Some(batch)) => batch,
            Ok(None) if first => return context.output.object(&json!({ "entries": [] })),
            Ok(None) => return print("]}\n"),
            Err(status) if first => return Err(status.into()),
            Err(status) => {
                let failure = Failure::from(status);
                print(&format!("],\"error\":{}}}\n", error_value(&failure)))?;
                return Err(Stop::Told(failure.code));
            }
        };
        for entry in batch.entries {
            let object = serde_json::to_string(&listed(&entry))
                .map_err(|e| Failure::io("cannot write the result", &e.into()))?;
            print(&format!("{}{object}", if first { "{\"entries\":[" } else { "," }))?;
            first = false;
        }
    }
}

/// Columns divided by tabs, for other programs.
async fn lines(mut stream: Streaming<ListTasksResponse>) -> Outcome {
    print(&format!("{}\n", COLUMNS.join("\t")))?;
    while let Some(batch) = stream.message().await? {
        let text: String = batch.entries.iter().map(|entry| row(entry).join("\t") + "\n").collect();
        print(&text)?;
    }
    Ok(())
}

async fn tables(mut stream: Streaming<ListTasksResponse>) -> Outcome {
    let mut table = new_table();
    let mut any = false;
    while let Some(batch) = stream.message().await? {
        for entry in &batch.entries {
            table.add_row(row(entry));
            any = true;
        }
        if table.row_count() >= TABLE_ENTRIES {
            print(&format!("{table}\n"))?;
            table = new_table();
        }
    }
    if !any {
        return print("this host holds nothing\n");
    }
    if table.row_count() == 0 { Ok(()) } else { print(&format!("{table}\n")) }
}

fn new_table() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_header(COLUMNS);
    table
}

fn row(entry: &Entry) -> [String; 6] {
    let task = entry.task.clone().unwrap_or_default();
    let expires = if entry.pinned { Some("pinned".into()) } else { None };
    [
        printable(&task.cid).into_owned(),
        printable(&task.tag).into_owned(),
        units::size(task.bytes),
        state(entry).to_owned(),
        units::rfc3339(entry.last_used_unix_ms).unwrap_or_else(|| "-".into()),
        units::rfc3339(entry.expires_unix_ms).or(expires).unwrap_or_else(|| "never".into()),
    ]
}

fn listed(entry: &Entry) -> Listed {
    Listed {
        task: TaskKeys::new(&entry.task.clone().unwrap_or_default(), None),
        last_used: units::rfc3339(entry.last_used_unix_ms),
        pinned: entry.pinned,
        expires: units::rfc3339(entry.expires_unix_ms),
        state: state(entry),
        bytes_held: entry.bytes_held,
    }
}

fn state(entry: &Entry) -> &'static str {
    match entry.state() {
        EntryState::Ok => "ok",
        EntryState::Partial => "partial",
        EntryState::Queued => "queued",
        EntryState::Conflict => "conflict",
        EntryState::Stale => "stale",
        EntryState::Damaged => "damaged",
        EntryState::Unnamed => "unnamed",
        EntryState::Unspecified => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use damselfly_transport::local::proto::Task;

    use super::*;

    #[test]
    fn entries_have_these_keys() {
        let task = Task { cid: "a\tb".into(), bytes: 7, ..Task::default() };
        let entry =
            Entry { task: Some(task), last_used_unix_ms: 1000, state: EntryState::Ok.into(), ..Entry::default() };
        let object = serde_json::to_value(listed(&entry)).expect("an object");
        let expected = json!({
            "cid": "a\tb", "tag": "", "task_id": "", "content_id": "", "bytes": 7, "pieces": 0, "piece_bytes": 0,
            "last_used": "1970-01-01T00:00:01Z", "pinned": false, "expires": null, "state": "ok", "bytes_held": 0,
        });
        assert_eq!(object, expected);
        assert_eq!(row(&entry)[0], "a\\tb", "a tab in a name is not a column");
    }
}
