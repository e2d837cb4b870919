//! Volumes to the bytes of a `.nii.gz`.
//!
//! Takes a volume of any [`NiftiVoxel`] type; gives a little-endian NIfTI-1 file, gzipped.

use std::io::Write;

use super::geometry;
use super::header::{Datatype, EXTENDER_BYTES, NIFTI1_BYTES};
use crate::volume::{Grid, Volume};
use flate2::{Compression, write::GzEncoder};

/// A voxel type that [`encode`] can write.
pub trait NiftiVoxel: Copy {
    /// The type's code in the header.
    const CODE: i16;
    /// Appends the voxel's little-endian bytes.
    fn put(self, bytes: &mut Vec<u8>);
}

macro_rules! nifti_voxel {
    ($type:ty, $datatype:expr) => {
        impl NiftiVoxel for $type {
            const CODE: i16 = $datatype as i16;
            fn put(self, bytes: &mut Vec<u8>) {
                bytes.extend_from_slice(&self.to_le_bytes());
            }
        }
    };
}
nifti_voxel!(f32, Datatype::Float32);
nifti_voxel!(u8, Datatype::Uint8);
nifti_voxel!(i16, Datatype::Int16);

/// `xyzt_units` for lengths in mm.
const MILLIMETRES: u8 = 2;
/// The code of a transform to an aligned anatomy, neither the scanner's own space nor a template's.
const ALIGNED: i16 = 2;
/// Noise hardly compresses: above this level the time grows much faster than the files shrink.
const LEVEL: Compression = Compression::new(3);

/// The bytes of a little-endian NIfTI-1 `.nii.gz` of `volume`, unscaled, in mm. The affine is written
/// as sform and, where its axes are at right angles, as qform, both with code 2 (aligned). NIfTI-1 stores it as `f32`.
/// `description` is cut at 79 bytes. The same volume gives the same bytes.
///
/// # Panics
/// If an axis is longer than 32767 voxels, the limit of NIfTI-1.
pub fn encode<T: NiftiVoxel>(volume: &Volume<T>, description: &str) -> Vec<u8> {
    let mut file = header::<T>(&volume.grid, description);
    file.reserve_exact(volume.data.len() * size_of::<T>());
    for voxel in &volume.data {
        voxel.put(&mut file);
    }
    let mut gzip = GzEncoder::new(Vec::with_capacity(file.len() / 2), LEVEL);
    gzip.write_all(&file).and_then(|()| gzip.finish()).expect("memory takes all bytes")
}

/// The header and the four zero bytes that mean "no extensions". Field order: nifti1.h.
fn header<T: NiftiVoxel>(grid: &Grid, description: &str) -> Vec<u8> {
    let quaternion = geometry::quaternion(&grid.affine);
    let ([b, c, d], qfac) = quaternion.unwrap_or(([0.0; 3], 1.0));
    let spacing = grid.spacing();
    let dim = grid.shape.map(|n| i16::try_from(n).expect("a NIfTI-1 axis has at most 32767 voxels"));
    let rows = grid.affine.0;
    let voxel_offset = NIFTI1_BYTES + EXTENDER_BYTES;

    let mut out = Fields(Vec::with_capacity(voxel_offset));
    out.i32(NIFTI1_BYTES as i32).zeros(36);
    out.i16s(&[3, dim[0], dim[1], dim[2], 1, 1, 1, 1]);
    out.zeros(14); // intent
    out.i16s(&[T::CODE, 8 * size_of::<T>() as i16, 0]);
    out.f32s(&[qfac, spacing[0], spacing[1], spacing[2], 0.0, 0.0, 0.0, 0.0]);
    out.f32s(&[voxel_offset as f64, 1.0, 0.0]); // voxel offset, slope, inter
    out.zeros(3).bytes(&[MILLIMETRES]);
    out.zeros(24); // display range, slice timing
    out.text(description, 80).zeros(24);
    out.i16s(&[if quaternion.is_some() { ALIGNED } else { 0 }, ALIGNED]);
    out.f32s(&[b, c, d, rows[0][3], rows[1][3], rows[2][3]]);
    for row in &rows {
        out.f32s(row);
    }
    out.zeros(16).bytes(b"n+1\0").zeros(EXTENDER_BYTES);
    out.0
}

/// Little-endian fields, one after the other.
struct Fields(Vec<u8>);

impl Fields {
    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn zeros(&mut self, n: usize) -> &mut Self {
        self.0.resize(self.0.len() + n, 0);
        self
    }

    fn i32(&mut self, value: i32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn i16s(&mut self, values: &[i16]) {
        for v in values {
            self.bytes(&v.to_le_bytes());
        }
    }

    fn f32s(&mut self, values: &[f64]) {
        for v in values {
            self.bytes(&(*v as f32).to_le_bytes());
        }
    }

    /// Text padded with zeros to `width` bytes, cut at a character so that a terminating zero fits.
    fn text(&mut self, text: &str, width: usize) -> &mut Self {
        let cut = text.floor_char_boundary(width - 1);
        self.bytes(&text.as_bytes()[..cut]).zeros(width - cut)
    }
}
