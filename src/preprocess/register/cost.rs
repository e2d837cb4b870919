//! The cost of a pose of the template in the scan, and its normal equations.
//!
//! In the brain the scan's intensity is a sum of the template's maps with free weights, so that any contrast can be
//! explained (Ashburner et al. 1997, "Incorporating prior knowledge into image registration"). Near the border of the
//! brain the two masks should agree. The cost is
//!
//! ```text
//! unexplained variance / variance  +  mask_weight x mean squared difference of the masks  +  strain_weight x strain²
//! ```
//!
//! One pass over the template's points gives the cost and its normal equations (Gauss-Newton), from which the weights of
//! the maps are eliminated.

use super::levels::{Level, Point, TERMS, TREND_TERMS};
use super::pose::{PARAMETERS, Pose, derivative};
use crate::preprocess::linear::solve_damped;

/// Place of the intensity in a point's row: after the derivatives by the parameters and the template's maps.
const VALUE: usize = PARAMETERS + TERMS;
/// Place of the difference of the masks in a point's row: after the derivatives by the parameters.
const DIFFERENCE: usize = PARAMETERS;
/// Number of points summed in `f32` before the sum is added in `f64`.
const BLOCK: usize = 512;
/// Share of its diagonal added to the maps' matrix, because some maps nearly depend on each other.
const DAMPING: f64 = 1e-5;

/// Weights of the parts of the cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weights {
    /// Weight of the masks' mean squared difference near the border.
    pub mask: f64,
    /// Weight of the squared strain of the template after a change of size to `size`.
    pub strain: f64,
    /// Size of the scan's brain relative to the template's, from the volumes of the masks.
    pub size: f64,
}

/// The cost of a pose, with its second-order model in the parameters of a change of the pose.
pub(super) struct NormalEquations {
    /// As the module's first lines define it.
    pub cost: f64,
    /// Half the second derivatives.
    pub matrix: [[f64; PARAMETERS]; PARAMETERS],
    /// Half the first derivatives.
    pub slope: [f64; PARAMETERS],
    /// Correlation of the scan without its smooth trend with the tissue maps where both brains overlap, 0..1.
    pub correlation: f64,
    explained: Explained,
}

/// The intensity as explained by the template's maps.
#[derive(Clone, Copy, Default)]
struct Explained {
    /// Weights of the maps.
    terms: [f64; TERMS],
    /// Mean squared residual.
    residual: f64,
}

/// The cost of `pose` and its normal equations. `before` are those of a pose close to this one.
pub(super) fn evaluate(
    level: &Level,
    points: &[Point],
    pose: &Pose,
    weights: &Weights,
    before: &NormalEquations,
) -> NormalEquations {
    let to_scan = ToScan::new(level, pose);
    let before = before.explained;
    let expected = before.terms.map(|w| w as f32);
    let mut intensity = Gram::<24>::default();
    let mut masks = Gram::<16>::default();
    let mut overlap_slope = [0.0; PARAMETERS];
    for block in points.chunks(BLOCK) {
        let mut block_slope = [0.0f32; PARAMETERS];
        for point in block {
            let u = to_scan.offset(point.offset);
            let Sample { product, share, product_slope, share_slope } = to_scan.sample(u);
            let by_share = derivative(share_slope, u);
            if point.brain * share > 0.0 {
                let value = product / share;
                let slope = [0, 1, 2].map(|a| (product_slope[a] - value * share_slope[a]) / share);
                let mut row = [0.0; 24];
                row[..PARAMETERS].copy_from_slice(&derivative(slope, u));
                row[PARAMETERS..VALUE].copy_from_slice(&point.terms);
                row[VALUE] = value;
                intensity.add(&row, point.brain * share);
                // A point that enters or leaves the overlap also changes the mean of the squared residuals.
                let residual = value - point.terms.iter().zip(expected).map(|(t, w)| t * w).sum::<f32>();
                let excess = 0.5 * point.brain * (residual * residual - before.residual as f32);
                block_slope.iter_mut().zip(by_share).for_each(|(s, d)| *s += excess * d);
            }
            if point.border > 0.0 {
                let mut row = [0.0; 16];
                row[..PARAMETERS].copy_from_slice(&by_share);
                row[DIFFERENCE] = share - point.brain;
                masks.add(&row, point.border);
            }
        }
        intensity.flush();
        masks.flush();
        overlap_slope.iter_mut().zip(block_slope).for_each(|(s, b)| *s += f64::from(b));
    }
    let mut normal = NormalEquations::strain(pose, weights);
    let border: f64 = points.iter().map(|p| f64::from(p.border)).sum();
    normal.add_masks(&masks.sums, weights.mask / border.max(1.0));
    normal.add_intensity(&intensity.sums, &overlap_slope, level.variance);
    normal
}

impl NormalEquations {
    /// The state before the first evaluation: no cost, no slope, nothing explained.
    pub fn zero() -> Self {
        Self {
            cost: 0.0,
            matrix: [[0.0; PARAMETERS]; PARAMETERS],
            slope: [0.0; PARAMETERS],
            correlation: 0.0,
            explained: Explained::default(),
        }
    }

    /// The cost of stretching and shearing: the squared Green strain of the pose without its size.
    fn strain(pose: &Pose, weights: &Weights) -> Self {
        let mut normal = Self::zero();
        let m = pose.linear;
        for a in 0..3 {
            for b in 0..3 {
                let product: f64 = (0..3).map(|k| m[a][k] * m[b][k]).sum();
                let unit = f64::from(u8::from(a == b));
                let strain = (product / (weights.size * weights.size) - unit) / 2.0;
                normal.cost += weights.strain * strain * strain;
                // A change d of the linear part adds its symmetric part (d_ab + d_ba) / 2 to the strain.
                normal.slope[4 * a + b] += weights.strain * strain;
                normal.matrix[4 * a + b][4 * a + b] += weights.strain / 2.0;
                normal.matrix[4 * a + b][4 * b + a] += weights.strain / 2.0;
            }
        }
        normal
    }

    /// Adds the masks' squared differences, times `scale`.
    fn add_masks(&mut self, sums: &[[f64; 16]; 16], scale: f64) {
        self.cost += scale * sums[DIFFERENCE][DIFFERENCE];
        for r in 0..PARAMETERS {
            self.slope[r] += scale * sums[DIFFERENCE][r];
            for c in 0..PARAMETERS {
                self.matrix[r][c] += scale * sums[r.max(c)][r.min(c)];
            }
        }
    }

    /// Adds the share of the intensity's `variance` that the template's maps leave unexplained.
    fn add_intensity(&mut self, sums: &[[f64; 24]; 24], overlap_slope: &[f64; PARAMETERS], variance: f64) {
        let maps: [[f64; TERMS]; TERMS] =
            std::array::from_fn(|r| std::array::from_fn(|c| sums[PARAMETERS + r.max(c)][PARAMETERS + r.min(c)]));
        let right: [f64; TERMS] = std::array::from_fn(|k| sums[VALUE][PARAMETERS + k]);
        let overlap = maps[0][0];
        let solved = solve_damped(maps, right, DAMPING).filter(|_| variance > 0.0);
        let Some(terms) = solved else {
            // Nothing overlaps, or the scan has no contrast: all of its variance is unexplained.
            self.cost += 1.0;
            return;
        };
        let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(x, y)| x * y).sum() };
        let residual = (sums[VALUE][VALUE] - dot(&terms, &right)).max(0.0);
        let trend_maps: [[f64; TREND_TERMS]; TREND_TERMS] =
            std::array::from_fn(|r| std::array::from_fn(|c| maps[r][c]));
        let trend_right: [f64; TREND_TERMS] = std::array::from_fn(|r| right[r]);
        let trend = solve_damped(trend_maps, trend_right, DAMPING).unwrap_or_default();
        let detrended = sums[VALUE][VALUE] - dot(&trend, &trend_right);
        self.correlation = if detrended > 0.0 { (1.0 - residual / detrended).max(0.0).sqrt() } else { 0.0 };
        self.explained = Explained { terms, residual: residual / overlap };

        let scale = 1.0 / (overlap * variance);
        self.cost += scale * residual;
        let mixed: [[f64; TERMS]; PARAMETERS] =
            std::array::from_fn(|r| std::array::from_fn(|k| sums[PARAMETERS + k][r]));
        for r in 0..PARAMETERS {
            self.slope[r] += scale * (sums[VALUE][r] - dot(&terms, &mixed[r]) + overlap_slope[r]);
            // The maps' weights follow the parameter, and the change they compensate does not count.
            let follow = solve_damped(maps, mixed[r], DAMPING).unwrap_or_default();
            for c in 0..PARAMETERS {
                self.matrix[r][c] += scale * (sums[r.max(c)][r.min(c)] - dot(&follow, &mixed[c]));
            }
        }
    }
}

/// Sums of products of all pairs of `N` values; entry `[r][c]` is filled for `c <= r`.
struct Gram<const N: usize> {
    block: [[f32; N]; N],
    sums: [[f64; N]; N],
}

impl<const N: usize> Default for Gram<N> {
    fn default() -> Self {
        Self { block: [[0.0; N]; N], sums: [[0.0; N]; N] }
    }
}

impl<const N: usize> Gram<N> {
    /// Adds the products of `row` with itself, times `weight`.
    #[inline(always)]
    fn add(&mut self, row: &[f32; N], weight: f32) {
        // Whole groups of eight columns up to the diagonal: processors multiply eight numbers at once.
        for group in (0..N).step_by(8) {
            let columns: [f32; 8] = std::array::from_fn(|k| row[group + k]);
            for (sums, &value) in self.block.iter_mut().zip(row).skip(group) {
                let value = weight * value;
                sums[group..group + 8].iter_mut().zip(columns).for_each(|(s, c)| *s += value * c);
            }
        }
    }

    /// Adds the block's sums to the total, before `f32` becomes too coarse for them.
    fn flush(&mut self) {
        for (sums, block) in self.sums.iter_mut().flatten().zip(self.block.iter_mut().flatten()) {
            *sums += f64::from(std::mem::take(block));
        }
    }
}

/// The map from the template's offsets to the scan's voxels.
struct ToScan<'a> {
    level: &'a Level,
    linear: [[f32; 3]; 3],
    /// Voxels per mm.
    per_mm: [[f32; 3]; 3],
    /// Voxel index of the centre.
    at: [f32; 3],
}

/// The scan at one position: 0 outside its grid.
#[derive(Default)]
struct Sample {
    /// Intensity times share of brain.
    product: f32,
    /// Share of brain.
    share: f32,
    /// Gradient of `product` per mm.
    product_slope: [f32; 3],
    /// Gradient of `share` per mm.
    share_slope: [f32; 3],
}

impl<'a> ToScan<'a> {
    fn new(level: &'a Level, pose: &Pose) -> Self {
        let linear = pose.linear.map(|row| row.map(|v| v as f32));
        let per_mm = level.to_index.0.map(|[x, y, z, _]| [x as f32, y as f32, z as f32]);
        Self { level, linear, per_mm, at: level.to_index.apply(pose.at).map(|v| v as f32) }
    }

    /// Offset from the centre in the scan, in mm.
    #[inline(always)]
    fn offset(&self, template: [f32; 3]) -> [f32; 3] {
        let [x, y, z] = template;
        self.linear.map(|row| row[0] * x + row[1] * y + row[2] * z)
    }

    /// Trilinear interpolation at an offset in mm.
    #[inline(always)]
    fn sample(&self, u: [f32; 3]) -> Sample {
        let [nx, ny, nz] = self.level.shape;
        let index: [f32; 3] = std::array::from_fn(|a| {
            let row = self.per_mm[a];
            row[0] * u[0] + row[1] * u[1] + row[2] * u[2] + self.at[a]
        });
        let last = [nx, ny, nz].map(|n| (n - 1) as f32);
        // Also false for NaN.
        if !(0..3).all(|a| index[a] >= 0.0 && index[a] < last[a]) {
            return Sample::default();
        }
        let cell = index.map(|v| v as usize);
        let [fx, fy, fz]: [f32; 3] = std::array::from_fn(|a| index[a] - cell[a] as f32);
        let corner = cell[0] + nx * (cell[1] + ny * cell[2]);
        let voxels = &self.level.voxels;
        let rows = [corner, corner + nx, corner + nx * ny, corner + nx * ny + nx].map(|i| [voxels[i], voxels[i + 1]]);
        let [product, share] = [0, 1].map(|channel| {
            let [a, b, c, d] = rows.map(|pair| {
                let [from, to] = pair.map(|v| v[channel]);
                [from + fx * (to - from), to - from]
            });
            let near: [f32; 2] = std::array::from_fn(|k| a[k] + fy * (b[k] - a[k]));
            let far: [f32; 2] = std::array::from_fn(|k| c[k] + fy * (d[k] - c[k]));
            let along = [near[1] + fz * (far[1] - near[1]), (b[0] - a[0]) * (1.0 - fz) + (d[0] - c[0]) * fz];
            (near[0] + fz * (far[0] - near[0]), [along[0], along[1], far[0] - near[0]])
        });
        let per_mm =
            |slope: [f32; 3]| std::array::from_fn(|m| (0..3).map(|a| slope[a] * self.per_mm[a][m]).sum::<f32>());
        Sample { product: product.0, share: share.0, product_slope: per_mm(product.1), share_slope: per_mm(share.1) }
    }
}
