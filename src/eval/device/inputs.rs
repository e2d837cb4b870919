//! Synthetic inputs with the shapes of real ones: batches of slices, and whole volumes.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

use crate::model::{CONTEXT, Sizes};
use crate::volume::{Affine, Grid, Volume};

/// Share of a restored slice's tokens that are masked.
pub(super) const MASKED: f64 = 0.1;

/// Half axes of the brain in its widest slice, as a share of half the slice's rows and columns.
const HALF_AXES: [f64; 2] = [0.97, 0.95];

/// Distance from the brain's widest slice to its uppermost one, mm.
const HALF_HEIGHT_MM: f64 = 67.;

/// A batch of slices of an ellipsoid.
pub(super) struct Batch<'a> {
    pub sizes: &'a Sizes,
    /// Number of slices.
    pub len: i64,
    pub device: Device,
    /// Pixels `[B, 1, H, W]`.
    pub image: Tensor,
    /// Codes of each slice and its neighbours, `[B, 3, h, w]`.
    pub codes: Tensor,
    /// Codes of the slices themselves, `[B, h, w]`.
    pub middle: Tensor,
    /// Heights of the slices `[B]`, mm.
    pub z_mm: Tensor,
    /// True for brain tokens `[B, h, w]`.
    pub inside: Tensor,
    /// True for tokens to in-paint `[B, h, w]`.
    pub mask: Tensor,
    /// Number of brain tokens of each slice.
    pub counts: Vec<i64>,
    /// Number of tokens to in-paint in the batch.
    pub masked: i64,
}

impl<'a> Batch<'a> {
    pub fn new(sizes: &'a Sizes, len: i64, device: Device) -> Self {
        tch::manual_seed(1);
        let [rows, columns] = sizes.tokens;
        let cell = sizes.tokenizer.cell();
        let codes = sizes.tokenizer.codes();
        let codes = Tensor::randint(codes, [len, CONTEXT.len() as i64, rows, columns], (Kind::Int64, device));
        let (z_mm, inside) = brain(len, sizes.tokens, device);
        let mask = Tensor::rand([len, rows, columns], (Kind::Float, device)).lt(MASKED).logical_and(&inside);
        let sums = inside.sum_dim_intlist([1i64, 2].as_slice(), false, Kind::Int64);
        Self {
            sizes,
            len,
            device,
            image: Tensor::rand([len, 1, rows * cell, columns * cell], (Kind::Float, device)),
            middle: codes.select(1, 1).contiguous(),
            codes,
            z_mm,
            counts: Vec::try_from(sums).unwrap_or_default(),
            masked: i64::try_from(mask.sum(Kind::Int64)).unwrap_or(0),
            inside,
            mask,
        }
    }

    /// Mean over the slices of a function of a slice's number of brain tokens.
    pub fn mean(&self, of: impl Fn(i64) -> f64) -> f64 {
        self.counts.iter().map(|&n| of(n)).sum::<f64>() / self.len as f64
    }
}

/// A batch of slices from the widest to the uppermost of an ellipsoid: heights `[B]` in mm, and the tokens inside the
/// ellipsoid `[B, h, w]`. A slice has on average two thirds of the widest slice's tokens.
fn brain(batch: i64, tokens: [i64; 2], device: Device) -> (Tensor, Tensor) {
    let options = (Kind::Float, device);
    let up = (Tensor::arange(batch, options) + 0.5) / batch as f64;
    let axis = |i: usize| ((Tensor::arange(tokens[i], options) + 0.5) / tokens[i] as f64 * 2. - 1.) / HALF_AXES[i];
    let [y, x] = [axis(0).square().unsqueeze(1), axis(1).square().unsqueeze(0)];
    let inside = (y + x).unsqueeze(0) + up.square().view([-1, 1, 1]);
    (up * HALF_HEIGHT_MM, inside.lt(1.))
}

/// A volume of `slices` slices of the networks' size: an ellipsoid of noise, with its brain mask. Every slice has brain
/// voxels.
pub(super) fn volume(sizes: &Sizes, slices: usize, seed: u64) -> (Volume<f32>, Volume<u8>) {
    let [ny, nx] = sizes.tokens.map(|n| (n * sizes.tokenizer.cell()) as usize);
    let height = |z: usize| ((z as f64 + 0.5) / slices as f64) * 2. - 1.;
    let step_mm = 2. * HALF_HEIGHT_MM / slices as f64;
    let affine = Affine([[2., 0., 0., -(nx as f64)], [0., 2., 0., -(ny as f64)], [0., 0., step_mm, -HALF_HEIGHT_MM]]);
    let grid = Grid { shape: [nx, ny, slices], affine };
    let place = |i: usize, n: usize, half: f64| ((i as f64 + 0.5) / n as f64 * 2. - 1.) / half;
    let inside = (0..nx * ny * slices).map(|i| {
        let (x, y, z) = (i % nx, i / nx % ny, i / (nx * ny));
        let flat = place(x, nx, HALF_AXES[1]).powi(2) + place(y, ny, HALF_AXES[0]).powi(2);
        u8::from(flat + height(z).powi(2) < 1.)
    });
    let brain: Vec<u8> = inside.collect();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let image = brain.iter().map(|&b| f32::from(b) * rng.random_range(0.2f32..0.9)).collect();
    (Volume::new(grid, image), Volume::new(grid, brain))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Preset;

    #[test]
    fn half_of_a_slice_is_brain_as_in_real_scans() {
        let (z_mm, inside) = brain(16, [24, 20], Device::Cpu);
        assert_eq!(z_mm.size(), [16]);
        let mean = i64::try_from(inside.sum(Kind::Int64)).unwrap() as f64 / 16.;
        // 220 to 240 of 480 in the heads that the built-in bundle was trained on.
        assert!((220. ..240.).contains(&mean), "{mean}");
    }

    #[test]
    fn a_synthetic_volume_has_the_networks_slices_and_brain_in_each() {
        let (image, brain) = volume(&Preset::Paper.sizes(), 100, 7);
        assert_eq!(image.grid.shape, [160, 160, 100]);
        assert!(brain.data.chunks(160 * 160).all(|slice| slice.contains(&1)));
        assert!(image.data.iter().zip(&brain.data).all(|(&v, &b)| (v > 0.) == (b > 0)));
        assert_ne!(image.data, volume(&Preset::Paper.sizes(), 100, 8).0.data, "another seed, another volume");
    }
}
