//! Affine maps of millimetre space, row-major 3 x 4.

/// A 3 x 4 affine map: `y = A[.., 0..3] x + A[.., 3]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Affine(pub [[f64; 4]; 3]);

impl Affine {
    /// The identity map.
    pub const fn identity() -> Self {
        Self([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    }

    /// The map with these three rows.
    pub const fn from_rows(rows: [[f64; 4]; 3]) -> Self {
        Self(rows)
    }

    /// The map that adds `t`.
    pub const fn translation(t: [f64; 3]) -> Self {
        Self([[1.0, 0.0, 0.0, t[0]], [0.0, 1.0, 0.0, t[1]], [0.0, 0.0, 1.0, t[2]]])
    }

    /// The rotations by these angles (radians) about x, then y, then z.
    pub fn rotation(angles: [f64; 3]) -> Self {
        let mut map = Self::identity();
        for (axis, angle) in angles.into_iter().enumerate() {
            let (sin, cos) = angle.sin_cos();
            let (a, b) = ((axis + 1) % 3, (axis + 2) % 3);
            let mut rows = Self::identity().0;
            (rows[a][a], rows[a][b], rows[b][a], rows[b][b]) = (cos, -sin, sin, cos);
            map = map.then(&Self(rows));
        }
        map
    }

    /// The image of `p`.
    pub fn apply(&self, p: [f64; 3]) -> [f64; 3] {
        self.0.map(|r| r[0] * p[0] + r[1] * p[1] + r[2] * p[2] + r[3])
    }

    /// Applies `self` first, then `next`.
    pub fn then(&self, next: &Self) -> Self {
        let a = &self.0;
        Self(next.0.map(|r| {
            std::array::from_fn(|c| {
                let offset = if c == 3 { r[3] } else { 0.0 };
                r[0] * a[0][c] + r[1] * a[1][c] + r[2] * a[2][c] + offset
            })
        }))
    }

    /// The inverse map, or `None` where the 3 x 3 part is singular (to rounding) or not finite.
    pub fn inverse(&self) -> Option<Self> {
        // Singular relative to the columns' lengths: 0.1 mm voxels have a small determinant too.
        let det = self.determinant3();
        let volume: f64 = self.spacing().iter().product();
        let finite = self.0.iter().flatten().all(|v| v.is_finite());
        if !finite || det == 0.0 || det.abs() < 1e-9 * volume {
            return None;
        }
        let m = &self.0;
        let cofactor = |r: usize, c: usize| {
            let (r1, r2, c1, c2) = ((r + 1) % 3, (r + 2) % 3, (c + 1) % 3, (c + 2) % 3);
            m[r1][c1] * m[r2][c2] - m[r1][c2] * m[r2][c1]
        };
        let mut inverse = [[0.0; 4]; 3];
        for (r, row) in inverse.iter_mut().enumerate() {
            for (c, value) in row.iter_mut().take(3).enumerate() {
                *value = cofactor(c, r) / det;
            }
            row[3] = -(row[0] * m[0][3] + row[1] * m[1][3] + row[2] * m[2][3]);
        }
        let finite = inverse.iter().flatten().all(|v| v.is_finite());
        finite.then_some(Self(inverse))
    }

    /// Whether no entry differs from `other`'s by more than `tolerance`.
    pub fn is_close(&self, other: &Self, tolerance: f64) -> bool {
        self.0.iter().flatten().zip(other.0.iter().flatten()).all(|(a, b)| (a - b).abs() <= tolerance)
    }

    /// Length of each column of the 3 x 3 part: the voxel size in mm where the map takes voxel
    /// indices to world millimetres.
    pub fn spacing(&self) -> [f64; 3] {
        std::array::from_fn(|c| self.0.iter().map(|r| r[c] * r[c]).sum::<f64>().sqrt())
    }

    /// Determinant of the 3 x 3 part: negative where the map mirrors; its absolute value is the volume of one voxel.
    pub fn determinant3(&self) -> f64 {
        let m = &self.0;
        m[0][0] * (m[1][1] * m[2][2] - m[1][2] * m[2][1]) - m[0][1] * (m[1][0] * m[2][2] - m[1][2] * m[2][0])
            + m[0][2] * (m[1][0] * m[2][1] - m[1][1] * m[2][0])
    }

    /// The three rows, one after the other, as the tables store them.
    pub fn to_row_major(&self) -> [f64; 12] {
        std::array::from_fn(|i| self.0[i / 4][i % 4])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 30 degrees about z, 2 x 3 x 4 mm voxels, shifted.
    fn oblique() -> Affine {
        let (s, c) = 30f64.to_radians().sin_cos();
        Affine([[2.0 * c, -3.0 * s, 0.0, 10.0], [2.0 * s, 3.0 * c, 0.0, -20.0], [0.0, 0.0, 4.0, 30.0]])
    }

    fn assert_close(a: &Affine, b: &Affine) {
        let worst = a.to_row_major().iter().zip(b.to_row_major()).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
        assert!(worst < 1e-12, "{a:?} is not {b:?}");
    }

    #[test]
    fn inverse_undoes_the_map_from_both_sides() {
        let a = oblique();
        let back = a.inverse().expect("invertible");
        assert_close(&a.then(&back), &Affine::identity());
        assert_close(&back.then(&a), &Affine::identity());
    }

    #[test]
    fn then_applies_self_first() {
        let scale = Affine::from_rows([[2.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 2.0, 0.0]]);
        let shift = Affine::translation([1.0, 2.0, 3.0]);
        assert_eq!(scale.then(&shift).apply([1.0, 1.0, 1.0]), [3.0, 4.0, 5.0]);
        assert_eq!(shift.then(&scale).apply([1.0, 1.0, 1.0]), [4.0, 6.0, 8.0]);
    }

    #[test]
    fn a_rotation_is_about_the_axis_named_and_right_handed() {
        let [x, y, z] = Affine::rotation([0.0, 0.0, 90f64.to_radians()]).apply([1.0, 0.0, 5.0]);
        assert!(x.abs() < 1e-12 && (y - 1.0).abs() < 1e-12 && (z - 5.0).abs() < 1e-12);
    }

    #[test]
    fn spacing_and_determinant_survive_rotation() {
        let a = oblique();
        for (got, want) in a.spacing().iter().zip([2.0, 3.0, 4.0]) {
            assert!((got - want).abs() < 1e-12);
        }
        assert!((a.determinant3() - 24.0).abs() < 1e-12);
    }

    #[test]
    fn singular_and_non_finite_maps_have_no_inverse() {
        let flat = Affine([[1.0, 2.0, 0.0, 0.0], [2.0, 4.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]);
        assert_eq!(flat.inverse(), None);
        assert_eq!(Affine([[0.0; 4]; 3]).inverse(), None);
        assert_eq!(Affine::translation([f64::NAN, 0.0, 0.0]).inverse(), None);
        let tiny = Affine([[1e-4, 0.0, 0.0, 0.0], [0.0, 1e-4, 0.0, 0.0], [0.0, 0.0, 1e-4, 0.0]]);
        assert!(tiny.inverse().is_some(), "small voxels are not singular");
    }
}
