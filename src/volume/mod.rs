//! A volume: voxels and where they lie in the world.
//!
//! Voxels are stored x fastest (`x + nx * (y + ny * z)`), as NIfTI does. World coordinates are
//! millimetres in RAS+: x grows to the subject's right, y to the front, z to the top.
//!
//! [`nifti`] decodes NIfTI files to a [`Volume`] and encodes volumes as NIfTI; [`resample`] interpolates a volume on
//! another [`Grid`]. An unusable file is an [`struct@Error`] that names what is wrong with it and the next step.
//!
//! The module uses nothing else of the crate, so that the fuzz targets can be built from it alone.

mod affine;
mod error;
mod grid;
pub mod nifti;
mod orientation;
pub mod resample;

use rayon::prelude::*;

pub use affine::Affine;
pub use error::{Error, Result};
pub use grid::Grid;
use orientation::AxisMap;

/// Voxels of type `T` on a [`Grid`], x fastest.
#[derive(Debug, Clone, PartialEq)]
pub struct Volume<T = f32> {
    /// The lattice that the voxels lie on.
    pub grid: Grid,
    /// `grid.len()` voxels, x fastest.
    pub data: Vec<T>,
}

impl<T: Copy> Volume<T> {
    /// A volume of these voxels.
    ///
    /// # Panics
    /// If `data` does not hold `grid.len()` voxels.
    pub fn new(grid: Grid, data: Vec<T>) -> Self {
        assert_eq!(data.len(), grid.len(), "voxels for a grid of {:?}", grid.shape);
        Self { grid, data }
    }

    /// `f` of every voxel, on the same grid.
    pub fn map<U: Copy>(&self, f: impl FnMut(T) -> U) -> Volume<U> {
        Volume::new(self.grid, self.data.iter().copied().map(f).collect())
    }

    /// A volume of `T::default()` everywhere.
    pub fn zeros(grid: Grid) -> Self
    where
        T: Default,
    {
        Self { grid, data: vec![T::default(); grid.len()] }
    }

    /// Place of voxel (x, y, z) in `data`.
    pub fn index(&self, x: usize, y: usize, z: usize) -> usize {
        let [nx, ny, _] = self.grid.shape;
        x + nx * (y + ny * z)
    }

    /// The voxel at (x, y, z).
    pub fn at(&self, x: usize, y: usize, z: usize) -> T {
        self.data[self.index(x, y, z)]
    }

    /// The same voxels at the same world positions with axes permuted and flipped to the closest
    /// RAS order. No interpolation: nibabel's `as_closest_canonical`.
    pub fn reoriented_ras(&self) -> Volume<T>
    where
        T: Default + Send + Sync,
    {
        /// Rows that are filled together. Where x becomes y or z, one cache line holds voxels of this many rows.
        const ROWS: usize = 16;
        let map = AxisMap::of(&self.grid.affine);
        let grid = self.grid.to_ras();
        if grid == self.grid {
            return self.clone();
        }
        let (start, [sx, sy, sz]) = map.strides(self.grid.shape);
        let [nx, ny, _] = grid.shape;
        let mut out = Volume::zeros(grid);
        out.data.par_chunks_mut((nx * ny).max(1)).enumerate().for_each(|(z, slab)| {
            for (block, rows) in slab.chunks_mut((ROWS * nx).max(1)).enumerate() {
                let first = start + (block * ROWS) as isize * sy + z as isize * sz;
                for x in 0..nx {
                    let first = first + x as isize * sx;
                    for (y, row) in rows.chunks_mut(nx).enumerate() {
                        row[x] = self.data[(first + y as isize * sy) as usize];
                    }
                }
            }
        });
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reorienting_keeps_every_voxel_at_its_world_position() {
        // Axes run superior, left, anterior.
        let affine = Affine([[0.0, -2.0, 0.0, 7.0], [0.0, 0.0, 3.0, -4.0], [1.5, 0.0, 0.0, 2.0]]);
        let grid = Grid { shape: [2, 3, 4], affine };
        assert_eq!(grid.orientation(), "SLA");
        let volume = Volume::new(grid, (0..24).collect::<Vec<i32>>());
        let ras = volume.reoriented_ras();
        assert_eq!(ras.grid, grid.to_ras());
        assert_eq!(ras.grid.orientation(), "RAS");
        assert_eq!(ras.grid.shape, [3, 4, 2]);
        let to_source = affine.inverse().expect("invertible");
        for z in 0..2 {
            for y in 0..4 {
                for x in 0..3 {
                    let world = ras.grid.affine.apply([x as f64, y as f64, z as f64]);
                    let [i, j, k] = to_source.apply(world).map(|v| v.round() as usize);
                    assert_eq!(ras.at(x, y, z), volume.at(i, j, k));
                }
            }
        }
    }
}
