//! The end of an opening: records are made to agree with the files, and contents that lost theirs are taken in again.

use std::collections::HashSet;

use damselfly_messages::{hasher::ContentHasher, id::ContentId, manifest::Manifest, piece::PIECE_BYTES_MIN};

use super::{
    Inner, Opened, Store,
    changes::Changes,
    disk::{At, Folder},
    error::StoreError,
    io_error, lock, now,
    record::{ContentRecord, Held, Location},
    recover::Repair,
    repair::Salvaged,
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
                            let (added, adopted) = (now(), false);
                            changes.put_record(id, ContentRecord { bytes, state, added, location, adopted });
                        }
                        (Repair::Missing(_), Some(_)) => {}
                        (Repair::Forget, _) if changes.is_named(id) => {}
                        (Repair::Forget | Repair::Damaged, _) => changes.remove_content(id),
                    }
                }
                Ok(())
            })?;
        }
        if opened.index_lost.is_some() || opened.index_mended {
            opened.adopted = self.name_unnamed()?;
        }
        if !self.inner.index.is_adopting() {
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

    /// Commits again what is sound of a last commit that redb has left out because it is not whole.
    ///
    /// Whether it was torn by a power loss, and then nobody was told of it, or was damaged later: what it says was to be.
    pub(super) fn mend(&self, salvaged: Salvaged, adoptable: &[ContentId]) -> Result<(), StoreError> {
        let adoptable: HashSet<_> = adoptable.iter().copied().collect();
        self.inner.write(move |changes| {
            mend(changes, &salvaged, &adoptable);
            Ok(())
        })
    }

    /// Gives complete contents whose names were lost, while their records were not, their content IDs for names.
    fn name_unnamed(&self) -> Result<Vec<ContentId>, StoreError> {
        self.inner.write(|changes| {
            let contents = changes.base().contents.iter();
            let complete = contents.filter(|(_, content)| content.record.state == Held::Complete);
            let unnamed: Vec<_> = complete.map(|(id, content)| (*id, content.record.bytes)).collect();
            let unnamed: Vec<_> = unnamed.into_iter().filter(|(id, _)| !changes.is_named(*id)).collect();
            for (id, bytes) in &unnamed {
                changes.name_adopted(*id, *bytes, now())?;
            }
            Ok(unnamed.into_iter().map(|(id, _)| id).collect())
        })
    }

    /// Takes in a content that a lost index left without a record (see [`Opened::adoptable`]): hashes its file, and
    /// sets it aside if it is not what its name says. Whether it is held complete now.
    ///
    /// A content that no name is left of gets its content ID for a name, and is marked until it has another one.
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
                    changes.name_adopted(id, manifest.layout().content_bytes(), now())?;
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

fn mend(changes: &mut Changes<'_>, salvaged: &Salvaged, adoptable: &HashSet<ContentId>) {
    let gone: Vec<_> = changes.base().tasks.keys().filter(|task| salvaged.lacks(task)).copied().collect();
    for task in gone {
        changes.remove_task(&task);
    }
    for tombstone in salvaged.rows.tombstones.values().flatten() {
        changes.put_tombstone(*tombstone);
    }
    for manifest in salvaged.rows.manifests.values() {
        let id = manifest.content();
        let complete = salvaged.rows.contents.get(&id).and_then(Option::as_ref);
        if let Some(content) = complete.filter(|content| content.record.state == Held::Complete)
            && adoptable.contains(&id)
        {
            changes.put_content(manifest, Held::Complete, content.record.added);
        }
    }
    for task in salvaged.rows.tasks.values().flatten() {
        let content = task.binding.content;
        // The rest of a download that was not finished goes on as one.
        if adoptable.contains(&content) || changes.is_complete(content) {
            changes.put_recovered(task);
        }
    }
    for task in &salvaged.others {
        let content = task.binding.content;
        if adoptable.contains(&content) && !changes.is_named(content) {
            changes.put_recovered(task);
        }
    }
    for delete in salvaged.rows.queued_deletes.values().flatten() {
        changes.put_queued_delete(delete.clone());
    }
}

pub(super) fn hash_file(inner: &Inner, at: &At) -> Result<Manifest, StoreError> {
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
