//! Interpolates a volume at the voxels of another grid.
//!
//! Takes a source volume, a target [`Grid`] and the map from target world mm to source world mm;
//! gives a volume on the target grid. One composed affine leads from target index to source index, so that the cost per
//! voxel is one interpolation.
//!
//! Inside the box spanned by the source's voxel centres the result is that of
//! `scipy.ndimage.map_coordinates(mode="constant", cval=0)`, of order 1 and 0. Beyond the outermost centres, the outer
//! half of the border voxels included, the result is 0: nothing is extrapolated. Refuses nothing: a source whose affine
//! has no inverse covers nothing, so that all voxels are 0.

use std::borrow::Cow;

use rayon::prelude::*;

use super::{Affine, Grid, Volume};

/// Tolerance in voxels beyond the outermost centres, so that rounding in the composed affine does not blank the border
/// of an image resampled on its own grid.
const ON_BORDER: f64 = 1e-6;

/// Trilinear interpolation of `src` on `target`. `target_to_source` maps target world mm to source
/// world mm; [`Affine::identity`] where both share one world.
pub fn trilinear(src: &Volume<f32>, target: &Grid, target_to_source: &Affine) -> Volume<f32> {
    if meets_centres(&src.grid, target, target_to_source) {
        return nearest(src, target, target_to_source);
    }
    interpolate(src, target, target_to_source, None)
}

/// As [`trilinear`] on the grid of `wanted`, where `wanted` is not 0; 0 elsewhere.
pub fn trilinear_within(src: &Volume<f32>, wanted: &Volume<u8>, target_to_source: &Affine) -> Volume<f32> {
    interpolate(src, &wanted.grid, target_to_source, Some(&wanted.data))
}

/// Whether every voxel of `target` falls on a voxel centre of `source` (axes permuted or flipped, shifted by whole
/// voxels), so that there is nothing to interpolate.
fn meets_centres(source: &Grid, target: &Grid, target_to_source: &Affine) -> bool {
    let Some(to_index) = source.affine.inverse() else { return false };
    let map = target.affine.then(target_to_source).then(&to_index);
    map.0.iter().flatten().all(|v| (v - v.round()).abs() < 1e-9)
}

fn interpolate(src: &Volume<f32>, target: &Grid, target_to_source: &Affine, wanted: Option<&[u8]>) -> Volume<f32> {
    let thick = thickened(src);
    let [nx, ny, nz] = thick.grid.shape;
    let (row, slab) = (nx, nx * ny);
    // The last centre belongs to the cell before it, with weight 1 on that cell's far side.
    let highest = [nx, ny, nz].map(|n| n.saturating_sub(2));
    let data = thick.data.as_slice();
    sample(&src.grid, target, target_to_source, wanted, |p| {
        let cell: [usize; 3] = std::array::from_fn(|a| p[a].cell().min(highest[a]));
        let [fx, fy, fz]: [f32; 3] = std::array::from_fn(|a| p[a].beyond(cell[a]));
        let corner = cell[0] + cell[1] * row + cell[2] * slab;
        let along_x = |at: usize| {
            let pair = &data[at..at + 2];
            pair[0] * (1.0 - fx) + pair[1] * fx
        };
        let near = along_x(corner) * (1.0 - fy) + along_x(corner + row) * fy;
        let far = along_x(corner + slab) * (1.0 - fy) + along_x(corner + slab + row) * fy;
        near * (1.0 - fz) + far * fz
    })
}

/// `src` with its only plane doubled along every axis that has one voxel, so that there are two to interpolate between.
fn thickened(src: &Volume<f32>) -> Cow<'_, Volume<f32>> {
    let [nx, ny, nz] = src.grid.shape;
    if src.grid.is_empty() || nx > 1 && ny > 1 && nz > 1 {
        return Cow::Borrowed(src);
    }
    let shape @ [mx, my, mz] = src.grid.shape.map(|n| n.max(2));
    let planes = (0..mz).flat_map(|z| (0..my).map(move |y| (y, z)));
    let data = planes.flat_map(|(y, z)| (0..mx).map(move |x| src.at(x.min(nx - 1), y.min(ny - 1), z.min(nz - 1))));
    Cow::Owned(Volume { grid: Grid { shape, ..src.grid }, data: data.collect() })
}

/// Nearest-neighbour interpolation of `src` on `target`, for masks and labels. Half-way positions take the
/// voxel of higher index. `target_to_source` as in [`trilinear`].
pub fn nearest<T>(src: &Volume<T>, target: &Grid, target_to_source: &Affine) -> Volume<T>
where
    T: Copy + Default + Send + Sync,
{
    let [nx, ny, _] = src.grid.shape;
    let last = src.grid.shape.map(|n| n.saturating_sub(1));
    sample(&src.grid, target, target_to_source, None, |p| {
        let [x, y, z] = std::array::from_fn(|a| p[a].plus_half().cell().min(last[a]));
        src.data[x + nx * (y + ny * z)]
    })
}

/// A position along one axis of the source in voxels, in steps of 2^-32. Along a row of the target it is a sum of
/// integers, at a third of the cost of converting a float per voxel.
#[derive(Debug, Clone, Copy)]
struct Fixed(i64);

impl Fixed {
    const ONE: f64 = (1u64 << 32) as f64;

    fn of(position: f64) -> Self {
        Self((position * Self::ONE).round() as i64)
    }

    fn plus_half(self) -> Self {
        Self(self.0 + (1 << 31))
    }

    /// The centre at or below it; a position below the first centre, by the tolerance, counts as on it.
    fn cell(self) -> usize {
        (self.0.max(0) >> 32) as usize
    }

    /// Its distance beyond the centre of `cell`, in voxels.
    fn beyond(self, cell: usize) -> f32 {
        (self.0 - ((cell as i64) << 32)).max(0) as f32 * (1.0 / Self::ONE) as f32
    }
}

/// `value` of the source position of each target voxel in the box of voxel centres, give or take [`ON_BORDER`];
/// `T::default()` outside that box, and where `wanted` is 0.
fn sample<T, F>(source: &Grid, target: &Grid, target_to_source: &Affine, wanted: Option<&[u8]>, value: F) -> Volume<T>
where
    T: Copy + Default + Send + Sync,
    F: Fn([Fixed; 3]) -> T + Sync,
{
    let mut out = Volume::zeros(*target);
    let Some(to_index) = source.affine.inverse() else { return out };
    if source.is_empty() || target.is_empty() {
        return out;
    }
    let map = target.affine.then(target_to_source).then(&to_index);
    let last = source.shape.map(|n| n as f64 - 1.0);
    let step = map.0.map(|row| row[0]);
    let fixed_step = step.map(Fixed::of);
    let [nx, ny, _] = target.shape;
    assert!(wanted.is_none_or(|wanted| wanted.len() == out.data.len()), "the mask is not on the target's grid");
    out.data.par_chunks_mut(nx * ny).enumerate().for_each(|(z, slab)| {
        for (y, row) in slab.chunks_mut(nx).enumerate() {
            let start = map.apply([0.0, y as f64, z as f64]);
            // A row lies on a line, which meets the box in one interval: no test per voxel.
            let Some((from, to)) = inside(start, step, last, nx) else { continue };
            let mut at: [Fixed; 3] = std::array::from_fn(|a| Fixed::of(start[a] + from as f64 * step[a]));
            let wanted = wanted.map(|wanted| &wanted[nx * (y + ny * z)..][from..to]);
            for (x, voxel) in row[from..to].iter_mut().enumerate() {
                if wanted.is_none_or(|wanted| wanted[x] != 0) {
                    *voxel = value(at);
                }
                at = std::array::from_fn(|a| Fixed(at[a].0 + fixed_step[a].0));
            }
        }
    });
    out
}

/// The integers x from 0 to `n` for which `start + x * step` lies in the box from 0 to `last`, within the tolerance:
/// the first of them, and one past the last.
fn inside(start: [f64; 3], step: [f64; 3], last: [f64; 3], n: usize) -> Option<(usize, usize)> {
    let (mut from, mut to) = (0.0, n as f64 - 1.0);
    for axis in 0..3 {
        let (low, high) = (-ON_BORDER - start[axis], last[axis] + ON_BORDER - start[axis]);
        // A NaN position fails every comparison and counts as outside.
        if step[axis] != 0.0 {
            let (a, b) = (low / step[axis], high / step[axis]);
            from = f64::max(from, a.min(b));
            to = f64::min(to, a.max(b));
        } else if !(low <= 0.0 && high >= 0.0) {
            return None;
        }
        if !(start[axis] + step[axis]).is_finite() {
            return None;
        }
    }
    let (from, to) = (from.ceil(), to.floor());
    (from <= to).then_some((from as usize, to as usize + 1))
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
