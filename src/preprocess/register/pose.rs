//! The pose of the template in the scan: the parameters that registration optimises.

use crate::volume::Affine;

/// Parameters of an affine change: three rows of three linear coefficients and a shift in mm.
pub(super) const PARAMETERS: usize = 12;

/// A map from template to scan: `scan = at + linear (template - from)`, all in world mm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Pose {
    /// The fixed centre of the template's brain in MNI mm.
    pub from: [f64; 3],
    /// The place of that centre in the scan, in mm.
    pub at: [f64; 3],
    /// Rotation, size and shear.
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

    /// The same position and rotation without the change of size. Only for a similarity, which has no shear.
    pub fn without_size(self) -> Self {
        let size = determinant(&self.linear).cbrt();
        Self { linear: self.linear.map(|row| row.map(|v| v / size)), ..self }
    }

    /// The pose with `change` applied after its linear part, and moved by `shift` mm.
    pub fn moved(&self, change: &[[f64; 3]; 3], shift: [f64; 3]) -> Self {
        let at = [0, 1, 2].map(|a| self.at[a] + shift[a]);
        Self { at, linear: multiply(change, &self.linear), ..*self }
    }
}

/// The derivative by each parameter of a quantity with gradient `slope` (per mm) at the offset `u` from the centre.
#[inline(always)]
pub(super) fn derivative(slope: [f32; 3], u: [f32; 3]) -> [f32; PARAMETERS] {
    let [[ax, ay, az, at], [bx, by, bz, bt], [cx, cy, cz, ct]] = slope.map(|s| [s * u[0], s * u[1], s * u[2], s]);
    [ax, ay, az, at, bx, by, bz, bt, cx, cy, cz, ct]
}

/// The rotation by `|axis|` radians about `axis` (Rodrigues).
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
