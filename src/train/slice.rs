//! One slice of a healthy brain: its pixels, and operations on them.

use rand::Rng;
use tch::{Device, Tensor};

/// One slice: rows along y, columns along x.
#[derive(Debug, Clone)]
pub(super) struct Slice {
    /// Intensities in 0..1, `height * width`.
    pub(super) pixels: Vec<f32>,
    /// True inside the brain, like `pixels`.
    pub(super) brain: Vec<bool>,
    /// MNI height in millimetres.
    pub(super) z_mm: f32,
}

impl Slice {
    /// 1 inside the brain, 0 outside.
    pub(super) fn brain_pixels(&self) -> impl Iterator<Item = f32> {
        self.brain.iter().map(|&inside| f32::from(u8::from(inside)))
    }
}

/// Bilinear interpolation of a slice at a place in pixels; 0 outside its outermost pixels.
pub(super) fn read_bilinear(pixels: &[f32], width: usize, [x, y]: [f32; 2]) -> f32 {
    let height = pixels.len() / width;
    if !(0.0..width as f32 - 1.).contains(&x) || !(0.0..height as f32 - 1.).contains(&y) {
        return 0.;
    }
    let (x0, y0) = (x as usize, y as usize);
    let (fx, fy) = (x - x0 as f32, y - y0 as f32);
    let corner = y0 * width + x0;
    let row = |at: usize| pixels[at] * (1. - fx) + pixels[at + 1] * fx;
    row(corner) * (1. - fy) + row(corner + width) * fy
}

/// A smooth random field in -1..1: random values on `knots + 1` knots per axis, interpolated.
pub(super) fn smooth_field(width: usize, height: usize, knots: usize, rng: &mut impl Rng) -> Vec<f32> {
    let side = knots + 1;
    let table: Vec<f32> = (0..side * side).map(|_| rng.random_range(-1f32..1.)).collect();
    let step = |i: usize, n: usize| {
        let t = i as f32 / n as f32 * knots as f32;
        let k = (t as usize).min(knots - 1);
        let f = t - k as f32;
        // Smoothstep instead of linear, so that the lattice is not visible.
        (k, f * f * (3. - 2. * f))
    };
    let columns: Vec<_> = (0..width).map(|x| step(x, width)).collect();
    (0..height)
        .flat_map(|y| {
            let (ky, fy) = step(y, height);
            let table = &table;
            columns.iter().map(move |&(kx, fx)| {
                let at = |x: usize, y: usize| table[y * side + x];
                let top = at(kx, ky) * (1. - fx) + at(kx + 1, ky) * fx;
                let low = at(kx, ky + 1) * (1. - fx) + at(kx + 1, ky + 1) * fx;
                top * (1. - fy) + low * fy
            })
        })
        .collect()
}

/// Separable Gaussian blur, `sigma` in pixels; the outside is zero.
pub(super) fn blur(pixels: &[f32], width: usize, sigma: f32) -> Vec<f32> {
    let height = pixels.len() / width;
    let radius = (3. * sigma).ceil() as i64;
    let mut kernel: Vec<f32> = (-radius..=radius).map(|i| (-((i * i) as f32) / (2. * sigma * sigma)).exp()).collect();
    let sum: f32 = kernel.iter().sum();
    kernel.iter_mut().for_each(|k| *k /= sum);
    let pass = |from: &[f32], n: usize, lines: usize, stride: usize, line_stride: usize| {
        let mut to = vec![0f32; from.len()];
        for line in 0..lines {
            for i in 0..n as i64 {
                let mut sum = 0.;
                for (k, weight) in (-radius..=radius).zip(&kernel) {
                    let j = i + k;
                    if j >= 0 && j < n as i64 {
                        sum += weight * from[line * line_stride + j as usize * stride];
                    }
                }
                to[line * line_stride + i as usize * stride] = sum;
            }
        }
        to
    };
    let rows = pass(pixels, width, height, 1, width);
    pass(&rows, height, width, width, 1)
}

/// Slices of `width` columns to images `[B, 1, H, W]` in 0..1 and MNI heights `[B]`, mm.
pub(super) fn stack(slices: &[Slice], width: usize, device: Device) -> (Tensor, Tensor) {
    let height = slices.first().map_or(0, |s| s.pixels.len() / width);
    let pixels: Vec<f32> = slices.iter().flat_map(|s| s.pixels.iter().copied()).collect();
    let heights: Vec<f32> = slices.iter().map(|s| s.z_mm).collect();
    let pixels = Tensor::from_slice(&pixels).view([slices.len() as i64, 1, height as i64, width as i64]);
    (pixels.to_device(device), Tensor::from_slice(&heights).to_device(device))
}

/// Share of each token's cell that is brain, `[B, h, w]`; a cell has `cell` pixels along each axis.
pub(super) fn brain_fraction<'a>(
    slices: impl IntoIterator<Item = &'a Slice>,
    width: usize,
    cell: i64,
    device: Device,
) -> Tensor {
    let mut inside: Vec<f32> = Vec::new();
    let mut n = 0;
    for slice in slices {
        inside.extend(slice.brain_pixels());
        n += 1;
    }
    Tensor::from_slice(&inside)
        .view([n, 1, -1, width as i64])
        .to_device(device)
        .avg_pool2d([cell, cell], [cell, cell], [0, 0], false, true, None)
        .squeeze_dim(1)
}
