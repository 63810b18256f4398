//! The progress bar, and following a stream of progress to its result.

use std::time::Duration;

use console::Term;
use damselfly_transport::local::proto::Progress;
use damselfly_transport::local::{Code, Failure};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tonic::{Status, Streaming};

/// Templates for terminals of so many columns at least, the widest first. A bar takes what the rest leaves: at its longest,
/// that is 62, 28 and 12 columns.
const KNOWN: [(u16, &str); 3] = [
    (72, "{percent:>3}% {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} ETA {eta} {msg}"),
    (36, "{percent:>3}% {wide_bar} {binary_bytes_per_sec} ETA {eta}"),
    (0, "{percent:>3}% ETA {eta}"),
];
const UNKNOWN: [(u16, &str); 2] =
    [(39, "{spinner} {binary_bytes} {binary_bytes_per_sec} {msg}"), (0, "{spinner} {binary_bytes}")];
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
    columns: u16,
}

impl Bar {
    fn new(shown: bool) -> Self {
        if !shown {
            return Self { bar: ProgressBar::hidden(), columns: 0 };
        }
        let bar = Self::on(ProgressDrawTarget::stderr(), Term::stderr().size().1);
        bar.bar.enable_steady_tick(TICK);
        bar
    }

    fn on(target: ProgressDrawTarget, columns: u16) -> Self {
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(style(&UNKNOWN, columns));
        Self { bar, columns }
    }

    fn show(&self, progress: &Progress) {
        if progress.bytes_total > 0 && self.bar.length() != Some(progress.bytes_total) {
            self.bar.set_style(style(&KNOWN, self.columns));
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

/// The widest of these templates that fits.
fn style(templates: &[(u16, &str)], columns: u16) -> ProgressStyle {
    let fitting = templates.iter().find(|(least, _)| *least <= columns).map_or("{spinner}", |(_, template)| template);
    ProgressStyle::with_template(fitting).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use indicatif::TermLike;

    use super::*;

    #[test]
    fn the_templates_are_valid() {
        for (_, template) in KNOWN.iter().chain(&UNKNOWN) {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }

    #[test]
    fn a_total_that_becomes_known_turns_the_spinner_into_a_bar() {
        let bar = Bar { bar: ProgressBar::hidden(), columns: 80 };
        bar.show(&Progress { bytes_done: 5, bytes_total: 0, sources: 1 });
        assert_eq!((bar.bar.position(), bar.bar.length()), (5, None));
        bar.show(&Progress { bytes_done: 6, bytes_total: 9, sources: 2 });
        assert_eq!((bar.bar.position(), bar.bar.length()), (6, Some(9)));
        assert_eq!(bar.bar.message(), "2 sources");
    }

    /// A terminal that keeps what is written to it.
    #[derive(Debug, Clone)]
    struct Lines {
        columns: u16,
        written: Arc<Mutex<Vec<String>>>,
    }

    impl TermLike for Lines {
        fn width(&self) -> u16 {
            self.columns
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, line: &str) -> io::Result<()> {
            self.write_str(line)
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.written.lock().expect("sound").push(text.trim_end().to_owned());
            Ok(())
        }
        fn clear_line(&self) -> io::Result<()> {
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_bar_fits_the_terminal_and_says_how_many_percent() {
        for columns in [120, 80, 72, 71, 40, 36, 20] {
            let terminal = Lines { columns, written: Arc::default() };
            let bar = Bar::on(ProgressDrawTarget::term_like(Box::new(terminal.clone())), columns);
            // Numbers of the greatest width.
            let total = 1_073_741_000;
            bar.show(&Progress { bytes_done: 1_068_000_000, bytes_total: 0, sources: 99 });
            bar.bar.tick();
            bar.show(&Progress { bytes_done: 1_068_000_000, bytes_total: total, sources: 99 });
            bar.bar.tick();
            let written = terminal.written.lock().expect("sound").clone();
            let longest = written.iter().map(|line| line.chars().count()).max();
            assert!(longest.is_some_and(|longest| longest > 5 && longest <= columns.into()), "{columns}: {written:?}");
            assert!(written.iter().any(|line| line.contains(" 99%")), "{columns}: {written:?}");
        }
    }
}
