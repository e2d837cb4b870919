//! The MNI152 template (ICBM 2009a nonlinear symmetric, brain only), embedded in the program.
//!
//! Gives T1 intensity, shares of grey and white matter and the brain mask on one 2 mm RAS grid in MNI space
//! (99 x 117 x 95 voxels). Origin, grid and licence: assets/README.md.

use std::sync::LazyLock;

use super::conform::{mask_to, model_grid};
use super::morphology::fill_holes;
use crate::volume::{Affine, Volume, nifti};

/// More than the size of any embedded file, uncompressed.
const LIMIT_BYTES: u64 = 16 << 20;

/// T1 intensity (0..1) from which a voxel belongs to the brain. The 2 mm maps are means of 1 mm voxels, so that voxels
/// on the border are partly brain. With this threshold the mask has the volume of the 1 mm template's brain, 1.89 l, to
/// within 1 % (Dice 0.995).
const BRAIN_MIN: f32 = 40.0 / 255.0;

/// The maps of the template, all on the same grid.
#[derive(Debug)]
pub struct Template {
    /// T1-weighted intensity, 0..1; white matter is 0.87, grey matter 0.65, fluid 0.1 to 0.3, 0 outside the brain.
    pub t1: Volume<f32>,
    /// Share of grey matter, 0..1.
    pub grey: Volume<f32>,
    /// Share of white matter, 0..1.
    pub white: Volume<f32>,
    /// 1 in the brain (with the fluid in its sulci and ventricles), 0 elsewhere.
    pub brain: Volume<u8>,
}

/// The template, decoded on first use.
pub fn template() -> &'static Template {
    static TEMPLATE: LazyLock<Template> = LazyLock::new(|| {
        // The files hold 0..255.
        let share = |file: &[u8]| embedded_map(file).map(|v| v / 255.0);
        let t1 = share(include_bytes!("../../assets/mni152_2mm_t1.nii.gz"));
        Template {
            brain: fill_holes(&t1.map(|v| u8::from(v >= BRAIN_MIN))),
            grey: share(include_bytes!("../../assets/mni152_2mm_gm.nii.gz")),
            white: share(include_bytes!("../../assets/mni152_2mm_wm.nii.gz")),
            t1,
        }
    });
    &TEMPLATE
}

/// The template's brain mask on the model's grid.
pub fn template_brain() -> &'static Volume<u8> {
    static BRAIN: LazyLock<Volume<u8>> =
        LazyLock::new(|| mask_to(&template().brain, &model_grid(), &Affine::identity()));
    &BRAIN
}

/// A map from a NIfTI file that is embedded in the program.
///
/// # Panics
/// If the file is damaged: a defect of the build, which every test run would meet.
pub(crate) fn embedded_map(file: &[u8]) -> Volume {
    nifti::decode(file, LIMIT_BYTES).expect("an embedded map decodes").volume
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preprocess::mask::volume_ml;
    use crate::preprocess::morphology::largest_component;

    #[test]
    fn the_maps_share_one_grid_and_the_brain_is_one_piece_of_the_expected_volume() {
        let Template { t1, grey, white, brain } = template();
        assert!(t1.grid == grey.grid && t1.grid == white.grid && t1.grid == brain.grid);
        assert_eq!(&largest_component(brain), brain);
        // Voxels above 0 of the 1 mm template, counted with nibabel.
        let one_mm_ml = 1886.5;
        let ml = volume_ml(brain);
        assert!((ml / one_mm_ml - 1.0).abs() < 0.01, "{ml} ml");
    }

    #[test]
    fn landmarks_have_their_tissue() {
        let Template { t1, grey, white, .. } = template();
        let voxel = |mm: [f64; 3]| {
            let [x, y, z] = t1.grid.affine.inverse().expect("invertible").apply(mm).map(|c| c.round() as usize);
            t1.index(x, y, z)
        };
        let (frontal_white_matter, thalamus) = (voxel([26.0, 30.0, 20.0]), voxel([-8.0, -18.0, 6.0]));
        assert!(white.data[frontal_white_matter] > 0.8 && t1.data[frontal_white_matter] > 0.8);
        assert!(grey.data[thalamus] > 0.5);
    }
}
