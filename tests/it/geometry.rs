//! Laws of volumes in space that hold whatever the affine, the shape and the voxels.
//!
//! Expected values come from the laws themselves (a composition, an inverse, a formula for a field), never from the
//! code under test.

use neurosieve::volume::nifti::{AffineSource, decode, encode};
use neurosieve::volume::{Affine, Grid, Volume, resample};
use proptest::prelude::*;

const LIMIT: u64 = 64 << 20;

/// Few cases, so that all tests together take seconds; a failure is printed, not kept in a file.
fn config() -> ProptestConfig {
    ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() }
}

/// A rotation about x, y, z by these degrees, in this order.
fn rotation([x, y, z]: [f64; 3]) -> Affine {
    let turn = |degrees: f64, [a, b]: [usize; 2]| {
        let (s, c) = degrees.to_radians().sin_cos();
        let mut rows = Affine::identity().0;
        (rows[a][a], rows[a][b], rows[b][a], rows[b][b]) = (c, -s, s, c);
        Affine(rows)
    };
    turn(x, [1, 2]).then(&turn(y, [2, 0])).then(&turn(z, [0, 1]))
}

fn scaling([x, y, z]: [f64; 3]) -> Affine {
    Affine([[x, 0.0, 0.0, 0.0], [0.0, y, 0.0, 0.0], [0.0, 0.0, z, 0.0]])
}

prop_compose! {
    /// Any orientation of the head, voxels of 0.4 to 7 mm that need not be cubes, either handedness, some shear.
    fn affine()(
        spacing in prop::array::uniform3(0.4..7.0f64),
        degrees in prop::array::uniform3(-180.0..180.0f64),
        origin in prop::array::uniform3(-200.0..200.0f64),
        shear in -0.2..0.2f64,
        mirrored in any::<bool>(),
    ) -> Affine {
        let [x, y, z] = spacing;
        let sheared = Affine([[1.0, shear, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]);
        scaling([if mirrored { -x } else { x }, y, z])
            .then(&sheared)
            .then(&rotation(degrees))
            .then(&Affine::translation(origin))
    }
}

prop_compose! {
    fn grid()(affine in affine(), shape in prop::array::uniform3(1..9usize)) -> Grid {
        Grid { shape, affine }
    }
}

prop_compose! {
    /// Voxels numbered from 1, so that each is known by its value.
    fn numbered()(grid in grid()) -> Volume<f32> {
        Volume::new(grid, (1..=grid.len()).map(|i| i as f32).collect())
    }
}

fn worst(a: &Affine, b: &Affine) -> f64 {
    a.to_row_major().iter().zip(b.to_row_major()).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max)
}

fn distance(a: [f64; 3], b: [f64; 3]) -> f64 {
    a.iter().zip(b).map(|(x, y)| (x - y).powi(2)).sum::<f64>().sqrt()
}

/// Every voxel's value with its place in the world.
fn placed(volume: &Volume<f32>) -> Vec<(f32, [f64; 3])> {
    let [nx, ny, nz] = volume.grid.shape;
    let at = |x: usize, y: usize, z: usize| volume.grid.affine.apply([x as f64, y as f64, z as f64]);
    let rows = (0..nz).flat_map(|z| (0..ny).map(move |y| (y, z)));
    rows.flat_map(|(y, z)| (0..nx).map(move |x| (volume.at(x, y, z), at(x, y, z)))).collect()
}

/// The centre of mass of the voxels, in world mm.
fn centroid(volume: &Volume<f32>) -> [f64; 3] {
    let mut sums = [0.0; 4];
    for (value, place) in placed(volume) {
        for (sum, p) in sums.iter_mut().zip(place.into_iter().chain([1.0])) {
            *sum += f64::from(value) * p;
        }
    }
    [sums[0] / sums[3], sums[1] / sums[3], sums[2] / sums[3]]
}

/// A grid of `n` voxels along each axis whose centre is the world's origin, turned by `degrees`.
fn centred(n: usize, spacing: [f64; 3], degrees: [f64; 3]) -> Grid {
    let middle = (n as f64 - 1.0) / 2.0;
    let affine = Affine::translation([-middle; 3]).then(&scaling(spacing)).then(&rotation(degrees));
    Grid { shape: [n; 3], affine }
}

/// The values of a function of world mm on a grid.
fn field(grid: Grid, value: impl Fn([f64; 3]) -> f64) -> Volume<f32> {
    let places = placed(&Volume::zeros(grid));
    Volume::new(grid, places.into_iter().map(|(_, place)| value(place) as f32).collect())
}

/// A landmark: a blob of 4 mm standard deviation.
fn blob(centre: [f64; 3]) -> impl Fn([f64; 3]) -> f64 {
    move |p| (-distance(p, centre).powi(2) / (2.0 * 4.0f64.powi(2))).exp()
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn composition_is_application_one_after_the_other(
        a in affine(), b in affine(), c in affine(), p in prop::array::uniform3(-100.0..100.0f64)
    ) {
        let size = |q: [f64; 3]| 1.0 + distance(q, [0.0; 3]);
        let one_by_one = b.apply(a.apply(p));
        prop_assert!(distance(a.then(&b).apply(p), one_by_one) < 1e-11 * size(one_by_one));
        let (left, right) = (a.then(&b).then(&c), a.then(&b.then(&c)));
        prop_assert!(distance(left.apply(p), right.apply(p)) < 1e-10 * size(right.apply(p)));
        prop_assert_eq!(a.then(&Affine::identity()), a);
        let volumes = a.determinant3() * b.determinant3();
        prop_assert!((a.then(&b).determinant3() - volumes).abs() < 1e-9 * volumes.abs());
    }

    #[test]
    fn an_inverse_undoes_from_both_sides_and_turns_a_composition_round(a in affine(), b in affine()) {
        let (back_a, back_b) = (a.inverse().expect("invertible"), b.inverse().expect("invertible"));
        prop_assert!(worst(&a.then(&back_a), &Affine::identity()) < 1e-9);
        prop_assert!(worst(&back_a.then(&a), &Affine::identity()) < 1e-9);
        let both = a.then(&b);
        prop_assert!(worst(&both.inverse().expect("invertible"), &back_b.then(&back_a)) < 1e-7);
        prop_assert!(worst(&back_a.inverse().expect("invertible"), &a) < 1e-8);
    }

    #[test]
    fn reorienting_loses_no_voxel_and_moves_none(volume in numbered()) {
        let ras = volume.reoriented_ras();
        prop_assert_eq!(ras.grid.orientation(), "RAS");
        prop_assert_eq!(ras.reoriented_ras(), ras.clone(), "a second time changes nothing");
        let mut there = placed(&ras);
        there.sort_by(|a, b| a.0.total_cmp(&b.0));
        for ((value, place), (moved, now)) in placed(&volume).into_iter().zip(there) {
            prop_assert_eq!(value, moved);
            prop_assert!(distance(place, now) < 1e-9, "voxel {} from {:?} to {:?}", value, place, now);
        }
    }

    #[test]
    fn reorienting_and_resampling_back_gives_the_same_voxels(volume in numbered()) {
        let back = resample::nearest(&volume.reoriented_ras(), &volume.grid, &Affine::identity());
        prop_assert_eq!(back, volume);
    }

    #[test]
    fn a_volume_on_its_own_grid_is_itself_even_by_way_of_another_world(volume in numbered(), detour in affine()) {
        prop_assert_eq!(&resample::nearest(&volume, &volume.grid, &Affine::identity()), &volume);
        let there_and_back = detour.then(&detour.inverse().expect("invertible"));
        prop_assert_eq!(&resample::nearest(&volume, &volume.grid, &there_and_back), &volume);
        let interpolated = resample::trilinear(&volume, &volume.grid, &there_and_back);
        let largest = volume.data.len() as f32;
        for (got, want) in interpolated.data.iter().zip(&volume.data) {
            prop_assert!((got - want).abs() <= 1e-5 * largest, "{} is not {}", got, want);
        }
    }

    #[test]
    fn a_linear_field_is_resampled_exactly_wherever_the_source_is(
        source in grid(), target in grid(), slope in prop::array::uniform3(-2.0..2.0f64)
    ) {
        let linear = |p: [f64; 3]| 7.0 + p.iter().zip(slope).map(|(x, s)| x * s).sum::<f64>();
        let values = field(source, linear);
        let to_index = source.affine.inverse().expect("invertible");
        let got = resample::trilinear(&values, &target, &Affine::identity());
        for (value, place) in placed(&got) {
            let index = to_index.apply(place);
            let depth = (0..3).map(|a| index[a].min(source.shape[a] as f64 - 1.0 - index[a])).fold(f64::MAX, f64::min);
            if depth > 1e-3 {
                prop_assert!((f64::from(value) - linear(place)).abs() < 2e-3, "{} at {:?}", value, place);
            } else if depth < -1e-3 {
                prop_assert_eq!(value, 0.0, "nothing is extrapolated to {:?}", place);
            }
        }
    }

    #[test]
    fn encoding_and_decoding_floats_keeps_voxels_and_place(
        grid in grid(), values in prop::collection::vec(-1e30f32..1e30, 512)
    ) {
        let volume = Volume::new(grid, values[..grid.len()].to_vec());
        prop_assume!(volume.data.iter().any(|v| *v != volume.data[0]));
        let decoded = decode(&encode(&volume, "a law"), LIMIT).expect("decodes");
        prop_assert_eq!(&decoded.volume.data, &volume.data);
        prop_assert_eq!(decoded.volume.grid.shape, grid.shape);
        // The format keeps rows as f32: 200 mm to 1e-5 mm.
        prop_assert!(worst(&decoded.volume.grid.affine, &grid.affine) < 2e-5);
        prop_assert_eq!((decoded.affine_source, decoded.qform_disagrees), (AffineSource::Sform, false));
    }

    #[test]
    fn encoding_and_decoding_integers_keeps_every_value(grid in grid(), seed in any::<i16>()) {
        prop_assume!(grid.len() > 1);
        let short: Vec<i16> = (0..grid.len()).map(|i| seed.wrapping_add((i as i16).wrapping_mul(12_347))).collect();
        let decoded = decode(&encode(&Volume::new(grid, short.clone()), ""), LIMIT).expect("decodes");
        prop_assert_eq!(decoded.volume.data, short.iter().map(|v| f32::from(*v)).collect::<Vec<_>>());
        let byte: Vec<u8> = short.iter().map(|v| v.to_le_bytes()[0]).collect();
        let decoded = decode(&encode(&Volume::new(grid, byte.clone()), ""), LIMIT).expect("decodes");
        prop_assert_eq!(decoded.volume.data, byte.iter().map(|v| f32::from(*v)).collect::<Vec<_>>());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5, ..config() })]

    #[test]
    fn a_landmark_stays_at_its_millimetres(
        place in prop::array::uniform3(-6.0..6.0f64),
        spacing in prop::array::uniform3(1.2..2.2f64),
        degrees in prop::array::uniform3(-180.0..180.0f64),
        to_degrees in prop::array::uniform3(-40.0..40.0f64),
    ) {
        let source = field(centred(32, spacing.map(|s| s * 1.1), degrees), blob(place));
        prop_assert!(distance(centroid(&source), place) < 0.02, "{:?}", centroid(&source));
        prop_assert!(distance(centroid(&source.reoriented_ras()), place) < 0.02);
        let there = resample::trilinear(&source, &centred(38, [1.7; 3], to_degrees), &Affine::identity());
        prop_assert!(distance(centroid(&there), place) < 0.1, "{:?} is not {:?}", centroid(&there), place);
    }

    #[test]
    fn a_smooth_field_survives_an_affine_and_its_inverse(
        place in prop::array::uniform3(-5.0..5.0f64),
        degrees in prop::array::uniform3(-30.0..30.0f64),
        shift in prop::array::uniform3(-4.0..4.0f64),
        stretch in prop::array::uniform3(0.9..1.1f64),
    ) {
        let grid = centred(40, [1.25; 3], [0.0; 3]);
        let source = field(grid, blob(place));
        let map = scaling(stretch).then(&rotation(degrees)).then(&Affine::translation(shift));
        let there = resample::trilinear(&source, &grid, &map);
        let back = resample::trilinear(&there, &grid, &map.inverse().expect("invertible"));
        // Two trilinear interpolations flatten a peak of 4 mm by at most h^2/8 * 3/sd^2 each.
        let worst = back.data.iter().zip(&source.data).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        prop_assert!(worst < 2.0 * 1.25f32.powi(2) / 8.0 * 3.0 / 16.0, "{}", worst);
    }
}
