//! One error type for the whole crate: what went wrong, and what a caller should do about it.
//!
//! An error gives its [`Domain`] (where the fault lies) and its [`Retry`] (what may help). A scan's failure becomes one row
//! in the `failures` table, with the error's kind and message and the stage that the scan had reached.
//!
//! Messages go to logs and tables. They say of a store's error only what `reason.rs` allows; the error itself, with the server's
//! reply, stays behind [`std::error::Error::source`].

mod reason;

use datafusion::error::DataFusionError;

use self::reason::{causes, quoted_status, reason, without_replies};
use crate::volume;

/// The kind of a scan that exceeds `run.max_scan_mib`. Whether it can be screened depends on the limits of a run, and not on its
/// content alone.
pub const TOO_LARGE: &str = "too_large";

/// The kind of a scan that needs more memory than the run has; depends on the run as [`TOO_LARGE`] does.
pub const TOO_LARGE_FOR_MEMORY: &str = "too_large_for_memory";

/// The kind of a scan during which processes died.
pub const CRASHED: &str = "crashed";

/// Result with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The scan itself is unusable: wrong magic, truncated gzip, no brain. Permanent until its
    /// content changes. `kind` is a short stable word for grouping (`truncated`, `not_nifti`).
    #[error("{message}")]
    Input {
        /// Short stable word for grouping, snake_case.
        kind: &'static str,
        /// What was found, what was expected, and what to do next.
        message: String,
    },
    /// A scan that needs more memory than the run has for scans. A run with more memory can screen it.
    #[error("{message}")]
    NeedsMemory {
        /// What it needs, what there is, and what to do next.
        message: String,
        /// The memory that it needs, bytes.
        bytes: u64,
    },
    /// A request to an object store failed.
    #[error("{context}: {}", reason(source))]
    Storage {
        /// What was being attempted.
        context: String,
        /// The store's error.
        #[source]
        source: object_store::Error,
    },
    /// A Delta table could not be read or written.
    #[error("{context}: {}", without_replies(source.as_ref()))]
    Table {
        /// What was being attempted.
        context: String,
        /// The table library's error.
        #[source]
        source: Box<deltalake_core::DeltaTableError>,
    },
    /// The query engine refused a query or failed.
    #[error("{}{}", without_replies(.0), next_step(.0))]
    Query(DataFusionError),
    /// libtorch failed on a device.
    #[error("{message}")]
    Device {
        /// What happened.
        message: String,
        /// True where a smaller batch may fit (out of device memory).
        smaller: bool,
    },
    /// Scoring a scan gave a number that is NaN or infinite. NaN lies above no threshold, so that a result with it would call
    /// the scan healthy.
    #[error("{0}")]
    NotFinite(String),
    /// A process died while it screened this scan alone.
    #[error("{0}")]
    Crashed(String),
    /// A scan exceeded its time limit.
    #[error("not finished after {seconds} s; raise run.scan_timeout_s to give such scans more time")]
    TimedOut {
        /// The limit.
        seconds: u64,
    },
    /// A cluster cannot be reached, or cannot do its work.
    #[error("{0}")]
    Cluster(String),
    /// A bundle is missing, damaged or does not fit this program.
    #[error("{0}")]
    Model(String),
    /// The user's configuration or command line is wrong.
    #[error("{0}")]
    Config(String),
    /// The settings are valid and select no scan of the cohort, which may have one later.
    #[error("{0}")]
    NothingSelected(String),
    /// A local file could not be read or written.
    #[error("{context}: {source}")]
    Io {
        /// What was being attempted.
        context: String,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A defect in this program.
    #[error("internal error: {0} (please report this)")]
    Bug(String),
}

/// Where the fault lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Domain {
    /// The scan.
    Input,
    /// Object storage, tables, local files.
    Storage,
    /// CPU or GPU.
    Device,
    /// A scheduler or its executors.
    Cluster,
    /// The model bundle.
    Model,
    /// The user's settings.
    Config,
    /// This program.
    Bug,
}

/// What may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Nothing: the same call fails again.
    Never,
    /// The same call later.
    Backoff,
    /// The same call with less data at once.
    Smaller,
}

impl Error {
    /// An unusable scan. `kind` is a stable snake_case word for grouping.
    pub fn input(kind: &'static str, message: impl Into<String>) -> Self {
        Self::Input { kind, message: message.into() }
    }

    /// Wraps an object store's error with what was being attempted.
    pub fn storage(context: impl Into<String>, source: object_store::Error) -> Self {
        Self::Storage { context: context.into(), source }
    }

    /// Wraps a Delta table's error with what was being attempted.
    pub fn table(context: impl Into<String>, source: deltalake_core::DeltaTableError) -> Self {
        Self::Table { context: context.into(), source: Box::new(source) }
    }

    /// Wraps a local I/O error with what was being attempted.
    pub fn io(context: impl Into<String>, source: std::io::Error) -> Self {
        Self::Io { context: context.into(), source }
    }

    /// The message for a terminal: without the stack trace that a library appends where `RUST_BACKTRACE` is set, and without
    /// control characters, which a message takes over from a damaged file.
    pub fn text(&self) -> String {
        let message = self.to_string();
        let message = message.split("\n   0: ").next().unwrap_or_default().trim_end();
        message.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
    }

    /// Where the fault lies.
    pub fn domain(&self) -> Domain {
        match self {
            Self::Input { .. } | Self::NeedsMemory { .. } | Self::Crashed(_) | Self::TimedOut { .. } => Domain::Input,
            Self::Storage { .. } | Self::Table { .. } | Self::Query(_) | Self::Io { .. } => Domain::Storage,
            Self::Device { .. } | Self::NotFinite(_) => Domain::Device,
            Self::Cluster(_) => Domain::Cluster,
            Self::Model(_) => Domain::Model,
            Self::Config(_) | Self::NothingSelected(_) => Domain::Config,
            Self::Bug(_) => Domain::Bug,
        }
    }

    /// What may help.
    pub fn retry(&self) -> Retry {
        use object_store::Error as S;
        match self {
            Self::Device { smaller: true, .. } => Retry::Smaller,
            Self::Storage { source, .. } => match source {
                S::NotFound { .. }
                | S::InvalidPath { .. }
                | S::NotSupported { .. }
                | S::PermissionDenied { .. }
                | S::Unauthenticated { .. }
                | S::UnknownConfigurationKey { .. } => Retry::Never,
                _ => Retry::Backoff,
            },
            Self::Device { .. }
            | Self::Crashed(_)
            | Self::TimedOut { .. }
            | Self::Table { .. }
            | Self::Io { .. }
            | Self::Cluster(_) => Retry::Backoff,
            _ => Retry::Never,
        }
    }

    /// True where a store failed or refused the credentials in a way that may pass, and that may concern every object. Whether it
    /// concerns one object alone, only a request for another one can tell. A full disk is not meant: it stays full.
    pub fn is_of_store(&self) -> bool {
        use object_store::Error as S;
        let says_so = |error: &S| {
            matches!(
                error,
                S::Generic { .. } | S::PermissionDenied { .. } | S::Unauthenticated { .. } | S::JoinError { .. }
            )
        };
        let is_full = |cause: &(dyn std::error::Error + 'static)| {
            use std::io::ErrorKind as K;
            let kind = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            matches!(kind, Some(K::StorageFull | K::QuotaExceeded | K::ReadOnlyFilesystem | K::FileTooLarge))
        };
        if std::error::Error::source(self).is_some_and(|source| causes(source).any(is_full)) {
            return false;
        }
        match self {
            Self::Storage { source, .. } => says_so(source),
            Self::Table { source, .. } => causes(source.as_ref()).filter_map(|cause| cause.downcast_ref()).any(says_so),
            Self::Query(error) => {
                causes(error).filter_map(|cause| cause.downcast_ref()).any(says_so)
                    || quoted_status(error).is_some_and(|status| status != 404)
            }
            _ => false,
        }
    }

    /// True where a store reports that an object's content is not the expected one. Repeating the call at once does not
    /// help.
    pub fn is_about_content(&self) -> bool {
        use object_store::Error as S;
        matches!(
            self,
            Self::Storage { source: S::Precondition { .. } | S::AlreadyExists { .. } | S::NotModified { .. }, .. }
        )
    }

    /// A short stable word for grouping failures, snake_case.
    pub fn kind(&self) -> &'static str {
        use object_store::Error as S;
        match self {
            Self::Input { kind, .. } => kind,
            Self::NeedsMemory { .. } => TOO_LARGE_FOR_MEMORY,
            Self::Crashed(_) => CRASHED,
            Self::Storage { source: S::NotFound { .. }, .. } => "not_found",
            Self::Storage { source: S::PermissionDenied { .. } | S::Unauthenticated { .. }, .. } => "permission",
            Self::Storage { source: S::Precondition { .. }, .. } => "changed_while_reading",
            Self::Storage { .. } => "storage",
            Self::Table { .. } => "table",
            Self::Query(_) => "query",
            Self::Device { smaller: true, .. } => "out_of_device_memory",
            Self::Device { .. } => "device",
            Self::NotFinite(_) => "not_finite",
            Self::TimedOut { .. } => "timed_out",
            Self::Cluster(_) => "cluster",
            Self::Model(_) => "model",
            Self::Config(_) => "config",
            Self::NothingSelected(_) => "nothing_selected",
            Self::Io { .. } => "io",
            Self::Bug(_) => "bug",
        }
    }
}

/// What to do about a query that failed because a file behind it could not be read; empty for other reasons.
fn next_step(error: &DataFusionError) -> &'static str {
    use object_store::Error as S;
    const RESTORE: &str = "; a file behind this query is missing or damaged. Where a person was forgotten meanwhile, which \
                           deletes files at once, run the same command again; otherwise restore it from a backup. If it is one \
                           of the tables' and there is none, screen into new tables";
    const UNREADABLE: &str = "; make the files of the tables readable for this user, or check the credentials";
    const UNREACHED: &str = "; check that the store can be reached, then run the same command again";
    let of_store = |error: &S| match error {
        S::PermissionDenied { .. } | S::Unauthenticated { .. } => UNREADABLE,
        S::Generic { source, .. } if source.to_string().contains("Permission denied") => UNREADABLE,
        S::NotFound { .. } => RESTORE,
        S::Generic { store: "LocalFileSystem", .. } => RESTORE,
        _ => UNREACHED,
    };
    match quoted_status(error) {
        Some(401 | 403) => return UNREADABLE,
        Some(404) => return RESTORE,
        Some(_) => return UNREACHED,
        None => {}
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut damaged = false;
    while let Some(error) = cause {
        if let Some(store) = error.downcast_ref::<S>() {
            return of_store(store);
        }
        damaged |= error.is::<parquet::errors::ParquetError>()
            || matches!(error.downcast_ref::<DataFusionError>(), Some(DataFusionError::ParquetError(_)));
        cause = error.source();
    }
    if damaged { RESTORE } else { "" }
}

impl From<volume::Error> for Error {
    fn from(e: volume::Error) -> Self {
        Self::Input { kind: e.kind, message: e.message }
    }
}

impl From<tch::TchError> for Error {
    fn from(e: tch::TchError) -> Self {
        let message = e.to_string();
        // libtorch appends a C++ stack trace, which does not help somebody who screens a cohort.
        let message = message.split("\nException raised from").next().unwrap_or_default().to_owned();
        // The words of CUDA, of libtorch's allocator on the processor, and of oneDNN, which does not say why.
        let words = ["out of memory", "can't allocate memory", "not enough memory", "could not create a primitive"];
        let smaller = words.iter().any(|w| message.contains(w));
        Self::Device { message, smaller }
    }
}

/// The query engine's error; one of this crate that an operator has put into it comes out as it was.
impl From<DataFusionError> for Error {
    fn from(error: DataFusionError) -> Self {
        match error {
            DataFusionError::External(inner) => match inner.downcast::<Self>() {
                Ok(own) => *own,
                Err(inner) => Self::Query(DataFusionError::External(inner)),
            },
            DataFusionError::IoError(inner) => match inner.downcast::<Self>() {
                Ok(own) => own,
                Err(inner) => Self::Query(DataFusionError::IoError(inner)),
            },
            DataFusionError::Context(what, inner) => match Self::from(*inner) {
                Self::Query(inner) => Self::Query(DataFusionError::Context(what, Box::new(inner))),
                own => own,
            },
            error => Self::Query(error),
        }
    }
}

/// An operator's error as the query engine's. Faults that may pass become I/O errors, the only kind that Ballista retries.
impl From<Error> for DataFusionError {
    fn from(error: Error) -> Self {
        match error.retry() {
            Retry::Backoff => Self::IoError(std::io::Error::other(error)),
            Retry::Never | Retry::Smaller => Self::External(Box::new(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::nifti;

    #[test]
    fn an_error_survives_its_way_through_the_query_engine() {
        let full = || std::io::Error::from_raw_os_error(28);
        let source = || object_store::Error::Generic { store: "LocalFileSystem", source: full().into() };
        for error in [Error::storage("cannot write x", source()), Error::Bug("a defect".into())] {
            let (kind, text) = (error.kind(), error.to_string());
            let back = Error::from(DataFusionError::from(error).context("while executing"));
            assert_eq!((back.kind(), back.to_string()), (kind, text));
        }
    }

    #[test]
    fn an_unusable_file_is_a_permanent_input_error_of_the_same_kind() {
        let refused = nifti::decode(b"a text", 1 << 20).expect_err("refused");
        let (kind, message) = (refused.kind, refused.message.clone());
        let error = Error::from(refused);
        assert_eq!((error.domain(), error.retry()), (Domain::Input, Retry::Never));
        assert_eq!((error.kind(), error.to_string()), (kind, message));
    }
}
