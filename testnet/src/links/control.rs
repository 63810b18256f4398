//! The process that has the links of a cluster, and how it is ordered.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail};
use rustix::stdio;
use serde::{Deserialize, Serialize};

use super::{
    proxy::{Order, Proxy},
    wire::Shape,
};
use crate::{config, layout::Layout, process};

/// Its name among the programs of the cluster.
pub(crate) const NAME: &str = "links";
/// An order is obeyed at once.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// `testnet links`
#[derive(Debug, clap::Args)]
pub struct Serve {
    /// Its configuration.
    #[arg(long)]
    config: PathBuf,
}

/// What its configuration says.
#[derive(Debug, Serialize, Deserialize)]
struct Config {
    usual: Shape,
}

/// What is said to an order: a port that was opened, or why not.
type Answer = Result<Option<u16>, String>;

impl Serve {
    /// Obeys orders as long as it runs; the socket for them is its standard input.
    ///
    /// # Errors
    /// When it was not started as it should be.
    pub fn run(self) -> anyhow::Result<()> {
        let Config { usual } = toml::from_str(&fs::read_to_string(&self.config)?)?;
        let dir = self.config.parent().and_then(Path::parent).context("a configuration of no cluster")?;
        let hub = Arc::new(Proxy::new(dir.to_owned(), usual));
        let socket: OwnedFd = stdio::stdin().try_clone_to_owned()?;
        for stream in UnixListener::from(socket).incoming() {
            let (stream, hub) = (stream?, hub.clone());
            thread::Builder::new().spawn(move || {
                if let Err(error) = serve(&hub, &stream) {
                    eprintln!("links: {error}");
                }
            })?;
        }
        Ok(())
    }
}

fn serve(hub: &Arc<Proxy>, mut stream: &UnixStream) -> io::Result<()> {
    for line in BufReader::new(stream).lines() {
        let order: Order = serde_json::from_str(&line?)?;
        eprintln!("links: {order:?}");
        let answer: Answer = hub.obey(order).map_err(|error| format!("{error:#}"));
        writeln!(stream, "{}", serde_json::to_string(&answer)?)?;
    }
    Ok(())
}

/// The links of a cluster, in a process of their own.
#[derive(Debug, Clone)]
pub(crate) struct Links {
    socket: PathBuf,
}

impl Links {
    /// Starts the process; `usual` is what each link is in the beginning.
    pub(crate) fn start(layout: &Layout, usual: Shape, detached: bool) -> anyhow::Result<(Self, Child)> {
        let folder = layout.program(NAME)?;
        let socket = layout.socket(NAME)?;
        let config = layout.config(NAME);
        config::write(&config, &Config { usual })?;
        let _ = fs::remove_file(&socket);
        // Made here, so that it takes orders from now on.
        let listener = UnixListener::bind(&socket).with_context(|| format!("no socket in {}", folder.display()))?;
        let log = process::log(&layout.log(NAME))?;
        let mut command = process::become_command(detached)?;
        command.arg(std::env::current_exe()?).arg("links").arg("--config").arg(config);
        command.stdin(OwnedFd::from(listener)).stdout(Stdio::null()).stderr(log);
        Ok((Self { socket }, command.spawn().context("cannot start the links")?))
    }

    /// A new cluster has none, whatever was in its folder.
    pub(crate) fn none(layout: &Layout) -> anyhow::Result<()> {
        match fs::remove_file(layout.config(NAME)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).context("cannot remove earlier links"),
            _ => Ok(()),
        }
    }

    /// Those of a cluster that has some.
    pub(crate) fn of(layout: &Layout) -> anyhow::Result<Option<Self>> {
        let has_some = layout.config(NAME).is_file();
        Ok(has_some.then_some(Self { socket: layout.socket(NAME)? }))
    }

    /// A port that leads to `target`, where the program of this name listens.
    pub(crate) fn open(&self, name: &str, target: u16) -> anyhow::Result<u16> {
        self.order(&Order::Open { name: name.to_owned(), target })?.context("the links open no port")
    }

    /// Has it done.
    pub(crate) fn order(&self, order: &Order) -> anyhow::Result<Option<u16>> {
        let ask = || -> anyhow::Result<Answer> {
            let mut stream = UnixStream::connect(&self.socket)?;
            stream.set_read_timeout(Some(ANSWER_WITHIN))?;
            writeln!(stream, "{}", serde_json::to_string(order)?)?;
            let mut answer = String::new();
            BufReader::new(stream).read_line(&mut answer)?;
            Ok(serde_json::from_str(&answer)?)
        };
        match ask().context("the process that has the links of this cluster does not answer")? {
            Ok(port) => Ok(port),
            Err(error) => bail!("links: {error}"),
        }
    }
}
