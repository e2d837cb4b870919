//! Reading, writing and resampling NIfTI volumes.
//!
//! Golden voxels, affines and orientations come from nibabel and scipy, recorded by
//! scripts/golden_volume.py in tests/golden/volume/.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use neurosieve::volume::nifti::{AffineSource, Decoded, decode, decode_pair, encode};
use neurosieve::volume::{self, Affine, Error, Grid, Volume, resample};
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

/// A golden file, or the pair whose header has this name.
fn golden_file(name: &str) -> Decoded {
    let decoded = match name.contains(".hdr") {
        true => decode_pair(&golden_bytes(name), &golden_bytes(&name.replace(".hdr", ".img")), LIMIT),
        false => decode(&golden_bytes(name), LIMIT),
    };
    decoded.unwrap_or_else(|e| panic!("{name}: {e}"))
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

/// The kind of the error that `bytes` must give.
fn refusal(bytes: &[u8], limit: u64) -> &'static str {
    refused(decode(bytes, limit))
}

fn refused(decoded: volume::Result<Decoded>) -> &'static str {
    match decoded {
        Err(Error { kind, message }) => {
            assert!(!message.is_empty());
            kind
        }
        other => panic!("expected an error, got {other:?}"),
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
        let got = golden_file(name);
        assert_eq!(got.volume.grid.shape, shape(&want["shape"]), "{name}");
        assert_eq!(got.datatype, want["datatype"], "{name}");
        assert_eq!(got.n_volumes, 1, "{name}");
        assert_eq!(got.n_nonfinite as u64, want["n_nonfinite"], "{name}");
        assert_eq!(format!("{:?}", got.affine_source), want["affine_source"], "{name}");
        assert_eq!(got.qform_disagrees, want["qform_disagrees"], "{name}");
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
        let image = name.contains(".hdr").then(|| std::fs::read(root.join(name.replace(".hdr", ".img"))));
        let decoded = match image {
            Some(Ok(image)) => decode_pair(&bytes, &image, LIMIT),
            _ => decode(&bytes, LIMIT),
        };
        if want.get("refused").is_some() {
            println!("{name}: {}", refused(decoded));
            continue;
        }
        let got = decoded.unwrap_or_else(|e| panic!("{name}: {e}"));
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
    for name in ["int16_little.nii.gz", "float64_big.nii", "nifti2.nii.gz", "nifti2_big.nii", "members.nii.gz"] {
        let whole = golden_bytes(name);
        for cut in 0..whole.len() {
            let kind = match decode(&whole[..cut], LIMIT) {
                Err(Error { kind, .. }) => kind,
                // Of this one, zeros after the last member may be lost.
                Ok(_) if name == "members.nii.gz" && whole[cut..].iter().all(|&byte| byte == 0) => continue,
                other => panic!("{name} cut at byte {cut}: {other:?}"),
            };
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
            Err(e) => assert!(!e.message.is_empty(), "byte {byte} bit {bit}: {e:?}"),
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
            Err(e) => assert!(!e.message.is_empty(), "{e:?}"),
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
    assert_eq!(edit(344, b"\0\0\0\0"), "analyze", "ANALYZE has no magic");
    let other_version = with_field("float64_little.nii.gz", 0, &540i32.to_le_bytes());
    assert_eq!(refusal(&other_version, LIMIT), "not_nifti", "NIfTI-2 has its magic elsewhere");
    assert_eq!(edit(344, b"ni1\0"), "header_pair");
    assert_eq!(edit(40, &9i16.to_le_bytes()), "dimensions");
    assert_eq!(edit(40, &2i16.to_le_bytes()), "dimensions");
    assert_eq!(edit(42, &0i16.to_le_bytes()), "dimensions");
    assert_eq!(edit(44, &(-4i16).to_le_bytes()), "dimensions");
    assert_eq!(edit(40, &[4, 0, 5, 0, 4, 0, 3, 0, 2, 0]), "four_dimensional");
    assert_eq!(edit(40, &[4, 0, 1, 0, 5, 0, 4, 0, 3, 0]), "four_dimensional");
    assert_eq!(edit(40, &[4, 0, 5, 0, 4, 0, 3, 0, 0, 0]), "dimensions", "no volume at all");
    let slope_alone = [2f32.to_le_bytes(), f32::NAN.to_le_bytes()].concat();
    assert_eq!(edit(112, &slope_alone), "scaling", "nibabel refuses it, too");
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
    for size in [0.0f32, f32::NAN, f32::INFINITY] {
        let bytes = with_field("qform_only.nii.gz", 84, &size.to_le_bytes());
        assert_eq!(refusal(&bytes, LIMIT), "spacing", "pixdim {size}");
    }
    let long = with_field("qform_only.nii.gz", 256, &1.5f32.to_le_bytes());
    assert_eq!(refusal(&long, LIMIT), "affine", "quaternion longer than 1");
}

/// The golden files fit into one step of the conversion; a scan takes thousands.
#[test]
fn every_type_decodes_beyond_the_first_thousand_voxels() {
    let value = |i: usize| (i * 37 % 101) as u8;
    let n = 40 * 50 * 7;
    let want: Vec<f32> = (0..n).map(|i| f32::from(value(i))).collect();
    macro_rules! check {
        ($($type:ident $name:literal),*) => {$(
            let little: Vec<u8> = (0..n).flat_map(|i| (value(i) as $type).to_le_bytes()).collect();
            let big: Vec<u8> = (0..n).flat_map(|i| (value(i) as $type).to_be_bytes()).collect();
            let file = |name: &str, dims: [u8; 6], voxels: Vec<u8>| {
                let bytes = golden_bytes(name);
                let mut header = if name.ends_with(".gz") { gunzip(&bytes) } else { bytes };
                header.truncate(352);
                header[42..48].copy_from_slice(&dims);
                [header, voxels].concat()
            };
            let little = file(concat!($name, "_little.nii.gz"), [40, 0, 50, 0, 7, 0], little);
            let big = file(concat!($name, "_big.nii"), [0, 40, 0, 50, 0, 7], big);
            for bytes in [&little, &big, &gzip(&little), &[gzip(&big[..999]), gzip(&big[999..])].concat()] {
                assert_eq!(decode(bytes, LIMIT).expect("decodes").volume.data, want, $name);
            }
        )*};
    }
    check!(
        u8 "uint8", u16 "uint16", u32 "uint32", u64 "uint64", i8 "int8", i16 "int16", i32 "int32", i64 "int64",
        f32 "float32", f64 "float64"
    );
}

#[test]
fn an_unusable_transform_gives_way_to_a_good_one_but_never_to_a_guess() {
    let good = golden_file("thick_slices.nii.gz");
    let without = |offset, value: &[u8]| decode(&with_field("thick_slices.nii.gz", offset, value), LIMIT);
    let qform = without(280, &[0; 48]).expect("the qform is good");
    assert_eq!((good.affine_source, qform.affine_source), (AffineSource::Sform, AffineSource::Qform));
    assert_affine(&qform.volume.grid.affine, &good.volume.grid.affine, "both say the same");
    let sform = without(256, &1.5f32.to_le_bytes()).expect("the sform is good");
    assert_eq!(sform, good, "a broken qform contradicts nothing");
    // Codes that promise nothing, but a header full of zeros: voxel sizes are all there is.
    let neither = without(252, &[0; 4]).expect("voxel sizes");
    assert_eq!(neither.affine_source, AffineSource::VoxelSizes);
    // Where a code promises a place, voxel sizes would be a guess at left and right.
    assert_eq!(refusal(&with_field("oblique.nii.gz", 280, &[0; 48]), LIMIT), "spacing");
}

#[test]
fn nifti2_sizes_beyond_any_memory_are_refused_unread() {
    let with_dims = |dims: [i64; 3]| {
        let mut bytes = golden_bytes("nifti2_qform.nii");
        for (i, n) in dims.iter().enumerate() {
            bytes[24 + 8 * i..32 + 8 * i].copy_from_slice(&n.to_le_bytes());
        }
        bytes
    };
    for dims in [[i64::MAX; 3], [1 << 31, 1 << 31, 4], [1 << 62, 1, 1], [3_037_000_500, 3_037_000_500, 2]] {
        assert_eq!(refusal(&with_dims(dims), u64::MAX), "too_large", "{dims:?} overflow");
        assert_eq!(refusal(&gzip(&with_dims(dims)), LIMIT), "too_large", "{dims:?}");
    }
    assert_eq!(refusal(&with_dims([5, -4, 3]), LIMIT), "dimensions");
    let mut copied_as_text = golden_bytes("nifti2_qform.nii");
    copied_as_text[8..12].copy_from_slice(b"\n\x1a\n\0");
    assert_eq!(refusal(&copied_as_text, LIMIT), "not_nifti");
}

#[test]
fn halves_of_a_pair_pack_as_they_like_and_never_pass_for_a_file() {
    let (header, image) = (golden_bytes("pair.hdr"), golden_bytes("pair.img"));
    let whole = decode_pair(&header, &image, LIMIT).expect("decodes");
    for (h, i) in [(gzip(&header), image.clone()), (header.clone(), gzip(&image)), (gzip(&header), gzip(&image))] {
        assert_eq!(decode_pair(&h, &i, LIMIT).expect("decodes"), whole);
    }
    assert_eq!(refusal(&header, LIMIT), "header_pair");
    assert_eq!(refusal(&image, LIMIT), "not_nifti");
    assert_eq!(refused(decode_pair(&header, &image[1..], LIMIT)), "truncated");
    assert_eq!(refused(decode_pair(&header, b"", LIMIT)), "truncated");
    assert_eq!(refused(decode_pair(&image, &header, LIMIT)), "not_nifti", "the halves are swapped");
    assert_eq!(refused(decode_pair(&golden_bytes("extended.nii"), &image, LIMIT)), "header_pair");
    let mut damaged = gzip(&header);
    let crc = damaged.len() - 8;
    damaged[crc] ^= 1;
    assert_eq!(refused(decode_pair(&damaged, &image, LIMIT)), "corrupt_gzip");

    // Plain voxels that happen to start as gzip does.
    let mut lookalike = image;
    lookalike[..3].copy_from_slice(&[0x1f, 0x8b, 8]);
    let decoded = decode_pair(&header, &lookalike, LIMIT).expect("voxels");
    assert_eq!(decoded.volume.data[0], f32::from(i16::from_le_bytes([0x1f, 0x8b])));
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
    let whole = decode(&bytes, LIMIT).expect("decodes");
    assert_eq!(decode(&[gzip(head), gzip(tail)].concat(), LIMIT).expect("decodes"), whole);
    // Even where the header itself is in two pieces.
    assert_eq!(decode(&[gzip(&bytes[..100]), gzip(&bytes[100..])].concat(), LIMIT).expect("decodes"), whole);
    assert_eq!(decode(&[gzip(&bytes), gzip(b"")].concat(), LIMIT).expect("decodes"), whole);
    let mut damaged = [gzip(&bytes), gzip(b"more")].concat();
    let crc = damaged.len() - 8;
    damaged[crc] ^= 1;
    assert_eq!(refusal(&damaged, LIMIT), "corrupt_gzip", "in the member after the voxels");
}

#[test]
fn zeros_after_gzip_are_padding_and_anything_else_is_damage() {
    let whole = golden_bytes("int16_little.nii.gz");
    let followed_by = |tail: &[u8]| [&whole, tail].concat();
    let right = decode(&whole, LIMIT).expect("decodes");
    for n in [1, 7, 512, 10_240] {
        assert_eq!(decode(&followed_by(&vec![0; n]), LIMIT).expect("padded"), right);
    }
    assert_eq!(refusal(&followed_by(b"\0\0x"), LIMIT), "corrupt_gzip");
    assert_eq!(refusal(&followed_by(b"\r\n"), LIMIT), "corrupt_gzip");
}
