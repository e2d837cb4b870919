//! Reading the scans and masks of an evaluation.

use object_store::ObjectStoreExt;

use crate::error::Result;
use crate::store::Location;
use crate::volume::{Volume, nifti};

/// The largest scan or mask that is read, in bytes, compressed or not. A larger one is refused.
pub const MAX_SCAN_BYTES: u64 = 2 << 30;

/// The image at `path` below the location's root; `None` where there is no such object.
///
/// # Errors
/// Storage errors, and those of [`nifti::decode`].
pub(super) async fn image_at(location: &Location, path: &str) -> Result<Option<Volume>> {
    let bytes = match location.store.get(&location.path_of(path)?).await {
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        found => found.map_err(|e| location.explain("read", e))?.bytes().await,
    };
    let bytes = bytes.map_err(|e| location.explain("read", e))?;
    Ok(Some(nifti::decode(&bytes, MAX_SCAN_BYTES)?.volume))
}
