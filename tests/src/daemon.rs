//! A node of a cluster: its process, and its CLI.

use std::{
    ops::Deref,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use damselfly_transport::local::{
    Failure, client,
    proto::{
        ExportResult, ExportTaskRequest, ImportTaskRequest, daemon_client::DaemonClient, export_task_request::Target,
        export_task_response, import_task_request::Source, import_task_response,
    },
};
use tonic::transport::Channel;

use crate::{Dfcache, Program};

/// A node; cheap to clone. It is its CLI, and [`Node::program`] is its process.
#[derive(Debug, Clone)]
pub struct Node {
    program: Program,
    dfcache: Dfcache,
    socket: PathBuf,
    store: PathBuf,
}

impl Deref for Node {
    type Target = Dfcache;

    fn deref(&self) -> &Dfcache {
        &self.dfcache
    }
}

impl Node {
    pub(crate) fn new(program: Program, dfcache: Dfcache, socket: PathBuf, store: PathBuf) -> Self {
        Self { program, dfcache, socket, store }
    }

    /// Its process.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Its local socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The folder with one file per content.
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// A gRPC client: quicker than the CLI, for many calls.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn client(&self) -> anyhow::Result<DaemonClient<Channel>> {
        client::connect(&self.socket).await.map_err(|failure| anyhow::anyhow!("{}", failure.message))
    }

    /// Imports a path over gRPC; with `Err` inside, what the user would be told.
    ///
    /// # Errors
    /// When the call ends without a result.
    pub async fn import_by_path(
        daemon: &mut DaemonClient<Channel>,
        cid: &str,
        path: &Path,
    ) -> anyhow::Result<Result<String, Failure>> {
        let path = path.to_str().context("a path that is no text")?.to_owned();
        let request =
            ImportTaskRequest { cid: cid.into(), source: Some(Source::Path(path)), ..ImportTaskRequest::default() };
        let mut updates = match daemon.import_task(request).await {
            Ok(updates) => updates.into_inner(),
            Err(status) => return Ok(Err(status.into())),
        };
        loop {
            match updates.message().await {
                Ok(Some(update)) => {
                    if let Some(import_task_response::Update::Result(result)) = update.update {
                        return Ok(Ok(result.task.context("no task")?.content_id));
                    }
                }
                Ok(None) => bail!("the import of {cid} ends without a result"),
                Err(status) => return Ok(Err(status.into())),
            }
        }
    }

    /// Exports to a path over gRPC; with `Err` inside, what the user would be told.
    ///
    /// # Errors
    /// When the call ends without a result.
    pub async fn export_to_path(
        daemon: &mut DaemonClient<Channel>,
        cid: &str,
        path: &Path,
    ) -> anyhow::Result<Result<ExportResult, Failure>> {
        let path = path.to_str().context("a path that is no text")?.to_owned();
        let request = ExportTaskRequest {
            cid: cid.into(),
            target: Some(Target::Path(path)),
            force: true,
            ..ExportTaskRequest::default()
        };
        let mut updates = match daemon.export_task(request).await {
            Ok(updates) => updates.into_inner(),
            Err(status) => return Ok(Err(status.into())),
        };
        loop {
            match updates.message().await {
                Ok(Some(update)) => {
                    if let Some(export_task_response::Update::Result(result)) = update.update {
                        return Ok(Ok(result));
                    }
                }
                Ok(None) => bail!("the export of {cid} ends without a result"),
                Err(status) => return Ok(Err(status.into())),
            }
        }
    }
}
