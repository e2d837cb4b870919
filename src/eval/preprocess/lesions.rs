//! Lesion masks that are resampled to the model's grid and back.

use rand::Rng;

use super::geometry::random_axis;
use crate::preprocess::{dice, mask_to, model_grid};
use crate::volume::{Affine, Grid, Volume};

/// Number of lesions drawn for every scan.
const LESIONS: usize = 3;

/// Range of volumes in ml; they are drawn uniformly on a log scale.
const VOLUME_ML: [f64; 2] = [2.0, 40.0];

/// For each lesion mask resampled to the model's grid and back: volume in ml, Dice with the original mask, relative error
/// of the volume.
pub(super) fn round_trips(brain: &Volume<u8>, native: &Grid, to_mni: &Affine, rng: &mut impl Rng) -> Vec<[f64; 3]> {
    let Some(from_mni) = to_mni.inverse() else { return Vec::new() };
    let voxels: Vec<usize> = (0..brain.data.len()).filter(|&i| brain.data[i] != 0).collect();
    let lesions = (0..LESIONS).filter_map(|_| {
        let i = *voxels.get(rng.random_range(0..voxels.len().max(1)))?;
        let [nx, ny, _] = brain.grid.shape;
        let centre = brain.grid.affine.apply([i % nx, i / nx % ny, i / (nx * ny)].map(|c| c as f64));
        let lesion = lesion(native, centre, brain, rng);
        let ml = |mask: &Volume<u8>| mask.data.iter().filter(|&&v| v != 0).count() as f64 * mask.grid.voxel_ml();
        let before = ml(&lesion);
        if before < VOLUME_ML[0] {
            return None;
        }
        let on_model_grid = mask_to(&lesion, &model_grid(), &from_mni);
        let back = mask_to(&on_model_grid, native, to_mni);
        Some([before, dice(&lesion, &back), ml(&back) / before - 1.0])
    });
    lesions.collect()
}

/// An ellipsoid with a bumpy surface, inside the brain.
fn lesion(native: &Grid, centre: [f64; 3], brain: &Volume<u8>, rng: &mut impl Rng) -> Volume<u8> {
    let ml = rng.random_range(VOLUME_ML[0].ln()..VOLUME_ML[1].ln()).exp();
    let radius = (ml * 1000.0 * 0.75 / std::f64::consts::PI).cbrt();
    let stretch: [f64; 3] = std::array::from_fn(|_| rng.random_range(0.75..1.35));
    let bumps: [([f64; 3], f64); 3] =
        std::array::from_fn(|_| (random_axis(rng).map(|c| c * rng.random_range(2.0..4.0)), rng.random_range(0.0..6.0)));
    let to_brain = brain.grid.affine.inverse().unwrap_or(Affine::identity());
    let [nx, ny, _] = native.shape;
    let [bx, by, bz] = brain.grid.shape;
    let inside = (0..native.len()).map(|i| {
        let p = native.affine.apply([i % nx, i / nx % ny, i / (nx * ny)].map(|c| c as f64));
        let unit: [f64; 3] = std::array::from_fn(|a| (p[a] - centre[a]) / (radius * stretch[a]));
        let r = unit.iter().map(|c| c * c).sum::<f64>().sqrt();
        if r > 1.5 {
            return 0;
        }
        let wave = |&(k, offset): &([f64; 3], f64)| ((0..3).map(|a| k[a] * unit[a]).sum::<f64>() + offset).sin();
        let bump = 0.08 * bumps.iter().map(wave).sum::<f64>();
        let [x, y, z] = to_brain.apply(p).map(|c| (c + 0.5).max(0.0) as usize);
        u8::from(r < 1.0 + bump && x < bx && y < by && z < bz && brain.at(x, y, z) != 0)
    });
    Volume::new(*native, inside.collect())
}
