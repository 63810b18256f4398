//! Contents that stay for a while although no name is left: who replaces a name may have to put it back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use damselfly_messages::id::ContentId;

use super::{Inner, Store, error::StoreError, lock};

/// How often each content is kept.
#[derive(Default)]
pub(super) struct KeptContents(Mutex<HashMap<ContentId, usize>>);

impl KeptContents {
    pub fn contains(&self, id: ContentId) -> bool {
        lock(&self.0).contains_key(&id)
    }
}

/// A content that is not dropped with its last name as long as this lives.
///
/// Dropping this drops no content: see [`Store::drop_unnamed`]. What is forgotten there counts as abandoned later.
pub struct Kept {
    store: Arc<Inner>,
    id: ContentId,
}

impl Store {
    /// Keeps a content even when it loses its last name.
    pub fn keep(&self, id: ContentId) -> Kept {
        *lock(&self.inner.kept.0).entry(id).or_default() += 1;
        Kept { store: self.inner.clone(), id }
    }

    /// Drops a content that has no name and is not kept.
    ///
    /// # Errors
    /// [`StoreError`] when it could not be made durable.
    pub fn drop_unnamed(&self, id: ContentId) -> Result<(), StoreError> {
        self.inner.write(move |changes| {
            changes.drop_unnamed(id);
            Ok(())
        })
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut kept = lock(&self.store.kept.0);
        if let Some(times) = kept.get_mut(&self.id) {
            *times -= 1;
            if *times == 0 {
                kept.remove(&self.id);
            }
        }
    }
}
