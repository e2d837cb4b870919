//! Overlap of masks.

use crate::preprocess::dice;
use crate::volume::resample::nearest;
use crate::volume::{Affine, Volume};

/// Dice of `found` with `reference` (above 0 is brain), computed on the reference's grid. Both have the same world.
pub(super) fn dice_with(found: &Volume<u8>, reference: &Volume) -> f64 {
    let truth = Volume::new(reference.grid, reference.data.iter().map(|&v| u8::from(v > 0.0)).collect());
    dice_of(found, &truth)
}

/// Dice of `found` with `truth`, computed on the grid of `truth`. Both have the same world.
pub(super) fn dice_of(found: &Volume<u8>, truth: &Volume<u8>) -> f64 {
    dice(&nearest(found, &truth.grid, &Affine::identity()), truth)
}
