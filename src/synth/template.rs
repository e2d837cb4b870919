//! The maps that every synthetic head is made from, embedded in the program.
//!
//! Takes a position in MNI mm; gives the MNI152 template's T1 intensity and shares of grey and white matter (2 mm), and
//! the distances to the surfaces of brain and skull (4 mm). Origin and licence: assets/README.md; made by
//! assets/template.py.

use crate::error::{Error, Result};
use crate::preprocess::embedded_map;
use crate::volume::{Affine, Grid};

/// The template's maps with interpolation at any position.
pub struct HeadTemplate {
    tissue: Maps<3>,
    distance: Maps<2>,
}

/// The template at one position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Tissue {
    /// T1-weighted intensity, 0..1; white matter is 0.87, grey matter 0.65, fluid 0.26.
    pub t1: f32,
    /// Share of grey matter, 0..1.
    pub grey: f32,
    /// Share of white matter, 0..1.
    pub white: f32,
}

/// Signed distances in mm from one position, negative inside.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Distance {
    /// To the surface of the brain (with the fluid in its sulci).
    pub brain: f32,
    /// To the inside of the skull.
    pub cranium: f32,
}

impl HeadTemplate {
    /// The template that the program embeds.
    ///
    /// # Errors
    /// [`Error::Bug`] where the embedded files are not on common grids.
    pub fn embedded() -> Result<Self> {
        let tissue = Maps::interleave([
            include_bytes!("../../assets/mni152_2mm_t1.nii.gz").as_slice(),
            include_bytes!("../../assets/mni152_2mm_gm.nii.gz"),
            include_bytes!("../../assets/mni152_2mm_wm.nii.gz"),
        ])?;
        let distance = Maps::interleave([
            include_bytes!("../../assets/mni152_4mm_brain.nii.gz").as_slice(),
            include_bytes!("../../assets/mni152_4mm_cranium.nii.gz"),
        ])?;
        Ok(Self { tissue, distance })
    }

    /// T1 and tissue shares at `p` (MNI mm). Positions outside the maps take the values at their border, which lies
    /// outside the brain.
    pub(super) fn tissue(&self, p: [f32; 3]) -> Tissue {
        let [t1, grey, white] = self.tissue.at(p).map(|v| v / 255.0);
        Tissue { t1, grey, white }
    }

    /// Distances at `p` (MNI mm), clamped to 30 mm either way.
    pub(super) fn distance(&self, p: [f32; 3]) -> Distance {
        let [brain, cranium] = self.distance.at(p).map(|tenths| tenths / 10.0);
        Distance { brain, cranium }
    }
}

/// `C` volumes on one world-aligned grid, interleaved by voxel.
struct Maps<const C: usize> {
    shape: [usize; 3],
    /// MNI mm of the first voxel's centre.
    first: [f32; 3],
    /// Voxels per mm along each axis.
    per_mm: [f32; 3],
    values: Vec<[f32; C]>,
}

impl<const C: usize> Maps<C> {
    fn interleave(files: [&[u8]; C]) -> Result<Self> {
        let mut grid: Option<Grid> = None;
        let mut values = Vec::new();
        for (channel, file) in files.into_iter().enumerate() {
            let volume = embedded_map(file);
            values.resize(volume.data.len(), [0.0; C]);
            if *grid.get_or_insert(volume.grid) != volume.grid {
                return Err(Error::Bug("the maps of the embedded template are not on one grid".into()));
            }
            for (value, voxel) in values.iter_mut().zip(&volume.data) {
                value[channel] = *voxel;
            }
        }
        let Some(Grid { shape, affine: Affine(rows) }) = grid else {
            return Err(Error::Bug("the embedded template has no maps".into()));
        };
        let first = rows.map(|row| row[3] as f32);
        let per_mm = std::array::from_fn(|axis| 1.0 / rows[axis][axis] as f32);
        Ok(Self { shape, first, per_mm, values })
    }

    /// Trilinear interpolation at `p` (mm), clamped to the border.
    fn at(&self, p: [f32; 3]) -> [f32; C] {
        let [(x, fx), (y, fy), (z, fz)] = std::array::from_fn(|a| {
            let at = ((p[a] - self.first[a]) * self.per_mm[a]).clamp(0.0, self.shape[a] as f32 - 1.001);
            (at as usize, at.fract())
        });
        let [nx, ny, _] = self.shape;
        let mut sum = [0.0; C];
        for (dz, wz) in [(0, 1.0 - fz), (1, fz)] {
            for (dy, wy) in [(0, 1.0 - fy), (1, fy)] {
                let row = x + nx * (y + dy + ny * (z + dz));
                for (value, wx) in self.values[row..row + 2].iter().zip([1.0 - fx, fx]) {
                    for (s, v) in sum.iter_mut().zip(value) {
                        *s += wx * wy * wz * v;
                    }
                }
            }
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn landmarks_have_their_tissue_and_distance() {
        let template = HeadTemplate::embedded().expect("embedded template");
        // Deep white matter of the right frontal lobe and the left thalamus.
        let white = template.tissue([25.0, 30.0, 20.0]);
        assert!(white.white > 0.8 && white.t1 > 0.8, "{white:?}");
        let thalamus = template.tissue([-8.0, -18.0, 6.0]);
        assert!(thalamus.grey > 0.5, "{thalamus:?}");
        let centre = template.distance([0.0, -18.0, 10.0]);
        assert!(centre.brain < -20.0 && centre.cranium < -20.0, "{centre:?}");
        // The top of the brain is at z = 82 mm; the skull is no closer than the brain.
        let above = template.distance([10.0, -20.0, 95.0]);
        assert!((10.0..20.0).contains(&above.brain) && above.cranium <= above.brain, "{above:?}");
    }
}
