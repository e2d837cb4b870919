//! Reading, writing and resampling NIfTI volumes.
//!
//! Golden voxels, affines and orientations come from nibabel and scipy, recorded by
//! scripts/golden_volume.py in tests/golden/volume/.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use neurosieve::error::Error;
use neurosieve::volume::nifti::{Decoded, decode, encode};
use neurosieve::volume::{Affine, Grid, Volume, resample};
use nifti::NiftiHeader;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use sha2::{Digest, Sha256};

const LIMIT: u64 = 64 << 20;

fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/volume")
}

fn golden_bytes(name: &str) -> Vec<u8> {
    std::fs::read(golden_dir().join(name)).expect("golden file")
}

fn golden_json(name: &str) -> Value {
    serde_json::from_slice(&golden_bytes(name)).expect("golden JSON")
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("array").iter().map(|v| v.as_f64().expect("number")).collect()
}

/// Recorded from `f32` voxels, so the way back is exact.
fn voxels(value: &Value) -> Vec<f32> {
    numbers(value).into_iter().map(|v| v as f32).collect()
}

fn shape(value: &Value) -> [usize; 3] {
    let n = numbers(value);
    [n[0], n[1], n[2]].map(|v| v as usize)
}

fn affine(value: &Value) -> Affine {
    let n = numbers(value);
    Affine(std::array::from_fn(|r| std::array::from_fn(|c| n[4 * r + c])))
}

fn assert_affine(got: &Affine, want: &Affine, what: &str) {
    for (g, w) in got.to_row_major().iter().zip(want.to_row_major()) {
        assert!((g - w).abs() < 1e-5 * (1.0 + w.abs()), "{what}: {got:?} is not {want:?}");
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    GzDecoder::new(bytes).read_to_end(&mut out).expect("valid gzip");
    out
}

/// The kind of the input error that `bytes` must give.
fn refusal(bytes: &[u8], limit: u64) -> &'static str {
    match decode(bytes, limit) {
        Err(Error::Input { kind, message }) => {
            assert!(!message.is_empty());
            kind
        }
        other => panic!("expected an input error, got {other:?}"),
    }
}

/// Facts that hold for whatever decodes.
fn assert_usable(decoded: &Decoded) {
    let Volume { grid, data } = &decoded.volume;
    assert_eq!(data.len(), grid.len());
    assert!(data.iter().all(|v| v.is_finite()));
    assert!(grid.affine.inverse().is_some());
}

#[test]
fn files_decode_as_nibabel_reads_them() {
    let golden = golden_json("volume.json");
    for want in golden["files"].as_array().expect("files") {
        let name = want["file"].as_str().expect("name");
        let got = decode(&golden_bytes(name), LIMIT).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(got.volume.grid.shape, shape(&want["shape"]), "{name}");
        assert_eq!(got.datatype, want["datatype"], "{name}");
        assert_eq!(got.n_volumes, 1, "{name}");
        assert_eq!(got.n_nonfinite as u64, want["n_nonfinite"], "{name}");
        assert_affine(&got.volume.grid.affine, &affine(&want["affine"]), name);
        assert_eq!(got.volume.grid.orientation(), want["orientation"], "{name}");
        assert_eq!(got.volume.data, voxels(&want["voxels"]), "{name}");

        let canonical = &want["canonical"];
        let ras = got.volume.reoriented_ras();
        assert_eq!(ras.grid.shape, shape(&canonical["shape"]), "{name} in RAS");
        assert_affine(&ras.grid.affine, &affine(&canonical["affine"]), name);
        assert_eq!(ras.data, voxels(&canonical["voxels"]), "{name} in RAS");
    }
}

#[test]
fn resampling_agrees_with_scipy() {
    let golden = golden_json("volume.json");
    for (method, tolerance) in [("trilinear", 1e-5), ("nearest", 0.0)] {
        for want in golden[method].as_array().expect("cases") {
            let name = want["file"].as_str().expect("name");
            let source = decode(&golden_bytes(name), LIMIT).expect("decodes").volume;
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

/// Files that broke other readers, or that some writer really made: read as nibabel reads them, or
/// refused with a reason.
#[test]
fn odd_files_give_right_voxels_or_a_clear_error() {
    let shared = std::env::var_os("NEUROSIEVE_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"), PathBuf::from);
    let root = shared.join("data/odd-nifti");
    if !root.is_dir() {
        println!("skipped: no odd NIfTI files (set NEUROSIEVE_SHARED to the folder that holds data/odd-nifti)");
        return;
    }
    for want in golden_json("odd.json").as_array().expect("files") {
        let name = want["file"].as_str().expect("name");
        let bytes = std::fs::read(root.join(name)).expect("recorded file");
        if want.get("refused").is_some() {
            println!("{name}: {}", refusal(&bytes, LIMIT));
            continue;
        }
        let got = decode(&bytes, LIMIT).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_usable(&got);
        assert_eq!(got.volume.grid.shape, shape(&want["shape"]), "{name}");
        assert_affine(&got.volume.grid.affine, &affine(&want["affine"]), name);
        let mut hash = Sha256::new();
        got.volume.data.iter().for_each(|v| hash.update(v.to_le_bytes()));
        let hash: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hash, want["sha256"], "{name}: voxels differ from nibabel's");
    }
}

#[test]
fn encoded_headers_say_what_nibabel_writes() {
    let nibabel = golden_bytes("as_encode.nii.gz");
    let volume = decode(&nibabel, LIMIT).expect("decodes").volume;
    let (ours, theirs) = (gunzip(&encode(&volume, "neurosieve test")), gunzip(&nibabel));
    assert_eq!(ours[352..], theirs[352..], "voxels");

    let header = |raw: &[u8]| NiftiHeader::from_reader(raw).expect("header");
    let (a, b) = (header(&ours), header(&theirs));
    assert_eq!((a.sizeof_hdr, a.vox_offset, a.magic), (348, 352.0, *b"n+1\0"));
    assert_eq!((a.dim, a.datatype, a.bitpix), (b.dim, b.datatype, b.bitpix));
    assert_eq!((a.sform_code, a.qform_code, a.xyzt_units), (b.sform_code, b.qform_code, b.xyzt_units));
    assert_eq!((a.scl_slope, a.scl_inter), (1.0, 0.0));
    assert_eq!(a.descrip, b.descrip);
    let placement = |h: &NiftiHeader| {
        let turn = [h.quatern_b, h.quatern_c, h.quatern_d, h.quatern_x, h.quatern_y, h.quatern_z];
        [&turn[..], &h.pixdim[..4], &h.srow_x, &h.srow_y, &h.srow_z].concat()
    };
    for (x, y) in placement(&a).iter().zip(placement(&b)) {
        assert!((x - y).abs() < 1e-5 * (1.0 + y.abs()), "{x} is not {y}");
    }
}

#[test]
fn what_is_encoded_decodes_to_the_same_volume() {
    // Exact in f32; sheared, so that only the sform can hold it.
    let sheared = Affine([[2.0, 0.5, 0.0, -90.0], [0.0, 2.0, 0.0, -126.0], [0.0, 0.0, -2.5, 72.0]]);
    let grid = Grid { shape: [3, 4, 5], affine: sheared };
    let float = Volume::new(grid, (0..60).map(|i| i as f32 * 0.37 - 4.0).collect::<Vec<f32>>());
    assert_eq!(decode(&encode(&float, ""), LIMIT).expect("decodes").volume, float);

    let byte = Volume::new(grid, (0..60).map(|i| (i % 2) as u8).collect::<Vec<u8>>());
    let back = decode(&encode(&byte, &"é".repeat(60)), LIMIT).expect("decodes");
    assert_eq!(back.datatype, "uint8");
    assert!(back.volume.data.iter().zip(&byte.data).all(|(a, b)| *a == f32::from(*b)));

    let short = Volume::new(grid, (0..60).map(|i| i * 500 - 15_000).collect::<Vec<i16>>());
    let back = decode(&encode(&short, "labels"), LIMIT).expect("decodes");
    assert_eq!(back.datatype, "int16");
    assert!(back.volume.data.iter().zip(&short.data).all(|(a, b)| *a == f32::from(*b)));
}

#[test]
fn a_file_cut_anywhere_is_refused_as_truncated() {
    for name in ["int16_little.nii.gz", "float64_big.nii", "scaled.nii.gz"] {
        let whole = golden_bytes(name);
        for cut in 0..whole.len() {
            let kind = refusal(&whole[..cut], LIMIT);
            // Of the first bytes one cannot tell what they were to become.
            let expected = if cut < 4 { ["truncated", "not_nifti"].contains(&kind) } else { kind == "truncated" };
            assert!(expected, "{name} cut at byte {cut} is {kind}");
        }
    }
}

#[test]
fn a_damaged_gzip_never_gives_other_voxels() {
    let whole = golden_bytes("int16_little.nii.gz");
    let right = decode(&whole, LIMIT).expect("decodes");
    for (byte, bit) in (0..whole.len()).flat_map(|byte| [0, 3, 7].map(|bit| (byte, bit))) {
        let mut damaged = whole.clone();
        damaged[byte] ^= 1 << bit;
        match decode(&damaged, LIMIT) {
            // A flipped bit in gzip's time stamp changes nothing.
            Ok(got) => assert_eq!(got, right, "byte {byte} bit {bit}"),
            Err(e) => assert!(matches!(e, Error::Input { .. }), "byte {byte} bit {bit}: {e}"),
        }
    }
}

#[test]
fn random_headers_are_refused_or_usable() {
    let whole = golden_bytes("int16_big.nii");
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for _ in 0..20_000 {
        let mut bytes = whole.clone();
        for _ in 0..rng.random_range(1..6) {
            let at = rng.random_range(0..352);
            bytes[at] = rng.random();
        }
        match decode(&bytes, LIMIT) {
            Ok(decoded) => assert_usable(&decoded),
            Err(e) => assert!(matches!(e, Error::Input { .. }), "{e}"),
        }
    }
}

/// `name` with the little-endian bytes of one header field replaced.
fn with_field(name: &str, offset: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = gunzip(&golden_bytes(name));
    bytes[offset..offset + value.len()].copy_from_slice(value);
    bytes
}

#[test]
fn unusable_files_are_refused_by_kind() {
    let edit = |offset, value: &[u8]| refusal(&with_field("int16_little.nii.gz", offset, value), LIMIT);
    assert_eq!(refusal(b"", LIMIT), "not_nifti");
    assert_eq!(refusal(b"\x89PNG\r\n\x1a\n and so on", LIMIT), "not_nifti");
    assert_eq!(refusal(&gzip(b"a text"), LIMIT), "not_nifti");
    assert_eq!(refusal(&gzip(b""), LIMIT), "not_nifti");
    assert_eq!(edit(344, b"\0\0\0\0"), "not_nifti", "ANALYZE has no magic");
    assert_eq!(edit(0, &540i32.to_le_bytes()), "nifti2");
    assert_eq!(edit(344, b"ni1\0"), "header_pair");
    assert_eq!(edit(40, &9i16.to_le_bytes()), "dimensions");
    assert_eq!(edit(40, &2i16.to_le_bytes()), "dimensions");
    assert_eq!(edit(42, &0i16.to_le_bytes()), "dimensions");
    assert_eq!(edit(44, &(-4i16).to_le_bytes()), "dimensions");
    assert_eq!(edit(40, &[4, 0, 5, 0, 4, 0, 3, 0, 2, 0]), "four_dimensional");
    for code in [0i16, 1, 32, 128, 1536, 1792, 2048, 2304, 77] {
        assert_eq!(edit(70, &code.to_le_bytes()), "datatype", "code {code}");
    }
    for offset in [0.0f32, 347.0, 352.5, -352.0, f32::NAN, f32::INFINITY, 1e20] {
        assert_eq!(edit(108, &offset.to_le_bytes()), "voxel_offset", "{offset}");
    }
    assert_eq!(edit(108, &4096f32.to_le_bytes()), "truncated");
    assert_eq!(edit(280, &[0; 48]), "spacing", "sform of zeros");
    assert_eq!(edit(280, &f32::NAN.to_le_bytes()), "spacing");
    assert_eq!(edit(292, &f32::INFINITY.to_le_bytes()), "affine");
    let row = gunzip(&golden_bytes("oblique.nii.gz"))[280..296].to_vec();
    let flat = with_field("oblique.nii.gz", 296, &row);
    assert_eq!(refusal(&flat, LIMIT), "affine", "two equal rows");
    for size in [0.0f32, -1.0, f32::NAN, f32::INFINITY] {
        let bytes = with_field("qform_only.nii.gz", 84, &size.to_le_bytes());
        assert_eq!(refusal(&bytes, LIMIT), "spacing", "pixdim {size}");
    }
    let long = with_field("qform_only.nii.gz", 256, &1.5f32.to_le_bytes());
    assert_eq!(refusal(&long, LIMIT), "affine", "quaternion longer than 1");
}

#[test]
fn an_image_that_shows_nothing_is_refused() {
    let grid = Grid { shape: [4, 4, 4], affine: Affine::identity() };
    let kind = |data: Vec<f32>| refusal(&encode(&Volume::new(grid, data), ""), LIMIT);
    assert_eq!(kind(vec![3.5; 64]), "constant");
    assert_eq!(kind(vec![f32::NAN; 64]), "constant");
    let mut nearly = vec![3.5; 64];
    nearly[7] = f32::INFINITY;
    assert_eq!(kind(nearly), "constant", "the one other voxel is no measurement");
}

#[test]
fn a_promise_over_the_limit_is_refused_before_memory_is_reserved() {
    let huge = [4, 0, 0xff, 0x7f, 0xff, 0x7f, 0xff, 0x7f, 1, 0];
    let bytes = with_field("int16_little.nii.gz", 40, &huge);
    assert_eq!(refusal(&bytes, LIMIT), "too_large");
    assert_eq!(refusal(&gzip(&bytes), LIMIT), "too_large");
    // Without a limit the file's own size says that the voxels cannot be there.
    assert_eq!(refusal(&bytes, u64::MAX), "truncated");
    assert_eq!(refusal(&gzip(&bytes), u64::MAX), "truncated");

    // One byte per voxel in the file is four in memory: the limit counts the larger.
    let small = golden_bytes("uint8_little.nii.gz");
    assert!(decode(&small, 352 + 60).is_ok());
    assert_eq!(refusal(&small, 352 + 59), "too_large");
}

#[test]
fn a_gzip_that_goes_on_past_the_limit_is_left() {
    let mut bytes = gunzip(&golden_bytes("int16_little.nii.gz"));
    bytes.resize(bytes.len() + 1000, 0);
    assert!(decode(&gzip(&bytes), 4096).is_ok(), "some padding is harmless");
    bytes.resize(16 << 20, 0);
    assert_eq!(refusal(&gzip(&bytes), 1 << 20), "too_large");
}

#[test]
fn concatenated_gzip_members_are_one_file() {
    let bytes = gunzip(&golden_bytes("int16_little.nii.gz"));
    let (head, tail) = bytes.split_at(400);
    let members = [gzip(head), gzip(tail)].concat();
    let whole = decode(&bytes, LIMIT).expect("decodes");
    assert_eq!(decode(&members, LIMIT).expect("decodes"), whole);
}
