//! The slices of healthy brains that networks are trained on, and how they are drawn.

use rand::Rng;

use super::augment::{Acquired, acquire, deform};
use super::slice::Slice;
use crate::preprocess;

/// A slice is trained on if at least this many of its pixels are brain: 1.6 ml at 2 mm.
const MIN_BRAIN_PIXELS: usize = 200;

/// A preprocessed brain on the model's grid, x fastest.
pub(super) struct Brain {
    /// Intensities, 0..1 as 0..255.
    pub(super) image: Vec<u8>,
    /// 1 inside the brain.
    pub(super) mask: Vec<u8>,
}

/// All slices of a set of brains that hold enough brain.
pub(super) struct Slices {
    brains: Vec<Brain>,
    /// Brain and slice number of each.
    index: Vec<(usize, usize)>,
    /// Columns, rows, slices of the model's grid.
    pub(super) shape: [usize; 3],
    /// MNI height of the first slice, and distance between slices, mm.
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

    /// The brains that the slices are from.
    pub(super) fn brains(&self) -> &[Brain] {
        &self.brains
    }

    /// Number of slices.
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// The slice with this number, not augmented.
    pub(super) fn get(&self, number: usize) -> Slice {
        let (brain, z) = self.index[number];
        self.slice(brain, z)
    }

    /// Slice `z` of a brain.
    fn slice(&self, brain: usize, z: usize) -> Slice {
        let plane = self.shape[0] * self.shape[1];
        let range = z * plane..(z + 1) * plane;
        Slice {
            pixels: self.brains[brain].image[range.clone()].iter().map(|&v| f32::from(v) / 255.).collect(),
            brain: self.brains[brain].mask[range].iter().map(|&v| v > 0).collect(),
            z_mm: (self.z0_mm + self.dz_mm * z as f64) as f32,
        }
    }

    /// A random slice and its neighbours at `offsets`, in slices, augmented together.
    pub(super) fn draw(&self, offsets: &[i64], rng: &mut impl Rng) -> Vec<Slice> {
        self.draw_acquired(offsets, rng).into_iter().map(|slice| slice.noisy).collect()
    }

    /// As [`Slices::draw`], each slice with and without noise.
    pub(super) fn draw_acquired(&self, offsets: &[i64], rng: &mut impl Rng) -> Vec<Acquired> {
        let (brain, z) = self.index[rng.random_range(0..self.len())];
        let last = self.shape[2] as i64 - 1;
        let at = |offset: i64| self.slice(brain, (z as i64 + offset).clamp(0, last) as usize);
        // Thick slices: each is averaged with its neighbours.
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

    /// The neighbours at `offsets` of a random slice at about the height `z_mm`, of any brain; not augmented.
    pub(super) fn draw_near(&self, z_mm: f32, offsets: &[i64], rng: &mut impl Rng) -> Vec<Slice> {
        let height = |n: &usize| (self.z0_mm + self.dz_mm * self.index[*n].1 as f64) as f32;
        let near = (0..16).map(|_| rng.random_range(0..self.len()));
        let best = near.min_by(|a, b| (height(a) - z_mm).abs().total_cmp(&(height(b) - z_mm).abs()));
        let (brain, z) = self.index[best.unwrap_or(0)];
        let last = self.shape[2] as i64 - 1;
        offsets.iter().map(|offset| self.slice(brain, (z as i64 + offset).clamp(0, last) as usize)).collect()
    }

    /// At most `n` slice numbers, evenly spread over the set, for figures on held-out slices.
    pub(super) fn spread(&self, n: usize) -> Vec<usize> {
        let total = self.len();
        (0..n.min(total)).map(|i| i * total / n.min(total)).collect()
    }
}
