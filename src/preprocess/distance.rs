//! Signed distance to the surface of a mask.
//!
//! Takes a mask with cubic voxels; gives on the same grid the Euclidean distance in mm from each voxel centre to the
//! nearest centre on the other side of the surface: positive outside, negative inside, clamped to `reach_mm` either way.
//! Exact within the reach: squared distances separate by axis (Felzenszwalb and Huttenlocher, Theory of Computing
//! 8:415, 2012), and with a short reach the lower envelope is a minimum over a few shifted rows.

use rayon::prelude::*;

use crate::volume::Volume;

/// The signed distance in mm to the surface of `mask`, clamped to `reach_mm` either way.
pub fn signed_distance(mask: &Volume<u8>, reach_mm: f32) -> Volume<f32> {
    let spacing = mask.grid.spacing()[0] as f32;
    let reach = (reach_mm / spacing).ceil() as usize;
    let outside = squared_to(mask, 1, reach);
    let inside = squared_to(mask, 0, reach);
    let signed = outside.iter().zip(&inside).map(|(&o, &i)| {
        let voxels = f32::from(o).sqrt() - f32::from(i).sqrt();
        (voxels * spacing).clamp(-reach_mm, reach_mm)
    });
    Volume::new(mask.grid, signed.collect())
}

/// Squared distance in voxels to the nearest voxel of `value`; more than `reach` squared where none is within reach.
/// Signed, because every x86-64 has an instruction for the minimum of eight such numbers.
fn squared_to(mask: &Volume<u8>, value: u8, reach: usize) -> Vec<i16> {
    let [nx, ny, nz] = mask.grid.shape;
    let far = ((reach + 1) * (reach + 1)) as i16;
    let mut along_x = vec![far; mask.data.len()];
    for (row, source) in along_x.chunks_mut(nx).zip(mask.data.chunks(nx)) {
        let mut steps = reach + 1;
        for (d, &v) in row.iter_mut().zip(source) {
            steps = if v == value { 0 } else { (steps + 1).min(reach + 1) };
            *d = (steps * steps) as i16;
        }
        steps = reach + 1;
        for (d, &v) in row.iter_mut().zip(source).rev() {
            steps = if v == value { 0 } else { (steps + 1).min(reach + 1) };
            *d = (*d).min((steps * steps) as i16);
        }
    }
    let along_y = nearest_rows(&along_x, nx, ny, reach, |row| (row % ny, row));
    nearest_rows(&along_y, nx * ny, nz, reach, |row| (row, row))
}

/// For each row, the minimum over the rows up to `reach` before and after it, plus their squared distance in rows.
/// `place` gives a row's position along its axis, out of `count`, and its index in `source`.
fn nearest_rows(
    source: &[i16],
    length: usize,
    count: usize,
    reach: usize,
    place: impl Fn(usize) -> (usize, usize) + Sync,
) -> Vec<i16> {
    let mut nearest = source.to_vec();
    nearest.par_chunks_mut(length).enumerate().for_each(|(row, target)| {
        let (position, index) = place(row);
        let mut lower = |other: usize, steps: usize| {
            let added = (steps * steps) as i16;
            let from = &source[other * length..(other + 1) * length];
            target.iter_mut().zip(from).for_each(|(t, &s)| *t = (*t).min(s + added));
        };
        for steps in 1..=reach {
            if position >= steps {
                lower(index - steps, steps);
            }
            if position + steps < count {
                lower(index + steps, steps);
            }
        }
    });
    nearest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::{Affine, Grid};

    #[test]
    fn distances_to_a_box_match_geometry_on_both_sides() {
        let affine = Affine::from_rows([[2.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 2.0, 0.0]]);
        let mut mask = Volume::<u8>::zeros(Grid { shape: [24, 22, 20], affine });
        for z in 8..14 {
            for y in 7..15 {
                let row = mask.index(6, y, z);
                mask.data[row..row + 12].fill(1);
            }
        }
        let distance = signed_distance(&mask, 9.0);
        for (i, &d) in distance.data.iter().enumerate() {
            let p = mask.grid.ijk(i).map(|c| c as f32);
            // The box spans these voxel centres. Distances per axis: positive outwards, negative inwards.
            let (low, high) = ([6.0, 7.0, 8.0], [17.0, 14.0, 13.0]);
            let out: [f32; 3] = std::array::from_fn(|a| (low[a] - p[a]).max(p[a] - high[a]));
            let outside = out.map(|o| o.max(0.0).powi(2)).iter().sum::<f32>().sqrt();
            let deepest = out.iter().copied().fold(f32::MIN, f32::max);
            let want = if mask.data[i] == 0 { outside } else { deepest - 1.0 };
            assert!((d - (2.0 * want).clamp(-9.0, 9.0)).abs() < 1e-4, "at {p:?}: {d}, geometry says {}", 2.0 * want);
        }
    }
}
