//! Checks whether a scan can hold a brain, and makes all its voxels finite.
//!
//! Takes the native scan. Refuses, as [`Error::Input`], a volume without extent or with a field of view that is not a
//! head's (`field_of_view`), voxels that are too coarse (`too_coarse`), and voxels that are all equal (`constant`).

use std::borrow::Cow;

use super::config::PreprocessConfig;
use crate::error::{Error, Result};
use crate::volume::Volume;

/// Refuses what cannot hold a brain.
pub(super) fn check(native: &Volume, cfg: &PreprocessConfig) -> Result<()> {
    let spacing = native.grid.spacing();
    if native.grid.is_empty() || native.grid.affine.inverse().is_none() {
        return Err(Error::input("field_of_view", "the volume has no extent: check its shape and affine"));
    }
    if spacing.iter().any(|&s| s > cfg.spacing_max_mm) {
        return Err(Error::input(
            "too_coarse",
            format!(
                "voxels of {:.1} x {:.1} x {:.1} mm are coarser than {} mm: a localiser or a thick-slice scan; \
                 leave it out, or use a finer scan of the subject",
                spacing[0], spacing[1], spacing[2], cfg.spacing_max_mm
            ),
        ));
    }
    let [least, most] = cfg.field_of_view_mm;
    let extent = [0, 1, 2].map(|a| spacing[a] * native.grid.shape[a] as f64);
    if extent.iter().any(|e| !(least..=most).contains(e)) {
        return Err(Error::input(
            "field_of_view",
            format!(
                "a field of view of {:.0} x {:.0} x {:.0} mm is not that of a head ({least} to {most} mm): check the \
                 voxel size in the header",
                extent[0], extent[1], extent[2]
            ),
        ));
    }
    let first = native.data[0];
    if native.data.iter().all(|v| *v == first || !v.is_finite()) {
        return Err(Error::input("constant", "all voxels are the same: the scan is empty, fetch it again"));
    }
    Ok(())
}

/// The scan with NaN and infinite voxels set to 0.
pub(super) fn finite(native: &Volume) -> Cow<'_, Volume> {
    if native.data.iter().all(|v| v.is_finite()) {
        return Cow::Borrowed(native);
    }
    Cow::Owned(native.map(|v| if v.is_finite() { v } else { 0.0 }))
}
