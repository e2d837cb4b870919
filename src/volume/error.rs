//! The error of this module: why a file cannot be read as a volume.

/// Result with this module's [`struct@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// Short stable word for grouping, snake_case; [`nifti`](super::nifti) lists them.
    pub kind: &'static str,
    /// What was found, what was expected, and what to do next.
    pub message: String,
}

impl Error {
    pub(super) fn new(kind: &'static str, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// The file ends before its last voxel.
    pub(super) fn truncated() -> Self {
        Self::new("truncated", "the file ends before the voxels its header promises; copy it again from its source")
    }

    /// More bytes follow the voxels than the limit allows.
    pub(super) fn too_long() -> Self {
        Self::new(
            "too_large",
            "the file holds more data after its voxels than the limit allows; write it again with nibabel or dcm2niix",
        )
    }
}
