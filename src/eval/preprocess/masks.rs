//! Overlap of masks.

use std::sync::LazyLock;

use crate::preprocess::{mask_to, model_grid, template};
use crate::volume::resample::nearest;
use crate::volume::{Affine, Volume};

/// Dice of `found` with `reference` (above 0 is brain), on the reference's grid in the same world.
pub(super) fn dice_with(found: &Volume<u8>, reference: &Volume) -> f64 {
    let truth = Volume::new(reference.grid, reference.data.iter().map(|&v| u8::from(v > 0.0)).collect());
    dice_of(found, &truth)
}

/// Dice of `found` with `truth`, on the grid of `truth` in the same world.
pub(super) fn dice_of(found: &Volume<u8>, truth: &Volume<u8>) -> f64 {
    dice(&nearest(found, &truth.grid, &Affine::identity()), truth)
}

/// Dice of a brain on the model's grid with the template's.
pub(super) fn template_dice(brain: &Volume<u8>) -> f64 {
    static TEMPLATE: LazyLock<Volume<u8>> =
        LazyLock::new(|| mask_to(&template().brain, &model_grid(), &Affine::identity()));
    dice(brain, &TEMPLATE)
}

/// Twice what two masks on one grid share, over what both hold; 1 where both are empty.
pub(super) fn dice(a: &Volume<u8>, b: &Volume<u8>) -> f64 {
    let count = |mask: &Volume<u8>| mask.data.iter().filter(|&&v| v != 0).count();
    let both = a.data.iter().zip(&b.data).filter(|&(&a, &b)| a != 0 && b != 0).count();
    let sum = count(a) + count(b);
    if sum == 0 { 1.0 } else { 2.0 * both as f64 / sum as f64 }
}
