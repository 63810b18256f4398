//! The settings in force, as they are for this host.

use std::sync::Arc;

use damselfly_messages::{
    config::{Accepted, Settings},
    membership::{Tags, host_tags},
};
use damselfly_transport::{
    admission::Admission,
    local::{Code, Failure},
    program::follower::Follower,
};
use tokio::sync::watch;

/// A handle; cheap to clone. A host of no cluster has the defaults.
#[derive(Debug, Clone, Default)]
pub struct HostSettings {
    /// The tags in this host's configuration.
    own_tags: Arc<Tags>,
    current: watch::Sender<Arc<Settings>>,
}

impl HostSettings {
    /// The settings of now. They are others only once [`HostSettings::follow`] runs.
    pub fn new(follower: &Follower, admission: &Admission, own_tags: Tags) -> Self {
        let this = Self { own_tags: own_tags.into(), ..Self::default() };
        this.take_over(follower.current().as_deref(), admission);
        this
    }

    /// What is in force.
    pub fn get(&self) -> Arc<Settings> {
        Arc::clone(&self.current.borrow())
    }

    /// What is in force, and every change of it.
    pub fn watch(&self) -> watch::Receiver<Arc<Settings>> {
        self.current.subscribe()
    }

    /// Follows the configuration, and the tags that this host's credential grants, until the follower ends.
    pub async fn follow(self, follower: Follower, admission: Admission) {
        let (mut configuration, mut credentials) = (follower.watch(), admission.changes());
        loop {
            let accepted = configuration.borrow_and_update().clone();
            self.take_over(accepted.as_deref(), &admission);
            tokio::select! {
                changed = configuration.changed() => if changed.is_err() { return },
                Ok(()) = credentials.changed() => {}
            }
        }
    }

    fn take_over(&self, accepted: Option<&Accepted>, admission: &Admission) {
        let tags = host_tags(&admission.own_tags(), &self.own_tags);
        let settings = accepted.map(|accepted| accepted.configuration.settings.for_host(&tags)).unwrap_or_default();
        self.current.send_if_modified(|current| {
            let differs = **current != settings;
            if differs {
                *current = Arc::new(settings);
            }
            differs
        });
    }

    /// Checks that tasks with this tag are wanted in the cluster.
    ///
    /// # Errors
    /// [`Failure`] for the user.
    pub fn permit_tag(&self, tag: &str) -> Result<(), Failure> {
        if !self.get().is_blocked(tag) {
            return Ok(());
        }
        Err(Failure::new(Code::Permission, format!("the tag {tag:?} is blocked in this cluster"))
            .with_hint("choose another tag, or ask an operator of the cluster to take it out of blocked_tags"))
    }
}
