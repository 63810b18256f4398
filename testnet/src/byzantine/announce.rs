//! Tells schedulers: that the liar lives, and its lie.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail};
use damselfly_messages::{
    config::Accepted,
    info::HostReport,
    name::Name,
    notify::Response,
    scheduler::{AnnounceHost, AnnounceTask, DeleteTask, Outcome, Request, RequestBody, ResponseBody},
};
use damselfly_transport::{
    network::Network,
    program::{durable, follower::Follower},
    protocol::{NotifyProtocol, SchedulerProtocol},
    rpc::Inbound,
};
use libp2p::{Multiaddr, PeerId};
use tokio::{sync::mpsc, time::sleep};

use super::behavior::{Behavior, Content, Verdict};

/// As often as the heartbeats of a testnet.
const EVERY: Duration = Duration::from_secs(1);
/// Until all have heard it.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// How long a scheduler may take to answer; a delete waits for holders.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// What is told, and to whom.
pub(super) struct Announcer {
    pub(super) lie: Behavior,
    pub(super) name: Name,
    pub(super) content: Arc<Content>,
    pub(super) listen: Multiaddr,
    pub(super) network: Network,
    pub(super) follower: Follower,
}

impl Announcer {
    /// Tells everything again with each heartbeat, so that it is known however often schedulers start; a delete once. What
    /// the owners say first goes into the file `told`.
    pub(super) async fn run(self, told: &Path) {
        let mut is_told = false;
        loop {
            match self.beat(is_told).await {
                Ok(verdicts) if !is_told => match write(told, &verdicts) {
                    Ok(()) => is_told = true,
                    Err(error) => eprintln!("liar: {error:#}"),
                },
                Ok(_) => {}
                Err(error) => eprintln!("liar: not told: {error:#}"),
            }
            sleep(if is_told { EVERY } else { AGAIN_AFTER }).await;
        }
    }

    /// One heartbeat to each scheduler, and the lie to the owners; gives what these say.
    async fn beat(&self, is_told: bool) -> anyhow::Result<Vec<Verdict>> {
        let accepted = self.follower.current().context("no configuration yet")?;
        for scheduler in accepted.ring.members() {
            self.ask(&accepted, *scheduler, self.heartbeat()).await?;
        }
        let record = self.lie.record(self.name.clone(), &self.content, SystemTime::now().into());
        let task = self.name.task_id();
        let body = match record {
            Some(record) => RequestBody::AnnounceTask(AnnounceTask { records: vec![record], bucket: None }),
            None if is_told => return Ok(Vec::new()),
            None => RequestBody::DeleteTask(DeleteTask::of(task)),
        };
        let mut verdicts = Vec::new();
        for owner in accepted.ring.owners(&task) {
            verdicts.push(verdict(&self.ask(&accepted, owner, body.clone()).await?)?);
        }
        Ok(verdicts)
    }

    /// The buckets are left out: then nothing is asked for again.
    fn heartbeat(&self) -> RequestBody {
        RequestBody::AnnounceHost(Box::new(AnnounceHost {
            addresses: vec![self.listen.clone()],
            seed: true,
            tags: [].into(),
            buckets: None,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            report: HostReport::default(),
        }))
    }

    async fn ask(&self, accepted: &Accepted, scheduler: PeerId, body: RequestBody) -> anyhow::Result<ResponseBody> {
        let entry = accepted.configuration.settings.scheduler(&scheduler).context("not in the settings")?;
        self.network.connect(scheduler, entry.addresses.clone(), ANSWER_WITHIN).await?;
        let request = Request::new(accepted.configuration.epoch, body);
        let response = self.network.request::<SchedulerProtocol>(scheduler, &request, ANSWER_WITHIN).await?;
        Ok(response.body)
    }
}

fn verdict(answer: &ResponseBody) -> anyhow::Result<Verdict> {
    match answer {
        // Nothing is left to delete when another owner has done it.
        ResponseBody::Deleted(_) => Ok(Verdict::Deleted),
        ResponseBody::Announced(outcomes) => match &outcomes[..] {
            [Outcome::Accepted(_) | Outcome::Noted] => Ok(Verdict::Accepted),
            [Outcome::Conflict(_)] => Ok(Verdict::Conflict),
            [Outcome::Refused(_)] => Ok(Verdict::Refused),
            [Outcome::Buried(_)] => Ok(Verdict::Deleted),
            other => bail!("{other:?}"),
        },
        other => bail!("{other:?}"),
    }
}

fn write(path: &Path, verdicts: &[Verdict]) -> anyhow::Result<()> {
    durable::replace(path, &serde_json::to_vec(verdicts)?, 0o600).context("cannot write what was said")
}

/// Agrees to whatever a scheduler says.
pub(super) async fn hear(mut notifications: mpsc::Receiver<Inbound<NotifyProtocol>>) {
    while let Some(notification) = notifications.recv().await {
        notification.respond(Response { held: true });
    }
}
