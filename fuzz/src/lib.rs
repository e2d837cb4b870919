//! The reader of volumes alone, from the program's own sources, for the fuzz targets.
//!
//! `volume` needs nothing of the crate but [`error`], so that the targets build in seconds; the `#[path]` keeps them on
//! the very files that the program is built from.

pub mod error;
#[path = "../../src/volume/mod.rs"]
pub mod volume;

use volume::Grid;
use volume::nifti::Decoded;

/// Small, so that what reserves more than it may is found by the fuzzer's memory limit.
pub const LIMIT_BYTES: u64 = 8 << 20;

/// What holds for every file that decodes.
///
/// # Panics
/// If it does not: that is the finding.
pub fn check(decoded: &Decoded) {
    let grid: &Grid = &decoded.volume.grid;
    assert_eq!(decoded.volume.data.len(), grid.len(), "as many voxels as the grid has");
    assert!(grid.len() as u64 * 4 <= LIMIT_BYTES, "within the limit");
    assert!(decoded.volume.data.iter().all(|v| v.is_finite()), "finite voxels");
    assert!(grid.affine.inverse().is_some(), "a place in space");
    assert_eq!(grid.to_ras().orientation(), "RAS");
}
