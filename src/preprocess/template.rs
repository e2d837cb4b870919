//! The MNI152 template (ICBM 2009a nonlinear symmetric, brain only), embedded in the program.
//!
//! Gives T1 intensity, shares of grey and white matter and the brain's mask on one 2 mm RAS grid in MNI space
//! (99 x 117 x 95 voxels). Origin, grid and licence: assets/README.md. Refuses nothing: the files are part of the
//! program.

use std::sync::LazyLock;

use super::morphology::fill_holes;
use crate::volume::{Volume, nifti};

/// More than any of the embedded files unpacked.
const LIMIT_BYTES: u64 = 16 << 20;

/// T1 intensity (0..1) from which a voxel belongs to the brain. The 2 mm maps are means of 1 mm voxels, so that voxels
/// on the border are partly brain: at this value the mask has the volume of the 1 mm template's brain, 1.89 l, to
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
        let t1 = decode(include_bytes!("../../assets/mni152_2mm_t1.nii.gz"));
        let brain = t1.data.iter().map(|&v| u8::from(v >= BRAIN_MIN)).collect();
        Template {
            brain: fill_holes(&Volume::new(t1.grid, brain)),
            grey: decode(include_bytes!("../../assets/mni152_2mm_gm.nii.gz")),
            white: decode(include_bytes!("../../assets/mni152_2mm_wm.nii.gz")),
            t1,
        }
    });
    &TEMPLATE
}

/// One of the maps, 0..255 in the file, as 0..1.
fn decode(file: &[u8]) -> Volume<f32> {
    let mut map = nifti::decode(file, LIMIT_BYTES).expect("a map that the program embeds is whole").volume;
    map.data.iter_mut().for_each(|v| *v /= 255.0);
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preprocess::morphology::{count, largest_component};

    #[test]
    fn the_maps_share_one_grid_and_the_brain_is_one_piece_of_the_right_size() {
        let Template { t1, grey, white, brain } = template();
        assert!(t1.grid == grey.grid && t1.grid == white.grid && t1.grid == brain.grid);
        assert_eq!(&largest_component(brain), brain);
        // Voxels above 0 of the 1 mm template, counted with nibabel.
        let one_mm_ml = 1886.5;
        let ml = count(brain) as f64 * brain.grid.voxel_ml();
        assert!((ml / one_mm_ml - 1.0).abs() < 0.01, "{ml} ml");
    }

    #[test]
    fn known_places_have_their_tissue() {
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
