//! The end of an opening: records are made to agree with the files, and contents that lost theirs are taken in again.

use damselfly_messages::{hasher::ContentHasher, id::ContentId, manifest::Manifest, piece::PIECE_BYTES_MIN};

use super::{
    Inner, Opened, Store,
    disk::{At, Folder},
    error::StoreError,
    io_error, lock, now,
    record::{ContentRecord, Held, Location},
    recover::Repair,
};

impl Store {
    /// Makes the index agree with the files, and adopts what there is to adopt.
    pub(super) fn put_right(
        &self,
        mut opened: Opened,
        repairs: Vec<(ContentId, Repair)>,
    ) -> Result<Opened, StoreError> {
        if !repairs.is_empty() {
            self.inner.write(move |changes| {
                for (id, repair) in repairs {
                    match (repair, changes.content(id).map(|content| content.record.clone())) {
                        (Repair::Damaged, Some(record)) => {
                            changes.put_record(id, ContentRecord { state: Held::Damaged, ..record });
                        }
                        (Repair::Missing(bytes), None) => {
                            let (state, location) = (Held::Damaged, Location::Store);
                            changes.put_record(id, ContentRecord { bytes, state, added: now(), location });
                        }
                        (Repair::Missing(_), Some(_)) => {}
                        (Repair::Forget | Repair::Damaged, _) => changes.remove_content(id),
                    }
                }
                Ok(())
            })?;
        }
        if !self.inner.index.is_adopting()? {
            return Ok(opened);
        }
        let mut bytes_left = self.inner.options.adopt_bytes;
        let mut found = std::mem::take(&mut opened.adoptable);
        *lock(&self.inner.adoptable) = found.iter().copied().collect();
        if found.is_empty() {
            self.inner.index.end_adopting()?;
        }
        while let Some(id) = found.pop() {
            if bytes_left == 0 {
                found.push(id);
                break;
            }
            if self.adopt(id)? {
                opened.adopted.push(id);
                let adopted = self.inner.state().contents.get(&id).map_or(0, |content| content.record.bytes);
                bytes_left = bytes_left.saturating_sub(adopted.max(1));
            } else {
                opened.set_aside.push(Folder::Contents.of(id).to_string());
            }
        }
        opened.adoptable = found;
        Ok(opened)
    }

    /// Takes in a content that a lost index left without a record (see [`Opened::adoptable`]): hashes its file, and
    /// sets it aside if it is not what its name says. Whether it is held complete now.
    ///
    /// # Errors
    /// [`StoreError`] when the file cannot be read or the index not be written; it can be tried again.
    pub fn adopt(&self, id: ContentId) -> Result<bool, StoreError> {
        let inner = &self.inner;
        if !lock(&inner.adoptable).contains(&id) {
            return Ok(inner.is_complete(id));
        }
        let at = Folder::Contents.of(id);
        if !inner.is_complete(id) {
            let manifest = hash_file(inner, &at)?;
            inner.write(move |changes| {
                if manifest.content() == id && !changes.is_complete(id) {
                    changes.put_content(&manifest, Held::Complete, now());
                }
                Ok(())
            })?;
        }
        if !inner.is_complete(id) {
            inner.disk.rename(&at, &Folder::Damaged.of(id)).map_err(io_error("set aside", &at))?;
        }
        let mut adoptable = lock(&inner.adoptable);
        adoptable.remove(&id);
        if adoptable.is_empty() {
            inner.index.end_adopting()?;
        }
        Ok(inner.is_complete(id))
    }
}

fn hash_file(inner: &Inner, at: &At) -> Result<Manifest, StoreError> {
    let file = inner.disk.open(at, false).map_err(io_error("open", at))?;
    let bytes = file.len().map_err(io_error("look at", at))?;
    let mut hasher = ContentHasher::new();
    let mut buffer = vec![0; PIECE_BYTES_MIN as usize];
    while hasher.content_bytes() < bytes {
        let left = (bytes - hasher.content_bytes()).min(buffer.len() as u64) as usize;
        file.read_at(&mut buffer[..left], hasher.content_bytes()).map_err(io_error("read", at))?;
        hasher.update(&buffer[..left])?;
    }
    Ok(hasher.finish())
}
