//! The local RPC: requests of this host's users, checked and handed to the module that does the work.

use std::{pin::Pin, time::Duration};

use damselfly_messages::{name::Name, record::Binding};
use damselfly_transport::{
    local::{
        Code, Descriptors, Failure, PeerCredentials,
        proto::{self, daemon_server::Daemon},
    },
    program::follower::Follower,
    span, trace,
};
use futures::Stream;
use libp2p::PeerId;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tracing::Span;

use crate::{
    announcer::Announcer,
    export::Exporter,
    failure::OrFailure as _,
    health::health,
    import::Importer,
    permits::Permits,
    tasks::{Tasks, layout_of},
};

mod list;
mod source;
mod transfer;

/// Messages of a stream that wait for a slow client.
const STREAM_BACKLOG: usize = 16;

/// The service; cheap to clone.
#[derive(Clone)]
pub struct Rpc {
    /// Descriptors that clients have sent.
    pub descriptors: Descriptors,
    /// Permits for imports.
    pub imports: Permits,
    /// Permits for exports.
    pub exports: Permits,
    /// Imports.
    pub importer: Importer,
    /// Exports.
    pub exporter: Exporter,
    /// Stat, delete, list.
    pub tasks: Tasks,
    /// Who knows the schedulers' state.
    pub announcer: Announcer,
    /// Who knows the configuration; `None` outside a cluster.
    pub follower: Option<Follower>,
    /// This host.
    pub peer: PeerId,
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Daemon for Rpc {
    type ImportTaskStream = Responses<proto::ImportTaskResponse>;
    type ExportTaskStream = Responses<proto::ExportTaskResponse>;
    type ListTasksStream = Responses<proto::ListTasksResponse>;
    type DownloadStream = Responses<proto::DownloadResponse>;

    async fn import_task(
        &self,
        request: Request<proto::ImportTaskRequest>,
    ) -> Result<Response<Self::ImportTaskStream>, Status> {
        let caller = PeerCredentials::of(&request)?;
        let span = span_of(&request, span!("server", "ImportTask"));
        let request = request.into_inner();
        let limit = deadline(request.timeout_ms);
        let import = source::import_request(&self.descriptors, caller, request).await?;
        let place = (self.imports.clone(), caller.uid);
        Ok(respond(transfer::import(self.importer.clone(), import, place, (limit, span))))
    }

    async fn export_task(
        &self,
        request: Request<proto::ExportTaskRequest>,
    ) -> Result<Response<Self::ExportTaskStream>, Status> {
        let caller = PeerCredentials::of(&request)?;
        let span = span_of(&request, span!("server", "ExportTask"));
        let request = request.into_inner();
        let limit = deadline(request.timeout_ms);
        let (export, output) = source::export_request(&self.descriptors, caller, request).await?;
        let place = (self.exports.clone(), caller.uid);
        Ok(respond(transfer::export(self.exporter.clone(), export, output, place, (limit, span))))
    }

    async fn stat_task(
        &self,
        request: Request<proto::StatTaskRequest>,
    ) -> Result<Response<proto::StatTaskResponse>, Status> {
        let span = span_of(&request, span!("server", "StatTask"));
        let request = request.into_inner();
        let name = Name::parse(&request.cid, &request.tag).or_failure()?;
        let stat = within(deadline(request.timeout_ms), self.tasks.stat(&name, request.local));
        let stat = trace::traced(span, stat).await?;
        let state = match stat.available {
            true => proto::Availability::Available,
            false => proto::Availability::Unavailable,
        };
        Ok(Response::new(proto::StatTaskResponse {
            task: Some(task(&name, &stat.binding)?),
            local: stat.local,
            holders: stat.holders,
            state: state.into(),
        }))
    }

    async fn delete_task(
        &self,
        request: Request<proto::DeleteTaskRequest>,
    ) -> Result<Response<proto::DeleteTaskResponse>, Status> {
        let caller = PeerCredentials::of(&request)?;
        let span = span_of(&request, span!("server", "DeleteTask"));
        let request = request.into_inner();
        let name = Name::parse(&request.cid, &request.tag).or_failure()?;
        let tasks = self.tasks.clone();
        let delete = async move {
            if request.local {
                return tasks.delete_here(&name).await;
            }
            let (cid, tag) = (name.cid(), name.tag());
            tracing::info!(uid = caller.uid, cid, tag, "a user deletes a task in the whole cluster");
            tasks.delete_everywhere(&name, caller.uid).await
        };
        // A delete that has begun goes on when the client leaves: half of it would be worse.
        let running = tokio::spawn(trace::traced(span, delete));
        let deleted = within(deadline(request.timeout_ms), async {
            running.await.unwrap_or_else(|error| Err(Failure::new(Code::Failed, error.to_string())))
        });
        let deleted = deleted.await?;
        Ok(Response::new(proto::DeleteTaskResponse { deleted: deleted.deleted, holders: deleted.holders }))
    }

    async fn list_tasks(
        &self,
        request: Request<proto::ListTasksRequest>,
    ) -> Result<Response<Self::ListTasksStream>, Status> {
        let entries = self.tasks.list(request.into_inner().tag.as_deref());
        Ok(Response::new(Box::pin(futures::stream::iter(list::responses(entries)))))
    }

    async fn download(
        &self,
        _request: Request<proto::DownloadRequest>,
    ) -> Result<Response<Self::DownloadStream>, Status> {
        Err(Status::unimplemented("downloading from a URL is not built yet; fetch the file and import it"))
    }

    async fn check_health(
        &self,
        _request: Request<proto::CheckHealthRequest>,
    ) -> Result<Response<proto::CheckHealthResponse>, Status> {
        let health = health(self.follower.as_ref(), &self.announcer, &self.tasks.store);
        let scheduler = |scheduler: crate::health::SchedulerHealth| proto::SchedulerHealth {
            peer_id: scheduler.peer.to_string(),
            address: scheduler.address.map(|address| address.to_string()).unwrap_or_default(),
            reachable: scheduler.reachable,
            warm: scheduler.warm,
        };
        let problem = |problem: crate::health::Problem| proto::Problem {
            code: problem.code.to_owned(),
            message: problem.message,
            hint: problem.hint.to_owned(),
        };
        Ok(Response::new(proto::CheckHealthResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            peer_id: self.peer.to_string(),
            member: health.member,
            cluster_id: health.cluster,
            epoch: health.epoch,
            schedulers: health.schedulers.into_iter().map(scheduler).collect(),
            problems: health.problems.into_iter().map(problem).collect(),
        }))
    }
}

/// `span`, as a part of the caller's trace if it says one.
fn span_of<T>(request: &Request<T>, span: Span) -> Span {
    let caller = request.metadata().get(trace::TRACEPARENT).and_then(|header| header.to_str().ok()?.parse().ok());
    trace::asked_by(span, caller)
}

fn respond<T: Send + 'static>(responses: mpsc::Receiver<Result<T, Status>>) -> Response<Responses<T>> {
    Response::new(Box::pin(ReceiverStream::new(responses)))
}

fn deadline(timeout_ms: u64) -> Option<Duration> {
    (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms))
}

/// Ends `work` after `limit`.
async fn within<T>(limit: Option<Duration>, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let Some(limit) = limit else { return work.await };
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(late(limit)))
}

fn late(limit: Duration) -> Failure {
    Failure::new(Code::Timeout, format!("not done within {} ms", limit.as_millis()))
}

fn task(name: &Name, binding: &Binding) -> Result<proto::Task, Failure> {
    let layout = layout_of(binding)?;
    Ok(proto::Task {
        cid: name.cid().to_owned(),
        tag: name.tag().to_owned(),
        task_id: name.task_id().to_string(),
        content_id: binding.content.to_string(),
        bytes: layout.content_bytes(),
        pieces: layout.pieces().into(),
        piece_bytes: layout.piece_bytes().into(),
    })
}
