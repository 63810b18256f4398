//! `dfcache import`.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::Path;

use damselfly_transport::local::Failure;
use damselfly_transport::local::proto::import_task_request::Source as Named;
use damselfly_transport::local::proto::import_task_response::Update as Message;
use damselfly_transport::local::proto::{ImportResult, ImportTaskRequest};
use serde::Serialize;

use crate::args::Import;
use crate::client::Context;
use crate::output::{Outcome, Stop, TaskKeys, print, printable, required};
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
        Ok::<_, Stop>(result.await?)
    };
    let result = match feed {
        None => call.await.map_err(|stop| name_the_source(stop, &args))?,
        Some(feed) => tokio::select! {
            result = call => result?,
            torn = feed.torn() => {
                // The call is dropped by now. The daemon is to hear of that before the pipe ends.
                tokio::time::sleep(crate::CANCEL_TIME).await;
                drop(torn.pipe);
                return Err(Failure::io(format!("cannot read {}", shown(&args.path)), &torn.error).into());
            }
        },
    };
    if let (Some(position), Some(task)) = (position, &result.task) {
        position.advance(task.bytes);
    }
    tell(context, &args, result)
}

fn shown(path: &Path) -> String {
    if path == Path::new("-") { "stdin".to_owned() } else { path.display().to_string() }
}

/// The daemon knows neither the path nor, before the end, the name: its hint gets them here.
fn name_the_source(stop: Stop, args: &Import) -> Stop {
    let Stop::Failed(Failure { code, message, hint: Some(hint) }) = stop else { return stop };
    let file = format!("cat {} |", quoted(&args.path.to_string_lossy()));
    let cid = args.cid.as_deref().map_or_else(String::new, |cid| format!("-i {} ", quoted(cid)));
    let hint = match args.path == Path::new("-") {
        true => hint,
        false => hint.replace("cat FILE |", &file).replace("-i CID ", &cid),
    };
    Stop::Failed(Failure { code, message, hint: Some(hint) })
}

/// As a shell takes it for one word.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+=,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
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
    // For programs it is the name byte by byte; a terminal would obey what may be in it.
    let shown = if io::stdout().is_terminal() { printable(cid) } else { cid.into() };
    print(&format!("{shown}\n"))?;
    let seconds = context.seconds();
    let rate = units::rate(task.bytes, seconds).map(|rate| format!(" ({rate})")).unwrap_or_default();
    let (size, time) = (units::size(task.bytes), units::seconds(seconds));
    context.output.summary(&format!("imported {size} in {time}{rate}"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use damselfly_transport::local::Code;

    use super::*;
    use crate::args::{Command, Parsed, parse};

    #[test]
    fn a_hint_names_the_source_as_a_shell_takes_it() {
        let rows: [(&[&str], &str); 4] = [
            (&["-i", "c", "/a/b"], "run `cat /a/b | dfcache import -i c -`"),
            (&["it's here"], r"run `cat 'it'\''s here' | dfcache import -`"),
            (&["-i", "a b", "f"], "run `cat f | dfcache import -i 'a b' -`"),
            (&["-i", "c", "-"], "run `cat FILE | dfcache import -i CID -`"),
        ];
        for (arguments, expected) in rows {
            let line = ["dfcache", "import"].iter().chain(arguments).map(Into::into).collect::<Vec<_>>();
            let Parsed::Run(parsed) = parse(&line) else { panic!("{arguments:?} are right") };
            let Command::Import(import) = parsed.command else { panic!("it is an import") };
            let failure = Failure::new(Code::Failed, "x").with_hint("run `cat FILE | dfcache import -i CID -`");
            match name_the_source(failure.into(), &import) {
                Stop::Failed(failure) => assert_eq!(failure.hint.as_deref(), Some(expected)),
                other => panic!("{other:?}"),
            }
        }
    }
}
