//! Voxels of one volume at the positions of another grid.
//!
//! Takes a source volume, a target [`Grid`] and the map from target world mm to source world mm;
//! gives a volume on the target grid. Target index, target world, source world and source index are
//! one composed affine, so the cost per voxel is one interpolation.
//!
//! What lies inside the box spanned by the source's voxel centres is what
//! `scipy.ndimage.map_coordinates(mode="constant", cval=0)` gives, for order 1 and 0. Beyond the
//! outermost centres, the outer half of the border voxels included, the result is 0: nothing is
//! extrapolated. A source whose affine has no inverse covers nothing, so all voxels are 0;
//! [`super::nifti::decode`] refuses such files.

use rayon::prelude::*;

use super::{Affine, Grid, Volume};

/// How far beyond the outermost centre (in voxels) still counts as on it, so that rounding in the
/// composed affine does not blank the border of an image resampled onto its own grid.
const ON_BORDER: f64 = 1e-6;

/// Trilinear interpolation of `src` on `target`. `target_to_source` takes target world mm to source
/// world mm; [`Affine::identity`] where both lie in the same world.
pub fn trilinear(src: &Volume<f32>, target: &Grid, target_to_source: &Affine) -> Volume<f32> {
    let [nx, ny, nz] = src.grid.shape;
    let (row, slab) = (nx, nx * ny);
    sample(&src.grid, target, target_to_source, |p| {
        let [(x, fx), (y, fy), (z, fz)] = [(p[0], nx), (p[1], ny), (p[2], nz)].map(|(v, n)| {
            // The last centre belongs to the cell before it, with weight 1 on its far side.
            let cell = (v as usize).min(n.saturating_sub(2));
            (cell, (v - cell as f64) as f32)
        });
        // Along an axis of one voxel both corners are that voxel.
        let [dx, dy, dz] = [(nx, 1), (ny, row), (nz, slab)].map(|(n, step)| if n > 1 { step } else { 0 });
        let corner = x + y * row + z * slab;
        let along_x = |at: usize| {
            let (a, b) = (src.data[at], src.data[at + dx]);
            a * (1.0 - fx) + b * fx
        };
        let near = along_x(corner) * (1.0 - fy) + along_x(corner + dy) * fy;
        let far = along_x(corner + dz) * (1.0 - fy) + along_x(corner + dz + dy) * fy;
        near * (1.0 - fz) + far * fz
    })
}

/// The nearest voxel of `src` on `target`: for masks and labels. Half-way positions go to the
/// voxel of higher index. `target_to_source` as in [`trilinear`].
pub fn nearest<T>(src: &Volume<T>, target: &Grid, target_to_source: &Affine) -> Volume<T>
where
    T: Copy + Default + Send + Sync,
{
    sample(&src.grid, target, target_to_source, |p| {
        let [x, y, z] = p.map(|v| (v + 0.5) as usize);
        src.at(x, y, z)
    })
}

/// Calls `value` with each target voxel's source index, clamped onto the box of voxel centres;
/// `T::default()` for those outside it.
fn sample<T, F>(source: &Grid, target: &Grid, target_to_source: &Affine, value: F) -> Volume<T>
where
    T: Copy + Default + Send + Sync,
    F: Fn([f64; 3]) -> T + Sync,
{
    let mut out = Volume::zeros(*target);
    let Some(to_index) = source.affine.inverse() else { return out };
    if source.is_empty() || target.is_empty() {
        return out;
    }
    let map = target.affine.then(target_to_source).then(&to_index);
    let last = source.shape.map(|n| n as f64 - 1.0);
    let [nx, ny, _] = target.shape;
    out.data.par_chunks_mut(nx * ny).enumerate().for_each(|(z, slab)| {
        for (y, row) in slab.chunks_mut(nx).enumerate() {
            for (x, voxel) in row.iter_mut().enumerate() {
                let p = map.apply([x as f64, y as f64, z as f64]);
                // A NaN position fails both comparisons and stays outside.
                let inside = (0..3).all(|a| p[a] >= -ON_BORDER && p[a] <= last[a] + ON_BORDER);
                if inside {
                    *voxel = value(std::array::from_fn(|a| p[a].clamp(0.0, last[a])));
                }
            }
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(shape: [usize; 3], spacing: f64) -> Grid {
        Grid { shape, affine: Affine([[spacing, 0.0, 0.0, 0.0], [0.0, spacing, 0.0, 0.0], [0.0, 0.0, spacing, 0.0]]) }
    }

    /// `x + 10 y + 100 z` in voxel indices: trilinear interpolation reproduces it exactly.
    fn ramp(shape: [usize; 3]) -> Volume<f32> {
        let [nx, ny, nz] = shape;
        let rows = (0..nz).flat_map(|z| (0..ny).map(move |y| (y, z)));
        let data = rows.flat_map(|(y, z)| (0..nx).map(move |x| (x + 10 * y + 100 * z) as f32)).collect();
        Volume::new(grid(shape, 2.0), data)
    }

    #[test]
    fn own_grid_gives_the_same_voxels_border_included() {
        let src = ramp([4, 3, 5]);
        assert_eq!(trilinear(&src, &src.grid, &Affine::identity()), src);
        assert_eq!(nearest(&src, &src.grid, &Affine::identity()), src);
        // Through a rotation and back the affine carries rounding; the border must not go blank.
        let (s, c) = 0.3f64.sin_cos();
        let turn = Affine([[c, -s, 0.0, 3.0], [s, c, 0.0, -7.0], [0.0, 0.0, 1.0, 0.1]]);
        let there_and_back = turn.then(&turn.inverse().expect("invertible"));
        assert_eq!(nearest(&src, &src.grid, &there_and_back), src);
    }

    #[test]
    fn a_ramp_is_interpolated_exactly_and_outside_is_zero() {
        let src = ramp([4, 3, 5]);
        let target = Grid { shape: [1, 1, 1], affine: Affine::translation([3.0, 1.0, 7.0]) };
        // World (3, 1, 7) mm is index (1.5, 0.5, 3.5).
        assert_eq!(trilinear(&src, &target, &Affine::identity()).data, [1.5 + 5.0 + 350.0]);
        // 0.2 mm below the first centre: the outer half of the border voxel.
        let below = Affine::translation([-3.2, -1.0, -7.0]);
        assert_eq!(trilinear(&src, &target, &below).data, [0.0]);
    }

    #[test]
    fn an_axis_of_one_voxel_is_sampled_at_its_centre() {
        let src = ramp([4, 1, 1]);
        let got = trilinear(&src, &src.grid, &Affine::identity());
        assert_eq!(got.data, [0.0, 1.0, 2.0, 3.0]);
    }
}
