//! The progress bar, and following a stream of progress to its result.

use std::time::Duration;

use damselfly_transport::local::proto::Progress;
use damselfly_transport::local::{Code, Failure};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tonic::{Status, Streaming};

const KNOWN: &str = "{bar:30} {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  ETA {eta}  {msg}";
const UNKNOWN: &str = "{spinner} {binary_bytes}  {binary_bytes_per_sec}  {msg}";
const TICK: Duration = Duration::from_millis(250);

/// One message of a transfer.
#[derive(Debug)]
pub enum Update<R> {
    /// Not the last.
    Progress(Progress),
    /// The last.
    Result(R),
}

/// Shows a transfer's progress until its result arrives.
///
/// # Errors
/// The daemon's status; or the stream ended without a result.
pub async fn follow<T, R>(
    mut stream: Streaming<T>,
    shown: bool,
    update: impl Fn(T) -> Option<Update<R>>,
) -> Result<R, Status> {
    let bar = Bar::new(shown);
    while let Some(message) = stream.message().await? {
        match update(message) {
            Some(Update::Progress(progress)) => bar.show(&progress),
            Some(Update::Result(result)) => return Ok(result),
            // From a newer daemon: something we do not know.
            None => {}
        }
    }
    Err(Failure::new(Code::Failed, "the daemon ended the call without a result").into())
}

/// A bar on stderr, or nothing. Gone when dropped.
struct Bar {
    bar: ProgressBar,
}

impl Bar {
    fn new(shown: bool) -> Self {
        if !shown {
            return Self { bar: ProgressBar::hidden() };
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_style(style(UNKNOWN));
        bar.enable_steady_tick(TICK);
        Self { bar }
    }

    fn show(&self, progress: &Progress) {
        if progress.bytes_total > 0 && self.bar.length() != Some(progress.bytes_total) {
            self.bar.set_style(style(KNOWN));
            self.bar.set_length(progress.bytes_total);
        }
        self.bar.set_position(progress.bytes_done);
        match progress.sources {
            0 => self.bar.set_message(""),
            1 => self.bar.set_message("1 source"),
            n => self.bar.set_message(format!("{n} sources")),
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_valid() {
        for template in [KNOWN, UNKNOWN] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }

    #[test]
    fn a_total_that_becomes_known_turns_the_spinner_into_a_bar() {
        let bar = Bar { bar: ProgressBar::hidden() };
        bar.show(&Progress { bytes_done: 5, bytes_total: 0, sources: 1 });
        assert_eq!((bar.bar.position(), bar.bar.length()), (5, None));
        bar.show(&Progress { bytes_done: 6, bytes_total: 9, sources: 2 });
        assert_eq!((bar.bar.position(), bar.bar.length()), (6, Some(9)));
        assert_eq!(bar.bar.message(), "2 sources");
    }
}
