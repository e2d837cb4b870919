//! The part of the program's `error` that `volume` uses. The whole speaks of storage, tables and libtorch.

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The scan itself is unusable.
    #[error("{message}")]
    Input {
        /// Short stable word for grouping, snake_case.
        kind: &'static str,
        /// What a human should know, with what to do next.
        message: String,
    },
}

impl Error {
    /// An unusable scan.
    pub fn input(kind: &'static str, message: impl Into<String>) -> Self {
        Self::Input { kind, message: message.into() }
    }

    /// The word for grouping.
    pub fn kind(&self) -> &'static str {
        let Self::Input { kind, .. } = self;
        kind
    }
}
