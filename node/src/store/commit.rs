//! Group commit: changes that come while one is being made durable share the next sync.

use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};

use damselfly_messages::id::ContentId;

use super::{
    Inner, Temporary,
    changes::Changes,
    disk::{At, Folder},
    error::StoreError,
    index::index_file,
    io_error, lock,
    pages::Image,
    record::Held,
    reindex::hash_file,
    repair::{Kept, kept},
    state::Overlay,
};

/// Kept for deletes on a full disk: several times what a commit writes.
const RESERVE_BYTES: u64 = 4 << 20;

fn reserve_file() -> At {
    Folder::Root.at("index.redb.reserve")
}

type Outcome = Result<(), Arc<StoreError>>;
/// Makes its change, and returns what tells its caller how the commit went.
type Request = Box<dyn FnOnce(&mut Changes<'_>) -> Box<dyn FnOnce(&Outcome) + Send> + Send>;

#[derive(Default)]
pub(super) struct Committer {
    waiting: Mutex<Vec<Request>>,
    /// Whether a thread commits for all that wait.
    led: Mutex<bool>,
    /// Told whenever such a thread is done.
    done: Condvar,
}

/// The one thread that commits; dropping it lets the next one do it.
struct Leader<'a>(&'a Committer);

impl Drop for Leader<'_> {
    fn drop(&mut self) {
        *lock(&self.0.led) = false;
        self.0.done.notify_all();
    }
}

impl Committer {
    /// Waits until this thread leads, or `answered` has an answer because another one did.
    fn lead<R>(&self, answered: &mpsc::Receiver<R>) -> Result<Leader<'_>, R> {
        let mut led = lock(&self.led);
        loop {
            if let Ok(answer) = answered.try_recv() {
                return Err(answer);
            }
            if !*led {
                *led = true;
                return Ok(Leader(self));
            }
            led = self.done.wait(led).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Inner {
    /// Makes a change durable, together with those of other threads; one sync for all of them.
    ///
    /// `change` sees the changes before it and does all or nothing. In memory it is seen once it is durable.
    pub fn write<R: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Changes<'_>) -> Result<R, StoreError> + Send + 'static,
    ) -> Result<R, StoreError> {
        let (answer, answered) = mpsc::sync_channel(1);
        let request: Request = Box::new(move |changes| {
            let result = changes.attempt(change);
            Box::new(move |outcome| {
                let committed = outcome.clone().map_err(StoreError::Commit);
                // The caller waits below.
                let _ = answer.send(result.and_then(|value| committed.map(|()| value)));
            })
        });
        lock(&self.committer.waiting).push(request);
        let unlinked = match self.committer.lead(&answered) {
            Ok(_leader) => self.commit_waiting(),
            Err(answer) => return answer,
        };
        let freed = !unlinked.is_empty();
        // Long files take long to unlink, so the others need not wait for it.
        for at in unlinked {
            if let Err(error) = self.disk.remove(&at) {
                tracing::warn!(file = %at, %error, "a dropped content was not unlinked; the next start does it");
            }
        }
        if freed {
            self.keep_reserve();
        }
        answered.recv().unwrap_or(Err(StoreError::Index(Box::new(redb::Error::DatabaseClosed))))
    }

    /// Commits all that wait; returns the files that are to be unlinked.
    fn commit_waiting(&self) -> Vec<At> {
        let requests = std::mem::take(&mut *lock(&self.committer.waiting));
        let (overlay, answers) = {
            let state = self.state();
            let mut changes = Changes::new(&state, &self.disk, &self.serials, &self.kept);
            let answers: Vec<_> = requests.into_iter().map(|request| request(&mut changes)).collect();
            (changes.into_overlay(), answers)
        };
        let (outcome, unlinked) = match self.make_durable_on_a_full_disk(&overlay) {
            Ok(()) => (Ok(()), self.take_over(overlay)),
            Err(error) => {
                if let Err(error) = self.reload() {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "the index cannot be written; the next change tries again"
                    );
                }
                (Err(Arc::new(error)), Vec::new())
            }
        };
        for answer in answers {
            answer(&outcome);
        }
        unlinked
    }

    /// What removes something makes room for itself when there is none.
    fn make_durable_on_a_full_disk(&self, overlay: &Overlay) -> Result<(), StoreError> {
        let full = match self.make_durable(overlay) {
            Err(error) if error.is_no_space() && overlay.removes() => error,
            outcome => return outcome,
        };
        if self.disk.remove(&reserve_file()).is_ok() {
            tracing::warn!("the disk is full: a delete takes the reserve of the index");
            self.reload()?;
            match self.make_durable(overlay) {
                Err(error) if error.is_no_space() => {}
                outcome => return outcome,
            }
        }
        // The content itself is what there is to give. Should this end before the commit, its name is left, damaged.
        let dropped = overlay.contents.iter().filter(|(_, content)| content.is_none());
        let folders = [Folder::Contents, Folder::Damaged, Folder::Partial];
        let files = dropped.flat_map(|(id, _)| folders.map(|folder| folder.of(*id)));
        if files.filter(|at| self.disk.remove(at).is_ok()).count() == 0 {
            return Err(full);
        }
        self.reload()?;
        self.make_durable(overlay)
    }

    /// Makes the reserve that deletes use on a full disk, if it is not there and there is room for it.
    pub fn keep_reserve(&self) {
        let at = reserve_file();
        if self.disk.open(&at, false).is_ok() || self.check_space(2 * RESERVE_BYTES).is_err() {
            return;
        }
        let made = self.disk.create(&at).and_then(|file| file.allocate(RESERVE_BYTES));
        if let Err(error) = made {
            drop(self.disk.remove(&at));
            tracing::warn!(%error, "no room for the reserve that deletes use on a full disk");
        }
    }

    fn make_durable(&self, overlay: &Overlay) -> Result<(), StoreError> {
        if overlay.sync_contents {
            self.disk.sync_folder(Folder::Contents).map_err(io_error("sync", &Folder::Contents.at("")))?;
        }
        if overlay.is_empty() {
            return Ok(());
        }
        if self.index.is_closed() {
            self.reload()?;
        }
        self.index.commit(overlay)
    }

    /// Shows durable changes to everybody, and moves files to where they say.
    fn take_over(&self, overlay: Overlay) -> Vec<At> {
        let mut moves: Vec<(ContentId, Folder, Folder)> = Vec::new();
        let mut state = self.state_mut();
        let concerned = state.concerned(&overlay);
        for (id, content) in &overlay.contents {
            let from: &[Folder] = match content.as_ref().map(|content| &content.record.state) {
                None => &[Folder::Contents, Folder::Damaged, Folder::Partial],
                // Bytes that came another way make the old attempts useless.
                Some(Held::Complete) if state.contents.contains_key(id) => &[Folder::Damaged, Folder::Partial],
                Some(Held::Complete | Held::Partial(_)) => &[],
                Some(Held::Damaged) => {
                    moves.push((*id, Folder::Contents, Folder::Damaged));
                    &[]
                }
            };
            moves.extend(from.iter().map(|from| (*id, *from, Folder::Incoming)));
        }
        let changed: Vec<_> = overlay.contents.keys().copied().collect();
        let touched: Vec<_> = overlay.tasks.keys().copied().collect();
        state.apply(overlay);
        for task in touched {
            state.touched.remove(&task);
        }
        drop(state);
        // After the state has changed: a reader that is opened from now on sees it.
        let mut readers = lock(&self.readers);
        changed.iter().for_each(|id| drop(readers.remove(id)));
        drop(readers);
        // A manifest that was claimed for an unfinished content may have been a wrong one.
        let mut manifests = lock(&self.manifests);
        changed.iter().for_each(|id| manifests.forget(*id));
        drop(manifests);
        self.tell(&concerned);
        moves.into_iter().filter_map(|(id, from, to)| self.move_content(id, from, to)).collect()
    }

    /// Moves a content's file if it is there; returns it when it is to be unlinked.
    fn move_content(&self, id: ContentId, from: Folder, to: Folder) -> Option<At> {
        let under_way = lock(&self.under_way);
        if from == Folder::Partial && under_way.contains_key(&id) {
            return None;
        }
        let target = if to == Folder::Incoming { self.temporary(Temporary::Gone) } else { to.of(id) };
        match self.disk.rename(&from.of(id), &target) {
            Ok(()) => (to == Folder::Incoming).then_some(target),
            Err(error) => {
                if error.kind() != std::io::ErrorKind::NotFound {
                    tracing::warn!(file = %from.of(id), %error, "cannot be moved; the next start does it");
                }
                None
            }
        }
    }

    /// Makes a new index of what memory knows, which is what the last good commit left: after a failed sync the file on
    /// the disk is not what reading it gives.
    fn rebuild(&self) -> Result<(), StoreError> {
        let mut rows = self.state().to_overlay();
        let image = Image::read(&self.disk, &index_file()).map_err(io_error("read", &index_file()))?;
        let stored = rows.contents.iter().filter_map(|(id, content)| Some((*id, content.as_ref()?.record.bytes)));
        let Kept { manifests, meta } = kept(&image, stored);
        rows.manifests = manifests;
        rows.meta = meta;
        for (id, content) in &mut rows.contents {
            let Some(content) = content.as_mut().filter(|content| content.record.state == Held::Complete) else {
                continue;
            };
            if rows.manifests.contains_key(id) {
                continue;
            }
            let manifest = hash_file(self, &Folder::Contents.of(*id))?;
            if manifest.content() == *id {
                rows.manifests.insert(*id, manifest);
            } else {
                content.record.state = Held::Damaged;
            }
        }
        self.index.replace(&rows)?;
        tracing::error!("a sync of the index has failed; a new index was written and has replaced it");
        Ok(())
    }

    /// Reads the index anew after a commit whose outcome is not known.
    fn reload(&self) -> Result<(), StoreError> {
        if self.index.has_failed() {
            return self.rebuild();
        }
        self.index.reopen()?;
        let (mut loaded, _) = self.index.load()?;
        let mut state = self.state_mut();
        for (id, content) in &mut loaded.contents {
            content.serial = match state.contents.get(id) {
                Some(old) if old.record.state == content.record.state => old.serial,
                _ => self.serials.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
            };
        }
        let before = std::mem::replace(&mut *state, loaded);
        for task in &before.touched {
            if let Some(old) = before.tasks.get(task) {
                state.touch(task, old.last_used);
            }
        }
        let concerned = before.known().chain(state.known()).collect();
        drop(state);
        self.tell(&concerned);
        Ok(())
    }
}
