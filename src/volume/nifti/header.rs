//! The fields of a NIfTI header that say what the voxels are and where they lie.
//!
//! Takes the first bytes of a file; gives a [`Header`], whatever the version and byte order. Refuses what is no NIfTI
//! header, and an array that is not one volume of real numbers; [`geometry`](super::geometry) checks the placement.
//! Layout: nifti1.h and nifti2.h, <https://nifti.nimh.nih.gov>.

use super::foreign;
use crate::volume::error::{Error, Result};

/// Bytes of a NIfTI-1 header.
pub(super) const NIFTI1_BYTES: usize = 348;
/// Bytes of a NIfTI-2 header, the longest there is.
pub(super) const NIFTI2_BYTES: usize = 540;
/// The four bytes after a header that announce extensions. The voxels of a `.nii` start after them.
pub(super) const EXTENDER_BYTES: usize = 4;

/// How voxels are stored: NIfTI's real number types, with their codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Datatype {
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

impl Datatype {
    fn from_code(code: i16) -> Result<Self> {
        let other = match code {
            2 => return Ok(Self::Uint8),
            4 => return Ok(Self::Int16),
            8 => return Ok(Self::Int32),
            16 => return Ok(Self::Float32),
            64 => return Ok(Self::Float64),
            256 => return Ok(Self::Int8),
            512 => return Ok(Self::Uint16),
            768 => return Ok(Self::Uint32),
            1024 => return Ok(Self::Int64),
            1280 => return Ok(Self::Uint64),
            1 => "single bits",
            32 | 1792 | 2048 => "complex numbers",
            128 | 2304 => "colours",
            1536 => "128-bit floating-point numbers",
            _ => {
                let message = format!("the datatype code {code} is not in the NIfTI standard; convert the scan again");
                return Err(Error::new("datatype", message));
            }
        };
        Err(Error::new(
            "datatype",
            format!("the voxels are {other}; give one real number per voxel of at most 64 bits (a magnitude image)"),
        ))
    }

    /// numpy's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Uint8 => "uint8",
            Self::Int16 => "int16",
            Self::Int32 => "int32",
            Self::Float32 => "float32",
            Self::Float64 => "float64",
            Self::Int8 => "int8",
            Self::Uint16 => "uint16",
            Self::Uint32 => "uint32",
            Self::Int64 => "int64",
            Self::Uint64 => "uint64",
        }
    }

    /// Bytes of a voxel.
    pub(super) fn size(self) -> usize {
        match self {
            Self::Uint8 | Self::Int8 => 1,
            Self::Int16 | Self::Uint16 => 2,
            Self::Int32 | Self::Uint32 | Self::Float32 => 4,
            Self::Int64 | Self::Uint64 | Self::Float64 => 8,
        }
    }
}

/// Which file holds the voxels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Storage {
    /// In this file, after the header.
    Single,
    /// In the `.img` beside this `.hdr`.
    Pair,
}

/// A header. Its placement and its offset are not checked yet.
#[derive(Debug, Clone)]
pub(super) struct Header {
    pub version: u8,
    pub storage: Storage,
    pub little_endian: bool,
    /// Voxels along x, y, z; all at least 1.
    pub shape: [usize; 3],
    pub datatype: Datatype,
    /// Bytes before the first voxel, as stored.
    pub offset: f64,
    pub slope: f64,
    pub inter: f64,
    /// `pixdim[0]`, the handedness of the qform, and the voxel size along x, y, z.
    pub pixdim: [f64; 4],
    pub qform_code: i32,
    pub sform_code: i32,
    /// b, c, d of the qform's unit quaternion.
    pub quaternion: [f64; 3],
    pub qoffset: [f64; 3],
    pub srow: [[f64; 4]; 3],
    /// The unit of length.
    pub unit: Unit,
}

/// A unit of length of `xyzt_units`; a file that names none is taken to be in mm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Metre,
    Millimetre,
    Micrometre,
}

impl Unit {
    fn from_code(xyzt_units: u8) -> Self {
        match xyzt_units & 7 {
            1 => Self::Metre,
            3 => Self::Micrometre,
            _ => Self::Millimetre,
        }
    }

    /// Its length in mm.
    pub(super) fn mm(self) -> f64 {
        match self {
            Self::Metre => 1000.0,
            Self::Millimetre => 1.0,
            Self::Micrometre => 0.001,
        }
    }

    /// Its name in messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Metre => "metres",
            Self::Millimetre => "millimetres",
            Self::Micrometre => "micrometres",
        }
    }
}

impl Header {
    /// Reads the header at the start of `bytes`, at most [`NIFTI2_BYTES`] of them.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let size: [u8; 4] = *bytes.first_chunk().ok_or_else(|| foreign::refusal(bytes))?;
        let (version, little_endian) = match (i32::from_le_bytes(size), i32::from_be_bytes(size)) {
            (348, _) => (1, true),
            (_, 348) => (1, false),
            (540, _) => (2, true),
            (_, 540) => (2, false),
            _ => return Err(foreign::refusal(bytes)),
        };
        let n_bytes = if version == 1 { NIFTI1_BYTES } else { NIFTI2_BYTES };
        let fields = Fields { bytes: bytes.get(..n_bytes).ok_or_else(Error::truncated)?, little_endian };
        if version == 1 { fields.nifti1() } else { fields.nifti2() }
    }

    /// Bytes of the header itself.
    pub(super) fn n_bytes(&self) -> usize {
        if self.version == 1 { NIFTI1_BYTES } else { NIFTI2_BYTES }
    }

    /// Number of voxels; `None` where it exceeds a `u64`.
    pub(super) fn n_voxels(&self) -> Option<u64> {
        self.shape.iter().try_fold(1u64, |n, &axis| n.checked_mul(axis as u64))
    }

    /// Bytes before the first voxel, checked.
    pub(super) fn offset(&self) -> Result<u64> {
        let first = match self.storage {
            Storage::Single => (self.n_bytes() + EXTENDER_BYTES) as f64,
            Storage::Pair => 0.0,
        };
        // NaN fails the comparison. Extensions before the voxels may have any length; whether the file is that long is
        // checked where it is read. An f64 holds every byte offset below 2^53.
        if !(first..=9_007_199_254_740_992.0).contains(&self.offset) || self.offset.fract() != 0.0 {
            return Err(Error::new(
                "voxel_offset",
                format!(
                    "the header puts the voxels at byte {}, which is impossible; \
                     write the file again with nibabel or dcm2niix",
                    self.offset
                ),
            ));
        }
        Ok(self.offset as u64)
    }
}

/// The bytes of a complete header, read by offset. All offsets below lie within them.
struct Fields<'a> {
    bytes: &'a [u8],
    little_endian: bool,
}

impl Fields<'_> {
    fn nifti1(&self) -> Result<Header> {
        let storage = match &self.bytes[344..348] {
            b"n+1\0" => Storage::Single,
            b"ni1\0" => Storage::Pair,
            _ => return Err(analyze()),
        };
        Ok(Header {
            version: 1,
            storage,
            little_endian: self.little_endian,
            shape: shape(std::array::from_fn(|i| i64::from(self.i16(40 + 2 * i))))?,
            datatype: Datatype::from_code(self.i16(70))?,
            offset: self.f32(108),
            slope: self.f32(112),
            inter: self.f32(116),
            pixdim: self.f32s(76),
            qform_code: i32::from(self.i16(252)),
            sform_code: i32::from(self.i16(254)),
            quaternion: self.f32s(256),
            qoffset: self.f32s(268),
            srow: [280, 296, 312].map(|at| self.f32s(at)),
            unit: Unit::from_code(self.bytes[123]),
        })
    }

    fn nifti2(&self) -> Result<Header> {
        // The last four bytes hold the line breaks of every system, so that a copy in text mode damages them.
        let storage = match &self.bytes[4..12] {
            b"n+2\0\r\n\x1a\n" => Storage::Single,
            b"ni2\0\r\n\x1a\n" => Storage::Pair,
            _ => return Err(foreign::refusal(self.bytes)),
        };
        Ok(Header {
            version: 2,
            storage,
            little_endian: self.little_endian,
            shape: shape(std::array::from_fn(|i| self.i64(16 + 8 * i)))?,
            datatype: Datatype::from_code(self.i16(12))?,
            offset: self.i64(168) as f64,
            slope: self.f64(176),
            inter: self.f64(184),
            pixdim: self.f64s(104),
            qform_code: self.i32(344),
            sform_code: self.i32(348),
            quaternion: self.f64s(352),
            qoffset: self.f64s(376),
            srow: [400, 432, 464].map(|at| self.f64s(at)),
            unit: Unit::from_code(self.i32(500) as u8),
        })
    }

    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes: [u8; N] = std::array::from_fn(|i| self.bytes[at + i]);
        if !self.little_endian {
            bytes.reverse();
        }
        bytes
    }

    fn i16(&self, at: usize) -> i16 {
        i16::from_le_bytes(self.array(at))
    }

    fn i32(&self, at: usize) -> i32 {
        i32::from_le_bytes(self.array(at))
    }

    fn i64(&self, at: usize) -> i64 {
        i64::from_le_bytes(self.array(at))
    }

    fn f32(&self, at: usize) -> f64 {
        f64::from(f32::from_le_bytes(self.array(at)))
    }

    fn f64(&self, at: usize) -> f64 {
        f64::from_le_bytes(self.array(at))
    }

    fn f32s<const N: usize>(&self, at: usize) -> [f64; N] {
        std::array::from_fn(|i| self.f32(at + 4 * i))
    }

    fn f64s<const N: usize>(&self, at: usize) -> [f64; N] {
        std::array::from_fn(|i| self.f64(at + 8 * i))
    }
}

/// Voxels along x, y, z from `dim`, whose first element counts the axes; refuses more than one volume.
fn shape(dim: [i64; 8]) -> Result<[usize; 3]> {
    let axes = match usize::try_from(dim[0]) {
        Ok(n @ 3..=7) => &dim[1..=n],
        Ok(n @ 1..=2) => return Err(dimensions(&format!("it has {n} axes"))),
        _ => return Err(dimensions("the number of axes is not within 1 to 7")),
    };
    if axes.iter().any(|&n| n < 1) {
        return Err(dimensions(&format!("its shape is {axes:?}")));
    }
    if axes[3..].iter().any(|&n| n > 1) {
        // Images of one slice exist, but no head is one: here slices or channels are on the wrong axis.
        let what = if axes[..3].contains(&1) {
            "the axes are out of order: write it with x, y and z first, time or channels last, and"
        } else {
            "split it, or average over time, and"
        };
        return Err(Error::new(
            "four_dimensional",
            format!("the file holds more than one volume (shape {axes:?}); {what} give one 3-D image"),
        ));
    }
    let [nx, ny, nz] = [axes[0], axes[1], axes[2]].map(usize::try_from);
    match (nx, ny, nz) {
        (Ok(nx), Ok(ny), Ok(nz)) => Ok([nx, ny, nz]),
        _ => Err(dimensions(&format!("its shape is {axes:?}"))),
    }
}

fn dimensions(why: &str) -> Error {
    Error::new("dimensions", format!("this is not one three-dimensional image: {why}"))
}

fn analyze() -> Error {
    Error::new(
        "analyze",
        "this looks like ANALYZE 7.5 (a header without NIfTI's magic), which does not distinguish left from \
         right; convert the scan from its DICOM files with dcm2niix",
    )
}
