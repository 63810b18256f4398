//! `dfcache export`.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};

use damselfly_transport::local::proto::export_task_request::Target as Named;
use damselfly_transport::local::proto::export_task_response::Update as Message;
use damselfly_transport::local::proto::{ExportResult, ExportTaskRequest};
use damselfly_transport::local::{Code, Failure, Target};
use serde::Serialize;

use crate::args::Export;
use crate::client::Context;
use crate::output::{Outcome, Stop, TaskKeys, required, stdout_failed};
use crate::progress::{Update, follow};
use crate::stdio::{self, Sink};
use crate::units;

#[derive(Serialize)]
struct Exported {
    #[serde(flatten)]
    task: TaskKeys,
    output: String,
    seconds: f64,
    from_local_bytes: u64,
    from_peers_bytes: u64,
    peers: u32,
}

/// Writes a task's content to a file or to stdout.
pub async fn run(context: &Context, args: Export) -> Outcome {
    if args.is_stdout() && !args.force && io::stdout().is_terminal() {
        // Bytes that are no text can leave a terminal unusable.
        return Err(Failure::new(Code::Failed, "stdout is a terminal")
            .with_hint("redirect it to a file or a pipe, or write to the terminal with --force")
            .into());
    }
    let result = if args.is_stdout() { to_stdout(context, &args).await? } else { to_file(context, &args).await? };
    tell(context, &args, result)
}

/// The daemon fills a file without a name, which gets its name when all of it is there.
async fn to_file(context: &Context, args: &Export) -> Outcome<ExportResult> {
    let target = Target::prepare(args.target(), args.force)?;
    let fd = target.file().try_clone_to_owned();
    let fd = fd.map_err(|e| Failure::io("cannot hand over the file", &e))?;
    let result = call(context, args, fd).await?;
    target.commit()?;
    Ok(result)
}

async fn to_stdout(context: &Context, args: &Export) -> Outcome<ExportResult> {
    let Sink { fd, drain, position } = stdio::stdout().map_err(|e| Failure::io("cannot use stdout", &e))?;
    let call = call(context, args, fd);
    let Some(mut drain) = drain else {
        let result = call.await.map_err(broken_pipe_first)?;
        if let (Some(position), Some(task)) = (position, &result.task) {
            position.advance(task.bytes);
        }
        return Ok(result);
    };
    tokio::pin!(call);
    let (result, drained) = tokio::select! {
        result = &mut call => (result?, false),
        done = drain.done() => {
            done.map_err(|e| stdout_failed(&e))?;
            (call.await?, true)
        }
    };
    if !drained {
        drain.done().await.map_err(|e| stdout_failed(&e))?;
    }
    Ok(result)
}

/// When nobody reads stdout any more, that is why the daemon could not write to it.
fn broken_pipe_first(stop: Stop) -> Stop {
    if stdio::stdout_is_broken() { Stop::BrokenPipe } else { stop }
}

/// Hands over `fd` and follows the export to its result.
async fn call(context: &Context, args: &Export, fd: OwnedFd) -> Outcome<ExportResult> {
    let mut daemon = context.connect().await?;
    let handed = context.hand_over(fd.as_fd()).await?;
    // A pipe ends only when every end that can write is closed.
    drop(fd);
    let request = ExportTaskRequest {
        cid: args.cid.clone(),
        tag: args.tag.clone(),
        target: Some(Named::Descriptor(handed.token.to_vec())),
        local: args.local,
        force: args.force,
        timeout_ms: context.timeout_ms(),
        rate_limit: context.rate_limit,
    };
    let stream = daemon.export_task(context.request(request)).await?.into_inner();
    let result = follow(stream, context.output.progress, |message| match message.update? {
        Message::Progress(progress) => Some(Update::Progress(progress)),
        Message::Result(result) => Some(Update::Result(result)),
    });
    Ok(result.await?)
}

fn tell(context: &Context, args: &Export, result: ExportResult) -> Outcome {
    let task = required(result.task)?;
    if context.output.json {
        return context.output.object(&Exported {
            task: TaskKeys::new(&task, Some(&args.cid)),
            output: args.target().to_string_lossy().into_owned(),
            seconds: result.seconds,
            from_local_bytes: result.from_local_bytes,
            from_peers_bytes: result.from_peers_bytes,
            peers: result.peers,
        });
    }
    let seconds = context.seconds();
    let rate = units::rate(task.bytes, seconds).map(|rate| format!(" ({rate})")).unwrap_or_default();
    let (size, time) = (units::size(task.bytes), units::seconds(seconds));
    let from = match result.peers {
        0 => "the local store".to_owned(),
        1 => "1 peer".to_owned(),
        peers => format!("{peers} peers"),
    };
    let resumed = match result.from_local_bytes {
        0 => String::new(),
        _ if result.peers == 0 => String::new(),
        bytes => format!("; {} of it were here already", units::size(bytes)),
    };
    context.output.summary(&format!("exported {size} in {time}{rate} from {from}{resumed}"));
    Ok(())
}
