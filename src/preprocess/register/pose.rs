//! Where the template lies in the scan: the parameters that registration changes.

use super::fit::Normal;
use super::linear;
use crate::volume::Affine;

/// Parameters of an affine change: three rows of three linear coefficients and a shift in mm.
pub(super) const PARAMETERS: usize = 12;

/// What a step may change.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Freedom {
    /// Turn, shift and size: 7 parameters.
    Similarity,
    /// All 12 parameters.
    Affine,
}

/// A map from template to scan: `scan = at + linear (template - from)`, all in world mm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Pose {
    /// The fixed centre of the template's brain in MNI mm.
    pub from: [f64; 3],
    /// Where that centre lies in the scan, in mm.
    pub at: [f64; 3],
    /// Turn, size and shear.
    pub linear: [[f64; 3]; 3],
}

impl Pose {
    /// The map from MNI mm to the scan's world mm.
    pub fn to_scan(self) -> Affine {
        let rows = [0, 1, 2].map(|a| {
            let [x, y, z] = self.linear[a];
            let [fx, fy, fz] = self.from;
            [x, y, z, self.at[a] - x * fx - y * fy - z * fz]
        });
        Affine::from_rows(rows)
    }

    /// The same place and turn without the change of size. Only for poses that [`Freedom::Similarity`] has made.
    pub fn without_size(self) -> Self {
        let size = determinant(&self.linear).cbrt();
        Self { linear: self.linear.map(|row| row.map(|v| v / size)), ..self }
    }

    /// The pose after the step that lowers the cost most within `freedom`, where the cost is as `normal` says;
    /// `damping` shortens the step (Levenberg and Marquardt). `None` where the cost does not depend on the pose, or
    /// the step would mirror the brain.
    pub fn step(&self, normal: &Normal, freedom: Freedom, damping: f64) -> Option<Self> {
        let next = match freedom {
            Freedom::Similarity => {
                let directions = similarity();
                let mut matrix = [[0.0; 7]; 7];
                let mut right = [0.0; 7];
                for (i, p) in directions.iter().enumerate() {
                    let product: [f64; PARAMETERS] =
                        std::array::from_fn(|c| (0..PARAMETERS).map(|r| p[r] * normal.matrix[r][c]).sum());
                    for (j, q) in directions.iter().enumerate() {
                        matrix[i][j] = (0..PARAMETERS).map(|c| product[c] * q[c]).sum();
                    }
                    right[i] = -(0..PARAMETERS).map(|r| p[r] * normal.slope[r]).sum::<f64>();
                }
                let [rx, ry, rz, size, x, y, z] = linear::solve_damped(matrix, right, damping)?;
                let turn = rotation([rx, ry, rz]).map(|row| row.map(|v| v * size.exp()));
                self.moved(&turn, [x, y, z])
            }
            Freedom::Affine => {
                let step = linear::solve_damped(normal.matrix, normal.slope.map(|s| -s), damping)?;
                let change = [0, 1, 2].map(|a| std::array::from_fn(|b| step[4 * a + b] + f64::from(u8::from(a == b))));
                self.moved(&change, [0, 1, 2].map(|a| step[4 * a + 3]))
            }
        };
        (determinant(&next.linear) > 0.0).then_some(next)
    }

    /// `change` applied after the linear part, and a shift.
    fn moved(&self, change: &[[f64; 3]; 3], shift: [f64; 3]) -> Self {
        let at = [0, 1, 2].map(|a| self.at[a] + shift[a]);
        Self { at, linear: multiply(change, &self.linear), ..*self }
    }
}

/// The seven directions of a similarity in the space of the 12 parameters: turns about x, y, z (radians), size
/// (logarithm), shifts.
fn similarity() -> [[f64; PARAMETERS]; 7] {
    let mut directions = [[0.0; PARAMETERS]; 7];
    for axis in 0..3 {
        let (b, c) = ((axis + 1) % 3, (axis + 2) % 3);
        directions[axis][4 * c + b] = 1.0;
        directions[axis][4 * b + c] = -1.0;
        directions[3][4 * axis + axis] = 1.0;
        directions[4 + axis][4 * axis + 3] = 1.0;
    }
    directions
}

/// How a quantity that changes by `slope` per mm at an offset `u` from the centre changes with each parameter.
#[inline(always)]
pub(super) fn derivative(slope: [f32; 3], u: [f32; 3]) -> [f32; PARAMETERS] {
    let [[ax, ay, az, at], [bx, by, bz, bt], [cx, cy, cz, ct]] = slope.map(|s| [s * u[0], s * u[1], s * u[2], s]);
    [ax, ay, az, at, bx, by, bz, bt, cx, cy, cz, ct]
}

/// The turn by `|axis|` radians about `axis` (Rodrigues).
pub(super) fn rotation(axis: [f64; 3]) -> [[f64; 3]; 3] {
    let angle = axis.iter().map(|v| v * v).sum::<f64>().sqrt();
    if angle == 0.0 {
        return [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
    }
    let [x, y, z] = axis.map(|v| v / angle);
    let (s, c) = angle.sin_cos();
    let t = 1.0 - c;
    [
        [c + t * x * x, t * x * y - s * z, t * x * z + s * y],
        [t * x * y + s * z, c + t * y * y, t * y * z - s * x],
        [t * x * z - s * y, t * y * z + s * x, c + t * z * z],
    ]
}

/// The product of two 3 x 3 matrices.
pub(super) fn multiply(a: &[[f64; 3]; 3], b: &[[f64; 3]; 3]) -> [[f64; 3]; 3] {
    a.map(|row| std::array::from_fn(|c| (0..3).map(|k| row[k] * b[k][c]).sum()))
}

/// The determinant of a 3 x 3 matrix.
pub(super) fn determinant(m: &[[f64; 3]; 3]) -> f64 {
    Affine::from_rows(m.map(|[x, y, z]| [x, y, z, 0.0])).determinant3()
}
