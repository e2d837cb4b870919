//! Augmentation: healthy slices as if from another head and another scanner.
//!
//! Contrast, bias field, noise, sharpness and geometry vary. A network trained on one scanner alone would call the
//! scans of every other one anomalous.

use rand::Rng;

use super::slice::{Slice, blur, read_bilinear, smooth_field};

/// A slice as another scanner would have acquired it.
#[derive(Debug, Clone)]
pub(super) struct Acquired {
    /// With noise.
    pub(super) noisy: Slice,
    /// Without noise.
    pub(super) clean: Slice,
}

/// Deforms slices to another head: mirrors, rotates, scales, shifts and bends them, all in the same way.
pub(super) fn deform(slices: &mut [Slice], width: usize, rng: &mut impl Rng) {
    let height = slices.first().map_or(0, |slice| slice.pixels.len() / width);
    let mirror = if rng.random_bool(0.5) { -1f32 } else { 1. };
    let (sin, cos) = rng.random_range(-0.12f32..0.12).sin_cos();
    let [sx, sy] = [0, 1].map(|_| rng.random_range(0.94f32..1.06));
    let [dx, dy] = [0, 1].map(|_| rng.random_range(-2.5f32..2.5));
    let bend = if rng.random_bool(0.5) { rng.random_range(0f32..1.5) } else { 0. };
    let [bend_x, bend_y] = [0, 1].map(|_| smooth_field(width, height, 4, rng));
    let (mx, my) = ((width as f32 - 1.) / 2., (height as f32 - 1.) / 2.);
    // The place that each pixel is read from.
    let source: Vec<[f32; 2]> = (0..width * height)
        .map(|i| {
            let (x, y) = (((i % width) as f32 - mx) * mirror * sx, ((i / width) as f32 - my) * sy);
            let (x, y) = (x * cos - y * sin + dx, x * sin + y * cos + dy);
            [x + mx + bend * bend_x[i], y + my + bend * bend_y[i]]
        })
        .collect();
    for slice in slices {
        let inside: Vec<f32> = slice.brain_pixels().collect();
        let read = |at| (read_bilinear(&slice.pixels, width, at), read_bilinear(&inside, width, at));
        let moved: Vec<(f32, f32)> = source.iter().map(|&at| read(at)).collect();
        slice.brain = moved.iter().map(|&(_, inside)| inside >= 0.5).collect();
        // Interpolation mixes air into pixels at the border; dividing by the brain's share removes it.
        slice.pixels = moved.iter().map(|&(v, inside)| if inside >= 0.5 { v / inside } else { 0. }).collect();
    }
}

/// Changes slices to another scanner: contrast, gain, bias field and sharpness, the same for all, and noise.
pub(super) fn acquire(slices: Vec<Slice>, width: usize, rng: &mut impl Rng) -> Vec<Acquired> {
    let height = slices.first().map_or(0, |slice| slice.pixels.len() / width);
    let gamma = if rng.random_bool(0.7) { rng.random_range(-0.35f32..0.35).exp() } else { 1. };
    let gain = rng.random_range(0.9f32..1.1);
    let bias = smooth_field(width, height, 3, rng);
    let bias_size = if rng.random_bool(0.5) { rng.random_range(0f32..0.15) } else { 0. };
    let noise = if rng.random_bool(0.6) { rng.random_range(0f32..0.04) } else { 0. };
    // The noise of an interpolated scan is smooth.
    let grain = if rng.random_bool(0.5) { rng.random_range(0.4f32..0.8) } else { 0. };
    let sigma = if rng.random_bool(0.3) { rng.random_range(0.4f32..1.) } else { 0. };
    let one = |mut slice: Slice| {
        if sigma > 0. {
            slice.pixels = blur(&slice.pixels, width, sigma);
        }
        for (i, value) in slice.pixels.iter_mut().enumerate() {
            let changed = value.powf(gamma) * gain * (1. + bias_size * bias[i]);
            *value = if slice.brain[i] { changed.clamp(0., 1.) } else { 0. };
        }
        if noise == 0. {
            return Acquired { noisy: slice.clone(), clean: slice };
        }
        // About normal: the sum of three uniform numbers, which has a variance of 1/4, doubled.
        let normal = (0..slice.pixels.len()).map(|_| 2. * (0..3).map(|_| rng.random::<f32>() - 0.5).sum::<f32>());
        let mut jitter: Vec<f32> = normal.collect();
        if grain > 0. {
            jitter = blur(&jitter, width, grain);
            let spread = (jitter.iter().map(|v| v * v).sum::<f32>() / jitter.len() as f32).sqrt();
            jitter.iter_mut().for_each(|v| *v /= spread.max(1e-6));
        }
        let mut noisy = slice.clone();
        for (i, value) in noisy.pixels.iter_mut().enumerate().filter(|&(i, _)| slice.brain[i]) {
            *value = (*value + noise * jitter[i]).clamp(0., 1.);
        }
        Acquired { noisy, clean: slice }
    };
    slices.into_iter().map(one).collect()
}
