//! Into a pipe: in order, and never stuck when the reader stalls.

use damselfly_messages::piece::{PieceIndex, PieceLayout};

use super::{
    local::{CopyError, count, write_failed},
    target::Output,
    *,
};
use crate::pipes;

impl Exporter {
    pub(super) async fn copy_to_pipe(&self, reader: Arc<Reader>, target: &Target) -> Result<(), CopyError> {
        for index in left(&reader.manifest().layout(), &target.output) {
            target.limiter.pass(reader.manifest().layout().bytes(index)).await;
            let (reader, output, progress) = (reader.clone(), target.output.clone(), target.progress.clone());
            blocking(move || {
                let mut buffer = Vec::new();
                reader.read(index, &mut buffer).map_err(CopyError::Read)?;
                write_to_pipe(&output, reader.manifest().layout().offset(index), &buffer, &progress)
            })
            .await?;
        }
        Ok(())
    }
}

/// The pieces that are not all out yet.
pub(super) fn left(layout: &PieceLayout, output: &Output) -> impl Iterator<Item = PieceIndex> + use<> {
    let (layout, piped) = (*layout, output.piped());
    layout.indices().filter(move |index| layout.range(*index).end > piped)
}

/// Writes of `bytes`, which begin at `offset` of the content, what is not out yet; blocks, but not beyond the wish for it.
pub(super) fn write_to_pipe(
    output: &Output,
    offset: u64,
    bytes: &[u8],
    progress: &ExportProgress,
) -> Result<(), CopyError> {
    let out = usize::try_from(output.piped().saturating_sub(offset)).unwrap_or(usize::MAX);
    let mut rest = bytes.get(out..).unwrap_or_default();
    while !rest.is_empty() {
        count(progress, 0)?;
        match pipes::write(output, rest) {
            Ok(None) => {}
            Ok(Some(written)) => {
                output.add_piped(written);
                rest = &rest[written..];
            }
            Err(error) => return Err(CopyError::Write(write_failed(&error))),
        }
    }
    progress.bytes.store(output.piped(), Ordering::Relaxed);
    Ok(())
}
