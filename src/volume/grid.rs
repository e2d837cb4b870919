//! The lattice of a volume: how many voxels it has, and where they lie in the world.

use super::affine::Affine;
use super::orientation::AxisMap;

/// A lattice of voxels in the world. Voxels are counted x fastest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grid {
    /// Voxels along x, y, z.
    pub shape: [usize; 3],
    /// Voxel index to world millimetres (RAS+).
    pub affine: Affine,
}

impl Grid {
    /// Number of voxels.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True where an axis has no voxel.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Voxel size along x, y, z in mm.
    pub fn spacing(&self) -> [f64; 3] {
        self.affine.spacing()
    }

    /// Volume of one voxel in millilitres.
    pub fn voxel_ml(&self) -> f64 {
        self.affine.determinant3().abs() / 1000.0
    }

    /// Index along x, y, z of the voxel at place `n` of the data.
    pub fn ijk(&self, n: usize) -> [usize; 3] {
        let [nx, ny, _] = self.shape;
        [n % nx, n / nx % ny, n / (nx * ny)]
    }

    /// World mm of the centre of the voxel at place `n` of the data.
    pub fn world_mm(&self, n: usize) -> [f64; 3] {
        self.affine.apply(self.ijk(n).map(|c| c as f64))
    }

    /// One letter per voxel axis: the anatomical direction closest to the one it grows in. `RAS` for world-aligned
    /// voxels, `LPI` where all three run the other way. nibabel's `aff2axcodes`.
    pub fn orientation(&self) -> String {
        AxisMap::of(&self.affine).codes()
    }

    /// The same voxels with axes permuted and flipped so that [`Grid::orientation`] is `RAS`.
    pub fn to_ras(&self) -> Grid {
        let (shape, affine) = AxisMap::of(&self.affine).reorient(self.shape, &self.affine);
        Grid { shape, affine }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn voxel_millilitres_follow_the_spacing() {
        let grid = Grid {
            shape: [2, 3, 4],
            affine: Affine([[-2.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 2.5, 0.0]]),
        };
        assert_eq!(grid.len(), 24);
        assert!((grid.voxel_ml() - 0.01).abs() < 1e-15);
    }

    #[test]
    fn voxels_are_counted_x_fastest() {
        let grid = Grid { shape: [2, 3, 4], affine: Affine::translation([10.0, 20.0, 30.0]) };
        assert_eq!(grid.ijk(1 + 2 * (2 + 3 * 3)), [1, 2, 3]);
        assert_eq!(grid.world_mm(1 + 2 * (2 + 3 * 3)), [11.0, 22.0, 33.0]);
    }
}
