//! The healthy map: what healthy scans look like at each place in MNI space.
//!
//! It has two parts, both on blocks of 2 x 2 x 2 voxels of the model's grid:
//! - [`Places`]: mean and standard deviation of the anomaly score. Some places score high in every brain: the rim, the
//!   walls of the ventricles, and regions where gyri vary most. A score is therefore measured relative to healthy scans
//!   at its place.
//! - [`Intensities`]: a linear model of the intensity. Intensities vary together: a healthy brain with wide ventricles
//!   has wide sulci too. The model holds the principal components of healthy intensities, and measures each place
//!   relative to the intensity that the rest of the brain predicts for it.
//!
//! [`HealthyMapBuilder`] fits the map to healthy scans, one scan at a time.

mod file;

use tch::{Kind, Tensor};

use crate::error::Result;
use crate::volume::Volume;

/// Voxels of a block along each axis.
const BLOCK: usize = 2;

/// Places with brain in fewer scans than this get the mean and standard deviation of the whole brain.
const MIN_SCANS: f64 = 8.;

/// Number of principal components of the intensity; at most a quarter of the number of scans.
const COMPONENTS: usize = 16;

/// The intensity is modelled where at least this share of the scans has brain.
const MIN_SHARE: f64 = 0.2;

/// Added to the standard deviation of the intensity (0..1) at a place. Without it, noise would count as a deviation
/// where healthy scans hardly differ.
const LEAST_SD: f64 = 0.03;

/// Added to the standard deviation of the residual of the components, in standard deviations of the place.
const LEAST_RESIDUAL_SD: f64 = 0.3;

/// Deviations are clipped to this in the components, so that no single place determines a brain's weights.
const MOST_DEVIATION: f64 = 3.;

/// Scores and intensities of healthy scans by place.
#[derive(Debug, Clone, PartialEq)]
pub struct HealthyMap {
    /// Statistics of the anomaly score.
    pub score: Places,
    /// Model of the smoothed intensity.
    pub intensity: Intensities,
}

/// Mean and standard deviation of a score by place.
#[derive(Debug, Clone, PartialEq)]
pub struct Places {
    /// Blocks along x, y, z.
    shape: [usize; 3],
    mean: Vec<f32>,
    sd: Vec<f32>,
}

/// A linear model of healthy intensities: `mean + sd * (weights of a brain . components)`, and the spread of its
/// residual.
#[derive(Debug, Clone, PartialEq)]
pub struct Intensities {
    /// Blocks along x, y, z.
    shape: [usize; 3],
    /// By block, 0..1.
    mean: Vec<f32>,
    /// By block, 0..1; infinite where the intensity is not modelled.
    sd: Vec<f32>,
    /// By component and block; orthogonal, with a mean square of one over the modelled blocks.
    components: Vec<Vec<f32>>,
    /// Standard deviation of the residual of the components by block, in units of `sd`.
    residual_sd: Vec<f32>,
}

/// Fits a [`HealthyMap`] to scans that are added one by one.
#[derive(Debug)]
pub struct HealthyMapBuilder {
    shape: [usize; 3],
    /// Number, sum and sum of squares of each block's scores.
    score: Vec<[f64; 3]>,
    /// Mean intensity by scan and block.
    intensity: Vec<Vec<f32>>,
    /// Number of scans in which each block is brain.
    brain: Vec<u32>,
}

impl HealthyMapBuilder {
    /// For scans of `voxels` along x, y, z.
    pub fn new(voxels: [usize; 3]) -> Self {
        let shape = voxels.map(|n| n.div_ceil(BLOCK));
        let blocks = shape.iter().product();
        Self { shape, score: vec![[0.; 3]; blocks], intensity: Vec::new(), brain: vec![0; blocks] }
    }

    /// Adds the anomaly scores of one healthy scan; only voxels of its brain count.
    pub fn add_score(&mut self, score: &Volume<f32>, brain: &Volume<u8>) {
        for i in (0..brain.data.len()).filter(|&i| brain.data[i] > 0) {
            let value = f64::from(score.data[i]);
            let sums = &mut self.score[block(i, brain.grid.shape, self.shape)];
            [1., value, value * value].iter().zip(sums).for_each(|(v, sum)| *sum += v);
        }
    }

    /// Adds the smoothed intensities of one healthy scan.
    pub fn add_intensity(&mut self, intensity: &Volume<f32>, brain: &Volume<u8>) {
        let (means, inside) = blocks(intensity, brain, self.shape);
        self.intensity.push(means);
        self.brain.iter_mut().zip(inside).for_each(|(n, inside)| *n += u32::from(inside));
    }

    /// The map of the scans added so far.
    ///
    /// # Errors
    /// [`Error::Device`](crate::error::Error::Device) where libtorch fails.
    pub fn finish(&self) -> Result<HealthyMap> {
        let intensity = Intensities::fit(&self.intensity, &self.brain, self.shape)?;
        Ok(HealthyMap { score: Places::of(&self.score, self.shape), intensity })
    }
}

impl Places {
    /// From the number, sum and sum of squares of each block's scores.
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

    /// Distance of `value` from the mean of healthy scans at a voxel of a grid of `voxels`, in standard deviations, to
    /// each of which `least_sd` is added.
    pub fn deviation(&self, value: f32, least_sd: f32, voxel: usize, voxels: [usize; 3]) -> f32 {
        let block = block(voxel, voxels, self.shape);
        (value - self.mean[block]) / (self.sd[block] + least_sd)
    }
}

impl Intensities {
    /// `scans`: intensities by scan and block; `brain`: number of scans in which each block is brain.
    fn fit(scans: &[Vec<f32>], brain: &[u32], shape: [usize; 3]) -> Result<Self> {
        let least = (MIN_SHARE * scans.len() as f64).max(1.);
        let known: Vec<usize> = (0..brain.len()).filter(|&block| f64::from(brain[block]) >= least).collect();
        let mut out = Self {
            shape,
            mean: vec![0.; brain.len()],
            sd: vec![f32::INFINITY; brain.len()],
            components: Vec::new(),
            residual_sd: vec![1.; brain.len()],
        };
        if known.is_empty() {
            return Ok(out);
        }
        let values: Vec<f32> = scans.iter().flat_map(|scan| known.iter().map(|&block| scan[block])).collect();
        let values = Tensor::from_slice(&values).view([scans.len() as i64, -1]).to_kind(Kind::Double);
        let mean = values.mean_dim(0i64, false, Kind::Double);
        let sd = values.std_dim(0i64, false, false) + LEAST_SD;
        let deviations = (values - &mean) / &sd;
        let weighed = deviations.clamp(-MOST_DEVIATION, MOST_DEVIATION);

        let n = scans.len() as i64;
        let components = principal(&weighed, COMPONENTS.min(scans.len() / 4));
        // Residuals of scans that the components were not fitted to: those of each half under the other half's
        // components.
        let halves = [0, 1].map(|first| Tensor::arange_start_step(first, n, 2, (Kind::Int64, tch::Device::Cpu)));
        let residuals: Vec<Tensor> = [(0, 1), (1, 0)]
            .iter()
            .map(|&(own, other)| {
                let theirs = principal(&weighed.index_select(0, &halves[other]), components.size()[0] as usize);
                let weights = weighed.index_select(0, &halves[own]).f_matmul(&theirs.tr())? / known.len() as f64;
                Ok(deviations.index_select(0, &halves[own]) - weights.f_matmul(&theirs)?)
            })
            .collect::<Result<_>>()?;
        let residual_sd = Tensor::cat(&residuals, 0).std_dim(0i64, false, false) + LEAST_RESIDUAL_SD;

        let place = |values: &Tensor, at: &mut [f32]| -> Result<()> {
            let values = Vec::<f32>::try_from(values.to_kind(Kind::Float))?;
            known.iter().zip(values).for_each(|(&block, value)| at[block] = value);
            Ok(())
        };
        place(&mean, &mut out.mean)?;
        place(&sd, &mut out.sd)?;
        place(&residual_sd, &mut out.residual_sd)?;
        for component in components.unbind(0) {
            let mut plane = vec![0.; brain.len()];
            place(&component, &mut plane)?;
            out.components.push(plane);
        }
        Ok(out)
    }

    /// Deviation of each voxel's smoothed intensity from the one that the rest of the brain predicts, in standard
    /// deviations of healthy brains; 0 outside the brain and where the intensity is not modelled.
    pub fn deviations(&self, intensity: &Volume<f32>, brain: &Volume<u8>) -> Vec<f32> {
        let (values, inside) = blocks(intensity, brain, self.shape);
        let known: Vec<usize> = (0..values.len()).filter(|&b| self.sd[b].is_finite()).collect();
        let deviations: Vec<f32> =
            known.iter().map(|&b| if inside[b] { (values[b] - self.mean[b]) / self.sd[b] } else { 0. }).collect();
        let limit = MOST_DEVIATION as f32;
        let clipped: Vec<f32> = deviations.iter().map(|d| d.clamp(-limit, limit)).collect();
        let first = self.expected(&known, &clipped);
        // A lesion must not distort the prediction: the second pass replaces outliers by their first prediction.
        let cleaned: Vec<f32> = (0..known.len())
            .map(|i| {
                let outlier = ((deviations[i] - first[i]) / self.residual_sd[known[i]]).abs() > limit;
                if outlier || !inside[known[i]] { first[i] } else { deviations[i] }
            })
            .collect();
        let second = self.expected(&known, &cleaned);
        let mut out = vec![0f32; values.len()];
        for (i, &b) in known.iter().enumerate().filter(|&(_, &b)| inside[b]) {
            out[b] = (deviations[i] - second[i]) / self.residual_sd[b];
        }
        (0..brain.data.len()).map(|voxel| out[block(voxel, brain.grid.shape, self.shape)]).collect()
    }

    /// Projection of the deviations at the blocks `known` onto the components.
    fn expected(&self, known: &[usize], deviations: &[f32]) -> Vec<f32> {
        let mut out = vec![0f32; known.len()];
        for component in &self.components {
            let product: f64 = known.iter().zip(deviations).map(|(&b, &d)| f64::from(component[b] * d)).sum();
            let weight = (product / known.len().max(1) as f64) as f32;
            out.iter_mut().zip(known).for_each(|(out, &b)| *out += weight * component[b]);
        }
        out
    }
}

/// The first principal components `[components, M]` of rows `[N, M]`, each with a mean square of one; fewer where the
/// rank of the rows is lower.
fn principal(rows: &Tensor, components: usize) -> Tensor {
    /// Directions with less than this share of the largest variance are rounding errors.
    const LEAST: f64 = 1e-9;
    if components == 0 || rows.size()[0] == 0 {
        return rows.narrow(0, 0, 0);
    }
    // From the Gram matrix of the rows, of which there are far fewer than columns.
    let (values, vectors) = rows.matmul(&rows.tr()).linalg_eigh("L");
    let n = rows.size()[0];
    let largest = values.max();
    let found = i64::try_from(values.gt_tensor(&(largest * LEAST)).sum(Kind::Int64)).unwrap_or(0);
    let k = (components as i64).min(found);
    let weights = vectors.narrow(1, n - k, k).flip([1]) / values.narrow(0, n - k, k).flip([0]).sqrt();
    weights.tr().matmul(rows) * (rows.size()[1] as f64).sqrt()
}

/// Mean over each block's voxels, and whether at least half of them are brain.
fn blocks(values: &Volume<f32>, brain: &Volume<u8>, shape: [usize; 3]) -> (Vec<f32>, Vec<bool>) {
    let mut sums = vec![[0f32; 3]; shape.iter().product()];
    for (i, (&value, &inside)) in values.data.iter().zip(&brain.data).enumerate() {
        let sums = &mut sums[block(i, brain.grid.shape, shape)];
        [1., value, f32::from(u8::from(inside > 0))].iter().zip(sums).for_each(|(v, sum)| *sum += v);
    }
    sums.into_iter().map(|[n, value, inside]| (value / n.max(1.), n > 0. && inside >= n / 2.)).unzip()
}

impl HealthyMap {
    /// Whether it is for scans of `voxels` along x, y, z.
    pub(super) fn fits(&self, voxels: [usize; 3]) -> bool {
        self.score.shape == voxels.map(|n| n.div_ceil(BLOCK))
    }
}

/// The block that contains a voxel.
fn block(voxel: usize, [nx, ny, _]: [usize; 3], shape: [usize; 3]) -> usize {
    let [x, y, z] = [voxel % nx, voxel / nx % ny, voxel / (nx * ny)].map(|v| v / BLOCK);
    x + shape[0] * (y + shape[1] * z)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::{Affine, Grid};

    fn grid(shape: [usize; 3]) -> Grid {
        Grid { shape, affine: Affine::identity() }
    }

    #[test]
    fn a_place_has_the_mean_and_spread_of_its_scans() {
        let shape = [6, 5, 4];
        let mut builder = HealthyMapBuilder::new(shape);
        let mut brain = Volume::new(grid(shape), vec![1u8; 120]);
        brain.data[0] = 0;
        // Scan k scores k inside the brain and 100 outside: the mean of 0..=9 is 4.5, the variance 8.25.
        for scan in 0..10 {
            let mut score = Volume::new(grid(shape), vec![scan as f32; 120]);
            score.data[0] = 100.;
            builder.add_score(&score, &brain);
        }
        let map = builder.finish().unwrap();
        let sd = 8.25f32.sqrt();
        for voxel in [1, 119] {
            assert!((map.score.deviation(4.5 + sd, 0., voxel, shape) - 1.).abs() < 1e-5, "air has no influence");
        }
        let again = HealthyMap::from_bytes(&map.to_bytes().unwrap()).unwrap();
        assert!(again.fits(shape) && !again.fits([6, 7, 4]));
        assert!((again.score.deviation(4.5 + sd, 0., 119, shape) - 1.).abs() < 2e-3, "f16");
    }

    /// A brain whose halves differ in opposite directions from 0.5, by up to 0.2, with noise of up to 0.01.
    fn scan(seed: usize, shape: [usize; 3]) -> Volume<f32> {
        let unit = |n: usize| (n * 7919 % 1000) as f32 / 1000. - 0.5;
        let tilt = 0.4 * unit(seed + 1);
        let value = |i: usize| if i / 40 < 4 { 0.5 + tilt } else { 0.5 - tilt } + 0.02 * unit(seed * 31 + i * 17);
        Volume::new(grid(shape), (0..shape.iter().product()).map(value).collect())
    }

    #[test]
    fn covariation_of_healthy_brains_is_predicted_and_a_lesion_deviates() {
        let shape = [10, 4, 8];
        let mut builder = HealthyMapBuilder::new(shape);
        let mut brain = Volume::new(grid(shape), vec![1u8; 320]);
        brain.data[319] = 0;
        (0..40).for_each(|seed| builder.add_intensity(&scan(seed, shape), &brain));
        let fitted = builder.finish().unwrap();
        let map = HealthyMap::from_bytes(&fitted.to_bytes().unwrap()).unwrap();
        assert!(!map.intensity.components.is_empty());

        let far = |scan: &Volume<f32>| map.intensity.deviations(scan, &brain);
        let strongest = |values: &[f32]| values.iter().fold(0f32, |most, v| most.max(v.abs()));
        let healthy = scan(100, shape);
        assert!(strongest(&far(&healthy)) < 0.5, "{}", strongest(&far(&healthy)));
        // A block in the dark half as bright as the bright half: each intensity is usual, but not both in one brain.
        let mut ill = scan(60, shape);
        let (bright, dark) = (ill.data[0].max(ill.data[319]), if ill.data[0] > ill.data[319] { 4 } else { 0 });
        let lesion: Vec<usize> =
            (0..320).filter(|i| i % 10 < 2 && i / 10 % 4 < 2 && (dark..dark + 2).contains(&(i / 40))).collect();
        lesion.iter().for_each(|&i| ill.data[i] = bright);
        let deviations = far(&ill);
        assert!(lesion.iter().all(|&i| deviations[i] > 2. * strongest(&far(&scan(60, shape)))), "{deviations:?}");
        let elsewhere: Vec<f32> = (0..320).filter(|i| !lesion.contains(i)).map(|i| deviations[i]).collect();
        assert!(strongest(&elsewhere) < 0.5, "{}", strongest(&elsewhere));
    }

    #[test]
    fn principal_components_are_those_of_the_covariance() {
        tch::manual_seed(2);
        let spread = Tensor::from_slice(&[5f64, 3., 1., 0.1]);
        let rows = Tensor::randn([30, 4], (Kind::Double, tch::Device::Cpu)) * spread;
        let found = principal(&rows, 2);
        let (values, vectors) = rows.tr().matmul(&rows).linalg_eigh("L");
        for (k, column) in [(0, 3), (1, 2)] {
            let cosine = f64::try_from((found.get(k) * vectors.select(1, column)).sum(Kind::Double)).unwrap() / 2.;
            assert!((cosine.abs() - 1.).abs() < 1e-9, "component {k}: {cosine}, {values}");
        }
        // Rows of rank one have one component.
        assert_eq!(principal(&rows.narrow(0, 0, 1).repeat([5, 1]), 3).size(), [1, 4]);
    }
}
