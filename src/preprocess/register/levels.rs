//! Scan and template at several resolutions.
//!
//! Takes a scan with its brain mask, or the template; gives a pyramid of 2, 4 and 8 mm (Burt and Adelson 1983). Each
//! level smooths the one before with (1, 2, 1) / 4 along every axis and keeps every second voxel. Intensities are
//! averaged within the brain, so that neither air nor skull affects its border, whatever the contrast.

use std::sync::LazyLock;

use crate::preprocess::mask::{bounds, volume_ml};
use crate::preprocess::morphology::{dilate, erode};
use crate::preprocess::statistics::{percentile, values_in};
use crate::preprocess::template::{Template, template};
use crate::volume::{Affine, Grid, Volume};

/// Number of smooth maps that model the rest of the bias field: constant, linear and squared in x, y, z.
pub(super) const TREND_TERMS: usize = 7;
/// Number of maps that explain a scan's intensity: the trend, then grey matter, white matter and T1 of the template.
pub(super) const TERMS: usize = TREND_TERMS + 3;

/// Number of levels: 2, 4 and 8 mm, finest first.
pub(super) const LEVELS: usize = 3;

/// Distance from the border of the template's brain, in voxels of the level, within which masks are compared.
const BORDER_VOXELS: usize = 2;

/// Voxels around the brain that smoothing needs.
const MARGIN_VOXELS: usize = 8;

/// A scan at one resolution.
pub(super) struct Level {
    /// World mm to voxel index.
    pub to_index: Affine,
    /// Voxels along x, y, z; at least 2 each.
    pub shape: [usize; 3],
    /// Intensity times share of brain, and share of brain, of every voxel, x fastest.
    pub voxels: Vec<[f32; 2]>,
    /// Variance of the intensity over the brain.
    pub variance: f64,
}

/// A point in the template.
#[derive(Debug, Clone, Copy)]
pub(super) struct Point {
    /// Offset from the centre of the template's brain in mm.
    pub offset: [f32; 3],
    /// Values of the maps.
    pub terms: [f32; TERMS],
    /// Share of brain.
    pub brain: f32,
    /// 1 near the border of the brain, where masks are compared, 0 elsewhere.
    pub border: f32,
}

/// `image` within `brain` at all levels, finest first. Intensities are clamped at `tails` (a share of the brain's voxels,
/// at either end) and scaled to -1..1. `None` where the mask is empty or the grid has no inverse.
pub(super) fn scan_levels(image: &Volume<f32>, brain: &Volume<u8>, tails: f64) -> Option<[Level; LEVELS]> {
    let (low, shape) = boxed(brain)?;
    let to_world = Affine::translation(low.map(|c| c as f64)).then(&image.grid.affine);
    to_world.inverse()?;
    let inside = values_in(image, brain);
    let bottom = percentile(&inside, tails);
    let top = percentile(&inside, 1.0 - tails);
    let middle = (bottom + top) / 2.0;
    let scale = if top > bottom { 2.0 / (top - bottom) } else { 0.0 };
    let mut maps = Maps { grid: Grid { shape, affine: to_world }, voxels: Vec::with_capacity(shape.iter().product()) };
    let [nx, ny, nz] = image.grid.shape.map(|n| n as isize);
    for z in 0..shape[2] as isize {
        for y in 0..shape[1] as isize {
            for x in 0..shape[0] as isize {
                let [x, y, z] = [x + low[0], y + low[1], z + low[2]];
                let outside = x < 0 || y < 0 || z < 0 || x >= nx || y >= ny || z >= nz;
                let i = if outside { None } else { Some((x + nx * (y + ny * z)) as usize) };
                maps.voxels.push(match i {
                    Some(i) if brain.data[i] != 0 => [(image.data[i].clamp(bottom, top) - middle) * scale, 1.0],
                    _ => [0.0; 2],
                });
            }
        }
    }
    let pyramid = maps.pyramid();
    let levels = pyramid.map(|maps| {
        let (mut sum, mut squares, mut weight) = (0.0, 0.0, 0.0);
        for &[product, share] in maps.voxels.iter().filter(|v| v[1] > 0.0) {
            sum += f64::from(product);
            squares += f64::from(product * product / share);
            weight += f64::from(share);
        }
        let variance = (squares - sum * sum / weight) / weight;
        let to_index = maps.grid.affine.inverse().unwrap_or(Affine::identity());
        Level { to_index, shape: maps.grid.shape, voxels: maps.voxels, variance }
    });
    Some(levels)
}

/// First voxel and shape of the box around the mask with its margin, which may extend beyond the grid.
fn boxed(brain: &Volume<u8>) -> Option<([isize; 3], [usize; 3])> {
    let (low, high) = bounds(brain)?;
    let first = low.map(|c| c as isize - MARGIN_VOXELS as isize);
    Some((first, std::array::from_fn(|a| high[a] - low[a] + 1 + 2 * MARGIN_VOXELS)))
}

/// The centre of mass of a mask in world mm; `None` where it is empty.
pub(super) fn centre(brain: &Volume<u8>) -> Option<[f64; 3]> {
    let mut sum = [0.0; 3];
    let mut n = 0.0;
    for (i, _) in brain.data.iter().enumerate().filter(|&(_, &v)| v != 0) {
        sum.iter_mut().zip(brain.grid.ijk(i)).for_each(|(s, c)| *s += c as f64);
        n += 1.0;
    }
    (n > 0.0).then(|| brain.grid.affine.apply(sum.map(|s| s / n)))
}

/// The points of the template that registration uses.
pub(super) struct TemplatePoints {
    /// Centre of mass of the brain in MNI mm.
    pub centre: [f64; 3],
    /// Volume of the brain in ml.
    pub volume_ml: f64,
    /// The points of each level, finest first.
    pub levels: [Vec<Point>; LEVELS],
}

/// The template's points, computed on first use.
pub(super) fn template_points() -> &'static TemplatePoints {
    static POINTS: LazyLock<TemplatePoints> = LazyLock::new(|| {
        let Template { t1, grey, white, brain } = template();
        let voxels = brain.data.iter().enumerate().map(|(i, &b)| {
            let b = f32::from(b);
            [b * grey.data[i], b * white.data[i], b * t1.data[i], b]
        });
        let maps = Maps { grid: brain.grid, voxels: voxels.collect() };
        let centre = centre(brain).unwrap_or_default();
        let mut finest = true;
        let levels = maps.pyramid().map(|maps| {
            // The finest level has as many points as the middle one.
            let stride = if std::mem::take(&mut finest) { 2 } else { 1 };
            points(&maps, stride, centre)
        });
        TemplatePoints { centre, volume_ml: volume_ml(brain), levels }
    });
    &POINTS
}

/// The points of one level: half of every `stride`th voxel in the brain or near its border.
fn points(maps: &Maps<4>, stride: usize, centre: [f64; 3]) -> Vec<Point> {
    let brain = Volume::new(maps.grid, maps.voxels.iter().map(|v| u8::from(v[3] >= 0.5)).collect());
    let (near, deep) = (dilate(&brain, BORDER_VOXELS), erode(&brain, BORDER_VOXELS));
    let mut points = Vec::new();
    for (i, &[grey, white, t1, share]) in maps.voxels.iter().enumerate() {
        let index = maps.grid.ijk(i);
        // Half of the voxels, as on a chessboard, are enough.
        let kept = index.iter().all(|c| c % stride == 0) && index.iter().sum::<usize>().is_multiple_of(2 * stride);
        if !kept || near.data[i] == 0 {
            continue;
        }
        let world = maps.grid.affine.apply(index.map(|c| c as f64));
        let mean = |sum: f32| sum / share.max(1e-6);
        let offset: [f32; 3] = std::array::from_fn(|a| (world[a] - centre[a]) as f32);
        let [x, y, z] = offset.map(|c| c / 64.0);
        points.push(Point {
            offset,
            terms: [1.0, x, y, z, x * x, y * y, z * z, mean(grey), mean(white), mean(t1)],
            brain: share,
            border: f32::from(1 - deep.data[i]),
        });
    }
    points
}

/// `C` maps on one grid, interleaved by voxel; the last is the share of brain, by which the others are weighted.
struct Maps<const C: usize> {
    grid: Grid,
    voxels: Vec<[f32; C]>,
}

impl<const C: usize> Maps<C> {
    /// All levels, this one first.
    fn pyramid(self) -> [Self; LEVELS] {
        let half = self.halved();
        let quarter = half.halved();
        [self, half, quarter]
    }

    /// Half the resolution.
    fn halved(&self) -> Self {
        let mut shape = self.grid.shape;
        let mut voxels = Vec::new();
        let mut source: &[[f32; C]] = &self.voxels;
        for axis in 0..3 {
            voxels = halved_along(source, shape, axis);
            shape[axis] = shape[axis].div_ceil(2);
            source = &voxels;
        }
        let mut affine = self.grid.affine;
        affine.0.iter_mut().for_each(|row| row[..3].iter_mut().for_each(|v| *v *= 2.0));
        Self { grid: Grid { shape, affine }, voxels }
    }
}

/// Every second voxel along `axis`, smoothed with (1, 2, 1) / 4; values beyond the border are 0.
fn halved_along<const C: usize>(source: &[[f32; C]], shape: [usize; 3], axis: usize) -> Vec<[f32; C]> {
    let step: usize = shape[..axis].iter().product();
    let n = shape[axis];
    let outer: usize = shape[axis + 1..].iter().product();
    let mut out = Vec::with_capacity(step * n.div_ceil(2) * outer);
    for block in source.chunks(step * n).take(outer) {
        for i in (0..n).step_by(2) {
            let plane = |i: usize| &block[i * step..(i + 1) * step];
            let start = out.len();
            out.extend(plane(i).iter().map(|v| v.map(|v| v / 2.0)));
            let mut add = |other: &[[f32; C]]| {
                for (sum, v) in out[start..].iter_mut().zip(other) {
                    sum.iter_mut().zip(v).for_each(|(s, v)| *s += v / 4.0);
                }
            };
            if i > 0 {
                add(plane(i - 1));
            }
            if i + 1 < n {
                add(plane(i + 1));
            }
        }
    }
    out
}
