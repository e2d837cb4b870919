//! What healthy scans look like at each place in MNI space: mean and spread of the anomaly score, and of the intensity.
//!
//! Some places look odd in every brain: the rim, the ventricles' walls, where gyri differ most. A score is worth what it
//! is above that of healthy scans at the same place. [`HealthyMapBuilder`] takes the maps of healthy scans, one after the
//! other; a [`HealthyMap`] tells mean and standard deviation at a voxel. It is kept on blocks of 2 x 2 x 2 voxels of the
//! model's grid.

use half::f16;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::error::{Error, Result};
use crate::volume::Volume;

/// Voxels of a block along each axis.
const BLOCK: usize = 2;

/// Places seen in fewer scans than this are judged by the whole brain's figures.
const MIN_SCANS: f64 = 8.;

/// Healthy scores and intensities by place.
#[derive(Debug, Clone, PartialEq)]
pub struct HealthyMap {
    /// Of the anomaly score.
    pub score: Places,
    /// Of the smoothed intensity.
    pub intensity: Places,
}

/// Mean and standard deviation of one thing by place.
#[derive(Debug, Clone, PartialEq)]
pub struct Places {
    /// Blocks along x, y, z.
    shape: [usize; 3],
    mean: Vec<f32>,
    sd: Vec<f32>,
}

/// Sums over healthy scans.
#[derive(Debug)]
pub struct HealthyMapBuilder {
    shape: [usize; 3],
    /// Voxels, sum and sum of squares of each block.
    score: Vec<[f64; 3]>,
    intensity: Vec<[f64; 3]>,
}

impl HealthyMapBuilder {
    /// For maps of so many voxels along x, y, z.
    pub fn new(voxels: [usize; 3]) -> Self {
        let shape = voxels.map(|n| n.div_ceil(BLOCK));
        let none = vec![[0.; 3]; shape.iter().product()];
        Self { shape, score: none.clone(), intensity: none }
    }

    /// One healthy scan's anomaly score and smoothed intensity; only voxels of its brain count.
    pub fn add(&mut self, score: &Volume<f32>, intensity: &Volume<f32>, brain: &Volume<u8>) {
        for i in (0..brain.data.len()).filter(|&i| brain.data[i] > 0) {
            let block = block(i, brain.grid.shape, self.shape);
            for (sums, value) in [(&mut self.score, score.data[i]), (&mut self.intensity, intensity.data[i])] {
                let value = f64::from(value);
                [1., value, value * value].iter().zip(&mut sums[block]).for_each(|(v, sum)| *sum += v);
            }
        }
    }

    /// The map of what was added.
    pub fn finish(&self) -> HealthyMap {
        HealthyMap { score: Places::of(&self.score, self.shape), intensity: Places::of(&self.intensity, self.shape) }
    }
}

impl Places {
    /// From each block's voxels, sum and sum of squares.
    fn of(sums: &[[f64; 3]], shape: [usize; 3]) -> Self {
        let figures = |[n, sum, squares]: [f64; 3]| {
            let mean = sum / n.max(1.);
            (mean as f32, (squares / n.max(1.) - mean * mean).max(0.).sqrt() as f32)
        };
        let whole = figures(sums.iter().fold([0.; 3], |a, b| [a[0] + b[0], a[1] + b[1], a[2] + b[2]]));
        let least = MIN_SCANS * BLOCK.pow(3) as f64;
        let place = |&sums: &[f64; 3]| if sums[0] < least { whole } else { figures(sums) };
        let (mean, sd) = sums.iter().map(place).unzip();
        Self { shape, mean, sd }
    }

    /// How many standard deviations `value` lies above the mean of healthy scans at a voxel of a grid of `voxels`, with
    /// `least_sd` added to the standard deviation.
    pub fn deviation(&self, value: f32, least_sd: f32, voxel: usize, voxels: [usize; 3]) -> f32 {
        let block = block(voxel, voxels, self.shape);
        (value - self.mean[block]) / (self.sd[block] + least_sd)
    }
}

impl HealthyMap {
    /// As a safetensors file: `score.mean`, `score.sd`, `intensity.mean`, `intensity.sd`, f16, `[z, y, x]`.
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>> {
        let shape: Vec<usize> = self.score.shape.iter().rev().copied().collect();
        let halves = |values: &[f32]| values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect::<Vec<u8>>();
        let (score, intensity) = (&self.score, &self.intensity);
        let tensors = [
            ("score.mean", halves(&score.mean)),
            ("score.sd", halves(&score.sd)),
            ("intensity.mean", halves(&intensity.mean)),
            ("intensity.sd", halves(&intensity.sd)),
        ];
        let views = tensors
            .iter()
            .map(|(name, data)| Ok((*name, TensorView::new(Dtype::F16, shape.clone(), data)?)))
            .collect::<Result<Vec<_>, safetensors::SafeTensorError>>();
        views
            .and_then(|views| safetensors::serialize(views, &None))
            .map_err(|e| Error::Bug(format!("the healthy map cannot be serialized: {e}")))
    }

    /// What [`HealthyMap::to_bytes`] gave.
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let misfit = |e: &dyn std::fmt::Display| Error::Model(format!("healthy.safetensors cannot be read: {e}"));
        let file = SafeTensors::deserialize(bytes).map_err(|e| misfit(&e))?;
        let read = |name: String| -> Result<(Vec<usize>, Vec<f32>)> {
            let view = file.tensor(&name).map_err(|e| misfit(&e))?;
            if view.dtype() != Dtype::F16 || view.shape().len() != 3 {
                return Err(misfit(&format!("`{name}` is not three axes of F16")));
            }
            let half = view.data().chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32());
            Ok((view.shape().to_vec(), half.collect()))
        };
        let places = |name: &str| {
            let ((shape, mean), (same, sd)) = (read(format!("{name}.mean"))?, read(format!("{name}.sd"))?);
            if shape != same {
                return Err(misfit(&format!("`{name}.mean` and `{name}.sd` differ in shape")));
            }
            Ok(Places { shape: [shape[2], shape[1], shape[0]], mean, sd })
        };
        Ok(Self { score: places("score")?, intensity: places("intensity")? })
    }

    /// Whether it is for maps of so many voxels.
    pub(super) fn fits(&self, voxels: [usize; 3]) -> bool {
        [&self.score, &self.intensity].iter().all(|places| places.shape == voxels.map(|n| n.div_ceil(BLOCK)))
    }
}

/// The block that a voxel is in.
fn block(voxel: usize, [nx, ny, _]: [usize; 3], shape: [usize; 3]) -> usize {
    let [x, y, z] = [voxel % nx, voxel / nx % ny, voxel / (nx * ny)].map(|v| v / BLOCK);
    x + shape[0] * (y + shape[1] * z)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::{Affine, Grid};

    #[test]
    fn a_place_has_the_mean_and_spread_of_its_scans() {
        let shape = [6, 5, 4];
        let grid = Grid { shape, affine: Affine::identity() };
        let mut builder = HealthyMapBuilder::new(shape);
        let mut brain = Volume::new(grid, vec![1u8; 120]);
        brain.data[0] = 0;
        // Scan k scores k at every voxel, and 100 where there is no brain: mean of 0..=9 is 4.5, variance 8.25.
        for scan in 0..10 {
            let mut score = Volume::new(grid, vec![scan as f32; 120]);
            score.data[0] = 100.;
            builder.add(&score, &Volume::new(grid, vec![0.5; 120]), &brain);
        }
        let map = builder.finish();
        let sd = 8.25f32.sqrt();
        for voxel in [1, 119] {
            assert!((map.score.deviation(4.5 + sd, 0., voxel, shape) - 1.).abs() < 1e-5, "air does not count");
        }
        assert!((map.intensity.deviation(0.6, 0.1, 119, shape) - 1.).abs() < 1e-5);
        let again = HealthyMap::from_bytes(&map.to_bytes().unwrap()).unwrap();
        assert!(again.fits(shape) && !again.fits([6, 7, 4]));
        assert!((again.score.deviation(4.5 + sd, 0., 119, shape) - 1.).abs() < 2e-3, "f16");
    }
}
