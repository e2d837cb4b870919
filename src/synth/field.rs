//! Smooth random fields in millimetre space.
//!
//! A field is a uniform cubic B-spline over a lattice of normally distributed knots: twice continuously
//! differentiable, and independent of the voxel grid on which it is sampled.

use std::f32::consts::TAU;

use rand::Rng;

use crate::preprocess::cubic_b_spline;

/// Knots beyond each border of a field's region, so that the region lies inside the spline's domain.
const MARGIN_KNOTS: usize = 2;

/// Mean over a cell of the sum of squared cubic B-spline weights along one axis. The field's variance is the cube of
/// this times the knots' variance.
const AXIS_VARIANCE: f32 = 151.0 / 315.0;

/// A box in mm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Region {
    /// Lowest corner.
    pub low: [f32; 3],
    /// Highest corner.
    pub high: [f32; 3],
}

/// A random field of `C` independent channels.
pub(super) struct Field<const C: usize> {
    origin: [f32; 3],
    step: f32,
    shape: [usize; 3],
    knots: Vec<[f32; C]>,
}

impl<const C: usize> Field<C> {
    /// A field over `region` with knots every `step` mm and standard deviation `sd`.
    pub fn random(rng: &mut impl Rng, region: Region, step: f32, sd: f32) -> Self {
        let origin = region.low.map(|v| v - MARGIN_KNOTS as f32 * step);
        let shape: [usize; 3] =
            std::array::from_fn(|a| ((region.high[a] - region.low[a]) / step).ceil() as usize + 2 * MARGIN_KNOTS + 1);
        let scale = sd / AXIS_VARIANCE.powf(1.5);
        let knots = (0..shape.iter().product()).map(|_| std::array::from_fn(|_| scale * normal(rng))).collect();
        Self { origin, step, shape, knots }
    }

    /// The field at `p` (mm). Positions outside the region take the value at the border of the spline's domain.
    pub fn at(&self, p: [f32; 3]) -> [f32; C] {
        let [(x, wx), (y, wy), (z, wz)] = std::array::from_fn(|a| {
            let at = ((p[a] - self.origin[a]) / self.step).clamp(1.0, self.shape[a] as f32 - 2.001);
            let cell = at as usize;
            (cell - 1, cubic_b_spline(at - cell as f32))
        });
        let [nx, ny, _] = self.shape;
        let mut sum = [0.0; C];
        for (k, wz) in wz.iter().enumerate() {
            for (j, wy) in wy.iter().enumerate() {
                let row = x + nx * (y + j + ny * (z + k));
                for (knot, wx) in self.knots[row..row + 4].iter().zip(&wx) {
                    let w = wx * wy * wz;
                    for (s, v) in sum.iter_mut().zip(knot) {
                        *s += w * v;
                    }
                }
            }
        }
        sum
    }
}

/// Two independent standard normal numbers (Box and Muller 1958).
pub(super) fn normal_pair(rng: &mut impl Rng) -> [f32; 2] {
    let radius = (-2.0 * (1.0 - rng.random::<f32>()).ln()).sqrt();
    let (sin, cos) = (TAU * rng.random::<f32>()).sin_cos();
    [radius * cos, radius * sin]
}

/// A standard normal number.
pub(super) fn normal(rng: &mut impl Rng) -> f32 {
    normal_pair(rng)[0]
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const REGION: Region = Region { low: [-50.0; 3], high: [50.0; 3] };

    #[test]
    fn a_field_has_the_standard_deviation_asked_for() {
        let field = Field::<2>::random(&mut ChaCha8Rng::seed_from_u64(3), REGION, 8.0, 2.5);
        let line = (0..40).map(|i| -49.0 + 2.45 * i as f32);
        let points = line.clone().flat_map(|x| line.clone().map(move |y| (x, y)));
        let values: Vec<f32> =
            points.flat_map(|(x, y)| line.clone().map(move |z| [x, y, z])).flat_map(|p| field.at(p)).collect();
        let sd = (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt();
        assert!((sd - 2.5).abs() < 0.25, "{sd}");
    }

    #[test]
    fn a_field_is_smooth_across_its_knots() {
        let field = Field::<1>::random(&mut ChaCha8Rng::seed_from_u64(4), REGION, 10.0, 1.0);
        let at = |x: f32| field.at([x, 3.0, -7.0])[0];
        for i in 0..990 {
            let x = -49.5 + 0.1 * i as f32;
            // A jump of the slope at a knot would give a second difference of the order of the step.
            assert!((at(x - 0.1) - 2.0 * at(x) + at(x + 0.1)).abs() < 2e-3, "at {x} mm");
        }
    }
}
