//! One step of the optimisation: damped Gauss-Newton (Levenberg and Marquardt) on the parameters of a pose.

use super::cost::NormalEquations;
use super::pose::{PARAMETERS, Pose, determinant, rotation};
use crate::preprocess::linear::solve_damped;

/// The parameters that a step may change.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Freedom {
    /// Rotation, shift and size: 7 parameters.
    Similarity,
    /// All 12 parameters.
    Affine,
}

/// The pose after the step that minimises the model of the cost around `pose`, within `freedom`; `damping` shortens the
/// step. `None` where the cost does not depend on the pose, or the step would mirror the brain.
pub(super) fn step(pose: &Pose, normal: &NormalEquations, freedom: Freedom, damping: f64) -> Option<Pose> {
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
            let [rx, ry, rz, size, x, y, z] = solve_damped(matrix, right, damping)?;
            let turn = rotation([rx, ry, rz]).map(|row| row.map(|v| v * size.exp()));
            pose.moved(&turn, [x, y, z])
        }
        Freedom::Affine => {
            let step = solve_damped(normal.matrix, normal.slope.map(|s| -s), damping)?;
            let change = [0, 1, 2].map(|a| std::array::from_fn(|b| step[4 * a + b] + f64::from(u8::from(a == b))));
            pose.moved(&change, [0, 1, 2].map(|a| step[4 * a + 3]))
        }
    };
    (determinant(&next.linear) > 0.0).then_some(next)
}

/// The seven directions of a similarity in the space of the 12 parameters: rotations about x, y, z (radians), size
/// (logarithm), shifts (mm).
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
