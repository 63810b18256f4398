//! What is written where: results on stdout, everything else on stderr.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

use damselfly_transport::local::proto::Task;
use damselfly_transport::local::{Code, Failure};
use damselfly_transport::stdio;
use serde::Serialize;
use serde_json::{Value, json};

use crate::args::{Args, Command};

/// What a shell reports for a program that SIGPIPE ended.
const BROKEN_PIPE_EXIT: u8 = 128 + 13;

/// Why a command did not finish.
#[derive(Debug)]
pub enum Stop {
    /// To be told.
    Failed(Failure),
    /// Told already, as part of a result.
    Told(Code),
    /// Nobody reads our output any more: end without a word.
    BrokenPipe,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<tonic::Status> for Stop {
    fn from(status: tonic::Status) -> Self {
        Self::Failed(status.into())
    }
}

/// How a command ends.
pub type Outcome<T = ()> = Result<T, Stop>;

/// How this run writes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Output {
    /// One object instead of text.
    pub json: bool,
    /// No summary.
    pub quiet: bool,
    /// A progress bar.
    pub progress: bool,
    /// Stdout carries the bytes of a file, so an object goes to stderr.
    pub stdout_is_content: bool,
}

impl Output {
    /// What the arguments ask for.
    pub fn new(args: &Args) -> Self {
        let stdout_is_content = matches!(&args.command, Command::Export(export) if export.is_stdout());
        let global = &args.global;
        let progress = !global.json && !global.quiet && !global.no_progress;
        // On one terminal, the bar and the bytes would write over each other.
        let free = io::stderr().is_terminal() && !(stdout_is_content && io::stdout().is_terminal());
        Self { json: global.json, quiet: global.quiet, progress: progress && free, stdout_is_content }
    }

    /// Writes the one object of `--json`.
    pub fn object(&self, object: &impl Serialize) -> Outcome {
        let mut text = serde_json::to_string(object)
            .map_err(|e| Failure::new(Code::Failed, format!("cannot write the result: {e}")))?;
        text.push('\n');
        if self.stdout_is_content {
            eprint_ignoring(&text);
            return Ok(());
        }
        print(&text)
    }

    /// Writes the line at the end of a transfer.
    pub fn summary(&self, line: &str) {
        if !self.quiet && !self.json {
            // On a terminal the content may have ended in the middle of a line.
            let begin = if self.stdout_is_content && io::stdout().is_terminal() { "\n" } else { "" };
            eprint_ignoring(&format!("{begin}{line}\n"));
        }
    }

    /// Tells why the command did not finish, and returns the exit code.
    pub fn stopped(&self, stop: Stop) -> u8 {
        match stop {
            Stop::Failed(failure) => {
                self.failure(&failure);
                failure.code.exit()
            }
            Stop::Told(code) => code.exit(),
            Stop::BrokenPipe => BROKEN_PIPE_EXIT,
        }
    }

    fn failure(&self, failure: &Failure) {
        if self.json {
            let object = json!({ "error": error_value(failure) });
            // Stdout may be what has failed.
            if self.object(&object).is_err() {
                eprint_ignoring(&format!("{object}\n"));
            }
            return;
        }
        let (message, advice) = (printable(&failure.message), printable(failure.advice()));
        eprint_ignoring(&format!("error: {message}\nhint: {advice}\n"));
    }
}

/// The value of `"error"`.
pub fn error_value(failure: &Failure) -> Value {
    json!({
        "code": failure.code.name(),
        "exit": failure.code.exit(),
        "message": failure.message,
        "hint": failure.advice(),
    })
}

/// The keys that every task has.
#[derive(Debug, Serialize)]
pub struct TaskKeys {
    cid: String,
    tag: String,
    task_id: String,
    content_id: String,
    bytes: u64,
    pieces: u64,
    piece_bytes: u64,
}

impl TaskKeys {
    /// The task, under the cid as it was typed.
    pub fn new(task: &Task, typed_cid: Option<&str>) -> Self {
        Self {
            cid: typed_cid.unwrap_or(&task.cid).to_owned(),
            tag: task.tag.clone(),
            task_id: task.task_id.clone(),
            content_id: task.content_id.clone(),
            bytes: task.bytes,
            pieces: task.pieces,
            piece_bytes: task.piece_bytes,
        }
    }
}

/// Writes to stdout, at once.
pub fn print(text: &str) -> Outcome {
    stdio::print(text).map_err(|e| stdout_failed(&e))
}

/// What an error on stdout means.
pub fn stdout_failed(error: &io::Error) -> Stop {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Stop::BrokenPipe,
        _ => Stop::Failed(Failure::io("cannot write to stdout", error)),
    }
}

/// Nobody can be told that stderr does not work.
fn eprint_ignoring(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Characters that a terminal would obey, or that make it show a text in another order than it is.
fn is_steering(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Text from elsewhere without characters that steer a terminal.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_steering) {
        return Cow::Borrowed(text);
    }
    let escape = |c: char| match is_steering(c) {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    Cow::Owned(text.chars().map(escape).collect())
}

/// The part of an answer that our own daemon always sends.
pub fn required<T>(part: Option<T>) -> Outcome<T> {
    let missing = || Failure::new(Code::Failed, "the daemon's answer lacks its result");
    Ok(part.ok_or_else(missing)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_these_keys() {
        let failure = Failure::new(Code::NotFound, "no such task").with_hint("import it");
        let expected = json!({"code": "not_found", "exit": 3, "message": "no such task", "hint": "import it"});
        assert_eq!(error_value(&failure), expected);
        let without = error_value(&Failure::new(Code::Conflict, "x"));
        assert_eq!(without["hint"], Code::Conflict.advice(), "there is always something to do");
    }

    #[test]
    fn tasks_show_the_name_as_typed() {
        let task = Task { cid: "blake3:ab".into(), ..Task::default() };
        assert_eq!(TaskKeys::new(&task, Some("blake3:AB")).cid, "blake3:AB");
        assert_eq!(TaskKeys::new(&task, None).cid, "blake3:ab");
    }

    #[test]
    fn names_cannot_steer_the_terminal() {
        assert_eq!(printable("a\u{1b}[31mb\n"), "a\\u{1b}[31mb\\n");
        assert_eq!(printable("a\u{202e}txt.exe\u{9b}2J"), "a\\u{202e}txt.exe\\u{9b}2J");
        assert_eq!(printable("häß עברית"), "häß עברית");
    }

    #[test]
    fn nobody_reading_is_no_error_to_tell() {
        let stop = stdout_failed(&io::ErrorKind::BrokenPipe.into());
        assert!(matches!(stop, Stop::BrokenPipe));
        assert_eq!(Output::default().stopped(stop), 141);
    }
}
