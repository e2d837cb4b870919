//! NIfTI in and out. Golden voxels, affines and orientations come from nibabel.

use neurosieve::volume::nifti::{AffineSource, decode, decode_pair, encode};
use neurosieve::volume::{Affine, Grid, Volume};
use nifti::NiftiHeader;
use sha2::{Digest, Sha256};

use super::support::data::data;
use super::support::golden::{
    LIMIT, affine, assert_affine, assert_usable, golden_bytes, golden_file, golden_json, gunzip, gzip, refusal,
    refused, shape, voxels, with_field,
};

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

/// Files that broke other readers, or that some program wrote.
#[test]
fn odd_files_decode_as_nibabel_reads_them_or_are_refused_with_a_reason() {
    let Some(folder) = data("odd-nifti") else { return };
    for want in golden_json("odd.json").as_array().expect("files") {
        let name = want["file"].as_str().expect("name");
        let bytes = std::fs::read(folder.join(name)).expect("recorded file");
        let image = name.contains(".hdr").then(|| std::fs::read(folder.join(name.replace(".hdr", ".img"))));
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
fn encoded_headers_are_those_that_nibabel_writes() {
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

/// The golden files are converted in one step; a scan takes thousands.
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
fn an_unusable_transform_is_replaced_by_the_other_one_and_never_by_a_guess() {
    let good = golden_file("thick_slices.nii.gz");
    let without = |offset, value: &[u8]| decode(&with_field("thick_slices.nii.gz", offset, value), LIMIT);
    let qform = without(280, &[0; 48]).expect("the qform is good");
    assert_eq!((good.affine_source, qform.affine_source), (AffineSource::Sform, AffineSource::Qform));
    assert_affine(&qform.volume.grid.affine, &good.volume.grid.affine, "both say the same");
    let sform = without(256, &1.5f32.to_le_bytes()).expect("the sform is good");
    assert_eq!(sform, good, "a broken qform contradicts nothing");
    // Both codes are 0: the voxel sizes are all that the header gives.
    let neither = without(252, &[0; 4]).expect("voxel sizes");
    assert_eq!(neither.affine_source, AffineSource::VoxelSizes);
    // Where a code promises an orientation, voxel sizes alone would be a guess at left and right.
    assert_eq!(refusal(&with_field("oblique.nii.gz", 280, &[0; 48]), LIMIT), "spacing");
}

#[test]
fn halves_of_a_pair_may_be_compressed_alone_and_are_no_file_alone() {
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

    // Voxels that start with the bytes of gzip.
    let mut lookalike = image;
    lookalike[..3].copy_from_slice(&[0x1f, 0x8b, 8]);
    let decoded = decode_pair(&header, &lookalike, LIMIT).expect("voxels");
    assert_eq!(decoded.volume.data[0], f32::from(i16::from_le_bytes([0x1f, 0x8b])));
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
