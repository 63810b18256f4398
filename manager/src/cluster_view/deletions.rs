//! What users of hosts delete in the whole cluster, for the audit. The owners of the tasks tell.

use std::collections::HashMap;

use damselfly_messages::info::{DELETIONS_MAX, Deletion, Request, Response};
use futures::future::join_all;
use libp2p::PeerId;

use super::{ClusterView, Poller};
use crate::database::DatabaseError;

/// A scheduler is asked for at most so many parts at a time.
const PARTS_MAX: usize = 16;

/// Up to where each scheduler has told.
#[derive(Debug, Default)]
pub(super) struct Deletions {
    told: HashMap<PeerId, u64>,
}

impl Deletions {
    /// Asks the schedulers that have just answered what is new, and notes it. What cannot be noted is asked for again.
    pub(super) async fn note(&mut self, poller: &Poller, cluster_view: &ClusterView) {
        self.told.retain(|known, _| cluster_view.schedulers.iter().any(|(scheduler, _)| scheduler == known));
        // One that is away would be waited for twice.
        let there = cluster_view.schedulers.iter().filter(|(_, answer)| answer.is_some());
        let schedulers: Vec<_> = there.map(|(scheduler, _)| *scheduler).collect();
        let after = |scheduler| self.told.get(scheduler).copied().unwrap_or(0);
        let news = join_all(schedulers.iter().map(|scheduler| news_of(poller, *scheduler, after(scheduler)))).await;
        for (scheduler, news) in schedulers.iter().zip(news) {
            let Some(last) = news.last().map(|deletion| deletion.number) else { continue };
            match note(poller, news).await {
                Ok(()) => drop(self.told.insert(*scheduler, last)),
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "deletes of hosts are not in the audit yet"
                    );
                }
            }
        }
    }
}

async fn news_of(poller: &Poller, scheduler: PeerId, after: u64) -> Vec<Deletion> {
    let mut news: Vec<Deletion> = Vec::new();
    for _ in 0..PARTS_MAX {
        let after = news.last().map_or(after, |last| last.number);
        let Ok(Response::Deletions(part)) = poller.ask(scheduler, &Request::Deletions { after }).await else { break };
        let is_last = part.items.len() < DELETIONS_MAX;
        news.extend(part.items);
        if is_last {
            break;
        }
    }
    news
}

/// What a manager was told to delete is in the audit with the user who said so.
async fn note(poller: &Poller, mut news: Vec<Deletion>) -> Result<(), DatabaseError> {
    let database = poller.state.database();
    let mut managers = database.manager_ids().await?;
    managers.push(poller.network.peer_id().to_string());
    news.retain(|deletion| !managers.contains(&deletion.peer.to_string()));
    if !news.is_empty() {
        database.note_deletions(&news, database.now()).await?;
    }
    Ok(())
}
