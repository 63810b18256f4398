//! Imports: bytes from outside become a content and a task.

use std::{fmt, fs::File, sync::Arc};

use damselfly_messages::manifest::Manifest;

use super::{
    Inner, Store, Temporary,
    copy::{Input, OnProgress, Sums, copy, go_on},
    disk::{At, DiskFile},
    error::{ImportError, StoreError, out_of_space},
    io_error, now,
    quota::Reserved,
    record::TaskRecord,
};

/// How often the free space is looked at.
const SPACE_CHECK_BYTES: u64 = 64 << 20;

/// An import that has begun: an empty file in the store. Dropping it removes the file.
#[derive(Debug)]
pub struct Import {
    file: Incoming,
    sha256: bool,
}

/// Bytes that are in the store but not yet part of it: decide about the name, then commit or drop.
#[derive(Debug)]
pub struct Imported {
    file: Incoming,
    /// Until the content is part of the store, which counts it then.
    _reserved: Reserved,
    manifest: Manifest,
    sha256: Option<[u8; 32]>,
}

/// A file in `incoming/` that goes with its owner.
struct Incoming {
    at: At,
    file: DiskFile,
    store: Arc<Inner>,
}

impl Store {
    /// Begins an import of `bytes_hint` bytes, as far as that is known.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] when so many bytes would break the free-space floor.
    pub fn begin_import(&self, bytes_hint: Option<u64>) -> Result<Import, StoreError> {
        self.inner.check_space(bytes_hint.unwrap_or(0))?;
        let at = self.inner.temporary(Temporary::Import);
        let file = self.inner.disk.create(&at).map_err(io_error("create", &at))?;
        Ok(Import { file: Incoming { at, file, store: self.inner.clone() }, sha256: false })
    }
}

impl Import {
    /// Makes the SHA-256 too, at a third of the speed: for names that are one.
    pub const fn with_sha256(mut self) -> Self {
        self.sha256 = true;
        self
    }

    /// Takes all bytes of `source` in one pass: a regular file from its beginning, a pipe to its end.
    ///
    /// `progress` is called with the bytes so far, after each 256 KiB or so and while a pipe is waited for. What is longer than 64 MiB is synced on the
    /// side; durable it is only after [`Imported::commit`].
    ///
    /// # Errors
    /// [`ImportError`]; nothing is kept.
    pub fn copy_from(self, source: impl Into<File>, progress: OnProgress<'_>) -> Result<Imported, ImportError> {
        let Self { file, sha256 } = self;
        let mut input = Input::new(source.into())?;
        let mut reserved = Reserved::new(file.store.clone());
        if let Some(bytes) = input.bytes() {
            reserved.grow_to(bytes)?;
            file.store.check_space(input.data_bytes().unwrap_or(bytes))?;
        }
        let mut sums = Sums::new(sha256);
        let mut checked = 0;
        let mut step = |bytes: u64| {
            reserved.grow_to(bytes)?;
            if bytes - checked >= SPACE_CHECK_BYTES {
                checked = bytes;
                file.store.check_space(0)?;
            }
            go_on(progress(bytes))
        };
        if input.bytes().is_some_and(|bytes| bytes > 0) && file.file.clone_from(input.file()) {
            // The clone is a snapshot; only a change while it was made matters, and reading it checks its length.
            let clone = file.file.reopened().map_err(io_error("open", &file.at))?;
            copy(&mut Input::new(clone)?, None, &mut sums, &file.store.buffers, &mut step)?;
        } else {
            copy(&mut input, Some(&file.file), &mut sums, &file.store.buffers, &mut step)
                .map_err(|error| file.explain(error))?;
        }
        input.check_unchanged(sums.content_bytes())?;
        let (manifest, sha256) = sums.finish();
        Ok(Imported { file, _reserved: reserved, manifest, sha256 })
    }
}

impl Imported {
    /// The content.
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Its SHA-256, if [`Import::with_sha256`] asked for it.
    pub const fn sha256(&self) -> Option<&[u8; 32]> {
        self.sha256.as_ref()
    }

    /// Makes the content part of the store and binds `tasks` to it, all in one commit.
    ///
    /// Durable when it returns: three syncs (data, folder, index), of which imports at the same time share two; one when
    /// the content is held already. The first commit after an opening takes one more.
    ///
    /// # Errors
    /// [`StoreError::Bound`], [`StoreError::Buried`] as in [`Store::bind`]: nothing changed, nothing is kept.
    pub fn commit(self, tasks: Vec<TaskRecord>) -> Result<Manifest, StoreError> {
        let Self { file, manifest, .. } = self;
        let (id, store, committed) = (manifest.content(), file.store.clone(), manifest.clone());
        let new = !store.is_complete(id);
        if new {
            file.sync()?;
        }
        store.write(move |changes| {
            if !new && !changes.is_complete(id) {
                // It was dropped just now.
                file.sync()?;
            }
            changes.complete(&manifest, &file.at, tasks, now())
        })?;
        Ok(committed)
    }
}

impl Incoming {
    fn sync(&self) -> Result<(), StoreError> {
        self.file.sync().map_err(io_error("sync", &self.at))
    }

    /// Tells a full disk as such.
    fn explain(&self, error: ImportError) -> ImportError {
        match error {
            ImportError::Store(StoreError::Io { source, .. }) if out_of_space(&source) => {
                let (free, floor) = (self.store.disk.free_bytes().unwrap_or(0), self.store.options.free_space_floor);
                StoreError::NoSpace { needed: 0, free, floor }.into()
            }
            other => other,
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // After a commit it has moved; anything else is cleaned up at the next start.
        let _ = self.store.disk.remove(&self.at);
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.at.fmt(f)
    }
}
