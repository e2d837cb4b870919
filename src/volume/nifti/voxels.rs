//! The bytes of voxels to finite `f32`.
//!
//! Takes the bytes of a file and its header; gives scaled voxels, x fastest, with NaN and infinite ones set to 0 and
//! counted. Refuses a scaling that leaves no voxel finite (`scaling`).

use std::ops::Range;

use super::header::{Datatype, Header};
use crate::volume::error::{Error, Result};

/// Converted voxels.
pub(super) struct Voxels {
    pub data: Vec<f32>,
    pub n_nonfinite: usize,
    /// Whether two finite voxels differ.
    pub varies: bool,
    first_finite: Option<f32>,
}

/// Voxels converted at a time: a second pass over them finds them in the nearest cache.
const CHUNK_VOXELS: usize = 2 * 1024;

/// A buffer of zeros, long enough for `n` voxels and for the `file_bytes` bytes of their file.
///
/// The file goes to the end of the buffer and is converted from its start, so that no voxel overwrites bytes that are
/// still to be read. A second buffer would cost more in fresh pages than the arithmetic does.
pub(super) fn buffer(n: usize, file_bytes: usize) -> Result<Vec<f32>> {
    let len = n.max(file_bytes.div_ceil(size_of::<f32>()));
    // Allocated twice: only `try_reserve_exact` can fail gracefully, and only `vec!` gets pages that are already 0.
    Vec::<f32>::new().try_reserve_exact(len).map_err(|_| {
        Error::new(
            "too_large",
            format!("there is no memory for {n} voxels; lower the size limit or screen fewer scans at once"),
        )
    })?;
    Ok(vec![0.0; len])
}

/// The last `file_bytes` bytes of `buffer`, where the file goes.
pub(super) fn tail(buffer: &mut [f32], file_bytes: usize) -> &mut [u8] {
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(buffer);
    let start = bytes.len() - file_bytes;
    &mut bytes[start..]
}

/// Converts the voxels at the end of `buffer`, of the header's shape and type: `raw * slope + inter` in `f64`, then
/// rounded to `f32`, like nibabel.
pub(super) fn convert(buffer: Vec<f32>, header: &Header) -> Result<Voxels> {
    let n = header.shape.iter().product();
    let scaling = scaling(header)?;
    macro_rules! convert {
        ($type:ty) => {
            if header.little_endian {
                scaled(buffer, n, scaling, |bytes| <$type>::from_le_bytes(bytes) as f64)
            } else {
                scaled(buffer, n, scaling, |bytes| <$type>::from_be_bytes(bytes) as f64)
            }
        };
    }
    let mut voxels = match header.datatype {
        Datatype::Uint8 => convert!(u8),
        Datatype::Int8 => convert!(i8),
        Datatype::Uint16 => convert!(u16),
        Datatype::Int16 => convert!(i16),
        Datatype::Uint32 => convert!(u32),
        Datatype::Int32 => convert!(i32),
        Datatype::Uint64 => convert!(u64),
        Datatype::Int64 => convert!(i64),
        Datatype::Float32 => convert!(f32),
        Datatype::Float64 => convert!(f64),
    };
    voxels.data.shrink_to_fit();
    Ok(voxels)
}

/// Slope and inter; `None` where voxels are used as stored, which a slope of 0, NaN or infinity also means.
fn scaling(header: &Header) -> Result<Option<(f64, f64)>> {
    let Header { slope, inter, .. } = *header;
    if slope == 0.0 || !slope.is_finite() || (slope == 1.0 && inter == 0.0) {
        return Ok(None);
    }
    if !inter.is_finite() {
        return Err(Error::new(
            "scaling",
            format!(
                "the header scales voxels by {slope} but adds {inter}, so that no voxel is finite; \
                 convert the scan again from its source"
            ),
        ));
    }
    Ok(Some((slope, inter)))
}

fn scaled<const SIZE: usize>(
    buffer: Vec<f32>,
    n: usize,
    scaling: Option<(f64, f64)>,
    value: impl Fn([u8; SIZE]) -> f64,
) -> Voxels {
    match scaling {
        None => in_place(buffer, n, |bytes| value(bytes) as f32),
        Some((slope, inter)) => in_place(buffer, n, |bytes| (value(bytes) * slope + inter) as f32),
    }
}

/// One loop for each type, byte order and scaling, so that the compiler vectorises it.
fn in_place<const SIZE: usize>(buffer: Vec<f32>, n: usize, voxel: impl Fn([u8; SIZE]) -> f32) -> Voxels {
    let mut voxels = Voxels { data: buffer, n_nonfinite: 0, varies: false, first_finite: None };
    let mut raw = [[0; SIZE]; CHUNK_VOXELS];
    for start in (0..n).step_by(CHUNK_VOXELS) {
        let chunk = start..n.min(start + CHUNK_VOXELS);
        let raw = &mut raw[..chunk.len()];
        let left = tail(&mut voxels.data, (n - start) * SIZE);
        raw.as_flattened_mut().copy_from_slice(&left[..chunk.len() * SIZE]);
        for (to, &bytes) in voxels.data[chunk.clone()].iter_mut().zip(&*raw) {
            *to = voxel(bytes);
        }
        voxels.make_finite(chunk);
    }
    voxels.data.truncate(n);
    voxels
}

impl Voxels {
    /// Sets NaN and infinite voxels among these to 0, and notes whether voxels vary.
    fn make_finite(&mut self, which: Range<usize>) {
        let new = &mut self.data[which];
        if !self.varies {
            // Stops at the first difference, which a real image has early.
            let mut finite = new.iter().copied().filter(|v| v.is_finite());
            self.first_finite = self.first_finite.or_else(|| finite.next());
            self.varies = finite.any(|v| Some(v) != self.first_finite);
        }
        let n_nonfinite = new.iter().map(|v| u32::from(!v.is_finite())).sum::<u32>();
        if n_nonfinite > 0 {
            self.n_nonfinite += n_nonfinite as usize;
            new.iter_mut().filter(|v| !v.is_finite()).for_each(|v| *v = 0.0);
        }
    }
}
