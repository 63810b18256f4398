//! Judging the messages of the topic.

use std::sync::Arc;

use damselfly_messages::{
    config::{ConfigurationRefused, Gossip as Message},
    wire::Wire as _,
};

use super::{Shared, pulls};
use crate::network::{Gossip, Network};

/// Takes over what a message carries, or pulls what it speaks of; passes on only what has proved true.
pub(super) async fn judge(gossip: Gossip, network: Network, shared: Arc<Shared>) {
    let message = match Message::from_bytes(&gossip.bytes) {
        Ok(message) => message,
        Err(error) => {
            tracing::debug!(author = %gossip.author, %error, "gossip refused");
            return gossip.reject();
        }
    };
    let Some(full) = message.full else {
        if message.epoch > shared.epoch() {
            pulls::pull(gossip.from, &network, &shared).await;
        }
        // Without a proof it is dropped, but nobody is to blame: the sender may know no more than we do.
        return if message.epoch == shared.epoch() { gossip.accept() } else { drop(gossip) };
    };
    match shared.offer(full, gossip.from).await {
        Ok(()) => gossip.accept(),
        Err(ConfigurationRefused::Older { .. }) => drop(gossip),
        Err(error) => {
            tracing::warn!(author = %gossip.author, from = %gossip.from, %error, "gossiped configuration refused");
            gossip.reject();
        }
    }
}
