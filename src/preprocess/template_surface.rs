//! The surface of the template's brain.
//!
//! Gives distances to the surface of the ICBM 2009a brain in MNI mm, from `assets/mni152_4mm_brain.nii.gz`; and, for a
//! brain mask in native space and a first map to MNI space, the affine that lays the mask's surface onto it. Refuses
//! nothing: an empty mask keeps the first map.

use std::sync::LazyLock;

use super::linear::solve_damped;
use super::template::embedded_map;
use crate::volume::{Affine, Volume};

/// The fit uses at least this many points of the mask's surface where there are as many, and less than twice as many.
const POINTS: usize = 2000;

/// Distance in mm at which a point's weight has fallen to a quarter, in the first and in the second half of the rounds:
/// points farther off probably lie opposite another part of the surface.
const TRUST_MM: [f64; 2] = [12.0, 5.0];

/// Lever arm in mm that gives rotations and scales the same weight as shifts.
const ARM_MM: f64 = 70.0;

/// Share of its diagonal added to the normal matrix.
const DAMPING: f64 = 0.01;

/// Signed distances to the template brain's surface.
pub struct TemplateSurface {
    shape: [usize; 3],
    /// MNI mm of the first voxel's centre.
    first: [f32; 3],
    /// Voxels per mm along each axis.
    per_mm: [f32; 3],
    /// Tenths of a mm, negative inside, clamped to 30 mm.
    tenths: Vec<f32>,
}

/// The template's surface, decoded on first use.
pub fn template_surface() -> &'static TemplateSurface {
    static SURFACE: LazyLock<TemplateSurface> = LazyLock::new(|| {
        let volume = embedded_map(include_bytes!("../../assets/mni152_4mm_brain.nii.gz"));
        let rows = volume.grid.affine.0;
        TemplateSurface {
            shape: volume.grid.shape,
            first: rows.map(|row| row[3] as f32),
            per_mm: std::array::from_fn(|axis| 1.0 / rows[axis][axis] as f32),
            tenths: volume.data,
        }
    });
    &SURFACE
}

impl TemplateSurface {
    /// The distance in mm at `p` (MNI mm), negative inside, and its gradient.
    pub fn distance(&self, p: [f32; 3]) -> (f32, [f32; 3]) {
        let cell: [(usize, f32); 3] = std::array::from_fn(|a| {
            let at = ((p[a] - self.first[a]) * self.per_mm[a]).clamp(0.0, self.shape[a] as f32 - 1.001);
            (at as usize, at - (at as i32) as f32)
        });
        let [(x, fx), (y, fy), (z, fz)] = cell;
        let (row, slab) = (self.shape[0], self.shape[0] * self.shape[1]);
        let corner = x + y * row + z * slab;
        let pair = |offset: usize| [self.tenths[corner + offset], self.tenths[corner + offset + 1]];
        let (a, b, c, d) = (pair(0), pair(row), pair(slab), pair(slab + row));
        let mix = |[v, w]: [f32; 2], f: f32| v + f * (w - v);
        let along = [a, b, c, d].map(|v| mix(v, fx));
        let (near, far) = (mix([along[0], along[1]], fy), mix([along[2], along[3]], fy));
        let slope_x = mix([mix([a[1] - a[0], b[1] - b[0]], fy), mix([c[1] - c[0], d[1] - d[0]], fy)], fz);
        let slope_y = mix([along[1] - along[0], along[3] - along[2]], fz);
        let slope = [slope_x, slope_y, far - near];
        (0.1 * mix([near, far], fz), std::array::from_fn(|k| 0.1 * slope[k] * self.per_mm[k]))
    }

    /// The affine from native world mm to MNI mm that lays the surface of `mask` onto the template's, starting from
    /// `start`. Gauss-Newton on the squared distances of surface points, with the weights of Geman and McClure against
    /// distant ones.
    pub fn fit(&self, mask: &Volume<u8>, start: &Affine, rounds: usize) -> Affine {
        let surface = surface(mask);
        let stride = (surface.len() / POINTS).max(1);
        let points: Vec<[f64; 3]> = surface.into_iter().step_by(stride).collect();
        if points.is_empty() {
            return *start;
        }
        let middle: [f64; 3] = std::array::from_fn(|a| points.iter().map(|p| p[a]).sum::<f64>() / points.len() as f64);
        let Affine(mut map) = *start;
        for round in 0..rounds {
            let affine = Affine(map);
            let trust = TRUST_MM[usize::from(2 * round >= rounds)];
            let (mut normal, mut right) = ([[0.0; 12]; 12], [0.0; 12]);
            for p in &points {
                let (distance, gradient) = self.distance(affine.apply(*p).map(|v| v as f32));
                let distance = f64::from(distance);
                let weight = (1.0 + (distance / trust).powi(2)).powi(-2);
                let arm: [f64; 4] = std::array::from_fn(|k| if k < 3 { (p[k] - middle[k]) / ARM_MM } else { 1.0 });
                let slope: [f64; 12] = std::array::from_fn(|i| f64::from(gradient[i / 4]) * arm[i % 4]);
                for (i, row) in normal.iter_mut().enumerate() {
                    let weighted = weight * slope[i];
                    row.iter_mut().zip(&slope).for_each(|(v, s)| *v += weighted * s);
                    right[i] -= weighted * distance;
                }
            }
            let Some(step) = solve_damped(normal, right, DAMPING) else { break };
            for (row, change) in map.iter_mut().zip(step.chunks(4)) {
                let slope: [f64; 3] = std::array::from_fn(|k| change[k] / ARM_MM);
                row.iter_mut().zip(slope).for_each(|(v, s)| *v += s);
                row[3] += change[3] - (0..3).map(|k| slope[k] * middle[k]).sum::<f64>();
            }
        }
        Affine(map)
    }
}

/// The centres of the voxel faces between inside and outside, in world mm. Faces on the grid's border are left out: there
/// the field of view ends, not the brain.
fn surface(mask: &Volume<u8>) -> Vec<[f64; 3]> {
    let [nx, ny, nz] = mask.grid.shape;
    let mut points = Vec::new();
    for (axis, (step, n)) in [(1, nx), (nx, ny), (nx * ny, nz)].into_iter().enumerate() {
        for (i, (&here, &next)) in mask.data.iter().zip(mask.data.iter().skip(step)).enumerate() {
            if (here != 0) != (next != 0) && i / step % n + 1 < n {
                let mut p = mask.grid.ijk(i).map(|c| c as f64);
                p[axis] += 0.5;
                points.push(mask.grid.affine.apply(p));
            }
        }
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::Grid;

    #[test]
    fn a_turned_and_stretched_brain_is_laid_back_onto_the_template() {
        // 12 degrees about x, a tenth smaller, shifted: the mask is the template's brain under the inverse of this map.
        let (sin, cos) = 12f64.to_radians().sin_cos();
        let truth = Affine::from_rows([
            [1.1, 0.0, 0.0, 4.0],
            [0.0, 1.1 * cos, -1.1 * sin, -9.0],
            [0.0, 1.1 * sin, 1.1 * cos, 6.0],
        ]);
        let affine = Affine::from_rows([[3.0, 0.0, 0.0, -100.0], [0.0, 3.0, 0.0, -130.0], [0.0, 0.0, 3.0, -110.0]]);
        let grid = Grid { shape: [68, 80, 75], affine };
        let inside = (0..grid.len()).map(|i| {
            let p = truth.apply(grid.world_mm(i));
            u8::from(template_surface().distance(p.map(|c| c as f32)).0 < 0.0)
        });
        let mask = Volume::new(grid, inside.collect());
        let fitted = template_surface().fit(&mask, &Affine::identity(), 40);
        for corner in [[-60.0, 0.0, 0.0], [60.0, 0.0, 20.0], [0.0, -90.0, 10.0], [0.0, 60.0, 10.0], [10.0, -20.0, 70.0]]
        {
            let (want, got) = (truth.apply(corner), fitted.apply(corner));
            let off = (0..3).map(|a| (want[a] - got[a]).powi(2)).sum::<f64>().sqrt();
            assert!(off < 1.5, "{off} mm off at {corner:?}");
        }
    }
}
