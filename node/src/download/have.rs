//! Learning what a parent has that is still downloading itself.

use std::{sync::Arc, time::Duration};

use damselfly_messages::{
    transfer::{FRAME_BYTES_MAX, HaveRequest, HaveUpdate},
    wire::Wire as _,
};
use damselfly_transport::{frame, protocol::HAVE};
use libp2p::PeerId;
use tokio::time::timeout;

use super::{Download, fetch::ParentError};

/// How long a parent may take to accept the stream.
const OPEN_WITHIN: Duration = Duration::from_secs(5);
/// How long it may take to say what it has.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Keeps the picker up to date with what `parent` has, until it has everything.
pub(super) async fn follow(download: Arc<Download>, parent: PeerId) -> Result<(), ParentError> {
    let mut stream = download.shared.network.open_stream(parent, HAVE, OPEN_WITHIN).await?;
    let request = HaveRequest { content: download.manifest().content() };
    // Later it may be silent: it has news when it gets something.
    let first = timeout(ANSWER_WITHIN, async {
        frame::write(&mut stream, &request.to_bytes(), FRAME_BYTES_MAX).await?;
        frame::read(&mut stream, FRAME_BYTES_MAX).await
    });
    let silent = |_| ParentError::Unreachable("it does not say what it has".into());
    let mut next = first.await.map_err(silent)??;
    while let Some(bytes) = next {
        let update = HaveUpdate::from_bytes(&bytes).map_err(|error| ParentError::Lied(error.to_string()))?;
        match update {
            HaveUpdate::Complete => {
                download.lock().picker.parent_has_all(&parent);
                return Ok(());
            }
            HaveUpdate::NotHeld => return Err(ParentError::NotHeld),
            HaveUpdate::Bitmap(_) | HaveUpdate::Gained(_) => {
                let pieces = update.pieces(&download.manifest().layout());
                let pieces = pieces.map_err(|error| ParentError::Lied(error.to_string()))?;
                download.lock().picker.parent_has(&parent, &pieces);
            }
        }
        next = frame::read(&mut stream, FRAME_BYTES_MAX).await?;
    }
    Err(ParentError::Unreachable("it stopped telling what it has".into()))
}
