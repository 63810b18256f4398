//! What users are told when an operation fails.

use damselfly_messages::{record::Binding, wire::Invalid};
pub use damselfly_transport::error_chain::chain;
use damselfly_transport::local::{Code, Failure, is_limit};

use crate::{
    download::FetchError,
    schedulers::Unanswered,
    store::{ImportError, ReadError, StoreError},
};

/// What to do about a full store.
pub const QUOTA_HINT: &str = "delete or unpin entries of this host, or raise store_quota_bytes";

/// Turns an internal error into what a user is told.
pub trait OrFailure<T> {
    /// The value, or the failure.
    fn or_failure(self) -> Result<T, Failure>;
}

impl<T, E: IntoFailure> OrFailure<T> for Result<T, E> {
    fn or_failure(self) -> Result<T, Failure> {
        self.map_err(IntoFailure::into_failure)
    }
}

/// An error that a user can be told.
pub trait IntoFailure {
    /// Its code, one sentence and, where there is one, what to do.
    fn into_failure(self) -> Failure;
}

impl IntoFailure for Invalid {
    fn into_failure(self) -> Failure {
        Failure::new(Code::Usage, self.to_string())
            .with_hint("a cid is 1 to 1024 bytes of UTF-8, or a digest such as sha256:<64 hex digits>")
    }
}

impl IntoFailure for Unanswered {
    fn into_failure(self) -> Failure {
        let hint = match &self {
            // What is not here is nowhere then: there is nobody else to ask.
            Self::NoCluster => {
                return not_found("there is no local copy, and this host is not a member of a cluster").with_hint(
                    "to find what others hold, start the daemon once with --join and a token of the manager",
                );
            }
            Self::NoScheduler(_) => "see which schedulers are reachable with dfcache health",
            Self::Cold | Self::Busy => "try again in a few seconds",
        };
        Failure::new(Code::NoSource, self.to_string()).with_hint(hint)
    }
}

impl IntoFailure for StoreError {
    fn into_failure(self) -> Failure {
        let hint = "free some space on the file system of the store";
        match self {
            Self::OverQuota { .. } => Failure::new(Code::NoSpace, self.to_string()).with_hint(QUOTA_HINT),
            // The store and its files say nothing to a user; the limit does.
            error if error.io_error().is_some_and(is_limit) => limit_failure(&error),
            error if error.is_no_space() => Failure::new(Code::NoSpace, error.to_string()).with_hint(hint),
            Self::Bound(record) => conflict(&record.binding),
            error => Failure::new(Code::Failed, chain(&error)),
        }
    }
}

impl IntoFailure for ImportError {
    fn into_failure(self) -> Failure {
        match self {
            Self::Store(error) => error.into_failure(),
            Self::Stopped => Failure::new(Code::Interrupted, "the import was interrupted; nothing is kept"),
            // dfcache puts in the names.
            Self::SourceChanged => Failure::new(Code::Failed, self.to_string()).with_hint(
                "import it again when nobody writes to it, or take what there is now: `cat FILE | dfcache import -i CID -`",
            ),
            Self::SourceKind(_) => Failure::new(Code::Failed, self.to_string())
                .with_hint("pack a directory first, for instance tar c DIR | dfcache import -"),
            error => Failure::new(Code::Failed, chain(&error)),
        }
    }
}

impl IntoFailure for ReadError {
    fn into_failure(self) -> Failure {
        let failure = Failure::new(Code::Failed, chain(&self));
        match self {
            Self::Damaged { .. } => {
                failure.with_hint("the local copy is damaged; export without --local to fetch it from another host")
            }
            Self::NotHeld(_) | Self::Io(_) => failure,
        }
    }
}

impl IntoFailure for FetchError {
    fn into_failure(self) -> Failure {
        let (code, hint) = match &self {
            Self::NoSource(_) => (Code::NoSource, "what was fetched is kept; try again when a holder is back"),
            Self::Stalled(_) => (Code::Timeout, "what was fetched is kept; try again"),
            Self::FalseManifest(_) | Self::Abandoned => (Code::Failed, "try again"),
            Self::NoSpace => (Code::NoSpace, "free some space on the file system of the store"),
            Self::OverQuota(_) => (Code::NoSpace, QUOTA_HINT),
            Self::Limit(failure) => return failure.clone(),
            Self::Store(_) => (Code::Failed, "see the daemon's log"),
        };
        Failure::new(code, self.to_string()).with_hint(hint)
    }
}

/// A limit of the daemon's process is why the store failed.
pub fn limit_failure(error: &StoreError) -> Failure {
    match error.io_error() {
        Some(source) => Failure::io(error, source),
        None => Failure::new(Code::Failed, chain(error)),
    }
}

/// The name stands for other bytes.
pub fn conflict(bound: &Binding) -> Failure {
    Failure::new(Code::Conflict, format!("the name is bound to other bytes: {}", bound.content))
        .with_hint("choose another cid or tag, or delete the task first")
}

/// There is no such task.
pub fn not_found(message: impl Into<String>) -> Failure {
    Failure::new(Code::NotFound, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_nobody_to_ask_finds_nothing() {
        let table = [
            (Unanswered::NoCluster, Code::NotFound, "there are no others"),
            (Unanswered::NoScheduler("connection refused".into()), Code::NoSource, "others may know"),
            (Unanswered::Cold, Code::NoSource, "they will know"),
            (Unanswered::Busy, Code::NoSource, "they will be asked"),
        ];
        for (unanswered, code, why) in table {
            let failure = unanswered.into_failure();
            assert!(failure.code == code && failure.hint.is_some(), "{why}: {failure:?}");
        }
    }
}
