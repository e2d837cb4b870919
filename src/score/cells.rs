//! Voxels to tokens: sums over the cell of each token.

use crate::volume::Volume;

/// Share of each token's cell that is brain, in the given slices: `slices * rows * columns`. `tokens`: rows and columns
/// of a slice.
pub fn token_brain_fraction(brain: &Volume<u8>, slices: &[usize], tokens: [usize; 2]) -> Vec<f32> {
    per_cell(brain.grid.shape, slices, tokens, |i| (f32::from(brain.data[i]), 1.))
}

/// Mean of `value` (of a voxel number) over the brain pixels of each token, in the given slices; 0 for a token without
/// brain.
pub(super) fn mean_in_brain(
    brain: &Volume<u8>,
    slices: &[usize],
    tokens: [usize; 2],
    value: impl Fn(usize) -> f32,
) -> Vec<f32> {
    per_cell(brain.grid.shape, slices, tokens, |i| {
        let inside = f32::from(brain.data[i]);
        (if inside > 0. { inside * value(i) } else { 0. }, inside)
    })
}

/// Ratio of two sums over each token's cell, in the given slices; 0 where the second is 0. `voxel` gives the summands
/// of a voxel number.
fn per_cell(shape: [usize; 3], slices: &[usize], tokens: [usize; 2], voxel: impl Fn(usize) -> (f32, f32)) -> Vec<f32> {
    let [nx, ny, _] = shape;
    let [rows, columns] = tokens;
    let (height, width) = (ny / rows, nx / columns);
    let mut ratio = Vec::with_capacity(slices.len() * rows * columns);
    for &z in slices {
        for (row, column) in (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c))) {
            let (mut above, mut below) = (0., 0.);
            for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
                let (a, b) = voxel((z * ny + row * height + y) * nx + column * width + x);
                above += a;
                below += b;
            }
            ratio.push(if below > 0. { above / below } else { 0. });
        }
    }
    ratio
}
