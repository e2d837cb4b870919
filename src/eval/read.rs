//! Reading the scans and masks of an evaluation.

use crate::cohort::MAX_SCAN_BYTES;
use crate::error::{Error, Result};
use crate::store::{self, Location};
use crate::volume::{Volume, nifti};

/// The image at `path` below the location's root; `None` where there is no such object.
///
/// # Errors
/// Storage errors, and those of [`nifti::decode`].
pub(super) async fn image_at(location: &Location, path: &str) -> Result<Option<Volume>> {
    match store::read(location, path, None, |_| Ok(())).await {
        Ok(bytes) => Ok(Some(nifti::decode(&bytes, MAX_SCAN_BYTES)?.volume)),
        Err(Error::Storage { source: object_store::Error::NotFound { .. }, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
