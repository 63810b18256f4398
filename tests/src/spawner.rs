//! Starts processes that do not outlive this one.

use std::{
    io,
    process::{Child, Command},
    sync::{OnceLock, mpsc},
    thread,
};

type Job = (Command, mpsc::Sender<io::Result<Child>>);

/// Starts `command` on a thread that lives as long as the process.
///
/// A child that asks to be told of its parent's end is told when the *thread* that started it ends, and the threads of
/// tests end early.
pub(crate) fn spawn(command: Command) -> io::Result<Child> {
    static JOBS: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let jobs = JOBS.get_or_init(|| {
        let (jobs, inbox) = mpsc::channel::<Job>();
        thread::spawn(move || {
            for (mut command, reply) in inbox {
                // Who asked may be gone.
                let _ = reply.send(command.spawn());
            }
        });
        jobs
    });
    let (reply, answer) = mpsc::channel();
    let gone = |_| io::Error::other("the thread that starts processes has ended");
    jobs.send((command, reply)).map_err(|_| io::Error::other("the thread that starts processes has ended"))?;
    answer.recv().map_err(gone)?
}
