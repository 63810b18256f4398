//! What schedulers tell this host.

use std::{sync::Arc, time::Duration};

use damselfly_messages::notify::{Request, Response};
use damselfly_transport::{program::follower::Follower, protocol::NotifyProtocol, rpc::Inbound};
use tokio::sync::{Semaphore, mpsc};

use crate::{
    announcer::{Announcer, ObeyError},
    download::Downloads,
    metrics::Metrics,
    schedulers::Schedulers,
};

/// How many notifications are worked on at a time; each may wait for the disk.
const AT_A_TIME: usize = 64;

/// Takes notifications; cheap to clone.
#[derive(Clone)]
pub struct Notified {
    /// Keeps records.
    pub announcer: Announcer,
    /// Gets new parents.
    pub downloads: Downloads,
    /// Knows who is a scheduler.
    pub schedulers: Schedulers,
    /// Gets hints of newer configurations.
    pub follower: Follower,
    /// Counts deletes.
    pub metrics: Metrics,
}

impl Notified {
    /// Answers notifications until the daemon ends.
    pub async fn run(self, mut inbox: mpsc::Receiver<Inbound<NotifyProtocol>>) {
        let permits = Arc::new(Semaphore::new(AT_A_TIME));
        while let Some(inbound) = inbox.recv().await {
            if !self.is_scheduler(&inbound) {
                inbound.refuse("only schedulers of the cluster may notify");
                continue;
            }
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            let this = self.clone();
            tokio::spawn(async move {
                let _permit = permit;
                this.answer(inbound).await;
            });
        }
    }

    fn is_scheduler(&self, inbound: &Inbound<NotifyProtocol>) -> bool {
        self.schedulers
            .accepted()
            .is_some_and(|accepted| accepted.configuration.settings.scheduler(&inbound.peer()).is_some())
    }

    async fn answer(&self, inbound: Inbound<NotifyProtocol>) {
        let peer = inbound.peer();
        match inbound.decode() {
            Ok(request) => match self.take(peer, request).await {
                Ok(held) => inbound.respond(Response { held }),
                Err(ObeyError::Store(error)) => {
                    tracing::error!(%peer, error = &error as &dyn std::error::Error, "cannot keep a notification");
                    inbound.busy(Duration::from_secs(1));
                }
                Err(error @ ObeyError::Implausible(_)) => {
                    tracing::warn!(%peer, %error, "a notification is refused");
                    inbound.refuse(error.to_string());
                }
            },
            Err(error) => inbound.refuse(error.to_string()),
        }
    }

    async fn take(&self, peer: libp2p::PeerId, request: Request) -> Result<bool, ObeyError> {
        match request {
            Request::DropTask(tombstone) => {
                let held = self.announcer.obey(tombstone).await?;
                if held {
                    tracing::info!(task = %tombstone.task, "deleted by another host");
                    self.metrics.deletes.inc();
                }
                Ok(held)
            }
            Request::ConflictLost { task, winner } => Ok(self.announcer.lose(task, winner).await?),
            Request::NewParents { task, content, parents } => {
                self.schedulers.recent().add(task, content, &parents);
                let download = self.downloads.get(content);
                let concerned = download.is_some();
                if let Some(download) = download {
                    download.add_parents(parents);
                }
                Ok(concerned)
            }
            Request::NewEpoch(epoch) => {
                self.follower.hint(peer, epoch);
                Ok(true)
            }
        }
    }
}
