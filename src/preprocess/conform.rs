//! The two grids of preprocessing, both world-aligned, RAS and of 2 mm: the working grid in native space and the model's
//! grid in MNI space.
//!
//! Takes a volume in native space; gives it on the working grid by one trilinear interpolation. Finer voxels are first
//! averaged in whole blocks, so that 1 mm and 0.5 mm scans get the sharpness and the noise of a 2 mm acquisition instead
//! of aliasing. Refuses nothing.

use std::borrow::Cow;

use rayon::prelude::*;

use crate::volume::resample::trilinear;
use crate::volume::{Affine, Grid, Volume};

/// Voxel size of the working grid and of the model's grid, in mm.
pub(super) const SPACING_MM: f64 = 2.0;

/// The grid of every model's input: 80 x 96 x 96 voxels of 2 mm, RAS, in MNI space.
///
/// Voxel centres run from (-79, -112, -90) to (79, 78, 100) mm. The ICBM 2009a brain spans -72..72, -107..73 and
/// -72..82 mm. Affine registration scales every brain to it, so that a few millimetres around it suffice and the
/// networks process little air. Quality control flags a brain that does not fit.
pub fn model_grid() -> Grid {
    Grid { shape: [80, 96, 96], affine: lattice([-79.0, -112.0, -90.0]) }
}

/// Voxel index to world mm of a world-aligned 2 mm lattice whose first voxel centre is `origin`.
fn lattice(origin: [f64; 3]) -> Affine {
    let [x, y, z] = origin;
    Affine::from_rows([[SPACING_MM, 0.0, 0.0, x], [0.0, SPACING_MM, 0.0, y], [0.0, 0.0, SPACING_MM, z]])
}

/// The smallest and largest world coordinates of the voxel centres of `grid`, in mm.
pub(super) fn world_box(grid: &Grid) -> [[f64; 2]; 3] {
    let mut bounds = [[f64::INFINITY, f64::NEG_INFINITY]; 3];
    for corner in 0..8 {
        let index = [0, 1, 2].map(|a| if corner >> a & 1 == 1 { grid.shape[a] as f64 - 1.0 } else { 0.0 });
        for (bound, w) in bounds.iter_mut().zip(grid.affine.apply(index)) {
            *bound = [bound[0].min(w), bound[1].max(w)];
        }
    }
    bounds
}

/// A scan on the working grid, a world-aligned 2 mm RAS lattice that covers its whole field of view.
#[derive(Debug)]
pub(super) struct Conformed<'a> {
    pub working: Volume,
    /// The scan with voxels of about 2 mm, in RAS order; `None` where the working grid already has these voxels.
    /// Interpolating it once to the model's grid blurs less than interpolating the working grid again.
    pub finer: Option<Cow<'a, Volume>>,
}

/// `native` on the working grid.
pub(super) fn conformed(native: &Volume) -> Conformed<'_> {
    // Starting on a voxel centre spares world-aligned 2 mm and 1 mm scans the blur of interpolation.
    let coarse = coarsened(native);
    let bounds = world_box(&coarse.grid);
    let shape = bounds.map(|[low, high]| ((high - low) / SPACING_MM + 1e-6).floor() as usize + 1);
    let grid = Grid { shape, affine: lattice(bounds.map(|[low, _]| low)) };
    // In RAS order its rows run along x like those of the target grids, which makes interpolation faster.
    let ras = if coarse.grid.to_ras() == coarse.grid { coarse } else { Cow::Owned(coarse.reoriented_ras()) };
    if ras.grid.shape == grid.shape && ras.grid.affine.is_close(&grid.affine, 1e-6) {
        return Conformed { working: Volume::new(grid, ras.into_owned().data), finer: None };
    }
    Conformed { working: trilinear(&ras, &grid, &Affine::identity()), finer: Some(ras) }
}

/// A mask on another grid: 1 where its interpolated value is at least one half. `to_mask` maps world mm of `grid` to
/// world mm of `mask`.
///
/// This keeps a border in place to a fraction of a voxel; the nearest voxel would move it by up to half a voxel.
pub fn mask_to(mask: &Volume<u8>, grid: &Grid, to_mask: &Affine) -> Volume<u8> {
    let share = mask.map(|v| f32::from(u8::from(v != 0)));
    trilinear(&coarsened(&share), grid, to_mask).map(|s| u8::from(s >= 0.5))
}

/// Means of whole blocks of voxels, with as many voxels along each axis as fit into 2 mm; the volume itself where that is
/// one along every axis.
fn coarsened(volume: &Volume) -> Cow<'_, Volume> {
    let spacing = volume.grid.spacing();
    let [fx, fy, fz] = spacing.map(|s| ((SPACING_MM / s + 1e-3).floor() as usize).max(1));
    let [nx, ny, nz] = volume.grid.shape;
    let shape @ [mx, my, mz] = [nx / fx, ny / fy, nz / fz];
    if [fx, fy, fz] == [1, 1, 1] || [mx, my, mz].contains(&0) {
        return Cow::Borrowed(volume);
    }
    let centre = [fx, fy, fz].map(|f| (f as f64 - 1.0) / 2.0);
    let block = Affine::from_rows([
        [fx as f64, 0.0, 0.0, centre[0]],
        [0.0, fy as f64, 0.0, centre[1]],
        [0.0, 0.0, fz as f64, centre[2]],
    ]);
    let grid = Grid { shape, affine: block.then(&volume.grid.affine) };
    let scale = 1.0 / (fx * fy * fz) as f32;
    let mut out = Volume::<f32>::zeros(grid);
    out.data.par_chunks_mut(mx * my).enumerate().for_each(|(z, slab)| {
        for dz in 0..fz {
            for (y, row) in slab.chunks_mut(mx).enumerate() {
                for dy in 0..fy {
                    let start = volume.index(0, y * fy + dy, z * fz + dz);
                    for (voxel, block) in row.iter_mut().zip(volume.data[start..start + nx].chunks_exact(fx)) {
                        *voxel += block.iter().sum::<f32>();
                    }
                }
            }
        }
        slab.iter_mut().for_each(|v| *v *= scale);
    });
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_millimetre_voxels_keep_their_world_position_when_averaged() {
        // A ramp in world x, on a flipped 1 mm grid: block means of a ramp are the ramp at the block's centre.
        let affine = Affine::from_rows([[-1.0, 0.0, 0.0, 40.0], [0.0, 1.0, 0.0, -10.0], [0.0, 0.0, 1.0, 5.0]]);
        let grid = Grid { shape: [80, 20, 20], affine };
        let data = (0..grid.len()).map(|i| 40.0 - (i % 80) as f32).collect();
        let volume = conformed(&Volume::new(grid, data)).working;
        assert_eq!(volume.grid.orientation(), "RAS");
        let [nx, ny, nz] = volume.grid.shape;
        for x in 1..nx - 1 {
            let world = volume.grid.affine.apply([x as f64, 0.0, 0.0])[0];
            assert!((volume.at(x, ny / 2, nz / 2) as f64 - world).abs() < 1e-4);
        }
    }

    #[test]
    fn the_model_grid_spans_the_documented_box() {
        let [x, y, z] = world_box(&model_grid());
        assert_eq!([x, y, z], [[-79.0, 79.0], [-112.0, 78.0], [-90.0, 100.0]]);
    }
}
