//! The anatomical direction that each voxel axis runs along.
//!
//! Takes an affine from voxel index to world mm (RAS+); gives the permutation and the flips that bring its axes to the
//! closest RAS order. The rule is nibabel's `io_orientation`: the affine's shear is removed, then voxel axes are matched
//! to world axes, the best aligned one first.

use super::affine::Affine;

/// For each voxel axis, the world axis (0 = x, 1 = y, 2 = z) it follows and whether it runs against it.
pub(super) struct AxisMap {
    world: [usize; 3],
    against: [bool; 3],
}

impl AxisMap {
    /// The closest assignment of voxel axes to world axes.
    pub fn of(affine: &Affine) -> Self {
        let rotation = closest_rotation(affine);
        let strength = |axis: usize| rotation.iter().map(|row| row[axis].abs()).fold(0.0, f64::max);
        let mut order = [0, 1, 2];
        order.sort_by(|&a, &b| strength(b).total_cmp(&strength(a)));

        let mut map = Self { world: [0; 3], against: [false; 3] };
        let mut free = vec![0, 1, 2];
        for axis in order {
            // Of equals the first, like numpy's argmax.
            let mut best = 0;
            for candidate in 1..free.len() {
                if rotation[free[candidate]][axis].abs() > rotation[free[best]][axis].abs() {
                    best = candidate;
                }
            }
            let world = free.remove(best);
            map.world[axis] = world;
            map.against[axis] = rotation[world][axis] < 0.0;
        }
        map
    }

    /// Three letters, one for each voxel axis, naming the direction it grows to.
    pub fn codes(&self) -> String {
        const ALONG: [char; 3] = ['R', 'A', 'S'];
        const AGAINST: [char; 3] = ['L', 'P', 'I'];
        (0..3).map(|axis| if self.against[axis] { AGAINST } else { ALONG }[self.world[axis]]).collect()
    }

    /// Shape and affine of the same voxels with voxel axis `i` following world axis `i`.
    pub fn reorient(&self, shape: [usize; 3], affine: &Affine) -> ([usize; 3], Affine) {
        let (mut reordered, mut rows) = ([0; 3], affine.0);
        for axis in 0..3 {
            let (to, n) = (self.world[axis], shape[axis]);
            reordered[to] = n;
            for (row, source) in rows.iter_mut().zip(&affine.0) {
                if self.against[axis] {
                    row[to] = -source[axis];
                    row[3] += source[axis] * (n as f64 - 1.0);
                } else {
                    row[to] = source[axis];
                }
            }
        }
        (reordered, Affine(rows))
    }

    /// Place of the reoriented volume's first voxel in the data of a volume of `shape`, and the
    /// stride there of one step along each reoriented axis.
    pub fn strides(&self, shape: [usize; 3]) -> (isize, [isize; 3]) {
        let source = [1, shape[0] as isize, (shape[0] * shape[1]) as isize];
        let (mut start, mut strides) = (0, [0; 3]);
        for axis in 0..3 {
            if self.against[axis] {
                start += source[axis] * (shape[axis] as isize - 1);
                strides[self.world[axis]] = -source[axis];
            } else {
                strides[self.world[axis]] = source[axis];
            }
        }
        (start, strides)
    }
}

/// The orthogonal matrix closest to the affine's columns scaled to unit length: the polar factor, by
/// Newton's iteration `R <- (R + R^-T) / 2` (Higham 1986). The scaled columns themselves where they have no inverse.
fn closest_rotation(affine: &Affine) -> [[f64; 3]; 3] {
    let spacing = affine.spacing();
    let mut unit = Affine(affine.0.map(|row| [row[0] / spacing[0], row[1] / spacing[1], row[2] / spacing[2], 0.0]));
    // Quadratic convergence: a right angle needs one step, a shear that still has an inverse under 40.
    for _ in 0..40 {
        let Some(inverse) = unit.inverse() else { break };
        let mut change = 0.0f64;
        let mut next = unit;
        for r in 0..3 {
            for c in 0..3 {
                next.0[r][c] = 0.5 * (unit.0[r][c] + inverse.0[c][r]);
                change = change.max((next.0[r][c] - unit.0[r][c]).abs());
            }
        }
        unit = next;
        if change < 1e-15 {
            break;
        }
    }
    unit.0.map(|row| [row[0], row[1], row[2]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(rows: [[f64; 3]; 3]) -> String {
        AxisMap::of(&Affine(rows.map(|r| [r[0], r[1], r[2], 0.0]))).codes()
    }

    #[test]
    fn codes_name_the_direction_each_axis_grows_to() {
        assert_eq!(codes([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), "RAS");
        assert_eq!(codes([[-1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, -1.0]]), "LPI");
        // A sagittal acquisition: x runs to the front, y to the bottom, z to the right.
        assert_eq!(codes([[0.0, 0.0, 1.0], [0.8, 0.0, 0.0], [0.0, -0.8, 0.0]]), "AIR");
    }

    #[test]
    fn oblique_axes_take_the_closest_direction() {
        // 40 degrees about x: y still runs mostly to the front.
        let (s, c) = 40f64.to_radians().sin_cos();
        assert_eq!(codes([[-1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]]), "LAS");
        // 50 degrees: it runs mostly to the top.
        let (s, c) = 50f64.to_radians().sin_cos();
        assert_eq!(codes([[-1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]]), "LSP");
    }

    #[test]
    fn every_axis_gets_its_own_direction() {
        // Both x and y lean to the right; x more so.
        assert_eq!(codes([[1.0, 0.9, 0.0], [0.1, 0.6, 0.0], [0.0, 0.0, 1.0]]), "RAS");
    }
}
