//! Volumes whose voxels and places are known: nibabel and scipy read them, and `tests/golden/golden_volume.py` recorded
//! their results in `tests/golden/volume/`.

use std::io::{Read, Write};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use neurosieve::volume::nifti::{Decoded, decode, decode_pair};
use neurosieve::volume::{self, Error};
use neurosieve::volume::{Affine, Volume};
use serde_json::Value;

use super::root;

/// Scans that take more memory than this are refused.
pub const LIMIT: u64 = 64 << 20;

pub fn golden_bytes(name: &str) -> Vec<u8> {
    std::fs::read(root().join("tests/golden/volume").join(name)).expect("golden file")
}

/// A golden file, or the pair whose header has this name.
pub fn golden_file(name: &str) -> Decoded {
    let decoded = match name.contains(".hdr") {
        true => decode_pair(&golden_bytes(name), &golden_bytes(&name.replace(".hdr", ".img")), LIMIT),
        false => decode(&golden_bytes(name), LIMIT),
    };
    decoded.unwrap_or_else(|e| panic!("{name}: {e}"))
}

pub fn golden_json(name: &str) -> Value {
    serde_json::from_slice(&golden_bytes(name)).expect("golden JSON")
}

/// `name` with the little-endian bytes of one header field replaced.
pub fn with_field(name: &str, offset: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = gunzip(&golden_bytes(name));
    bytes[offset..offset + value.len()].copy_from_slice(value);
    bytes
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("array").iter().map(|v| v.as_f64().expect("number")).collect()
}

/// Recorded from `f32` voxels, so the way back is exact.
pub fn voxels(value: &Value) -> Vec<f32> {
    numbers(value).into_iter().map(|v| v as f32).collect()
}

pub fn shape(value: &Value) -> [usize; 3] {
    let n = numbers(value);
    [n[0], n[1], n[2]].map(|v| v as usize)
}

pub fn affine(value: &Value) -> Affine {
    let n = numbers(value);
    Affine(std::array::from_fn(|r| std::array::from_fn(|c| n[4 * r + c])))
}

pub fn assert_affine(got: &Affine, want: &Affine, what: &str) {
    for (g, w) in got.to_row_major().iter().zip(want.to_row_major()) {
        assert!((g - w).abs() < 1e-5 * (1.0 + w.abs()), "{what}: {got:?} is not {want:?}");
    }
}

/// Facts that hold for whatever decodes.
pub fn assert_usable(decoded: &Decoded) {
    let Volume { grid, data } = &decoded.volume;
    assert_eq!(data.len(), grid.len());
    assert!(data.iter().all(|v| v.is_finite()));
    assert!(grid.affine.inverse().is_some());
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

pub fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    GzDecoder::new(bytes).read_to_end(&mut out).expect("valid gzip");
    out
}

/// The kind of the input error that `bytes` must give.
pub fn refusal(bytes: &[u8], limit: u64) -> &'static str {
    refused(decode(bytes, limit))
}

pub fn refused(decoded: volume::Result<Decoded>) -> &'static str {
    match decoded {
        Err(Error { kind, message }) => {
            assert!(!message.is_empty());
            kind
        }
        other => panic!("expected an input error, got {other:?}"),
    }
}
