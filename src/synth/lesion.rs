//! Synthetic lesions with known outlines.
//!
//! Takes an image relative to white matter and the voxels of its parenchyma; changes the image inside one to three
//! bumpy ellipsoids and gives their mask.

use rand::Rng;
use rand::seq::IndexedRandom;

use super::field::{Field, Region, normal};
use super::head::smooth_step;
use crate::volume::Volume;

/// Smallest and largest number of lesions of a subject that has any.
const COUNT: (usize, usize) = (1, 3);

/// Smallest and largest volume of one lesion in ml, drawn uniformly on a logarithmic scale.
const VOLUME_ML: (f32, f32) = (2.0, 40.0);

/// Share of lesions that are darker than white matter, as most strokes and tumours are in T1-weighted scans.
const DARK_SHARE: f64 = 0.75;

/// Smallest distance in mm from a lesion's centre to the brain's surface.
const CENTRE_DEPTH_MM: f32 = 8.0;

/// Lesions of one subject.
pub(super) struct Lesions {
    /// 1 in a lesion, 0 elsewhere.
    pub mask: Volume<u8>,
    /// Number of lesions; they may touch.
    pub count: usize,
}

impl Lesions {
    /// No lesion on the grid of `image`.
    pub fn none(image: &Volume) -> Self {
        Self { mask: Volume::zeros(image.grid), count: 0 }
    }

    /// Total volume in ml.
    pub fn volume_ml(&self) -> f64 {
        self.mask.data.iter().filter(|&&v| v != 0).count() as f64 * self.mask.grid.voxel_ml()
    }
}

/// Adds one to three lesions to the grey and white matter of `image`, where white matter is 1.
///
/// `parenchyma` marks the voxels that a lesion may take; `depth_mm` gives the distance of a position to the brain's
/// surface.
pub(super) fn add(
    image: &mut Volume,
    parenchyma: &[bool],
    depth_mm: impl Fn([f32; 3]) -> f32,
    region: Region,
    rng: &mut impl Rng,
) -> Lesions {
    let positions = positions(image, parenchyma);
    let deep: Vec<usize> = (0..positions.len()).filter(|&i| depth_mm(positions[i].1) >= CENTRE_DEPTH_MM).collect();
    let mut lesions = Lesions::none(image);
    for _ in 0..rng.random_range(COUNT.0..=COUNT.1) {
        let Some(&centre) = deep.choose(rng) else { break };
        let blob = Blob::draw(positions[centre].1, region, rng);
        blob.paint(image, &positions, &mut lesions.mask);
        lesions.count += 1;
    }
    lesions
}

/// Place in the data and world mm of every voxel that a lesion may take.
fn positions(image: &Volume, parenchyma: &[bool]) -> Vec<(usize, [f32; 3])> {
    let voxels = (0..parenchyma.len()).filter(|&i| parenchyma[i]);
    voxels.map(|i| (i, image.grid.world_mm(i).map(|v| v as f32))).collect()
}

/// An ellipsoid with a bumpy surface.
struct Blob {
    centre: [f32; 3],
    /// Half axes in mm; their product gives the volume.
    radii: [f32; 3],
    volume_ml: f32,
    /// Intensity; white matter is 1.
    level: f32,
    /// Opacity in its middle, 0..1.
    strength: f32,
    /// Half the width of its border in mm.
    edge_mm: f32,
    /// Displacement of the surface in mm.
    bumps: Field<1>,
    /// Relative change of the intensity.
    texture: Field<1>,
}

impl Blob {
    fn draw(centre: [f32; 3], region: Region, rng: &mut impl Rng) -> Self {
        let volume_ml = (rng.random_range(VOLUME_ML.0.ln()..VOLUME_ML.1.ln())).exp();
        let radius = (volume_ml * 1000.0 * 0.75 / std::f32::consts::PI).cbrt();
        let stretch: [f32; 3] = std::array::from_fn(|_| (0.2 * normal(rng)).clamp(-0.5, 0.5).exp());
        let mean = stretch.iter().product::<f32>().cbrt();
        let dark = rng.random_bool(DARK_SHARE);
        Self {
            centre,
            radii: stretch.map(|s| radius * s / mean),
            volume_ml,
            level: if dark { rng.random_range(0.25..0.55) } else { rng.random_range(1.15..1.3) },
            strength: rng.random_range(0.65..0.95),
            edge_mm: rng.random_range(1.0..2.5),
            bumps: Field::random(rng, region, radius.max(8.0), 0.22 * radius),
            texture: Field::random(rng, region, 5.0, 0.06),
        }
    }

    /// Depth of `p` inside the blob in mm, up to an offset that [`Blob::paint`] finds.
    fn inside_mm(&self, p: [f32; 3]) -> f32 {
        let scaled: [f32; 3] = std::array::from_fn(|a| (p[a] - self.centre[a]) / self.radii[a]);
        let radius = self.radii.iter().product::<f32>().cbrt();
        let norm = scaled.iter().map(|v| v * v).sum::<f32>().sqrt();
        radius * (1.0 - norm) + self.bumps.at(p)[0]
    }

    /// Blends the blob into `image` and marks it in `mask`. Its volume is exact to a voxel: where fluid takes space, the
    /// blob extends further outwards.
    fn paint(&self, image: &mut Volume, positions: &[(usize, [f32; 3])], mask: &mut Volume<u8>) {
        let reach = 3.0 * self.radii.iter().copied().fold(0.0, f32::max);
        let near = positions.iter().filter(|(_, p)| (0..3).all(|a| (p[a] - self.centre[a]).abs() < reach));
        let mut candidates: Vec<(f32, usize, [f32; 3])> = near.map(|&(i, p)| (self.inside_mm(p), i, p)).collect();
        let wanted = (f64::from(self.volume_ml) / image.grid.voxel_ml()).round() as usize;
        let last = wanted.clamp(1, candidates.len()) - 1;
        let (_, &mut (border, ..), _) =
            candidates.select_nth_unstable_by(last, |a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        for (inside, i, p) in candidates {
            let share = self.strength * smooth_step(inside, border - self.edge_mm, border + self.edge_mm);
            let level = self.level * (1.0 + self.texture.at(p)[0]);
            image.data[i] += share * (level - image.data[i]);
            if inside >= border {
                mask.data[i] = 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::volume::{Affine, Grid};

    #[test]
    fn a_lesion_has_the_volume_drawn_and_changes_the_image_there() {
        let affine = Affine([[2.0, 0.0, 0.0, -60.0], [0.0, 2.0, 0.0, -60.0], [0.0, 0.0, 2.0, -60.0]]);
        let grid = Grid { shape: [60; 3], affine };
        let region = Region { low: [-60.0; 3], high: [60.0; 3] };
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for _ in 0..8 {
            let mut image = Volume::new(grid, vec![1.0; grid.len()]);
            let blob = Blob::draw([0.0; 3], region, &mut rng);
            let mut lesions = Lesions::none(&image);
            let positions = positions(&image, &vec![true; grid.len()]);
            blob.paint(&mut image, &positions, &mut lesions.mask);
            assert!((lesions.volume_ml() - f64::from(blob.volume_ml)).abs() < 0.01);
            let (mut inside, mut outside) = (0.0f32, 0.0f32);
            for (value, mask) in image.data.iter().zip(&lesions.mask.data) {
                let change = (value - 1.0).abs();
                if *mask == 1 { inside += change } else { outside += change }
            }
            assert!(inside > 2.0 * outside, "{inside} inside, {outside} outside");
        }
    }
}
