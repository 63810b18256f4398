//! What can go wrong, in the words that users and tests hold on to.

use std::collections::HashMap;
use std::io;

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt};

/// Domain of the `ErrorInfo` in the details of a status.
const DOMAIN: &str = "damselfly";
/// Key of the hint in the metadata of that `ErrorInfo`.
const HINT: &str = "hint";
/// Message and hint travel in HTTP/2 headers, percent-encoded and in base64, and those are small.
const MAX_TEXT_BYTES: usize = 1024;

/// The reasons a command fails; the only place that knows exit codes, names and gRPC codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// Another failure.
    Failed,
    /// Wrong usage, or an option that is not built yet.
    Usage,
    /// No such task or content.
    NotFound,
    /// The daemon does not answer. Only a client says this.
    Unreachable,
    /// The content does not match its digest.
    Digest,
    /// The name is bound to other bytes.
    Conflict,
    /// Not permitted.
    Permission,
    /// No scheduler or holder is reachable.
    NoSource,
    /// Out of time.
    Timeout,
    /// No space, a quota, or too many at once.
    NoSpace,
    /// The caller ended it.
    Interrupted,
}

impl Code {
    /// Every code, in the order of [`Code::exit`].
    pub const ALL: [Self; 11] = [
        Self::Failed,
        Self::Usage,
        Self::NotFound,
        Self::Unreachable,
        Self::Digest,
        Self::Conflict,
        Self::Permission,
        Self::NoSource,
        Self::Timeout,
        Self::NoSpace,
        Self::Interrupted,
    ];

    /// Exit code of a command that fails with this.
    pub const fn exit(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Unreachable => 4,
            Self::Digest => 5,
            Self::Conflict => 6,
            Self::Permission => 7,
            Self::NoSource => 8,
            Self::Timeout => 9,
            Self::NoSpace => 10,
            Self::Interrupted => 130,
        }
    }

    /// Name in JSON and in the details of a status.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::NotFound => "not_found",
            Self::Unreachable => "daemon_unreachable",
            Self::Digest => "digest_mismatch",
            Self::Conflict => "conflict",
            Self::Permission => "permission_denied",
            Self::NoSource => "unavailable",
            Self::Timeout => "timed_out",
            Self::NoSpace => "no_space",
            Self::Interrupted => "interrupted",
        }
    }

    /// What the table in `dfcache --help` says about it.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Failed => "other failure",
            Self::Usage => "wrong usage",
            Self::NotFound => "not found",
            Self::Unreachable => "daemon not reachable",
            Self::Digest => "content does not match its digest",
            Self::Conflict => "conflict: the name is bound to other bytes",
            Self::Permission => "not permitted",
            Self::NoSource => "no scheduler or holder reachable",
            Self::Timeout => "timed out",
            Self::NoSpace => "no space or quota",
            Self::Interrupted => "interrupted",
        }
    }

    /// What usually helps, for a failure that has no better hint of its own.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::Failed => "try again; the daemon's log may say more",
            Self::Usage => "see `dfcache --help`",
            Self::NotFound => "check the cid and the tag; `dfcache ls` lists what this host holds",
            Self::Unreachable => "see whether the daemon runs with `dfcache health`",
            Self::Digest => "check the file, and the digest in the cid",
            Self::Conflict => "choose another cid or tag, or delete the task first",
            Self::Permission => "check the permissions, or do it as a user who has them",
            Self::NoSource => "see which schedulers are reachable with `dfcache health`",
            Self::Timeout => "try again, or give it more time with --timeout",
            Self::NoSpace => "free some space, or try again later",
            Self::Interrupted => "it can be run again at any time",
        }
    }

    /// The code with this exit code.
    pub fn from_exit(exit: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.exit() == exit)
    }

    /// The code with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.name() == name)
    }

    /// The gRPC code that carries it.
    pub const fn to_grpc(self) -> tonic::Code {
        match self {
            Self::Failed => tonic::Code::Unknown,
            Self::Usage => tonic::Code::InvalidArgument,
            Self::NotFound => tonic::Code::NotFound,
            Self::Unreachable | Self::NoSource => tonic::Code::Unavailable,
            Self::Digest => tonic::Code::DataLoss,
            Self::Conflict => tonic::Code::AlreadyExists,
            Self::Permission => tonic::Code::PermissionDenied,
            Self::Timeout => tonic::Code::DeadlineExceeded,
            Self::NoSpace => tonic::Code::ResourceExhausted,
            Self::Interrupted => tonic::Code::Cancelled,
        }
    }

    /// What a gRPC code means when there are no details.
    pub const fn from_grpc(code: tonic::Code) -> Self {
        match code {
            tonic::Code::InvalidArgument => Self::Usage,
            tonic::Code::NotFound => Self::NotFound,
            tonic::Code::DataLoss => Self::Digest,
            tonic::Code::AlreadyExists => Self::Conflict,
            tonic::Code::PermissionDenied | tonic::Code::Unauthenticated => Self::Permission,
            tonic::Code::Unavailable => Self::NoSource,
            tonic::Code::DeadlineExceeded => Self::Timeout,
            tonic::Code::ResourceExhausted => Self::NoSpace,
            tonic::Code::Cancelled => Self::Interrupted,
            tonic::Code::Ok
            | tonic::Code::Unknown
            | tonic::Code::FailedPrecondition
            | tonic::Code::Aborted
            | tonic::Code::OutOfRange
            | tonic::Code::Unimplemented
            | tonic::Code::Internal => Self::Failed,
        }
    }
}

/// A failure as a person gets it: what kind, what happened, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What kind.
    pub code: Code,
    /// One sentence, without a full stop.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure without a hint.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    /// The same with a hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What to do about it: its hint, else what usually helps.
    pub fn advice(&self) -> &str {
        self.hint.as_deref().unwrap_or(self.code.advice())
    }

    /// An I/O error that happened while doing `what`; its kind decides the code and the hint.
    pub fn io(what: impl std::fmt::Display, error: &std::io::Error) -> Self {
        use std::io::ErrorKind;
        if let Some((limit, hint)) = limit_of(error) {
            return Self::new(Code::NoSpace, format!("{what}: {limit}")).with_hint(hint);
        }
        let code = match error.kind() {
            ErrorKind::PermissionDenied => Code::Permission,
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Code::NoSpace,
            ErrorKind::TimedOut => Code::Timeout,
            _ => Code::Failed,
        };
        let failure = Self::new(code, format!("{what}: {error}"));
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => failure.with_hint("check the path"),
            _ => failure,
        }
    }
}

/// A limit of the process or of the system that is why an operation failed, and what to do about it.
fn limit_of(error: &io::Error) -> Option<(String, &'static str)> {
    let limit = |resource| getrlimit(resource).current;
    Some(match Errno::from_io_error(error)? {
        Errno::MFILE => {
            let files = limit(Resource::Nofile).map_or_else(String::new, |files| format!(", which is {files},"));
            let hint = "try again when other transfers have ended, or raise the limit: LimitNOFILE= of the daemon's \
                        service, or ulimit -n";
            (format!("the limit of open files{files} is reached"), hint)
        }
        Errno::NFILE => {
            let hint = "try again later, or raise it: sysctl fs.file-max";
            ("the system's limit of open files is reached".to_owned(), hint)
        }
        Errno::FBIG => match limit(Resource::Fsize) {
            Some(bytes) => {
                let hint = "raise it: LimitFSIZE= of the daemon's service, or ulimit -f";
                (format!("it would be longer than the limit of file sizes (RLIMIT_FSIZE), {bytes} bytes"), hint)
            }
            None => {
                let hint = "use another file system; FAT (vfat) takes files of less than 4 GiB";
                ("the file system takes no file of this length".to_owned(), hint)
            }
        },
        _ => return None,
    })
}

/// Whether a limit of the process or of the system is why an operation failed: then [`Failure::io`] names it.
pub fn is_limit(error: &io::Error) -> bool {
    limit_of(error).is_some()
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let hint = failure.hint.map(|hint| (HINT.to_owned(), shortened(hint)));
        let metadata: HashMap<_, _> = hint.into_iter().collect();
        Status::with_error_details(
            failure.code.to_grpc(),
            shortened(failure.message),
            ErrorDetails::with_error_info(failure.code.name(), DOMAIN, metadata),
        )
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        if let Some(info) = status.get_details_error_info()
            && info.domain == DOMAIN
        {
            let code = Code::from_name(&info.reason).unwrap_or_else(|| Code::from_grpc(status.code()));
            let hint = info.metadata.get(HINT).cloned();
            return Self { code, message: status.message().to_owned(), hint };
        }
        // A status that came over the wire has no source; one that tonic made here, because the
        // connection broke, has.
        if let Some(source) = std::error::Error::source(&status) {
            return Self::new(Code::Unreachable, format!("the connection to the daemon broke: {}", root_cause(source)));
        }
        let message = match status.message() {
            "" => status.code().description().to_owned(),
            message => message.to_owned(),
        };
        Self::new(Code::from_grpc(status.code()), message)
    }
}

/// The innermost error: the outer ones only say "transport error".
pub(super) fn root_cause<'a>(
    mut error: &'a (dyn std::error::Error + 'static),
) -> &'a (dyn std::error::Error + 'static) {
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

/// Cuts at a character border, so that what is left fits into headers.
fn shortened(mut text: String) -> String {
    if text.len() > MAX_TEXT_BYTES {
        text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES - "…".len()));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_the_wire() {
        for code in Code::ALL {
            let sent = Failure::new(code, "what happened: ä").with_hint("do this");
            assert_eq!(Failure::from(Status::from(sent.clone())), sent);
            assert_eq!(Code::from_exit(code.exit()), Some(code));
            assert_eq!(Code::from_name(code.name()), Some(code));
        }
    }

    #[test]
    fn a_status_without_details_is_read_by_its_code() {
        let status = Status::new(tonic::Code::DataLoss, "other bytes");
        assert_eq!(Failure::from(status), Failure::new(Code::Digest, "other bytes"));
        // Only the client knows that the daemon is away; UNAVAILABLE from it is about its peers.
        assert_eq!(Failure::from(Status::unavailable("x")).code, Code::NoSource);
    }

    #[test]
    fn limits_are_named_and_are_no_usage() {
        let rows = [
            (Errno::MFILE, "limit of open files", "LimitNOFILE"),
            (Errno::NFILE, "system's limit", "fs.file-max"),
            (Errno::FBIG, "of th", "file"),
        ];
        for (errno, message, hint) in rows {
            let failure = Failure::io("cannot open x", &errno.into());
            assert_eq!(failure.code, Code::NoSpace, "{errno}");
            assert!(failure.message.contains(message) && failure.advice().contains(hint), "{failure:?}");
        }
        assert!(!is_limit(&Errno::NOSPC.into()));
    }

    #[test]
    fn details_of_others_are_not_ours() {
        let details = ErrorDetails::with_error_info("conflict", "elsewhere", HashMap::new());
        let status = Status::with_error_details(tonic::Code::NotFound, "gone", details);
        assert_eq!(Failure::from(status).code, Code::NotFound);
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let status = Status::from(Failure::new(Code::Failed, "ä".repeat(4000)));
        assert!(status.message().len() <= MAX_TEXT_BYTES);
        assert!(status.message().ends_with("ä…"));
    }
}
