//! Answers on piece and have streams.

use std::{sync::Arc, time::Duration};

use damselfly_messages::{
    transfer::{FRAME_BYTES_MAX, PieceRequest},
    wire::Wire as _,
};
use damselfly_transport::{frame, streams::Stream};
use futures::AsyncWriteExt as _;
use libp2p::PeerId;
use tokio::{sync::mpsc, time::sleep};

use super::behavior::{Answer, Behavior, Content, Pace};

/// Soon enough for who waits for a silent parent, and for ever for who waits for the piece.
const DRIP_EVERY: Duration = Duration::from_millis(500);
const HAVE_EVERY: Duration = Duration::from_millis(20);

/// Answers on every piece stream.
pub(super) async fn pieces(lie: Behavior, content: Arc<Content>, mut streams: mpsc::Receiver<(PeerId, Stream)>) {
    while let Some((peer, stream)) = streams.recv().await {
        let content = Arc::clone(&content);
        tokio::spawn(async move {
            if let Err(error) = on_pieces(lie, &content, stream).await {
                eprintln!("liar: {peer} had enough: {error:#}");
            }
        });
    }
}

async fn on_pieces(lie: Behavior, content: &Content, mut stream: Stream) -> anyhow::Result<()> {
    while let Some(bytes) = frame::read(&mut stream, FRAME_BYTES_MAX).await? {
        let request = PieceRequest::from_bytes(&bytes)?;
        let Answer { response, body, pace } = lie.answer(content, &request);
        if pace == Pace::Never {
            continue;
        }
        frame::write(&mut stream, &response.to_bytes(), FRAME_BYTES_MAX).await?;
        match pace {
            Pace::AtOnce | Pace::Never => stream.write_all(&body).await?,
            Pace::Half => {
                stream.write_all(&body[..body.len() / 2]).await?;
                stream.flush().await?;
                // Until the other side has had enough.
                while frame::read(&mut stream, FRAME_BYTES_MAX).await?.is_some() {}
            }
            Pace::Drip => {
                for byte in body {
                    stream.write_all(&[byte]).await?;
                    stream.flush().await?;
                    sleep(DRIP_EVERY).await;
                }
            }
        }
        stream.flush().await?;
    }
    Ok(())
}

/// Answers on every have stream.
pub(super) async fn haves(lie: Behavior, content: Arc<Content>, mut streams: mpsc::Receiver<(PeerId, Stream)>) {
    while let Some((peer, stream)) = streams.recv().await {
        let content = Arc::clone(&content);
        tokio::spawn(async move {
            if let Err(error) = on_have(lie, &content, stream).await {
                eprintln!("liar: {peer} had enough: {error:#}");
            }
        });
    }
}

async fn on_have(lie: Behavior, content: &Content, mut stream: Stream) -> anyhow::Result<()> {
    let Some(_) = frame::read(&mut stream, FRAME_BYTES_MAX).await? else { return Ok(()) };
    let (update, is_repeated) = lie.have(content);
    loop {
        frame::write(&mut stream, &update.to_bytes(), FRAME_BYTES_MAX).await?;
        stream.flush().await?;
        if !is_repeated {
            return Ok(());
        }
        sleep(HAVE_EVERY).await;
    }
}
