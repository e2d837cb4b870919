//! Measures of a scan's quality: noise, contrast, ghosts, and the shape of the brain mask.
//!
//! Takes volumes on the working grid (2 mm). Air and head are sampled at every second voxel along each axis, which is
//! enough for means over hundreds of thousands of voxels.

use crate::preprocess::mask::count;
use crate::preprocess::morphology::{close, dilate, fill_holes, largest_component};
use crate::preprocess::statistics::{percentile, values_in};
use crate::volume::{Affine, Grid, Volume};

/// Every second voxel along each axis.
pub(super) fn thinned<T: Copy + Default>(volume: &Volume<T>) -> Volume<T> {
    let [nx, ny, _] = volume.grid.shape;
    let shape = volume.grid.shape.map(|n| n.div_ceil(2));
    let double = Affine::from_rows([[2.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 2.0, 0.0]]);
    let mut data = Vec::with_capacity(shape.iter().product());
    for z in 0..shape[2] {
        for y in 0..shape[1] {
            let row = nx * (2 * y + ny * 2 * z);
            data.extend(volume.data[row..row + nx].iter().step_by(2));
        }
    }
    Volume::new(Grid { shape, affine: double.then(&volume.grid.affine) }, data)
}

/// The head without the air around it: the largest piece above the threshold between the two classes.
pub(super) fn foreground(head: &Volume) -> Volume<u8> {
    let level = otsu(&head.data);
    fill_holes(&close(&largest_component(&head.map(|v| u8::from(v > level))), 1))
}

/// The threshold with the largest variance between the class below and the class above it (Otsu, IEEE Transactions on
/// Systems, Man and Cybernetics 9:62, 1979), over 128 bins up to the 98th percentile.
fn otsu(values: &[f32]) -> f32 {
    const BINS: usize = 128;
    let low = values.iter().copied().fold(f32::INFINITY, f32::min);
    let high = percentile(values, 0.98).max(low + f32::EPSILON);
    let width = (high - low) / BINS as f32;
    let mut histogram = [0f64; BINS];
    for v in values {
        histogram[(((v - low) / width) as usize).min(BINS - 1)] += 1.0;
    }
    let total = values.len() as f64;
    let sum: f64 = histogram.iter().enumerate().map(|(bin, n)| bin as f64 * n).sum();
    let (mut below, mut sum_below, mut best, mut best_bin) = (0.0, 0.0, 0.0, 0);
    for (bin, n) in histogram.iter().enumerate().take(BINS - 1) {
        below += n;
        sum_below += bin as f64 * n;
        let above = total - below;
        if below > 0.0 && above > 0.0 {
            let between = below * above * (sum_below / below - (sum - sum_below) / above).powi(2);
            if between > best {
                (best, best_bin) = (between, bin);
            }
        }
    }
    low + (best_bin + 1) as f32 * width
}

/// Ghosts in the air around a head, on thinned volumes: the difference between the 95th percentile and the median of
/// means over 16 mm cubes of air, relative to the median of the brain. `whole` is the mask of the head. `None` where
/// there is no air or it was set to zero.
pub(super) fn ghosting(head: &Volume, brain: &Volume<u8>, whole: &Volume<u8>) -> Option<f32> {
    let outside = dilate(whole, 3).map(|m| m ^ 1);
    let air = values_in(head, &outside);
    let nonzero = air.iter().filter(|&&v| v != 0.0).count();
    // Air with almost no voxel other than zero was cleaned and shows no ghosts.
    if nonzero * 20 < air.len() || air.len() < 200 {
        return None;
    }
    let signal = percentile(&values_in(head, brain), 0.5);
    let cubes = means_of_cubes(head, &outside, 4);
    let [middle, high] = [0.5, 0.95].map(|q| percentile(&cubes, q));
    (signal > 0.0).then(|| (high - middle) / signal)
}

/// Means of all blocks of 2 x 2 x 2 voxels that lie in the mask.
pub(super) fn block_means(image: &Volume<f32>, mask: &Volume<u8>) -> Vec<f32> {
    means_of_cubes(image, mask, 2)
}

/// Means of all cubes of `side` voxels that lie in the mask.
fn means_of_cubes(image: &Volume<f32>, mask: &Volume<u8>, side: usize) -> Vec<f32> {
    let [nx, ny, nz] = image.grid.shape;
    let mut means = Vec::new();
    let n = side * side * side;
    for z in 0..nz / side {
        for y in 0..ny / side {
            'cube: for x in 0..nx / side {
                let mut sum = 0.0;
                for row in 0..side * side {
                    let start = x * side + nx * (y * side + row % side + ny * (z * side + row / side));
                    if mask.data[start..start + side].contains(&0) {
                        continue 'cube;
                    }
                    sum += image.data[start..start + side].iter().sum::<f32>();
                }
                means.push(sum / n as f32);
            }
        }
    }
    means
}

/// Signal and contrast in the brain relative to noise.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct OverNoise {
    /// Median intensity over the standard deviation of noise.
    pub(super) signal: f32,
    /// Contrast of white and grey matter (Magnotta and Friedman, J Digit Imaging 19:140, 2006): the difference of the
    /// two brightest of three classes of brain intensity (k-means) over the standard deviation of noise.
    pub(super) contrast: f32,
}

/// Signal and contrast over noise. The noise's standard deviation is the median of `|v[x-1] - 2 v[x] + v[x+1]|` times
/// 1.4826 / sqrt(6). It keeps rising with noise, unlike the classes' own standard deviations, which cannot exceed the
/// width of a class; and it can be measured in scans whose air was cleaned or rounded to zero. Fine anatomy counts as
/// noise, so that the ratios are lower than those of a phantom.
pub(super) fn over_noise(image: &Volume<f32>, brain: &Volume<u8>) -> OverNoise {
    let values = values_in(image, brain);
    let [low, high] = [0.005, 0.995].map(|q| percentile(&values, q));
    if low >= high {
        return OverNoise::default();
    }
    let signal = percentile(&values, 0.5);
    const BINS: usize = 256;
    let width = (high - low) / (BINS - 1) as f32;
    let mut histogram = [0f64; BINS];
    for v in values.iter().filter(|v| (low..=high).contains(*v)) {
        histogram[((v - low) / width + 0.5) as usize] += 1.0;
    }
    let mut means = [0.15, 0.5, 0.8].map(|q| q * (BINS - 1) as f64);
    for _ in 0..30 {
        let (mut sum, mut n) = ([0.0; 3], [0.0; 3]);
        for (bin, count) in histogram.iter().enumerate() {
            let class = class_of(bin as f64, means);
            sum[class] += bin as f64 * count;
            n[class] += count;
        }
        means = std::array::from_fn(|k| if n[k] > 0.0 { sum[k] / n[k] } else { means[k] });
    }
    let nx = image.grid.shape[0];
    let mut bends = Vec::with_capacity(values.len());
    for (row, mask) in image.data.chunks(nx).zip(brain.data.chunks(nx)) {
        for (v, m) in row.windows(3).zip(mask.windows(3)) {
            if m[0] & m[1] & m[2] != 0 {
                bends.push((v[0] - 2.0 * v[1] + v[2]).abs());
            }
        }
    }
    let noise = percentile(&bends, 0.5) * 1.4826 / 6f32.sqrt();
    let contrast = (means[2] - means[1]) as f32 * width;
    // An image with less noise than a thousandth of its contrast is noise-free.
    let noise = noise.max(1e-3 * contrast).max(f32::MIN_POSITIVE);
    OverNoise { signal: signal / noise, contrast: contrast / noise }
}

/// The class whose mean is closest to `value`.
fn class_of(value: f64, means: [f64; 3]) -> usize {
    if value < (means[0] + means[1]) / 2.0 { 0 } else { usize::from(value >= (means[1] + means[2]) / 2.0) + 1 }
}

/// Entropy focus criterion of all voxels of `image` (Atkinson et al., IEEE Transactions on Medical Imaging 16:903,
/// 1997), normalized to 0..1 as in MRIQC: 0 where one voxel has all the signal, 1 where all voxels are equal. Ghosts and
/// blur raise it.
pub(super) fn entropy_focus(image: &Volume<f32>) -> f32 {
    let n = image.data.len() as f64;
    let norm = image.data.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
    if norm == 0.0 || n < 2.0 {
        return 0.0;
    }
    let scale = (1.0 / norm) as f32;
    let sum: f64 =
        (image.data.iter().map(|v| v.abs() * scale)).map(|p| if p > 1e-12 { f64::from(p * p.ln()) } else { 0.0 }).sum();
    (sum / (n.sqrt() * (1.0 / n.sqrt()).ln())) as f32
}

/// Area over which the mask touches the border of its grid, in cm2.
pub(super) fn edge_area_cm2(brain: &Volume<u8>) -> f64 {
    let [nx, ny, nz] = brain.grid.shape;
    let mut voxels = 0;
    for (row, line) in brain.data.chunks(nx).enumerate() {
        let (y, z) = (row % ny, row / ny);
        if y == 0 || z == 0 || y + 1 == ny || z + 1 == nz {
            voxels += line.iter().filter(|&&v| v != 0).count();
        } else {
            voxels += usize::from(line[0] != 0) + usize::from(line[nx - 1] != 0);
        }
    }
    voxels as f64 * brain.grid.spacing()[0].powi(2) / 100.0
}

/// Surface of a ball with the mask's volume over the mask's own surface (1 for a ball). Voxel faces overestimate a smooth
/// surface by half, averaged over its directions (Mullikin and Verbeek, Bioimaging 1:6, 1993).
pub(super) fn sphericity(mask: &Volume<u8>) -> f32 {
    let [nx, ny, _] = mask.grid.shape;
    let mut faces = 0usize;
    for step in [1, nx, nx * ny] {
        faces += mask.data.iter().zip(&mask.data[step.min(mask.data.len())..]).filter(|(a, b)| a != b).count();
    }
    let surface = faces as f64 / 1.5;
    let ball = std::f64::consts::PI.cbrt() * (6.0 * count(mask) as f64).powf(2.0 / 3.0);
    if faces == 0 { 0.0 } else { (ball / surface) as f32 }
}

/// Dice of the mask with its mirror image, left to right. `mask` lies on the model's grid, which is symmetric in x.
pub(super) fn symmetry(mask: &Volume<u8>) -> f32 {
    let nx = mask.grid.shape[0];
    let both: usize =
        mask.data.chunks(nx).map(|row| row.iter().zip(row.iter().rev()).filter(|(a, b)| **a & **b != 0).count()).sum();
    both as f32 / count(mask).max(1) as f32
}

/// The share of the template's `brain` that lies outside the field of view `native`, whose world mm `to_mni` maps to MNI
/// mm.
pub(super) fn outside_view(native: &Grid, brain: &Volume<u8>, to_mni: &Affine) -> f32 {
    let (Some(to_native), Some(to_index)) = (to_mni.inverse(), native.affine.inverse()) else { return 1.0 };
    let map = brain.grid.affine.then(&to_native).then(&to_index);
    let (mut inside, mut total) = (0usize, 0usize);
    // Every third voxel of tens of thousands gives the share to a tenth of a percent.
    for (i, _) in brain.data.iter().enumerate().step_by(3).filter(|(_, v)| **v != 0) {
        let p = map.apply(brain.grid.ijk(i).map(|c| c as f64));
        total += 1;
        inside += usize::from((0..3).all(|a| p[a] >= -0.5 && p[a] <= native.shape[a] as f64 - 0.5));
    }
    1.0 - inside as f32 / total.max(1) as f32
}
