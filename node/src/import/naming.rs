//! The last part of an import: the name is made to stand for the bytes here and at its owners, or nothing is changed.

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{ImportOutcome, Importer, interrupted};
use crate::{
    announcer::{AnnounceError, Claim},
    blocking::blocking,
    failure::{IntoFailure as _, OrFailure as _, conflict},
    schedulers::{Announced, Unanswered},
    store::{Imported, StoreError, TaskRecord, TaskState},
};
use damselfly_transport::local::{Code, Failure};

/// The last part of an import: the bytes are here, and the name is to stand for them.
pub(super) struct Naming {
    pub importer: Importer,
    pub claim: Claim,
    pub record: TaskRecord,
    /// What stood under the name.
    pub before: Option<TaskRecord>,
    pub cancelled: CancellationToken,
}

impl Naming {
    /// Commits, announces and tells how that ended; takes everything back when it is cancelled before that.
    pub async fn run(self, imported: Imported, result: oneshot::Sender<Result<ImportOutcome, Failure>>) {
        let importer = &self.importer;
        // It may have to be put back, also when it has no other name.
        let replaced = self.before.as_ref().map(|before| before.binding.content);
        let kept = replaced.map(|content| importer.store.keep(content));
        // Who asked may be gone.
        let tell = |outcome| drop(result.send(outcome));
        match importer.commit(imported, self.record.clone()).await {
            Ok(()) => self.announce(tell).await,
            Err(failure) => tell(Err(failure)),
        }
        drop(kept);
        if let Some(content) = replaced.filter(|content| *content != self.record.binding.content) {
            let store = importer.store.clone();
            if let Err(error) = blocking(move || store.drop_unnamed(content)).await {
                tracing::error!(%content, error = &error as &dyn std::error::Error, "cannot drop a content");
            }
        }
    }

    async fn announce(&self, tell: impl FnOnce(Result<ImportOutcome, Failure>)) {
        let (importer, task) = (&self.importer, self.record.task_id());
        let announcing = importer.announcer.announce_record(&self.claim, self.record.clone(), true);
        tokio::pin!(announcing);
        let announced = tokio::select! {
            biased;
            announced = &mut announcing => announced,
            () = self.cancelled.cancelled() => {
                let undone = importer.undo(&self.record, self.before.as_ref()).await;
                tell(undone.and(Err(interrupted())));
                // An owner may have it already, or hear of it in a moment: when that is known, it is told otherwise.
                if let Ok(Announced::Accepted(binding)) = announcing.await
                    && importer.store.task(&task).is_none_or(|stands| stands.binding.content != binding.content)
                {
                    importer.announcer.leave(task).await;
                }
                return;
            }
        };
        tell(importer.conclude(self.record.clone(), self.before.as_ref(), announced).await);
    }
}

impl Importer {
    async fn commit(&self, imported: Imported, record: TaskRecord) -> Result<(), Failure> {
        let committed = blocking(move || imported.commit(vec![record])).await;
        committed.map(drop).map_err(|error| match error {
            StoreError::Buried(_) => {
                Failure::new(Code::Failed, "the task was deleted while it was imported").with_hint("import it again")
            }
            error => error.into_failure(),
        })
    }

    /// Tells the user what became of the announcement, and undoes the import when the name stands for other bytes.
    async fn conclude(
        &self,
        mut record: TaskRecord,
        before: Option<&TaskRecord>,
        announced: Result<Announced, AnnounceError>,
    ) -> Result<ImportOutcome, Failure> {
        match announced {
            Ok(Announced::Accepted(binding)) => {
                record.binding = binding;
                record.state = TaskState::Acknowledged;
                Ok(ImportOutcome { record, announced: true })
            }
            Ok(Announced::Conflict(winner)) => {
                self.undo(&record, before).await?;
                Err(conflict(&winner))
            }
            Ok(Announced::Buried(tombstone)) => {
                self.announcer.bury(tombstone).await.or_failure()?;
                Err(Failure::new(Code::Failed, "the task was deleted while it was imported")
                    .with_hint("import it again"))
            }
            Ok(Announced::Refused(reason)) => {
                self.undo(&record, before).await?;
                // They may have heard of it just before this host.
                self.settings.permit_tag(record.name.tag())?;
                Err(Failure::new(Code::Failed, format!("the schedulers refuse the import: {reason}")))
            }
            // There is nobody to tell; the outbox does when the host has joined.
            Err(AnnounceError::Unanswered(Unanswered::NoCluster)) => Ok(ImportOutcome { record, announced: false }),
            Err(AnnounceError::Unanswered(unanswered)) => {
                let why = unanswered.to_string();
                let failure = unanswered.into_failure();
                let content = record.binding.content;
                let message = format!("{content} is kept, its announcement is queued: {why}");
                Err(Failure { message, ..failure })
            }
            Err(AnnounceError::Dropped) => {
                Err(Failure::new(Code::Failed, "the task was deleted while it was imported")
                    .with_hint("import it again"))
            }
            Err(AnnounceError::Store(error)) => Err(error.into_failure()),
        }
    }

    /// Puts back what stood under the name.
    pub(super) async fn undo(&self, record: &TaskRecord, before: Option<&TaskRecord>) -> Result<(), Failure> {
        let (store, task, before) = (self.store.clone(), record.task_id(), before.cloned());
        blocking(move || {
            match before.map(|before| store.put_task(before)) {
                // It was deleted meanwhile, or its bytes are lost: then there is nothing to put back.
                None | Some(Err(StoreError::Buried(_) | StoreError::NotHeld(_))) => store.remove_task(&task).map(drop),
                Some(done) => done,
            }
        })
        .await
        .or_failure()
    }
}
