//! NIfTI files that are damaged, impossible or too large: each is refused, with a kind that says why.

use neurosieve::volume::Error;
use neurosieve::volume::nifti::{decode, encode};
use neurosieve::volume::{Affine, Grid, Volume};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::support::golden::{LIMIT, assert_usable, golden_bytes, gunzip, gzip, refusal, with_field};

#[test]
fn a_file_cut_anywhere_is_refused_as_truncated() {
    for name in ["int16_little.nii.gz", "float64_big.nii", "nifti2.nii.gz", "nifti2_big.nii", "members.nii.gz"] {
        let whole = golden_bytes(name);
        for cut in 0..whole.len() {
            let kind = match decode(&whole[..cut], LIMIT) {
                Err(Error { kind, .. }) => kind,
                // Zeros after the last member of this file may be cut off.
                Ok(_) if name == "members.nii.gz" && whole[cut..].iter().all(|&byte| byte == 0) => continue,
                other => panic!("{name} cut at byte {cut}: {other:?}"),
            };
            // Fewer than four bytes do not say what the file is.
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

#[test]
fn nifti2_sizes_beyond_any_memory_are_refused_from_the_header() {
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
fn an_image_of_one_value_is_refused() {
    let grid = Grid { shape: [4, 4, 4], affine: Affine::identity() };
    let kind = |data: Vec<f32>| refusal(&encode(&Volume::new(grid, data), ""), LIMIT);
    assert_eq!(kind(vec![3.5; 64]), "constant");
    assert_eq!(kind(vec![f32::NAN; 64]), "constant");
    let mut nearly = vec![3.5; 64];
    nearly[7] = f32::INFINITY;
    assert_eq!(kind(nearly), "constant", "the one other voxel is not finite");
}

#[test]
fn a_header_over_the_limit_is_refused_before_memory_is_reserved() {
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
fn a_gzip_that_decompresses_past_the_limit_is_refused() {
    let mut bytes = gunzip(&golden_bytes("int16_little.nii.gz"));
    bytes.resize(bytes.len() + 1000, 0);
    assert!(decode(&gzip(&bytes), 4096).is_ok(), "some padding is harmless");
    bytes.resize(16 << 20, 0);
    assert_eq!(refusal(&gzip(&bytes), 1 << 20), "too_large");
}
