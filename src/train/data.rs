//! Healthy slices to learn from.
//!
//! Scans of a cohort go through this program's own preprocessing once; the result is kept as u8 in
//! a work folder (1 MB a scan), so that a training that is started again reads it back. A batch is
//! drawn by an explicit generator: the same seed and step give the same batch. What is drawn is seen through another
//! scanner and another head: other contrast, bias field, noise, sharpness and slice thickness, a little turned, scaled and
//! bent. A network that knows one scanner alone calls every other one anomalous.

use std::path::{Path, PathBuf};

use rand::Rng;
use rand::seq::IndexedRandom;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use tch::{Device, Tensor};

use crate::cohort::ScanBytes;
use crate::error::{Error, Result};
use crate::preprocess::{self, PreprocessConfig};

/// A slice is learnt from when at least this many of its pixels are brain (8 ml).
const MIN_BRAIN_PIXELS: usize = 200;

/// A scan of the training cohort must not be larger than this, compressed or not.
pub(super) const MAX_SCAN_BYTES: u64 = 2 << 30;

/// A preprocessed brain on the model's grid, x fastest.
pub(super) struct Brain {
    /// Intensities, 0..1 as 0..255.
    pub(super) image: Vec<u8>,
    /// 1 inside the brain.
    pub(super) mask: Vec<u8>,
}

/// One slice: rows along y, columns along x.
#[derive(Debug, Clone)]
pub(super) struct Slice {
    /// Intensities in 0..1, `height * width`.
    pub(super) pixels: Vec<f32>,
    /// Inside the brain.
    pub(super) brain: Vec<bool>,
    /// MNI height in millimetres.
    pub(super) z_mm: f32,
}

/// A slice seen through another scanner.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    /// With the scanner's noise.
    pub seen: Slice,
    /// Without.
    pub clean: Slice,
}

/// All slices of a set of brains.
pub(super) struct Slices {
    brains: Vec<Brain>,
    index: Vec<(usize, usize)>,
    /// Columns, rows, slices of the model's grid.
    pub(super) shape: [usize; 3],
    z0_mm: f64,
    dz_mm: f64,
}

impl Slices {
    pub(super) fn new(brains: Vec<Brain>) -> Self {
        let grid = preprocess::model_grid();
        let plane = grid.shape[0] * grid.shape[1];
        let index = brains
            .iter()
            .enumerate()
            .flat_map(|(b, brain)| {
                let counts = brain.mask.chunks(plane).map(|m| m.iter().filter(|&&v| v > 0).count());
                counts.enumerate().filter(|&(_, n)| n >= MIN_BRAIN_PIXELS).map(move |(z, _)| (b, z)).collect::<Vec<_>>()
            })
            .collect();
        let z0_mm = grid.affine.apply([0.; 3])[2];
        let dz_mm = grid.affine.apply([0., 0., 1.])[2] - z0_mm;
        Self { brains, index, shape: grid.shape, z0_mm, dz_mm }
    }

    pub(super) fn brains(&self) -> &[Brain] {
        &self.brains
    }

    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// The slice with this number, as it is.
    pub(super) fn get(&self, number: usize) -> Slice {
        let (brain, z) = self.index[number];
        self.slice(brain, z)
    }

    fn slice(&self, brain: usize, z: usize) -> Slice {
        let plane = self.shape[0] * self.shape[1];
        let range = z * plane..(z + 1) * plane;
        Slice {
            pixels: self.brains[brain].image[range.clone()].iter().map(|&v| f32::from(v) / 255.).collect(),
            brain: self.brains[brain].mask[range].iter().map(|&v| v > 0).collect(),
            z_mm: (self.z0_mm + self.dz_mm * z as f64) as f32,
        }
    }

    /// A random slice, and those that lie `offsets` from it, seen through one other scanner.
    pub(super) fn draw(&self, offsets: &[i64], rng: &mut impl Rng) -> Vec<Slice> {
        self.draw_seen(offsets, rng).into_iter().map(|slice| slice.seen).collect()
    }

    /// As [`Slices::draw`], with the slices before noise was added.
    pub(super) fn draw_seen(&self, offsets: &[i64], rng: &mut impl Rng) -> Vec<Seen> {
        let (brain, z) = self.index[rng.random_range(0..self.len())];
        let last = self.shape[2] as i64 - 1;
        let at = |offset: i64| self.slice(brain, (z as i64 + offset).clamp(0, last) as usize);
        // Thick slices: each is a mean of itself and its neighbours.
        let share = if rng.random_bool(0.2) { rng.random_range(0f32..0.6) } else { 0. };
        let mut slices: Vec<Slice> = offsets
            .iter()
            .map(|&offset| {
                let (mut slice, below, above) = (at(offset), at(offset - 1), at(offset + 1));
                let neighbours = below.pixels.iter().zip(&above.pixels);
                for (v, (below, above)) in slice.pixels.iter_mut().zip(neighbours) {
                    *v = (1. - share) * *v + share * (below + above) / 2.;
                }
                slice
            })
            .collect();
        deform(&mut slices, self.shape[0], rng);
        acquire(slices, self.shape[0], rng)
    }

    /// The slices that lie `offsets` from a random one of about the height `z_mm`, from any brain.
    pub(super) fn draw_near(&self, z_mm: f32, offsets: &[i64], rng: &mut impl Rng) -> Vec<Slice> {
        let height = |n: &usize| (self.z0_mm + self.dz_mm * self.index[*n].1 as f64) as f32;
        let near = (0..16).map(|_| rng.random_range(0..self.len()));
        let best = near.min_by(|a, b| (height(a) - z_mm).abs().total_cmp(&(height(b) - z_mm).abs()));
        let (brain, z) = self.index[best.unwrap_or(0)];
        let last = self.shape[2] as i64 - 1;
        offsets.iter().map(|offset| self.slice(brain, (z as i64 + offset).clamp(0, last) as usize)).collect()
    }
}

/// Another head: mirrored, turned, scaled, shifted and a little bent, all slices alike.
fn deform(slices: &mut [Slice], width: usize, rng: &mut impl Rng) {
    let height = slices.first().map_or(0, |slice| slice.pixels.len() / width);
    let mirror = if rng.random_bool(0.5) { -1f32 } else { 1. };
    let (sin, cos) = rng.random_range(-0.12f32..0.12).sin_cos();
    let [sx, sy] = [0, 1].map(|_| rng.random_range(0.94f32..1.06));
    let [dx, dy] = [0, 1].map(|_| rng.random_range(-2.5f32..2.5));
    let bend = if rng.random_bool(0.5) { rng.random_range(0f32..1.5) } else { 0. };
    let [bend_x, bend_y] = [0, 1].map(|_| smooth_field(width, height, 4, rng));
    let (mx, my) = ((width as f32 - 1.) / 2., (height as f32 - 1.) / 2.);
    // Where each pixel comes from.
    let source: Vec<[f32; 2]> = (0..width * height)
        .map(|i| {
            let (x, y) = (((i % width) as f32 - mx) * mirror * sx, ((i / width) as f32 - my) * sy);
            let (x, y) = (x * cos - y * sin + dx, x * sin + y * cos + dy);
            [x + mx + bend * bend_x[i], y + my + bend * bend_y[i]]
        })
        .collect();
    for slice in slices {
        let inside: Vec<f32> = slice.brain.iter().map(|&b| f32::from(u8::from(b))).collect();
        let read = |at| (read_bilinear(&slice.pixels, width, at), read_bilinear(&inside, width, at));
        let moved: Vec<(f32, f32)> = source.iter().map(|&at| read(at)).collect();
        slice.brain = moved.iter().map(|&(_, inside)| inside >= 0.5).collect();
        // A border pixel holds as much air as brain; its brain part is what preprocessing would have left.
        slice.pixels = moved.iter().map(|&(v, inside)| if inside >= 0.5 { v / inside } else { 0. }).collect();
    }
}

/// A slice's value between pixels, linear; 0 beyond its outermost pixels.
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

/// Another scanner: contrast, gain, bias field, sharpness and noise. All slices alike, but for the noise.
fn acquire(slices: Vec<Slice>, width: usize, rng: &mut impl Rng) -> Vec<Seen> {
    let height = slices.first().map_or(0, |slice| slice.pixels.len() / width);
    let gamma = if rng.random_bool(0.7) { rng.random_range(-0.35f32..0.35).exp() } else { 1. };
    let gain = rng.random_range(0.9f32..1.1);
    let bias = smooth_field(width, height, 3, rng);
    let bias_size = if rng.random_bool(0.5) { rng.random_range(0f32..0.15) } else { 0. };
    let noise = if rng.random_bool(0.6) { rng.random_range(0f32..0.04) } else { 0. };
    // Noise of an interpolated scan is smooth.
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
            return Seen { seen: slice.clone(), clean: slice };
        }
        // Three uniform numbers have a variance of 1/4.
        let normal = (0..slice.pixels.len()).map(|_| 2. * (0..3).map(|_| rng.random::<f32>() - 0.5).sum::<f32>());
        let mut jitter: Vec<f32> = normal.collect();
        if grain > 0. {
            jitter = blur(&jitter, width, grain);
            let spread = (jitter.iter().map(|v| v * v).sum::<f32>() / jitter.len() as f32).sqrt();
            jitter.iter_mut().for_each(|v| *v /= spread.max(1e-6));
        }
        let mut seen = slice.clone();
        for (i, value) in seen.pixels.iter_mut().enumerate().filter(|&(i, _)| slice.brain[i]) {
            *value = (*value + noise * jitter[i]).clamp(0., 1.);
        }
        Seen { seen, clean: slice }
    };
    slices.into_iter().map(one).collect()
}

/// A random field in about -1..1 that varies over `knots` waves: bilinear between random knots.
pub(super) fn smooth_field(width: usize, height: usize, knots: usize, rng: &mut impl Rng) -> Vec<f32> {
    let side = knots + 1;
    let table: Vec<f32> = (0..side * side).map(|_| rng.random_range(-1f32..1.)).collect();
    let step = |i: usize, n: usize| {
        let t = i as f32 / n as f32 * knots as f32;
        let k = (t as usize).min(knots - 1);
        let f = t - k as f32;
        // Smoothstep between knots: no visible lattice lines.
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

/// Separable Gaussian blur, `sigma` in pixels, zero outside.
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

/// Stacks slices to pixels `[B, 1, H, W]` in 0..1 and heights `[B]`.
pub(super) fn stack(slices: &[Slice], width: usize, device: Device) -> (Tensor, Tensor) {
    let height = slices.first().map_or(0, |s| s.pixels.len() / width);
    let pixels: Vec<f32> = slices.iter().flat_map(|s| s.pixels.iter().copied()).collect();
    let heights: Vec<f32> = slices.iter().map(|s| s.z_mm).collect();
    let pixels = Tensor::from_slice(&pixels).view([slices.len() as i64, 1, height as i64, width as i64]);
    (pixels.to_device(device), Tensor::from_slice(&heights).to_device(device))
}

/// Numbers of `n` slices spread evenly over a set, for held-out figures.
pub(super) fn spread(slices: &Slices, n: usize) -> Vec<usize> {
    let total = slices.len();
    (0..n.min(total)).map(|i| i * total / n.min(total)).collect()
}

/// A scan as it was read, to be prepared.
pub(super) struct Raw {
    pub(super) scan_id: String,
    pub(super) content_id: String,
    pub(super) bytes: ScanBytes,
}

/// Where the prepared brain of a scan is kept.
pub(super) fn cache_path(work: &Path, scan_id: &str, content_id: &str, config: &PreprocessConfig) -> PathBuf {
    let config = serde_json::to_string(config).unwrap_or_default();
    let key = Sha256::digest(format!("{scan_id}\0{content_id}\0{config}\0{}", preprocess::VERSION));
    let name: String = key.iter().take(12).map(|b| format!("{b:02x}")).collect();
    work.join("prepared").join(format!("{name}.safetensors"))
}

/// Reads a prepared brain back, if it is there.
pub(super) fn read_cached(path: &Path) -> Option<Brain> {
    let tensors: std::collections::HashMap<_, _> = Tensor::read_safetensors(path).ok()?.into_iter().collect();
    let bytes = |name: &str| Vec::<u8>::try_from(tensors.get(name)?).ok();
    Some(Brain { image: bytes("image")?, mask: bytes("mask")? })
}

/// Decodes and preprocesses scans on all cores and keeps the results; failures come with their id.
pub(super) fn prepare(raw: Vec<Raw>, work: &Path, config: &PreprocessConfig) -> Vec<(String, Result<Brain>)> {
    raw.into_par_iter()
        .map(|raw| {
            let brain = prepare_one(&raw, &cache_path(work, &raw.scan_id, &raw.content_id, config), config);
            (raw.scan_id, brain)
        })
        .collect()
}

fn prepare_one(raw: &Raw, path: &Path, config: &PreprocessConfig) -> Result<Brain> {
    let decoded = raw.bytes.decode(MAX_SCAN_BYTES)?;
    let prepared = preprocess::prepare(&decoded.volume, config)?;
    let image: Vec<u8> = prepared.image.data.iter().map(|v| (v * 255.).round().clamp(0., 255.) as u8).collect();
    let mask = prepared.brain.data;
    let partial = path.with_extension("partial");
    Tensor::write_safetensors(&[("image", Tensor::from_slice(&image)), ("mask", Tensor::from_slice(&mask))], &partial)?;
    std::fs::rename(&partial, path).map_err(|e| Error::io("cannot keep a prepared scan", e))?;
    Ok(Brain { image, mask })
}

/// Share of each token's cell that is brain, `[B, H/cell, W/cell]`.
pub(super) fn brain_fraction<'a>(
    slices: impl IntoIterator<Item = &'a Slice>,
    width: usize,
    cell: i64,
    device: Device,
) -> Tensor {
    let mut inside: Vec<f32> = Vec::new();
    let mut n = 0;
    for slice in slices {
        inside.extend(slice.brain.iter().map(|&b| f32::from(u8::from(b))));
        n += 1;
    }
    Tensor::from_slice(&inside)
        .view([n, 1, -1, width as i64])
        .to_device(device)
        .avg_pool2d([cell, cell], [cell, cell], [0, 0], false, true, None)
        .squeeze_dim(1)
}

/// One of a few sizes of token blocks, as in MAD-AD (arXiv 2502.16943).
pub(super) fn block_side(rng: &mut impl Rng) -> i64 {
    *[1, 1, 2, 2, 2, 4, 4, 4, 8, 8].choose(rng).unwrap_or(&2)
}
