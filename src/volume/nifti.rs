//! NIfTI-1 single files (`.nii`, `.nii.gz`) in memory, to volumes and back.
//!
//! [`decode`] takes a file's bytes and gives its voxels as `f32` with `scl_slope` and `scl_inter`
//! applied, x fastest, and the affine from voxel index to world mm (RAS+) that nibabel would give:
//! sform where its code is positive, else qform, else voxel sizes around the centre. Lengths in
//! metres or micrometres become mm; a file that names no unit is taken to be in mm. NaN and infinite
//! voxels become 0 and are counted.
//!
//! Every unusable file is an [`Error::Input`] of one of these kinds:
//!
//! | kind | the file |
//! |---|---|
//! | `not_nifti` | is empty or has no NIfTI-1 header |
//! | `nifti2`, `header_pair` | is NIfTI-2, or one half of a `.hdr`/`.img` pair |
//! | `truncated` | ends before the voxels its header promises |
//! | `corrupt_gzip` | does not decompress, or fails its checksum |
//! | `too_large` | is larger than the caller's limit |
//! | `dimensions`, `four_dimensional` | is not one three-dimensional image |
//! | `datatype` | holds colours, complex numbers or 128-bit floats |
//! | `voxel_offset` | puts its voxels at an impossible place |
//! | `spacing`, `affine` | places its voxels nowhere in space |
//! | `constant` | shows nothing: all voxels equal or none finite |
//!
//! [`encode()`] gives the bytes of a `.nii.gz` for a volume.

mod encode;
mod geometry;
mod voxels;

use std::io::{self, Read};

use flate2::bufread::MultiGzDecoder;
use nifti::{NiftiError, NiftiHeader, NiftiType, header::MAGIC_CODE_NI1};

pub use encode::{NiftiVoxel, encode};

use super::{Grid, Volume};
use crate::error::{Error, Result};

/// A decoded file.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// The voxels, scaled, all finite.
    pub volume: Volume<f32>,
    /// How the file stores a voxel, in numpy's words: `int16`, `float32`.
    pub datatype: String,
    /// Volumes in the file; always 1, as files with more are refused.
    pub n_volumes: usize,
    /// Voxels that were NaN or infinite and are now 0.
    pub n_nonfinite: usize,
}

const HEADER_BYTES: usize = 348;
/// Header plus the four bytes that announce extensions: no single file's voxels start earlier.
const MIN_VOXEL_OFFSET: f32 = 352.0;
/// Deflate's best case is 258 bytes from 2 bits, so no gzip grows more than this.
const MAX_DEFLATE_RATIO: u64 = 1032;

/// Decodes the bytes of a `.nii` or `.nii.gz` (told apart by content, not by name).
///
/// `limit_bytes` bounds both the uncompressed file and the decoded `f32` voxels. The header's promise
/// is checked against it before memory is reserved, and decompression stops there.
pub fn decode(bytes: &[u8], limit_bytes: u64) -> Result<Decoded> {
    let len = bytes.len() as u64;
    if bytes.starts_with(&[0x1f, 0x8b]) {
        read(MultiGzDecoder::new(bytes), len.saturating_mul(MAX_DEFLATE_RATIO), limit_bytes)
    } else {
        read(bytes, len, limit_bytes)
    }
}

/// Decodes from `source`, which yields at most `available` bytes.
fn read(mut source: impl Read, available: u64, limit: u64) -> Result<Decoded> {
    let header = read_header(&mut source)?;
    let shape = shape(&header)?;
    let datatype = header
        .data_type()
        .map_err(|_| Error::input("datatype", format!("datatype code {} is not in NIfTI-1", header.datatype)))?;
    let name = real_type_name(datatype)?;
    let affine = geometry::affine(&header, shape)?;

    // Each axis is at most i16::MAX long, so the products stay far below u64::MAX.
    let n_voxels = shape.iter().map(|&n| n as u64).product::<u64>();
    let offset = voxel_offset(&header)?;
    let file_bytes = offset + n_voxels * datatype.size_of() as u64;
    let needed = file_bytes.max(n_voxels * size_of::<f32>() as u64);
    if needed > limit {
        return Err(Error::input(
            "too_large",
            format!(
                "the header promises {shape:?} voxels, {needed} bytes in memory, over the limit of {limit}; \
                 raise the limit or resample the scan"
            ),
        ));
    }
    if file_bytes > available {
        return Err(truncated());
    }

    skip(&mut source, offset - HEADER_BYTES as u64)?;
    let voxels = voxels::read(&mut source, &header, datatype, n_voxels as usize)?;
    drain(source, limit - file_bytes)?;
    if !voxels.varies {
        let what = if voxels.n_nonfinite == voxels.data.len() { "is finite" } else { "differs from the others" };
        return Err(Error::input(
            "constant",
            format!("no voxel {what}: there is nothing to screen; export the scan again"),
        ));
    }
    Ok(Decoded {
        volume: Volume { grid: Grid { shape, affine }, data: voxels.data },
        datatype: name.to_owned(),
        n_volumes: 1,
        n_nonfinite: voxels.n_nonfinite,
    })
}

/// Reads and checks the header; `source` then stands at byte 348.
fn read_header(source: &mut impl Read) -> Result<NiftiHeader> {
    let mut raw = Vec::with_capacity(HEADER_BYTES);
    let ended = source.by_ref().take(HEADER_BYTES as u64).read_to_end(&mut raw);
    let size = raw.first_chunk::<4>().map(|b| [i32::from_le_bytes(*b), i32::from_be_bytes(*b)]);
    match size {
        Some(size) if size.contains(&540) => {
            return Err(Error::input(
                "nifti2",
                "this is NIfTI-2; convert it to NIfTI-1 (nifti_tool, nibabel or FSL can)",
            ));
        }
        Some(size) if size.contains(&(HEADER_BYTES as i32)) => {}
        // Nothing to judge by: what ended the bytes says more than that they do not look like NIfTI.
        None if ended.is_err() => {}
        _ => return Err(not_nifti()),
    }
    ended.map_err(broken_stream)?;
    if raw.len() < HEADER_BYTES {
        return Err(truncated());
    }
    let header = NiftiHeader::from_reader(raw.as_slice()).map_err(|e| match e {
        NiftiError::Io(e) => broken_stream(e),
        _ => not_nifti(),
    })?;
    if &header.magic == MAGIC_CODE_NI1 {
        return Err(Error::input(
            "header_pair",
            "this is half of a .hdr/.img pair; give the single-file .nii or .nii.gz",
        ));
    }
    // The byte order is told by dim[0]; where that is nonsense the size above comes out swapped.
    if header.sizeof_hdr != HEADER_BYTES as i32 {
        return Err(dimensions("the number of axes is not within 1 to 7"));
    }
    Ok(header)
}

/// Voxels along x, y, z; refuses more than one volume.
fn shape(header: &NiftiHeader) -> Result<[usize; 3]> {
    let dim = header.dim().map_err(|e| dimensions(&e.to_string()))?;
    // The field is a signed 16-bit number that the parser reads as unsigned.
    if dim.iter().any(|&n| n > i16::MAX as u16) {
        return Err(dimensions("an axis has a negative length"));
    }
    let &[nx, ny, nz, ref rest @ ..] = dim else {
        return Err(dimensions(&format!("the image has {} axes", dim.len())));
    };
    if rest.iter().any(|&n| n > 1) {
        return Err(Error::input(
            "four_dimensional",
            format!(
                "the file holds more than one volume (shape {dim:?}); \
                 split it or average over time and give one 3-D image"
            ),
        ));
    }
    Ok([nx, ny, nz].map(usize::from))
}

/// Bytes before the first voxel.
fn voxel_offset(header: &NiftiHeader) -> Result<u64> {
    let offset = header.vox_offset;
    // NaN fails the comparison; above 2^24 an f32 no longer tells single bytes apart.
    if !(MIN_VOXEL_OFFSET..=16_777_216.0).contains(&offset) || offset.fract() != 0.0 {
        return Err(Error::input(
            "voxel_offset",
            format!(
                "the header puts the voxels at byte {offset}, which cannot be; \
                 write the file again with nibabel or dcm2niix"
            ),
        ));
    }
    Ok(offset as u64)
}

/// numpy's name of a real voxel type.
fn real_type_name(datatype: NiftiType) -> Result<&'static str> {
    Ok(match datatype {
        NiftiType::Uint8 => "uint8",
        NiftiType::Int8 => "int8",
        NiftiType::Uint16 => "uint16",
        NiftiType::Int16 => "int16",
        NiftiType::Uint32 => "uint32",
        NiftiType::Int32 => "int32",
        NiftiType::Uint64 => "uint64",
        NiftiType::Int64 => "int64",
        NiftiType::Float32 => "float32",
        NiftiType::Float64 => "float64",
        other => {
            return Err(Error::input(
                "datatype",
                format!(
                    "voxels are {other:?}; give one real number per voxel \
                     (a magnitude image, not colours or complex data)"
                ),
            ));
        }
    })
}

/// Passes over `n` bytes: header extensions.
fn skip(source: &mut impl Read, n: u64) -> Result<()> {
    let skipped = io::copy(&mut source.by_ref().take(n), &mut io::sink()).map_err(broken_stream)?;
    if skipped == n { Ok(()) } else { Err(truncated()) }
}

/// Reads on to the end, where gzip's checksum stands; bytes after the voxels are otherwise ignored.
fn drain(source: impl Read, at_most: u64) -> Result<()> {
    let rest = io::copy(&mut source.take(at_most.saturating_add(1)), &mut io::sink()).map_err(broken_stream)?;
    if rest > at_most {
        return Err(Error::input(
            "too_large",
            "the file goes on after its voxels, past the limit; write it again with nibabel or dcm2niix",
        ));
    }
    Ok(())
}

/// What a failed read means: the bytes are in memory, so it is never the storage's fault.
fn broken_stream(e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => truncated(),
        _ => {
            Error::input("corrupt_gzip", format!("the gzip data is damaged ({e}); copy the file again from its source"))
        }
    }
}

fn truncated() -> Error {
    Error::input("truncated", "the file ends before the voxels its header promises; copy it again from its source")
}

fn not_nifti() -> Error {
    Error::input("not_nifti", "this is no NIfTI-1 file (no such header); convert it, for example with dcm2niix")
}

fn dimensions(why: &str) -> Error {
    Error::input("dimensions", format!("this is not one three-dimensional image: {why}"))
}
