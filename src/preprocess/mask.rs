//! Measures of masks: size, extent, overlap.
//!
//! A mask is a [`Volume<u8>`] that is not 0 inside.

use crate::volume::Volume;

/// Number of voxels inside.
pub(super) fn count(mask: &Volume<u8>) -> usize {
    mask.data.iter().filter(|&&v| v != 0).count()
}

/// Volume in ml.
pub(super) fn volume_ml(mask: &Volume<u8>) -> f64 {
    count(mask) as f64 * mask.grid.voxel_ml()
}

/// Dice coefficient of two masks on one grid: twice the voxels of both over the sum of their voxels; 1 where both are
/// empty.
pub fn dice(a: &Volume<u8>, b: &Volume<u8>) -> f64 {
    let both = a.data.iter().zip(&b.data).filter(|&(&a, &b)| a != 0 && b != 0).count();
    let sum = count(a) + count(b);
    if sum == 0 { 1.0 } else { 2.0 * both as f64 / sum as f64 }
}

/// Lowest and highest index inside along each axis; `None` for an empty mask.
pub(super) fn bounds(mask: &Volume<u8>) -> Option<([usize; 3], [usize; 3])> {
    let [nx, ny, _] = mask.grid.shape;
    let (mut low, mut high) = ([usize::MAX; 3], [0; 3]);
    for (row, voxels) in mask.data.chunks(nx.max(1)).enumerate() {
        let Some(first) = voxels.iter().position(|&v| v != 0) else { continue };
        let last = voxels.iter().rposition(|&v| v != 0).unwrap_or(first);
        for (a, (from, to)) in [(first, last), (row % ny, row % ny), (row / ny, row / ny)].into_iter().enumerate() {
            low[a] = low[a].min(from);
            high[a] = high[a].max(to);
        }
    }
    (low[0] <= high[0]).then_some((low, high))
}
