//! How much memory the requests of peers may take, from their first bytes on the wire to their answer.
//!
//! Small frames are free: they are bounded by the streams of a connection. A larger one takes its length from the share of
//! its member, whatever connections and protocols it uses, and from the budget of the node, after its first bytes have
//! arrived, and gives it back when the program has answered. While there is nothing left it is not read, and the peer's
//! window fills.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use futures::{AsyncRead, AsyncReadExt as _};
use libp2p::PeerId;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::frame::{self, FrameError};

/// Frames up to this length take nothing of the budget, in bytes.
const FREE_BYTES: usize = 16 * 1024;

/// What large requests of all peers may take at once, in bytes.
const NODE_BYTES: usize = 64 * 1024 * 1024;

/// What those of one member may take at once, in bytes: so a few members cannot take all of it.
const MEMBER_BYTES: usize = 4 * 1024 * 1024;

/// The budget is counted in these units, in bytes.
const UNIT_BYTES: usize = 1024;

/// A frame that has its part of the budget has arrived by then; else its peer would hold the part for nothing.
const ARRIVES_WITHIN: Duration = Duration::from_secs(10);

/// What is left for large requests in this node; cheap to clone, every clone counts for the same node.
#[derive(Debug, Clone)]
pub struct FrameBudget {
    node: Arc<Semaphore>,
    /// Of members that have a connection.
    members: Arc<Mutex<HashMap<PeerId, Weak<Semaphore>>>>,
}

impl Default for FrameBudget {
    fn default() -> Self {
        Self { node: Arc::new(Semaphore::new(NODE_BYTES / UNIT_BYTES)), members: Arc::default() }
    }
}

impl FrameBudget {
    /// The share of `peer`, the same for all of its connections and protocols.
    pub(super) fn share(&self, peer: PeerId) -> Share {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        let member = members.get(&peer).and_then(Weak::upgrade).unwrap_or_else(|| {
            members.retain(|_, member| member.strong_count() > 0);
            let member = Arc::new(Semaphore::new(MEMBER_BYTES / UNIT_BYTES));
            members.insert(peer, Arc::downgrade(&member));
            member
        });
        Share { member, node: Arc::clone(&self.node) }
    }
}

/// What is left for large requests of one member.
#[derive(Debug, Clone)]
pub(super) struct Share {
    member: Arc<Semaphore>,
    node: Arc<Semaphore>,
}

impl Share {
    /// Reads one frame of at most `max` bytes, when there is room for it.
    ///
    /// # Errors
    /// [`io::Error`]: the stream is of no further use.
    pub(super) async fn read<R: AsyncRead + Unpin>(&self, from: &mut R, max: usize) -> io::Result<Frame> {
        let bytes = frame::read_header(from, max).await?.ok_or(FrameError::Truncated)?;
        let mut body = vec![0; bytes.min(FREE_BYTES)];
        from.read_exact(&mut body).await?;
        if bytes <= FREE_BYTES {
            return Ok(Frame { bytes: body, _taken: None });
        }
        let taken = self.take(bytes).await?;
        body.resize(bytes, 0);
        let rest = from.read_exact(&mut body[FREE_BYTES..]);
        timeout(ARRIVES_WITHIN, rest).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        Ok(Frame { bytes: body, _taken: Some(taken) })
    }

    /// The member's part first: who waits for that takes nothing from others meanwhile.
    async fn take(&self, bytes: usize) -> io::Result<[OwnedSemaphorePermit; 2]> {
        // No frame of any protocol is as long as a share, so this is the frame's own length.
        let units = bytes.min(MEMBER_BYTES).div_ceil(UNIT_BYTES) as u32;
        let member = self.member.clone().acquire_many_owned(units).await.map_err(io::Error::other)?;
        let node = self.node.clone().acquire_many_owned(units).await.map_err(io::Error::other)?;
        Ok([member, node])
    }
}

/// The bytes of one request, with their part of the budget.
#[derive(Debug)]
pub struct Frame {
    bytes: Vec<u8>,
    _taken: Option<[OwnedSemaphorePermit; 2]>,
}

impl Frame {
    /// A request of this host, which counts for nobody.
    pub(super) const fn own(bytes: Vec<u8>) -> Self {
        Self { bytes, _taken: None }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use futures::io::Cursor;

    use super::*;

    fn framed(bytes: usize) -> Vec<u8> {
        let header = frame::header(bytes, usize::MAX).expect("fits");
        [&header[..], &vec![7; bytes]].concat()
    }

    async fn read(share: &Share, bytes: usize) -> Option<io::Result<Frame>> {
        let stream = framed(bytes);
        timeout(Duration::from_millis(50), share.read(&mut Cursor::new(stream), 1 << 20)).await.ok()
    }

    async fn frame(share: &Share, bytes: usize) -> Frame {
        let frame = read(share, bytes).await.expect("there is room").expect("read");
        assert_eq!(frame.bytes(), vec![7; bytes]);
        frame
    }

    #[tokio::test]
    async fn a_member_has_one_share_for_all_its_connections_and_gets_it_back() {
        let budget = FrameBudget::default();
        let peer = PeerId::random();
        let other = budget.share(PeerId::random());
        let mut connections = Vec::new();
        let mut held = Vec::new();
        for _ in 0..4 {
            let connection = budget.share(peer);
            held.push(frame(&connection, 1 << 20).await);
            connections.push(connection);
        }
        assert!(read(&budget.share(peer), 1 << 20).await.is_none(), "the member has its 4 MiB, on any connection");
        frame(&connections[0], FREE_BYTES).await;
        frame(&other, 1 << 20).await;
        held.pop();
        frame(&connections[0], 1 << 20).await;
        drop((connections, held));
        let _newcomer = budget.share(PeerId::random());
        assert_eq!(budget.members.lock().expect("sound").len(), 2, "members without a connection are forgotten");
    }

    #[tokio::test]
    async fn all_members_together_are_bounded() {
        let budget = FrameBudget::default();
        let mut held = Vec::new();
        for _ in 0..NODE_BYTES / MEMBER_BYTES {
            let share = budget.share(PeerId::random());
            for _ in 0..4 {
                held.push(frame(&share, 1 << 20).await);
            }
        }
        let late = budget.share(PeerId::random());
        assert!(read(&late, 1 << 20).await.is_none(), "the node has its 64 MiB");
        frame(&late, FREE_BYTES).await;
        held.clear();
        frame(&late, 1 << 20).await;
    }

    #[tokio::test]
    async fn a_claim_without_bytes_takes_nothing() {
        let budget = FrameBudget::default();
        let share = budget.share(PeerId::random());
        let claim = (1_u32 << 20).to_be_bytes();
        assert!(share.read(&mut Cursor::new(claim), 1 << 20).await.is_err());
        assert!(share.read(&mut Cursor::new(framed(1 << 20)), 1000).await.is_err(), "longer than the protocol allows");
        assert_eq!(share.member.available_permits(), MEMBER_BYTES / UNIT_BYTES);
    }
}
