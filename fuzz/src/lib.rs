//! The program's module `volume` alone, for the fuzz targets.
//!
//! `volume` uses nothing else of the crate, so that the targets build in seconds. `#[path]` takes the program's own
//! source files.

#[path = "../../src/volume/mod.rs"]
pub mod volume;

use volume::Grid;
use volume::nifti::Decoded;

/// Small, so that a decoder that reserves more than allowed meets the fuzzer's memory limit.
pub const LIMIT_BYTES: u64 = 8 << 20;

/// Asserts what holds for every file that decodes.
///
/// # Panics
/// If it does not hold, which is what the fuzzer looks for.
pub fn check(decoded: &Decoded) {
    let grid: &Grid = &decoded.volume.grid;
    assert_eq!(decoded.volume.data.len(), grid.len(), "as many voxels as the grid has");
    assert!(grid.len() as u64 * 4 <= LIMIT_BYTES, "within the limit");
    assert!(decoded.volume.data.iter().all(|v| v.is_finite()), "finite voxels");
    assert!(grid.affine.inverse().is_some(), "a place in space");
    assert_eq!(grid.to_ras().orientation(), "RAS");
}
