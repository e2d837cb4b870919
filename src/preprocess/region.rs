//! The name of the brain region at a place in MNI space.
//!
//! Takes MNI mm (RAS+); gives one of [`REGIONS`] or [`OUTSIDE`]. The map is coarse on purpose, with one label per lobe or
//! structure and side: affine registration leaves gyri misaligned by up to a centimetre. A place outside the template's
//! brain gets the region of the nearest brain voxel within [`REACH_MM`], because some brains extend beyond it. Refuses
//! nothing.
//!
//! The embedded map has labels on 2 mm voxels of MNI152 (ICBM 2009a nonlinear symmetric). assets/region.py makes it
//! and states the rule for each region; lobes come from the parcels of Desikan et al. 2006
//! (doi:10.1016/j.neuroimage.2006.01.021).

use std::sync::LazyLock;

use super::template::embedded_map;
use crate::volume::{Affine, Volume};

/// The region of every place farther than `REACH_MM` from the template's brain.
pub const OUTSIDE: &str = "outside";

/// All regions, in the order of their labels in the map (1, 2, ..). White matter is part of its lobe; the insula includes
/// the capsules beside it, and the cingulate most of the corpus callosum; deep grey matter is thalamus, basal ganglia,
/// the capsules between them and the hypothalamus; hippocampus, amygdala and the ventricles' temporal horns are
/// temporal. The mid-sagittal plane belongs to the left side.
pub const REGIONS: &[&str] = &[
    "left frontal lobe",
    "right frontal lobe",
    "left parietal lobe",
    "right parietal lobe",
    "left temporal lobe",
    "right temporal lobe",
    "left occipital lobe",
    "right occipital lobe",
    "left insula",
    "right insula",
    "left cingulate",
    "right cingulate",
    "left deep grey matter",
    "right deep grey matter",
    "left cerebellum",
    "right cerebellum",
    "left lateral ventricle",
    "right lateral ventricle",
    "brain stem",
    "third ventricle",
    "fourth ventricle",
];

/// Largest distance in mm from the template's brain at which a place still has a region.
pub const REACH_MM: f64 = 10.0;

/// The region at `mni_mm`.
pub fn region(mni_mm: [f64; 3]) -> &'static str {
    static ATLAS: LazyLock<Atlas> = LazyLock::new(Atlas::embedded);
    ATLAS.region(mni_mm)
}

/// Labels in MNI space.
struct Atlas {
    /// 0 outside the brain, else 1 + the index in [`REGIONS`].
    labels: Volume<u8>,
    to_index: Affine,
}

impl Atlas {
    fn embedded() -> Self {
        let labels = embedded_map(include_bytes!("../../assets/mni152_2mm_region.nii.gz")).map(|label| label as u8);
        let to_index = labels.grid.affine.inverse().expect("the embedded map has an invertible affine");
        Self { labels, to_index }
    }

    fn region(&self, mni_mm: [f64; 3]) -> &'static str {
        let at = self.to_index.apply(mni_mm);
        match self.label(at.map(|v| (v + 0.5).floor() as isize)) {
            0 => self.nearest(mni_mm, at),
            label => REGIONS[usize::from(label) - 1],
        }
    }

    /// The label of a voxel; 0 outside the map.
    fn label(&self, index: [isize; 3]) -> u8 {
        let within = index.iter().zip(self.labels.grid.shape).all(|(&i, n)| (0..n as isize).contains(&i));
        if within { self.labels.at(index[0] as usize, index[1] as usize, index[2] as usize) } else { 0 }
    }

    /// The region of the closest labelled voxel centre within [`REACH_MM`]; of equally close ones the lowest label. `at`
    /// is the voxel index of `mni_mm`.
    fn nearest(&self, mni_mm: [f64; 3], at: [f64; 3]) -> &'static str {
        let spacing = self.labels.grid.spacing();
        let [xs, ys, zs] = [0, 1, 2].map(|axis| {
            let reach = REACH_MM / spacing[axis];
            // Nothing lies outside the map. Casts of far places saturate, and their ranges are empty.
            let last = self.labels.grid.shape[axis] as isize - 1;
            ((at[axis] - reach).ceil() as isize).max(0)..=((at[axis] + reach).floor() as isize).min(last)
        });
        let mut best = (REACH_MM * REACH_MM, OUTSIDE);
        let mut best_label = 0;
        for z in zs {
            for y in ys.clone() {
                for x in xs.clone() {
                    let label = self.label([x, y, z]);
                    if label == 0 {
                        continue;
                    }
                    let centre = self.labels.grid.affine.apply([x as f64, y as f64, z as f64]);
                    let squared: f64 = centre.iter().zip(mni_mm).map(|(c, p)| (c - p) * (c - p)).sum();
                    if squared < best.0 || squared == best.0 && label < best_label {
                        best = (squared, REGIONS[usize::from(label) - 1]);
                        best_label = label;
                    }
                }
            }
        }
        best.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preprocess::template::template;

    #[test]
    fn landmarks_of_the_literature_have_their_region() {
        // MNI coordinates of these structures from papers and atlases.
        for (place, name) in [
            ([-38.0, -20.0, 55.0], "left frontal lobe"),     // motor hand knob
            ([-48.0, 20.0, 12.0], "left frontal lobe"),      // Broca's area
            ([30.0, 45.0, 28.0], "right frontal lobe"),      // dorsolateral prefrontal cortex
            ([4.0, 56.0, -10.0], "right frontal lobe"),      // medial prefrontal cortex
            ([-45.0, -28.0, 52.0], "left parietal lobe"),    // somatosensory hand area
            ([48.0, -54.0, 44.0], "right parietal lobe"),    // angular gyrus
            ([-6.0, -64.0, 40.0], "left parietal lobe"),     // precuneus
            ([10.0, -88.0, 4.0], "right occipital lobe"),    // primary visual cortex
            ([-40.0, 14.0, -30.0], "left temporal lobe"),    // temporal pole
            ([52.0, -18.0, 6.0], "right temporal lobe"),     // Heschl's gyrus
            ([-26.0, -20.0, -16.0], "left temporal lobe"),   // hippocampus
            ([42.0, -50.0, -18.0], "right temporal lobe"),   // fusiform face area
            ([-36.0, 14.0, 2.0], "left insula"),             // anterior insula
            ([4.0, 24.0, 30.0], "right cingulate"),          // anterior cingulate
            ([-4.0, -44.0, 28.0], "left cingulate"),         // posterior cingulate
            ([12.0, -18.0, 8.0], "right deep grey matter"),  // thalamus
            ([-26.0, 4.0, 2.0], "left deep grey matter"),    // putamen
            ([12.0, 12.0, 10.0], "right deep grey matter"),  // head of the caudate
            ([25.0, -65.0, -30.0], "right cerebellum"),      // lobule VI
            ([-30.0, -60.0, -50.0], "left cerebellum"),      // lobule VIII
            ([0.0, -28.0, -30.0], "brain stem"),             // pons
            ([0.0, -42.0, -58.0], "brain stem"),             // medulla
            ([-12.0, 0.0, 22.0], "left lateral ventricle"),  // body
            ([26.0, -46.0, 6.0], "right lateral ventricle"), // atrium
            ([0.0, -18.0, 0.0], "third ventricle"),
            ([0.0, -44.0, -32.0], "fourth ventricle"),
        ] {
            assert_eq!(region(place), name, "{place:?}");
        }
    }

    #[test]
    fn a_place_beside_the_brain_has_the_nearest_region_and_one_far_away_none() {
        // The template's brain ends at z = 82 mm and y = -107 mm.
        assert_eq!(region([-20.0, -10.0, 84.0]), "left frontal lobe");
        assert_eq!(region([20.0, -112.0, -4.0]), "right occipital lobe");
        for far in [[0.0, 0.0, 120.0], [0.0, 90.0, 0.0], [0.0, -30.0, -90.0], [1e30, 0.0, 0.0], [0.0, f64::NAN, 0.0]] {
            assert_eq!(region(far), OUTSIDE, "{far:?}");
        }
    }

    #[test]
    fn every_voxel_of_the_template_brain_has_a_region_and_no_other_voxel_has() {
        let brain = &template().t1;
        let atlas = Atlas::embedded();
        assert_eq!(atlas.labels.grid, brain.grid);
        assert!(brain.data.iter().zip(&atlas.labels.data).all(|(&t1, &label)| (t1 > 0.0) == (label > 0)));
        for label in 1..=REGIONS.len() as u8 {
            assert!(atlas.labels.data.contains(&label), "no voxel of {}", REGIONS[usize::from(label) - 1]);
        }
    }

    #[test]
    fn the_right_side_mirrors_the_left() {
        let atlas = Atlas::embedded();
        let [nx, ny, nz] = atlas.labels.grid.shape;
        let middle = (nx - 1) / 2;
        let other_side = |label: u8| match REGIONS.get(usize::from(label).wrapping_sub(1)) {
            Some(name) if name.starts_with("left") => label + 1,
            Some(name) if name.starts_with("right") => label - 1,
            _ => label,
        };
        for (z, y, x) in (0..nz).flat_map(|z| (0..ny).flat_map(move |y| (0..middle).map(move |x| (z, y, x)))) {
            let (left, right) = (atlas.labels.at(x, y, z), atlas.labels.at(nx - 1 - x, y, z));
            assert_eq!(right, other_side(left), "voxel {x} {y} {z}");
            assert!(left == 0 || !REGIONS[usize::from(left) - 1].starts_with("right"));
        }
    }
}
