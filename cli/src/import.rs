//! `dfcache import`.

use std::os::fd::AsFd;

use damselfly_transport::local::Failure;
use damselfly_transport::local::proto::import_task_request::Source as Named;
use damselfly_transport::local::proto::import_task_response::Update as Message;
use damselfly_transport::local::proto::{ImportResult, ImportTaskRequest};
use serde::Serialize;

use crate::args::Import;
use crate::client::Context;
use crate::output::{Outcome, TaskKeys, print, required};
use crate::progress::{Update, follow};
use crate::source::Source;
use crate::units;

#[derive(Serialize)]
struct Imported {
    #[serde(flatten)]
    task: TaskKeys,
    announced: bool,
    seconds: f64,
}

/// Imports a file, and prints its cid.
pub async fn run(context: &Context, args: Import) -> Outcome {
    let source = Source::open(&args.path)?;
    let Source { fd, feed, position } = source;
    let call = async {
        let mut daemon = context.connect().await?;
        let handed = context.hand_over(fd.as_fd()).await?;
        drop(fd);
        let stream =
            daemon.import_task(context.request(request(context, &args, handed.token.to_vec()))).await?.into_inner();
        let result = follow(stream, context.output.progress, |message| match message.update? {
            Message::Progress(progress) => Some(Update::Progress(progress)),
            Message::Result(result) => Some(Update::Result(result)),
        });
        Ok::<_, crate::output::Stop>(result.await?)
    };
    let result = match feed {
        None => call.await?,
        Some(feed) => tokio::select! {
            result = call => result?,
            torn = feed.torn() => {
                // The call is dropped by now. The daemon is to hear of that before the pipe ends.
                tokio::time::sleep(crate::CANCEL_TIME).await;
                drop(torn.pipe);
                return Err(Failure::io("cannot read stdin", &torn.error).into());
            }
        },
    };
    if let (Some(position), Some(task)) = (position, &result.task) {
        position.advance(task.bytes);
    }
    tell(context, &args, result)
}

fn request(context: &Context, args: &Import, descriptor: Vec<u8>) -> ImportTaskRequest {
    ImportTaskRequest {
        cid: args.cid.clone().unwrap_or_default(),
        tag: args.tag.clone(),
        source: Some(Named::Descriptor(descriptor)),
        ttl_ms: args.ttl.map_or(0, units::millis),
        pin: args.pin,
        replicas: args.replicas.unwrap_or(0),
        timeout_ms: context.timeout_ms(),
        rate_limit: context.rate_limit,
    }
}

fn tell(context: &Context, args: &Import, result: ImportResult) -> Outcome {
    let task = required(result.task)?;
    // Without a name of its own, the content ID is what others ask for.
    let cid = args.cid.as_deref().unwrap_or(&task.content_id);
    if context.output.json {
        return context.output.object(&Imported {
            task: TaskKeys::new(&task, Some(cid)),
            announced: result.announced,
            seconds: result.seconds,
        });
    }
    print(&format!("{cid}\n"))?;
    let seconds = context.seconds();
    let rate = units::rate(task.bytes, seconds).map(|rate| format!(" ({rate})")).unwrap_or_default();
    let (size, time) = (units::size(task.bytes), units::seconds(seconds));
    context.output.summary(&format!("imported {size} in {time}{rate}"));
    Ok(())
}
