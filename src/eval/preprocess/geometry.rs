//! Registration of scans that were moved.

use rand::Rng;

use crate::preprocess::{self, PreprocessConfig, Steps};
use crate::volume::resample::trilinear;
use crate::volume::{Affine, Grid, Volume};

/// Largest rotation about a random axis, in degrees, and largest shift along every axis, in mm.
const MOVE: (f64, f64) = (30.0, 40.0);

/// Moves the scan, preprocesses it again and compares the two registrations: gives their difference in degrees, and in mm
/// at the brain's centre. Infinite where the moved scan was refused.
pub(super) fn register_moved(native: &Volume, steps: &Steps, cfg: &PreprocessConfig, rng: &mut impl Rng) -> [f64; 2] {
    let centre = centroid(&steps.brain.mask);
    let turn = rotation(random_axis(rng), rng.random_range(-MOVE.0..MOVE.0).to_radians());
    let shift: [f64; 3] = std::array::from_fn(|_| rng.random_range(-MOVE.1..MOVE.1));
    let to_moved = Affine::translation(centre.map(|c| -c))
        .then(&turn)
        .then(&Affine::translation(std::array::from_fn(|a| centre[a] + shift[a])));
    let Some(moved) = moved(native, &to_moved) else { return [f64::INFINITY; 2] };
    let Ok(again) = preprocess::prepare(&moved, cfg) else { return [f64::INFINITY; 2] };
    let Some(back) = steps.prepared.to_mni.inverse() else { return [f64::INFINITY; 2] };
    // To MNI space by the registration of the moved scan, and back by the original one: the identity if they agree.
    let difference = to_moved.then(&again.to_mni).then(&back);
    [angle(&difference).to_degrees(), distance(difference.apply(centre), centre)]
}

/// The moved scan, on a world-aligned grid of the same spacing that covers it.
fn moved(native: &Volume, to_moved: &Affine) -> Option<Volume> {
    let ras = native.grid.to_ras();
    let spacing = ras.spacing();
    let [mut low, mut high] = [[f64::INFINITY; 3], [f64::NEG_INFINITY; 3]];
    for corner in 0..8 {
        let index = [0, 1, 2].map(|a| if corner >> a & 1 == 1 { ras.shape[a] as f64 - 1.0 } else { 0.0 });
        let world = to_moved.apply(ras.affine.apply(index));
        for axis in 0..3 {
            low[axis] = low[axis].min(world[axis]);
            high[axis] = high[axis].max(world[axis]);
        }
    }
    let shape = std::array::from_fn(|a| ((high[a] - low[a]) / spacing[a]).ceil() as usize + 1);
    let rows = std::array::from_fn(|r| {
        std::array::from_fn(|c| match c {
            3 => low[r],
            c if c == r => spacing[r],
            _ => 0.0,
        })
    });
    Some(trilinear(native, &Grid { shape, affine: Affine::from_rows(rows) }, &to_moved.inverse()?))
}

/// World position of a mask's centre of mass, mm.
pub(super) fn centroid(mask: &Volume<u8>) -> [f64; 3] {
    let [nx, ny, _] = mask.grid.shape;
    let (mut sum, mut count) = ([0usize; 3], 0usize);
    for i in (0..mask.data.len()).filter(|&i| mask.data[i] != 0) {
        let index = [i % nx, i / nx % ny, i / (nx * ny)];
        sum.iter_mut().zip(index).for_each(|(s, c)| *s += c);
        count += 1;
    }
    mask.grid.affine.apply(sum.map(|s| s as f64 / count.max(1) as f64))
}

/// A uniformly distributed direction.
pub(super) fn random_axis(rng: &mut impl Rng) -> [f64; 3] {
    loop {
        let v: [f64; 3] = std::array::from_fn(|_| rng.random_range(-1.0..1.0));
        let length = v.iter().map(|c| c * c).sum::<f64>().sqrt();
        if (0.1..1.0).contains(&length) {
            return v.map(|c| c / length);
        }
    }
}

/// The rotation by `angle` (radians) about a unit `axis` (Rodrigues).
fn rotation(axis: [f64; 3], angle: f64) -> Affine {
    let (s, c) = angle.sin_cos();
    let cross = [[0.0, -axis[2], axis[1]], [axis[2], 0.0, -axis[0]], [-axis[1], axis[0], 0.0]];
    Affine::from_rows(std::array::from_fn(|r| {
        std::array::from_fn(|k| match k {
            3 => 0.0,
            k => f64::from(u8::from(r == k)) * c + s * cross[r][k] + (1.0 - c) * axis[r] * axis[k],
        })
    }))
}

/// The rotation angle of an affine map, in radians: that of the rotation in its polar decomposition (Newton's iteration,
/// Higham, SIAM J Sci Stat Comput 7:1160, 1986).
fn angle(map: &Affine) -> f64 {
    let mut turn = *map;
    turn.0.iter_mut().for_each(|row| row[3] = 0.0);
    for _ in 0..30 {
        let Some(inverse) = turn.inverse() else { return f64::INFINITY };
        turn = Affine::from_rows(std::array::from_fn(|r| {
            std::array::from_fn(|c| if c == 3 { 0.0 } else { 0.5 * (turn.0[r][c] + inverse.0[c][r]) })
        }));
    }
    let trace = turn.0[0][0] + turn.0[1][1] + turn.0[2][2];
    ((trace - 1.0) / 2.0).clamp(-1.0, 1.0).acos()
}

fn distance(a: [f64; 3], b: [f64; 3]) -> f64 {
    (0..3).map(|i| (a[i] - b[i]).powi(2)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_angle_of_a_rotation_is_found_under_scaling() {
        let turn = rotation([0.6, 0.0, 0.8], 0.4);
        assert!((angle(&turn) - 0.4).abs() < 1e-9);
        let mut scaled = turn;
        scaled.0.iter_mut().for_each(|row| row[..3].iter_mut().for_each(|v| *v *= 1.3));
        assert!((angle(&scaled) - 0.4).abs() < 1e-9);
    }

    #[test]
    fn a_moved_voxel_lies_where_the_move_takes_it() {
        let affine = Affine::from_rows([[-2.0, 0.0, 0.0, 40.0], [0.0, 2.0, 0.0, -40.0], [0.0, 0.0, 2.0, -40.0]]);
        let mut scan = Volume::<f32>::zeros(Grid { shape: [40; 3], affine });
        for (x, y, z) in [(10, 20, 30), (11, 20, 30), (10, 21, 30), (10, 20, 31)] {
            let i = scan.index(x, y, z);
            scan.data[i] = 100.0;
        }
        let to_moved = rotation([0.0, 0.0, 1.0], 0.5).then(&Affine::translation([7.0, -3.0, 11.0]));
        let moved = moved(&scan, &to_moved).expect("invertible");
        let centre_of = |volume: &Volume| {
            let [nx, ny, _] = volume.grid.shape;
            let (mut sum, mut weight) = ([0.0; 3], 0.0);
            for (i, &v) in volume.data.iter().enumerate() {
                let index = [i % nx, i / nx % ny, i / (nx * ny)].map(|c| c as f64);
                sum.iter_mut().zip(index).for_each(|(s, c)| *s += f64::from(v) * c);
                weight += f64::from(v);
            }
            volume.grid.affine.apply(sum.map(|s| s / weight))
        };
        let (want, got) = (to_moved.apply(centre_of(&scan)), centre_of(&moved));
        assert!(distance(want, got) < 0.2, "{got:?}, wanted {want:?}");
    }
}
