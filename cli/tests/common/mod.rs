//! A daemon that knows nothing, behind the real socket.

#![allow(dead_code)]

use std::path::PathBuf;

use damselfly_transport::local::proto::daemon_server::Daemon;
use damselfly_transport::local::proto::*;
use damselfly_transport::local::{CallsLayer, Code, Descriptors, Failure, LocalServer, PeerCredentials, service};
use futures::stream::Empty;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tonic::{Request, Response, Status};

/// Answers `StatTask` with the failure whose name the cid is, and `CheckHealth` with the caller's uid as
/// its epoch.
struct Stub;

#[tonic::async_trait]
impl Daemon for Stub {
    type ImportTaskStream = Empty<Result<ImportTaskResponse, Status>>;
    type ExportTaskStream = Empty<Result<ExportTaskResponse, Status>>;
    type ListTasksStream = Empty<Result<ListTasksResponse, Status>>;
    type DownloadStream = Empty<Result<DownloadResponse, Status>>;

    async fn import_task(&self, _: Request<ImportTaskRequest>) -> Result<Response<Self::ImportTaskStream>, Status> {
        Ok(Response::new(futures::stream::empty()))
    }

    async fn export_task(&self, _: Request<ExportTaskRequest>) -> Result<Response<Self::ExportTaskStream>, Status> {
        Err(Failure::new(Code::NoSource, "no holder is reachable").into())
    }

    async fn stat_task(&self, request: Request<StatTaskRequest>) -> Result<Response<StatTaskResponse>, Status> {
        let code = match request.get_ref().cid.as_str() {
            "slow" => std::future::pending().await,
            name => Code::from_name(name).expect("the name of a code"),
        };
        Err(Failure::new(code, format!("because of {}", code.name())).with_hint("do something").into())
    }

    async fn delete_task(&self, _: Request<DeleteTaskRequest>) -> Result<Response<DeleteTaskResponse>, Status> {
        Ok(Response::new(DeleteTaskResponse { deleted: false, holders: 0 }))
    }

    async fn list_tasks(&self, _: Request<ListTasksRequest>) -> Result<Response<Self::ListTasksStream>, Status> {
        Ok(Response::new(futures::stream::empty()))
    }

    async fn download(&self, _: Request<DownloadRequest>) -> Result<Response<Self::DownloadStream>, Status> {
        Err(Status::unimplemented("not built yet"))
    }

    async fn check_health(
        &self,
        request: Request<CheckHealthRequest>,
    ) -> Result<Response<CheckHealthResponse>, Status> {
        let epoch = PeerCredentials::of(&request)?.uid.into();
        Ok(Response::new(CheckHealthResponse { epoch, ..CheckHealthResponse::default() }))
    }
}

/// A socket in a directory of its own, and what serves it.
pub struct Served {
    pub dir: TempDir,
    pub socket: PathBuf,
    pub descriptors: Descriptors,
    server: JoinHandle<()>,
}

impl Served {
    /// Needs a runtime that runs while the test waits.
    pub fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("run/dfdaemon.sock");
        let server = LocalServer::bind(&socket).expect("binds");
        let descriptors = server.descriptors();
        let serve = tonic::transport::Server::builder()
            .layer(CallsLayer)
            .add_service(service(Stub))
            .serve_with_incoming(server.incoming());
        let server = tokio::spawn(async move { serve.await.expect("serves") });
        Self { dir, socket, descriptors, server }
    }

    /// Ends as a process does that is killed: the socket file stays only then when nothing runs at all,
    /// so this one is removed.
    pub async fn stop(self) -> TempDir {
        self.server.abort();
        let _ = self.server.await;
        self.dir
    }
}
