//! The bias field: the smooth change of brightness over a scan that comes from the coils and from the body itself.
//!
//! Takes a scan on the 2 mm working grid with air at 0 and its brain mask; gives a [`BiasField`] in native world mm to
//! divide the scan by, with geometric mean 1 over the brain. As in Van Leemput et al. (IEEE Transactions on Medical
//! Imaging 18:885, 1999), tissues and field are estimated in turn: a mixture of tissues ([`mixture`]) gives the distance
//! of each voxel's log intensity from its tissue's mean, and a cubic B-spline ([`lattice`]) approximates these distances,
//! refined from level to level as in N4 (Tustison et al., IEEE Transactions on Medical Imaging 29:1310, 2010). Unlike
//! N4's sharpened histogram, the mixture has outliers: a bright lesion belongs to no tissue, so the field does not follow
//! it. The order of the tissues' intensities does not matter, so that FLAIR and T2 work too. Refuses nothing: where there
//! is too little brain for an estimate, the field is 1 everywhere.

mod lattice;
mod mixture;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::mask::bounds;
use super::statistics::percentile;
use crate::config::{Section, Validate};
use crate::error::Result;
use crate::volume::{Affine, Grid, Volume};
pub(crate) use lattice::cubic_b_spline;
use lattice::{Approximation, Lattice};
use mixture::Mixture;

/// Parameters of the bias field. The defaults were chosen on 6 heads of the IXI training split, multiplied by
/// known fields, and on heads with artificial lesions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BiasConfig {
    /// Distance between the voxels that are sampled, in mm.
    pub sampling_mm: f64,
    /// Size of the spline's cells at the first level, in mm; every further level halves it.
    pub coarse_mm: f64,
    /// Number of levels.
    pub levels: usize,
    /// Most iterations per level.
    pub iterations: usize,
    /// A level ends when an iteration changes the field by less than this (standard deviation of its logarithm).
    pub converged: f32,
    /// Distance from its tissue's mean, in standard deviations, at which a voxel counts half as an outlier.
    pub outlier: f32,
    /// The percentiles of brain intensities (0..1) between which voxels are used.
    pub range: [f64; 2],
    /// Largest factor by which the field brightens or darkens.
    pub largest: f32,
}

impl Default for BiasConfig {
    fn default() -> Self {
        Self {
            sampling_mm: 4.0,
            coarse_mm: 200.0,
            levels: 3,
            iterations: 25,
            converged: 1e-3,
            outlier: 1.5,
            range: [0.001, 0.999],
            largest: 4.0,
        }
    }
}

/// Smallest cells of the spline at the last level, in mm: their number grows with the third power.
const LEAST_CELL_MM: f64 = 10.;

impl Validate for BiasConfig {
    fn validate(&self) -> Result<()> {
        let section = Section("preprocess.bias");
        section.within("sampling_mm", self.sampling_mm, 0.5..=50.)?;
        section.within("levels", self.levels, 0..=8)?;
        let doublings = self.levels.saturating_sub(1) as i32;
        section.within("coarse_mm", self.coarse_mm, LEAST_CELL_MM * 2f64.powi(doublings)..=10_000.)?;
        section.within("iterations", self.iterations, 0..=10_000)?;
        section.within("converged", self.converged, 0. ..=1.)?;
        section.within("outlier", self.outlier, 0.01..=100.)?;
        section.bounds("range", self.range, 0. ..=1.)?;
        section.within("largest", self.largest, 1. ..=1000.)
    }
}

/// Over-relaxation of each iteration. The approximation undershoots; from a factor of 2 on, the field would oscillate.
const STRIDE: f32 = 1.8;

/// Percentiles of the brain's intensities from which the tissues start: fluid, grey and white matter of a T1w image.
const TISSUE_PERCENTILES: [f64; 3] = [0.1, 0.45, 0.85];

/// A smooth positive field in native world mm, with geometric mean 1 over the brain it was estimated in. Outside the box
/// around that brain it keeps the value at the box's border.
#[derive(Debug, Clone, PartialEq)]
pub struct BiasField {
    /// Native world mm to the lattice's cells.
    to_cells: Affine,
    /// The field's natural logarithm.
    log: Lattice,
}

impl BiasField {
    /// The factor at `world_mm`, by which the scan is divided.
    pub fn value(&self, world_mm: [f64; 3]) -> f32 {
        self.log.at(self.to_cells.apply(world_mm)).exp()
    }

    /// The factor at every voxel of `grid`; `grid_world_to_native` maps the grid's world mm to native world mm. The
    /// spline is evaluated every 4 mm and interpolated linearly in between. Its cells are ten times as large, so that the
    /// result differs from [`BiasField::value`] by well below 1 %.
    pub fn on(&self, grid: &Grid, grid_world_to_native: &Affine) -> Volume<f32> {
        let mut out = Volume::zeros(*grid);
        if grid.is_empty() {
            return out;
        }
        const NODE_MM: f64 = 4.0;
        let spacing = grid.spacing();
        let steps: [usize; 3] = std::array::from_fn(|a| ((NODE_MM / spacing[a]) as usize).max(1));
        let [mx, my, mz]: [usize; 3] = std::array::from_fn(|a| (grid.shape[a] - 1).div_ceil(steps[a]) + 1);
        let to_cells = grid.affine.then(grid_world_to_native).then(&self.to_cells);
        let mut nodes = vec![0.0; mx * my * mz];
        nodes.par_chunks_mut(mx).enumerate().for_each(|(row, nodes)| {
            let (y, z) = (row % my * steps[1], row / my * steps[2]);
            for (x, node) in nodes.iter_mut().enumerate() {
                *node = self.log.at(to_cells.apply([x * steps[0], y, z].map(|c| c as f64))).exp();
            }
        });
        let [nx, ny, _] = grid.shape;
        out.data.par_chunks_mut(nx * ny).enumerate().for_each(|(z, slab)| {
            let mut line = vec![0.0; mx];
            // The node before a voxel, the one after it, and the voxel's relative position between them.
            let between = |i: usize, axis: usize, nodes: usize| {
                let k = i / steps[axis];
                (k, (k + 1).min(nodes - 1), (i % steps[axis]) as f32 / steps[axis] as f32)
            };
            let (z0, z1, tz) = between(z, 2, mz);
            for (y, row) in slab.chunks_mut(nx).enumerate() {
                let (y0, y1, ty) = between(y, 1, my);
                let at = |y: usize, z: usize| &nodes[mx * (y + my * z)..];
                let corners = at(y0, z0).iter().zip(at(y1, z0)).zip(at(y0, z1)).zip(at(y1, z1));
                for (v, (((a, b), c), d)) in line.iter_mut().zip(corners) {
                    *v = (a + ty * (b - a)) * (1.0 - tz) + (c + ty * (d - c)) * tz;
                }
                for (k, voxels) in row.chunks_mut(steps[0]).enumerate() {
                    let (from, to) = (line[k], line[(k + 1).min(mx - 1)]);
                    for (i, voxel) in voxels.iter_mut().enumerate() {
                        *voxel = from + (to - from) * i as f32 / steps[0] as f32;
                    }
                }
            }
        });
        out
    }

    /// The field that is 1 everywhere.
    fn flat() -> Self {
        Self { to_cells: Affine::identity(), log: Lattice::flat([1; 3]) }
    }
}

/// The bias field of `image`, a scan on the working grid with air at 0, within its mask `brain` on the same grid.
pub fn estimate_bias(image: &Volume<f32>, brain: &Volume<u8>, cfg: &BiasConfig) -> BiasField {
    let Some(samples) = Samples::of(image, brain, cfg) else { return BiasField::flat() };
    let mut mixture = Mixture::new(samples.range, samples.starts, cfg.outlier);
    let mut log = Lattice::flat(samples.cells(cfg.coarse_mm));
    let mut field = vec![0.0; samples.log.len()];
    let (mut excess, mut trust) = (vec![0.0; field.len()], vec![0.0; field.len()]);
    for level in 0..cfg.levels {
        if level > 0 {
            log = log.refined();
        }
        let spline = Approximation::new(samples.shape, log.cells());
        for _ in 0..cfg.iterations {
            let corrected: Vec<f32> = samples.log.iter().zip(&field).map(|(v, f)| v - f).collect();
            let table = mixture.update(samples.brain.iter().map(|&i| corrected[i]));
            for &i in &samples.brain {
                let deviation = mixture.look_up(&table, corrected[i]);
                (excess[i], trust[i]) = (STRIDE * deviation.excess, deviation.trust);
            }
            let mut step = spline.lattice(&excess, &trust);
            let mut change = spline.values(&step);
            // Only the field's shape matters: a common factor would drift with the brightness of the brain.
            let n = samples.brain.len() as f32;
            let mean = samples.brain.iter().map(|&i| change[i]).sum::<f32>() / n;
            step.knots.iter_mut().chain(&mut change).for_each(|v| *v -= mean);
            log.knots.iter_mut().zip(&step.knots).for_each(|(l, s)| *l += s);
            field.iter_mut().zip(&change).for_each(|(f, c)| *f += c);
            let variance = samples.brain.iter().map(|&i| change[i] * change[i]).sum::<f32>() / n;
            if variance.sqrt() < cfg.converged {
                break;
            }
        }
    }
    // A spline stays within the range of its knots, also where it is continued outside the brain.
    let bound = cfg.largest.max(1.0).ln();
    log.knots.iter_mut().for_each(|v| *v = v.clamp(-bound, bound));
    let to_cells = samples.to_cells(image, log.cells());
    BiasField { to_cells, log }
}

/// Log intensities on a regular subset of the working grid's voxels, over the box around the brain.
struct Samples {
    /// Voxels of the working grid from one sample to the next along each axis.
    step: [usize; 3],
    /// Voxel of the first sample.
    first: [usize; 3],
    shape: [usize; 3],
    spacing: [f64; 3],
    /// x fastest; 0 outside the brain.
    log: Vec<f32>,
    /// The samples in the brain, as places in `log`.
    brain: Vec<usize>,
    /// Lowest and highest log intensity that is used.
    range: [f32; 2],
    /// Log intensities from which the tissues start.
    starts: [f32; 3],
}

impl Samples {
    /// `None` where fewer than a hundred samples lie in the brain, or all are equal.
    fn of(image: &Volume<f32>, brain: &Volume<u8>, cfg: &BiasConfig) -> Option<Self> {
        let [nx, ny, _] = image.grid.shape;
        let spacing = image.grid.spacing();
        let step = spacing.map(|s| ((cfg.sampling_mm / s).round() as usize).max(1));
        let (first, last) = bounds(brain)?;
        let shape: [usize; 3] = std::array::from_fn(|a| (last[a] - first[a]) / step[a] + 1);
        let at = |i: usize| {
            let p = [i % shape[0], i / shape[0] % shape[1], i / (shape[0] * shape[1])];
            let [x, y, z] = std::array::from_fn(|a| first[a] + step[a] * p[a]);
            x + nx * (y + ny * z)
        };
        let positive = |i: &usize| brain.data[at(*i)] != 0 && image.data[at(*i)] > 0.0;
        let mut inside: Vec<usize> = (0..shape.iter().product()).filter(positive).collect();
        if inside.len() < 100 {
            return None;
        }
        let mut log = vec![0.0; shape.iter().product()];
        inside.iter().for_each(|&i| log[i] = image.data[at(i)].ln());
        let values: Vec<f32> = inside.iter().map(|&i| log[i]).collect();
        let range = cfg.range.map(|q| percentile(&values, q));
        let starts = TISSUE_PERCENTILES.map(|q| percentile(&values, q));
        inside.retain(|&i| (range[0]..=range[1]).contains(&log[i]));
        (range[0] < range[1]).then_some(Self { step, first, shape, spacing, log, brain: inside, range, starts })
    }

    /// Cells of about `mm` over the box, at least one per axis.
    fn cells(&self, mm: f64) -> [usize; 3] {
        std::array::from_fn(|a| {
            let extent = self.spacing[a] * (self.step[a] * self.shape[a]) as f64;
            ((extent / mm).round() as usize).max(1)
        })
    }

    /// Native world mm to the lattice's cells. The first and the last sample lie on the domain's borders.
    fn to_cells(&self, image: &Volume<f32>, cells: [usize; 3]) -> Affine {
        let mut rows = Affine::identity().0;
        for (a, row) in rows.iter_mut().enumerate() {
            let per_voxel = cells[a] as f64 / (self.step[a] * (self.shape[a] - 1).max(1)) as f64;
            row[a] = per_voxel;
            row[3] = -per_voxel * self.first[a] as f64;
        }
        image.grid.affine.inverse().map_or(Affine::identity(), |to_index| to_index.then(&Affine(rows)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ball of 120 mm with white matter in its middle, folded grey matter around it and fluid outside, on the
    /// working grid, times `field`; with its mask.
    fn brain(field: impl Fn([f64; 3]) -> f64) -> (Volume, Volume<u8>) {
        let affine = Affine::from_rows([[2.0, 0.0, 0.0, -71.0], [0.0, 2.0, 0.0, -71.0], [0.0, 0.0, 2.0, -71.0]]);
        let grid = Grid { shape: [72; 3], affine };
        let voxel = |i: usize| {
            let p = grid.world_mm(i);
            let r = p.iter().map(|c| c * c).sum::<f64>().sqrt();
            let folds = 6.0 * ((p[0] / 9.0).sin() + (p[1] / 9.0).sin() + (p[2] / 9.0).sin());
            let tissue = if r + folds < 42.0 {
                110.0
            } else if r + 0.3 * folds < 56.0 {
                75.0
            } else {
                25.0
            };
            let noise = (i * 7919 % 1013) as f64 / 1013.0 - 0.5;
            if r < 60.0 { ((tissue + 8.0 * noise) * field(p)) as f32 } else { 0.0 }
        };
        let image = Volume::new(grid, (0..grid.len()).map(voxel).collect());
        let mask = image.map(|v| u8::from(v > 0.0));
        (image, mask)
    }

    /// Standard deviation over the brain of the logarithm of the estimated over the true field.
    fn error(found: &BiasField, truth: impl Fn([f64; 3]) -> f64, mask: &Volume<u8>) -> f64 {
        let inside = (0..mask.data.len()).filter(|&i| mask.data[i] != 0);
        let differences: Vec<f64> = inside
            .map(|i| {
                let p = mask.grid.world_mm(i);
                f64::from(found.value(p)).ln() - truth(p).ln()
            })
            .collect();
        let mean = differences.iter().sum::<f64>() / differences.len() as f64;
        (differences.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / differences.len() as f64).sqrt()
    }

    fn sloping(p: [f64; 3]) -> f64 {
        1.0 + 0.3 * ((p[0] + 0.5 * p[2]) / 70.0).sin()
    }

    #[test]
    fn a_known_field_is_estimated() {
        let (image, mask) = brain(sloping);
        let field = estimate_bias(&image, &mask, &BiasConfig::default());
        let error = error(&field, sloping, &mask);
        assert!(error < 0.03, "{error} of a field with standard deviation 0.17");
    }

    #[test]
    fn without_a_field_the_scan_and_a_bright_lesion_keep_their_intensities() {
        let (mut image, mask) = brain(|_| 1.0);
        let cfg = BiasConfig::default();
        assert!(error(&estimate_bias(&image, &mask, &cfg), |_| 1.0, &mask) < 0.01);
        // 48 ml, 40 % brighter than the white matter around it.
        let lesion: Vec<usize> = (0..image.data.len())
            .filter(|&i| {
                let ijk = mask.grid.ijk(i);
                ijk.iter().zip([44.0, 36.0, 36.0]).map(|(&c, o)| (c as f64 - o).powi(2)).sum::<f64>() < 11.3 * 11.3
            })
            .collect();
        lesion.iter().for_each(|&i| image.data[i] = 150.0);
        let field = estimate_bias(&image, &mask, &cfg);
        let inside = lesion.iter().map(|&i| field.value(mask.grid.world_mm(i)));
        let mean = inside.sum::<f32>() / lesion.len() as f32;
        assert!(mean < 1.03, "the field rises to {mean} over a lesion 1.4 times as bright");
    }

    #[test]
    fn the_field_on_a_grid_has_the_values_at_its_voxels() {
        let (image, mask) = brain(sloping);
        let field = estimate_bias(&image, &mask, &BiasConfig::default());
        // A turned and shifted world.
        let (sin, cos) = 0.3f64.sin_cos();
        let turn = Affine::from_rows([[cos, -sin, 0.0, 3.0], [sin, cos, 0.0, -7.0], [0.0, 0.0, 1.0, 5.0]]);
        let on = field.on(&mask.grid, &turn);
        for i in (0..on.data.len()).step_by(97) {
            let p = turn.apply(mask.grid.world_mm(i));
            assert!((on.data[i] / field.value(p) - 1.0).abs() < 0.01, "{} and {} at {p:?}", on.data[i], field.value(p));
        }
    }

    #[test]
    fn without_a_brain_the_field_is_one() {
        let (image, mask) = brain(|_| 1.0);
        let empty = Volume::<u8>::zeros(mask.grid);
        assert_eq!(estimate_bias(&image, &empty, &BiasConfig::default()).value([1.0, 2.0, 3.0]), 1.0);
    }
}
