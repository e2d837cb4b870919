//! Solves small symmetric systems of linear equations.

/// Share of the diagonal added to itself, so that systems with dependent unknowns can be solved.
const RIDGE: f64 = 1e-9;

/// Solves `matrix x = right` for a symmetric positive definite matrix by Cholesky decomposition, after adding `damping`
/// times its diagonal. `None` where the matrix is not positive definite or not finite.
pub(crate) fn solve_damped<const N: usize>(matrix: [[f64; N]; N], right: [f64; N], damping: f64) -> Option<[f64; N]> {
    let mut lower = [[0.0; N]; N];
    for r in 0..N {
        for c in 0..=r {
            let known: f64 = (0..c).map(|k| lower[r][k] * lower[c][k]).sum();
            if r == c {
                let pivot = matrix[r][r] * (1.0 + RIDGE + damping) - known;
                // Also false for NaN.
                if !(pivot > 0.0 && pivot.is_finite()) {
                    return None;
                }
                lower[r][r] = pivot.sqrt();
            } else {
                lower[r][c] = (matrix[r][c] - known) / lower[c][c];
            }
        }
    }
    let mut x = right;
    for r in 0..N {
        let known: f64 = (0..r).map(|k| lower[r][k] * x[k]).sum();
        x[r] = (x[r] - known) / lower[r][r];
    }
    for r in (0..N).rev() {
        let known: f64 = (r + 1..N).map(|k| lower[k][r] * x[k]).sum();
        x[r] = (x[r] - known) / lower[r][r];
    }
    Some(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_system_is_solved_and_a_singular_one_refused() {
        let matrix = [[4.0, 2.0, 0.6], [2.0, 3.0, 0.4], [0.6, 0.4, 2.0]];
        let want = [1.0, -2.0, 0.5];
        let right: [f64; 3] = std::array::from_fn(|r| (0..3).map(|c| matrix[r][c] * want[c]).sum());
        let got = solve_damped(matrix, right, 0.0).expect("positive definite");
        assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-6), "{got:?}");
        assert_eq!(solve_damped([[0.0; 2]; 2], [1.0; 2], 0.0), None);
        assert_eq!(solve_damped([[f64::NAN; 2]; 2], [1.0; 2], 0.0), None);
    }
}
