//! A mixture of tissues fitted to a histogram of log intensities.
//!
//! Takes log intensities; gives for each its distance from the mean of its tissue, and how far that can be trusted. The
//! histogram is a mixture of normal distributions, fitted by expectation maximisation with the typicality of Van Leemput
//! et al. (IEEE Transactions on Medical Imaging 20:677, 2001, section II): an intensity many standard deviations from
//! every tissue, of a lesion or a vessel, belongs to none and gets no weight.

/// Bins of log intensity and the tissues found in them.
pub(super) struct Mixture {
    low: f32,
    width: f32,
    outlier: f32,
    tissues: [Tissue; 3],
}

#[derive(Debug, Clone, Copy)]
struct Tissue {
    share: f32,
    mean: f32,
    sd: f32,
}

/// The deviation of an intensity from its tissue.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Deviation {
    /// Log intensity above the mean of its tissue.
    pub(super) excess: f32,
    /// How far that can be trusted, 0..1.
    pub(super) trust: f32,
}

/// Bins of the histogram.
const BINS: usize = 200;

/// Rounds of expectation maximisation per update. The field changes between updates, so that none needs to converge.
const ROUNDS: usize = 5;

/// Standard deviation with which every tissue starts: half the width of a strong field.
const FIRST_SD: f32 = 0.15;

/// Lower bound of a tissue's standard deviation, from noise and partial volume.
const LEAST_SD: f32 = 0.02;

impl Mixture {
    /// Three tissues that start at `means`, for log intensities within `range`. Beyond `outlier` standard deviations,
    /// an intensity counts mostly as an outlier.
    pub(super) fn new(range: [f32; 2], means: [f32; 3], outlier: f32) -> Self {
        let width = ((range[1] - range[0]) / (BINS - 1) as f32).max(f32::MIN_POSITIVE);
        let tissues = means.map(|mean| Tissue { share: 1.0 / 3.0, mean, sd: FIRST_SD });
        Self { low: range[0], width, outlier, tissues }
    }

    /// Fits the tissues to these values; gives the deviation of each bin.
    pub(super) fn update(&mut self, values: impl Iterator<Item = f32>) -> Vec<Deviation> {
        let mut histogram = [0f32; BINS];
        for v in values {
            let (bin, t) = self.bin(v);
            histogram[bin] += 1.0 - t;
            histogram[bin + 1] += t;
        }
        for _ in 0..ROUNDS {
            let mut sums = [[0f32; 3]; 3];
            for (bin, &n) in histogram.iter().enumerate().filter(|(_, n)| **n > 0.0) {
                let v = self.low + bin as f32 * self.width;
                for (sum, t) in sums.iter_mut().zip(self.typical(v)) {
                    let n = n * t;
                    *sum = [sum[0] + n, sum[1] + n * v, sum[2] + n * v * v];
                }
            }
            let total: f32 = sums.iter().map(|s| s[0]).sum();
            for (tissue, [n, first, second]) in self.tissues.iter_mut().zip(sums) {
                if n > 1e-3 * total {
                    let mean = first / n;
                    let sd = (second / n - mean * mean).max(0.0).sqrt().max(LEAST_SD);
                    *tissue = Tissue { share: n / total, mean, sd };
                }
            }
        }
        let sharpest = self.tissues.iter().map(|t| t.sd).fold(f32::INFINITY, f32::min);
        let deviation = |bin: usize| {
            let v = self.low + bin as f32 * self.width;
            let (mut trust, mut mean) = (0.0, 0.0);
            for (t, tissue) in self.typical(v).into_iter().zip(&self.tissues) {
                let precision = t * (sharpest / tissue.sd).powi(2);
                trust += precision;
                mean += precision * tissue.mean;
            }
            if trust > 1e-6 { Deviation { excess: v - mean / trust, trust } } else { Deviation::default() }
        };
        (0..BINS).map(deviation).collect()
    }

    /// How far `v` belongs to each tissue: the tissue's share of the density at `v`, times its typicality.
    fn typical(&self, v: f32) -> [f32; 3] {
        let at_border = (-0.5 * self.outlier * self.outlier).exp();
        let relative = self.tissues.map(|t| (-0.5 * ((v - t.mean) / t.sd).powi(2)).exp());
        let density: [f32; 3] = std::array::from_fn(|k| relative[k] * self.tissues[k].share / self.tissues[k].sd);
        let sum: f32 = density.iter().sum::<f32>().max(f32::MIN_POSITIVE);
        std::array::from_fn(|k| density[k] / sum * relative[k] / (relative[k] + at_border))
    }

    /// The bin below `v` and the relative position of `v` between it and the next; `v` is clamped to the range.
    fn bin(&self, v: f32) -> (usize, f32) {
        let bin = ((v - self.low) / self.width).clamp(0.0, (BINS - 1) as f32);
        let below = (bin as usize).min(BINS - 2);
        (below, bin - below as f32)
    }

    /// The deviation of `v`, interpolated in the table of [`Mixture::update`].
    pub(super) fn look_up(&self, table: &[Deviation], v: f32) -> Deviation {
        let (bin, t) = self.bin(v);
        let (a, b) = (table[bin], table[bin + 1]);
        Deviation { excess: a.excess + t * (b.excess - a.excess), trust: a.trust + t * (b.trust - a.trust) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tissues_are_found_and_outliers_get_no_weight() {
        // 30,000 values of three normal distributions by sums of evenly spread numbers, and a lesion of 1,500 beyond.
        let steps = [0.618_034, 0.754_878, 0.569_840, 0.381_966, 0.819_173, 0.671_044];
        let normal = |i: usize| steps.iter().map(|a| (i as f64 * a).fract() - 0.5).sum::<f64>() as f32 * 2f32.sqrt();
        let truth = [3.2, 4.3, 4.7];
        let healthy = (0..30_000).map(|i| truth[i % 3] + 0.05 * normal(i / 3));
        let values: Vec<f32> = healthy.chain((0..1_500).map(|i| 5.1 + 0.02 * normal(i))).collect();
        let mut mixture = Mixture::new([2.8, 5.3], [3.4, 4.4, 4.6], 1.5);
        let mut table = Vec::new();
        for _ in 0..20 {
            table = mixture.update(values.iter().copied());
        }
        for mean in truth {
            let found = mixture.look_up(&table, mean + 0.03);
            assert!((found.excess - 0.03).abs() < 0.01 && found.trust > 0.3, "{found:?} at {mean}");
        }
        assert!(mixture.look_up(&table, 5.1).trust < 0.01, "{:?}", mixture.look_up(&table, 5.1));
    }
}
