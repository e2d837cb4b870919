//! Valid files with a few header bytes replaced, to pass the checks that arbitrary bytes seldom pass.
//!
//! Makes a file of either version, byte order and storage with a shape, a type and voxels of the fuzzer's choice,
//! patches it at header offsets, and decodes it plain or as gzip.
#![no_main]

use std::io::Write;

use arbitrary::Arbitrary;
use flate2::{Compression, write::GzEncoder};
use libfuzzer_sys::fuzz_target;
use neurosieve_volume::volume::nifti::{decode, decode_pair};
use neurosieve_volume::{LIMIT_BYTES, check};

#[derive(Debug, Arbitrary)]
struct File {
    nifti2: bool,
    big_endian: bool,
    pair: bool,
    packed: bool,
    shape: [u8; 3],
    datatype: Type,
    sform: Option<[f32; 12]>,
    qform: Option<[f32; 6]>,
    pixdim: [f32; 4],
    scaling: [f32; 2],
    units: u8,
    patches: Vec<(u16, u8)>,
    voxels: Vec<u8>,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Type {
    Uint8 = 2,
    Int16 = 4,
    Int32 = 8,
    Float32 = 16,
    Float64 = 64,
    Int8 = 256,
    Uint16 = 512,
    Uint32 = 768,
    Int64 = 1024,
    Uint64 = 1280,
}

impl Type {
    fn size(self) -> usize {
        match self {
            Self::Uint8 | Self::Int8 => 1,
            Self::Int16 | Self::Uint16 => 2,
            Self::Int32 | Self::Uint32 | Self::Float32 => 4,
            Self::Int64 | Self::Uint64 | Self::Float64 => 8,
        }
    }
}

/// A header of zeros, filled by offset.
struct Header {
    bytes: Vec<u8>,
    nifti2: bool,
    big_endian: bool,
}

impl Header {
    fn put<const N: usize>(&mut self, at: usize, mut little: [u8; N]) {
        if self.big_endian {
            little.reverse();
        }
        self.bytes[at..at + N].copy_from_slice(&little);
    }

    /// An integer field, of 2 bytes in NIfTI-1 and of `wide` bytes in NIfTI-2.
    fn int(&mut self, at: [usize; 2], wide: usize, value: i16) {
        match (self.nifti2, wide) {
            (false, _) => self.put(at[0], value.to_le_bytes()),
            (true, 2) => self.put(at[1], value.to_le_bytes()),
            (true, 4) => self.put(at[1], i32::from(value).to_le_bytes()),
            (true, _) => self.put(at[1], i64::from(value).to_le_bytes()),
        }
    }

    fn floats(&mut self, at: [usize; 2], values: &[f32]) {
        for (i, v) in values.iter().enumerate() {
            if self.nifti2 {
                self.put(at[1] + 8 * i, f64::from(*v).to_le_bytes());
            } else {
                self.put(at[0] + 4 * i, v.to_le_bytes());
            }
        }
    }
}

/// The header by nifti1.h and nifti2.h; offsets are given as `[NIfTI-1, NIfTI-2]`.
fn header(file: &File) -> Vec<u8> {
    let size = if file.nifti2 { 540 } else { 348 };
    let mut h = Header { bytes: vec![0; size], nifti2: file.nifti2, big_endian: file.big_endian };
    h.put(0, (size as i32).to_le_bytes());
    for (i, n) in [3, axis(file.shape[0]), axis(file.shape[1]), axis(file.shape[2])].into_iter().enumerate() {
        h.int([40 + 2 * i, 16 + 8 * i], 8, n as i16);
    }
    h.int([70, 12], 2, file.datatype as i16);
    h.floats([76, 104], &file.pixdim);
    let offset = if file.pair { 0 } else { size as i16 + 4 };
    if file.nifti2 {
        h.put(168, i64::from(offset).to_le_bytes());
    } else {
        h.put(108, f32::from(offset).to_le_bytes());
    }
    h.floats([112, 176], &file.scaling);
    h.bytes[if !file.nifti2 {
        123
    } else if file.big_endian {
        503
    } else {
        500
    }] = file.units;
    if let Some(qform) = &file.qform {
        h.int([252, 344], 4, 1);
        h.floats([256, 352], qform);
    }
    if let Some(sform) = &file.sform {
        h.int([254, 348], 4, 1);
        h.floats([280, 400], sform);
    }
    let magic: &[u8] = match (file.nifti2, file.pair) {
        (false, false) => b"n+1\0",
        (false, true) => b"ni1\0",
        (true, false) => b"n+2\0\r\n\x1a\n",
        (true, true) => b"ni2\0\r\n\x1a\n",
    };
    let at = if file.nifti2 { 4 } else { 344 };
    h.bytes[at..at + magic.len()].copy_from_slice(magic);
    h.bytes
}

/// Voxels along an axis, few enough for a fast run.
fn axis(n: u8) -> usize {
    usize::from(n % 24) + 1
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("memory takes all bytes")
}

fuzz_target!(|file: File| {
    let mut bytes = header(&file);
    for (at, value) in file.patches.iter().take(8) {
        let at = usize::from(*at) % bytes.len();
        bytes[at] = *value;
    }
    let n_bytes = file.shape.map(axis).iter().product::<usize>() * file.datatype.size();
    let voxels: Vec<u8> = file.voxels.iter().copied().cycle().take(n_bytes).collect();
    let pack = |bytes: Vec<u8>| if file.packed { gzip(&bytes) } else { bytes };
    let decoded = if file.pair {
        decode_pair(&pack(bytes), &pack(voxels), LIMIT_BYTES)
    } else {
        bytes.extend([0; 4]);
        bytes.extend(voxels);
        decode(&pack(bytes), LIMIT_BYTES)
    };
    if let Ok(decoded) = decoded {
        check(&decoded);
    }
});
