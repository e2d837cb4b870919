//! NIfTI files in memory to volumes and back: NIfTI-1 and NIfTI-2, `.nii` and `.hdr`/`.img`, plain or gzip.
//!
//! [`decode`] takes the bytes of a `.nii` or `.nii.gz`, [`decode_pair`] those of both halves of a pair. Either gives
//! the voxels as `f32` with `scl_slope` and `scl_inter` applied, x fastest, and the affine from voxel index to world
//! mm (RAS+) that nibabel gives: the sform where its code is positive, else the qform, else voxel sizes around the
//! centre. [`Decoded`] says which of them was used, and whether a qform contradicts the sform. Lengths in metres or
//! micrometres become mm; a file that names no unit is taken to be in mm. NaN and infinite voxels become 0 and are
//! counted.
//!
//! Every unusable file is an [`struct@Error`] of one of these kinds:
//!
//! | kind | the file |
//! |---|---|
//! | `not_nifti` | is empty or has no NIfTI header; the message names what it is instead, if known |
//! | `pointer` | stands for content that git-annex (DataLad) or Git LFS has not fetched |
//! | `analyze` | is ANALYZE 7.5, which does not say which side is left |
//! | `header_pair` | is one half of a `.hdr`/`.img` pair, or a whole file given as a half |
//! | `truncated` | ends before the voxels its header promises |
//! | `corrupt_gzip` | does not decompress, fails its checksum, or has other data after it |
//! | `too_large` | is larger than the caller's limit |
//! | `dimensions`, `four_dimensional` | is not one three-dimensional image |
//! | `datatype` | holds colours, complex numbers, bits or 128-bit floats |
//! | `scaling` | has a scaling that leaves no voxel finite |
//! | `voxel_offset` | has an impossible offset of its voxels |
//! | `spacing`, `affine` | has no usable map from voxels to space, or names a unit in which voxels have impossible sizes |
//! | `constant` | holds no image: all voxels are equal, or none is finite |
//!
//! [`encode()`] gives the bytes of a `.nii.gz` for a volume.

mod encode;
mod foreign;
mod geometry;
mod header;
mod inflate;
mod voxels;

pub use encode::{NiftiVoxel, encode};
pub use foreign::pointer;
pub use geometry::AffineSource;
use header::{Header, NIFTI2_BYTES, Storage};

use super::error::{Error, Result};
use super::{Grid, Volume};

/// A decoded file.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// The voxels, scaled, all finite.
    pub volume: Volume<f32>,
    /// How the file stores a voxel, by numpy's name: `int16`, `float32`.
    pub datatype: String,
    /// Volumes in the file. Always 1: files with more are refused.
    pub n_volumes: usize,
    /// Voxels that were NaN or infinite and are now 0.
    pub n_nonfinite: usize,
    /// The part of the header that gave the affine.
    pub affine_source: AffineSource,
    /// The affine is the sform's, and the qform moves a corner of the image by more than 1 mm or turns an axis by more
    /// than 1 degree. Expected for a scan whose sform leads to a template; otherwise one of the two is wrong.
    pub qform_disagrees: bool,
}

/// Decodes the bytes of a `.nii` or `.nii.gz` (recognised by content, not by name).
///
/// `limit_bytes` bounds both the uncompressed file and the decoded `f32` voxels. The size that the header promises is
/// checked against it before memory is reserved, and decompression stops at it.
///
/// # Errors
/// An [`struct@Error`] of any of the [kinds above](self).
pub fn decode(bytes: &[u8], limit_bytes: u64) -> Result<Decoded> {
    let header = read_header(bytes)?;
    match header.storage {
        Storage::Single => read(&header, bytes, limit_bytes),
        Storage::Pair => Err(Error::new(
            "header_pair",
            "this is the header of a .hdr/.img pair; put the .img of the same name beside it",
        )),
    }
}

/// Decodes a `.hdr` and its `.img`, either of them plain or gzip (recognised by content). `limit_bytes` as in
/// [`decode`].
///
/// # Errors
/// As [`decode`]; `header_pair` where the header is that of a whole file.
pub fn decode_pair(header_bytes: &[u8], image_bytes: &[u8], limit_bytes: u64) -> Result<Decoded> {
    let header = read_header(header_bytes)?;
    if header.storage == Storage::Single {
        return Err(Error::new(
            "header_pair",
            "the header says that its voxels are in the same file, not in an .img beside it; rename it to .nii",
        ));
    }
    if let Some(message) = pointer(image_bytes) {
        return Err(Error::new("pointer", message));
    }
    if inflate::is_gzip(header_bytes) {
        // The header was read from the first bytes alone. Inflating to the end verifies the checksum.
        inflate::inflate(header_bytes, &mut vec![0; header.n_bytes()], limit_bytes)?;
    }
    read(&header, image_bytes, limit_bytes)
}

/// Bytes of memory that decoding needs for the voxels, beside the file itself, from the header at the start of a
/// `.nii`, a `.nii.gz` or a `.hdr`. `None` where that header cannot be read; [`decode`] says why.
pub fn decoded_bytes(bytes: &[u8]) -> Option<u64> {
    let header = read_header(bytes).ok()?;
    let voxels = header.n_voxels()?.checked_mul(size_of::<f32>().max(header.datatype.size()) as u64)?;
    // What lies before the voxels is held beside them until they are converted.
    voxels.checked_add(header.offset().ok()?)
}

/// The header at the start of a file.
fn read_header(bytes: &[u8]) -> Result<Header> {
    if !inflate::is_gzip(bytes) {
        return Header::parse(bytes);
    }
    let (first, broken) = inflate::start(bytes, NIFTI2_BYTES);
    Header::parse(&first).map_err(|e| match broken {
        // Why the gzip ended early says more than that too few bytes came out of it.
        Some(broken) if first.len() < size_of::<i32>() || e.kind == Error::truncated().kind => broken,
        _ => e,
    })
}

/// The volume that `header` describes, with the voxels in `file`.
fn read(header: &Header, file: &[u8], limit: u64) -> Result<Decoded> {
    let placement = geometry::place(header)?;
    let offset = header.offset()?;
    let size = |bytes_per_voxel: usize| header.n_voxels()?.checked_mul(bytes_per_voxel as u64);
    let file_bytes = size(header.datatype.size()).and_then(|n| n.checked_add(offset));
    let (file_bytes, _) =
        file_bytes.zip(size(size_of::<f32>())).filter(|&(a, b)| a.max(b) <= limit).ok_or_else(|| {
            Error::new(
                "too_large",
                format!(
                    "the header promises {:?} voxels of {}, which take more memory than the limit of {limit} bytes; \
                 raise the limit or resample the scan",
                    header.shape,
                    header.datatype.name()
                ),
            )
        })?;

    let available = if inflate::is_gzip(file) { inflate::most_bytes(file) } else { file.len() as u64 };
    if file_bytes > available {
        return Err(Error::truncated());
    }

    // Both are within a small multiple of what is already in memory.
    let (file_bytes, n_voxels) = (file_bytes as usize, header.shape.iter().product());
    let mut buffer = voxels::buffer(n_voxels, file_bytes)?;
    unpack(header, file, voxels::tail(&mut buffer, file_bytes), limit)?;
    let voxels = voxels::convert(buffer, header)?;
    if !voxels.varies {
        let what = if voxels.n_nonfinite == voxels.data.len() { "is finite" } else { "differs from the others" };
        return Err(Error::new(
            "constant",
            format!("no voxel {what}: there is nothing to screen; export the scan again"),
        ));
    }
    Ok(Decoded {
        volume: Volume { grid: Grid { shape: header.shape, affine: placement.affine }, data: voxels.data },
        datatype: header.datatype.name().to_owned(),
        n_volumes: 1,
        n_nonfinite: voxels.n_nonfinite,
        affine_source: placement.source,
        qform_disagrees: placement.qform_disagrees,
    })
}

/// Fills `out` with the first bytes of a file's content. Further bytes are ignored up to `limit` and refused beyond it.
fn unpack(header: &Header, file: &[u8], out: &mut [u8], limit: u64) -> Result<()> {
    if inflate::is_gzip(file) {
        let inflated = inflate::inflate(file, out, limit);
        // The voxels of a plain .img may happen to begin with gzip's magic.
        if inflated.is_ok() || header.storage == Storage::Single || file.len() != out.len() {
            return inflated;
        }
    }
    if file.len() as u64 > limit {
        return Err(Error::too_long());
    }
    out.copy_from_slice(&file[..out.len()]);
    Ok(())
}
