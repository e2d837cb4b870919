//! Resampling, against values from scipy. `geometry.rs` has the laws that hold for every volume.

use neurosieve::volume::{Grid, resample};

use super::support::golden::{affine, golden_file, golden_json, shape, voxels};

#[test]
fn resampling_agrees_with_scipy() {
    let golden = golden_json("volume.json");
    for (method, tolerance) in [("trilinear", 1e-5), ("nearest", 0.0)] {
        for want in golden[method].as_array().expect("cases") {
            let name = want["file"].as_str().expect("name");
            let source = golden_file(name).volume;
            let target = Grid { shape: shape(&want["shape"]), affine: affine(&want["affine"]) };
            let to_source = affine(&want["target_to_source"]);
            let got = match method {
                "trilinear" => resample::trilinear(&source, &target, &to_source),
                _ => resample::nearest(&source, &target, &to_source),
            };
            let largest = source.data.iter().fold(0.0f32, |a, v| a.max(v.abs()));
            let expected = voxels(&want["voxels"]);
            assert_eq!(got.data.len(), expected.len());
            // Positions on the border or half-way between voxels are left to rounding.
            let clear = want["clear"].as_array().expect("clear").iter().map(|c| c == true);
            for ((g, w), _) in got.data.iter().zip(&expected).zip(clear).filter(|(_, clear)| *clear) {
                assert!((g - w).abs() <= tolerance * largest, "{method} {name}: {g} is not {w}");
            }
        }
    }
}
