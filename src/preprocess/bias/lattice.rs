//! A uniform cubic B-spline in three dimensions over a lattice of knots, and the approximation of samples by one.
//!
//! Takes samples on a regular grid, x fastest, each with a weight (0 where there is no sample); gives knots by the
//! approximation of Lee, Wolberg and Shin (IEEE Transactions on Visualization and Computer Graphics 3:228, 1997). On
//! a regular grid its sums separate into one pass per axis, so that a fit costs no more than a few additions of images.

/// Knots on `shape[a]` positions per axis. The domain along each axis runs from 0 to the number of cells, knot `k` lies
/// at `k - 1`, and there are three knots more than cells.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Lattice {
    pub(super) shape: [usize; 3],
    /// One per position, x fastest.
    pub(super) knots: Vec<f32>,
}

impl Lattice {
    /// The spline that is 0 everywhere, with `cells` cells per axis.
    pub(super) fn flat(cells: [usize; 3]) -> Self {
        let shape = cells.map(|n| n + 3);
        Self { shape, knots: vec![0.0; shape.iter().product()] }
    }

    /// Cells per axis.
    pub(super) fn cells(&self) -> [usize; 3] {
        self.shape.map(|n| n - 3)
    }

    /// The value at `p`, in cells from the low corner of the domain. Positions outside are clamped to its border.
    pub(super) fn at(&self, p: [f64; 3]) -> f32 {
        let [(x, wx), (y, wy), (z, wz)] = std::array::from_fn(|a| support(p[a], self.shape[a] - 3));
        let [nx, ny, _] = self.shape;
        let mut sum = 0.0;
        for (k, wz) in wz.iter().enumerate() {
            for (j, wy) in wy.iter().enumerate() {
                let row = x + nx * (y + j + ny * (z + k));
                let along_x: f32 = self.knots[row..row + 4].iter().zip(&wx).map(|(knot, w)| knot * w).sum();
                sum += along_x * wy * wz;
            }
        }
        sum
    }

    /// The same function on cells of half the size.
    pub(super) fn refined(&self) -> Self {
        let mut out = self.clone();
        for axis in 0..3 {
            let [inner, n, outer] = split(out.shape, axis);
            let fine = 2 * (n - 3) + 3;
            let mut knots = vec![0.0; inner * fine * outer];
            for (source, target) in out.knots.chunks(inner * n).zip(knots.chunks_mut(inner * fine)) {
                let at = |k: usize, i: usize| source[k * inner + i];
                for (k, line) in target.chunks_mut(inner).enumerate() {
                    // Fine knot k lies at (k - 1) / 2 cells: on a coarse knot, or half-way between two.
                    for (i, value) in line.iter_mut().enumerate() {
                        let c = k.div_ceil(2);
                        *value = if k % 2 == 1 {
                            (at(c - 1, i) + 6.0 * at(c, i) + at(c + 1, i)) / 8.0
                        } else {
                            (at(c, i) + at(c + 1, i)) / 2.0
                        };
                    }
                }
            }
            out.shape[axis] = fine;
            out.knots = knots;
        }
        out
    }
}

/// Weights of the four knots around a position at `t` (0..1) between the two middle ones.
pub(crate) fn cubic_b_spline(t: f32) -> [f32; 4] {
    let (s, t2) = (1.0 - t, t * t);
    let t3 = t2 * t;
    [s * s * s / 6.0, (3.0 * t3 - 6.0 * t2 + 4.0) / 6.0, (-3.0 * t3 + 3.0 * t2 + 3.0 * t + 1.0) / 6.0, t3 / 6.0]
}

/// First of the four knots that a position (in cells) depends on, and their weights.
fn support(p: f64, cells: usize) -> (usize, [f32; 4]) {
    let p = p.clamp(0.0, cells as f64);
    let cell = (p as usize).min(cells - 1);
    (cell, cubic_b_spline((p - cell as f64) as f32))
}

/// Extents below, along and above `axis`.
fn split(shape: [usize; 3], axis: usize) -> [usize; 3] {
    [shape[..axis].iter().product(), shape[axis], shape[axis + 1..].iter().product()]
}

/// Keeps knots near 0 that have far less evidence than this, from the tails of a few samples.
const LEAST_EVIDENCE: f32 = 1e-2;

/// The approximation of samples by a lattice: a regular grid of samples over the lattice's domain.
pub(super) struct Approximation {
    samples: [usize; 3],
    shape: [usize; 3],
    /// Per axis and sample: its first knot and weights.
    support: [Vec<(usize, [f32; 4])>; 3],
    /// Per sample: the reciprocal of the sum of its squared spline weights.
    scale: Vec<f32>,
}

impl Approximation {
    /// For a grid of `samples` that ends on the borders of a domain of `cells`.
    pub(super) fn new(samples: [usize; 3], cells: [usize; 3]) -> Self {
        let support: [Vec<_>; 3] = std::array::from_fn(|a| {
            let step = cells[a] as f64 / (samples[a] - 1).max(1) as f64;
            (0..samples[a]).map(|i| support(i as f64 * step, cells[a])).collect()
        });
        let squares: [Vec<f32>; 3] =
            std::array::from_fn(|a| support[a].iter().map(|(_, w)| w.iter().map(|w| w * w).sum()).collect());
        let [nx, ny, _] = samples;
        let at = |i: usize| squares[0][i % nx] * squares[1][i / nx % ny] * squares[2][i / (nx * ny)];
        let scale = (0..samples.iter().product()).map(|i| 1.0 / at(i)).collect();
        Self { samples, shape: cells.map(|n| n + 3), support, scale }
    }

    /// The spline that approximates `values` with these weights, by Lee et al.; 0 far from all samples.
    pub(super) fn lattice(&self, values: &[f32], weights: &[f32]) -> Lattice {
        let scaled = values.iter().zip(weights).zip(&self.scale).map(|((v, w), s)| v * w * s).collect();
        let sums = self.gather(scaled, |w| w * w * w);
        let evidence = self.gather(weights.to_vec(), |w| w * w);
        let knots = sums.iter().zip(&evidence).map(|(s, e)| s / (e + LEAST_EVIDENCE)).collect();
        Lattice { shape: self.shape, knots }
    }

    /// The sum over samples at every knot, each sample times the product over axes of `of` its spline weight.
    fn gather(&self, mut values: Vec<f32>, of: impl Fn(f32) -> f32) -> Vec<f32> {
        let mut shape = self.samples;
        for axis in (0..3).rev() {
            let [inner, n, outer] = split(shape, axis);
            let knots = self.shape[axis];
            let mut sums = vec![0.0; inner * knots * outer];
            for (source, target) in values.chunks(inner * n).zip(sums.chunks_mut(inner * knots)) {
                for (line, (first, weights)) in source.chunks(inner).zip(&self.support[axis]) {
                    for (k, w) in weights.iter().enumerate() {
                        let w = of(*w);
                        let at = (first + k) * inner;
                        target[at..at + inner].iter_mut().zip(line).for_each(|(t, v)| *t += w * v);
                    }
                }
            }
            shape[axis] = knots;
            values = sums;
        }
        values
    }

    /// The spline's values at all samples.
    pub(super) fn values(&self, lattice: &Lattice) -> Vec<f32> {
        let mut values = lattice.knots.clone();
        let mut shape = self.shape;
        for axis in 0..3 {
            let [inner, knots, outer] = split(shape, axis);
            let n = self.samples[axis];
            let mut out = vec![0.0; inner * n * outer];
            for (source, target) in values.chunks(inner * knots).zip(out.chunks_mut(inner * n)) {
                for (line, (first, weights)) in target.chunks_mut(inner).zip(&self.support[axis]) {
                    for (k, w) in weights.iter().enumerate() {
                        let at = (first + k) * inner;
                        line.iter_mut().zip(&source[at..at + inner]).for_each(|(v, s)| *v += w * s);
                    }
                }
            }
            shape[axis] = n;
            values = out;
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bumpy(cells: [usize; 3]) -> Lattice {
        let mut lattice = Lattice::flat(cells);
        lattice.knots.iter_mut().enumerate().for_each(|(i, v)| *v = (i * 37 % 11) as f32 / 11.0 - 0.5);
        lattice
    }

    #[test]
    fn refining_changes_no_value() {
        let coarse = bumpy([1, 3, 2]);
        let fine = coarse.refined();
        assert_eq!(fine.cells(), [2, 6, 4]);
        for p in [[0.0, 0.0, 0.0], [0.31, 1.7, 0.99], [1.0, 3.0, 2.0], [0.5, 2.0, 1.25]] {
            let (a, b) = (coarse.at(p), fine.at(p.map(|c| 2.0 * c)));
            assert!((a - b).abs() < 1e-6, "{a} and {b} at {p:?}");
        }
    }

    #[test]
    fn repeated_fits_of_the_residual_converge_to_the_sampled_spline() {
        let samples = [17, 25, 19];
        let truth = bumpy([2, 3, 2]);
        let fit = Approximation::new(samples, truth.cells());
        let wanted = fit.values(&truth);
        let mid = truth.at([1.0, 1.5, 1.0]);
        assert!((wanted[8 + 17 * (12 + 25 * 9)] - mid).abs() < 1e-6, "values() and at() agree");
        let mut found = vec![0.0; wanted.len()];
        for _ in 0..300 {
            let rest: Vec<f32> = wanted.iter().zip(&found).map(|(w, f)| w - f).collect();
            let step = fit.values(&fit.lattice(&rest, &vec![1.0; rest.len()]));
            found.iter_mut().zip(step).for_each(|(f, s)| *f += s);
        }
        let worst = wanted.iter().zip(&found).map(|(w, f)| (w - f).abs()).fold(0.0, f32::max);
        assert!(worst < 0.02, "{worst}");
    }
}
