//! Raw bytes of any real voxel type to finite `f32`.

use std::io::Read;

use nifti::{Endianness, NiftiHeader, NiftiType};

use super::broken_stream;
use crate::error::{Error, Result};

/// Voxels on their way into a volume.
pub(super) struct Voxels {
    pub data: Vec<f32>,
    pub n_nonfinite: usize,
    /// Whether two finite voxels differ.
    pub varies: bool,
    first_finite: Option<f32>,
}

/// Voxels converted at once: their bytes stay in the cache between inflating and converting.
const CHUNK_VOXELS: usize = 16 * 1024;

/// Reads `n` voxels and applies the header's scaling, as `raw * slope + inter` in `f64` and then
/// rounded, like nibabel. A slope of 0, NaN or infinity means unscaled; a NaN or infinite inter is 0.
pub(super) fn read(source: &mut impl Read, header: &NiftiHeader, datatype: NiftiType, n: usize) -> Result<Voxels> {
    let slope = f64::from(header.scl_slope);
    let scaling = match f64::from(header.scl_inter) {
        _ if slope == 0.0 || !slope.is_finite() => (1.0, 0.0),
        inter if inter.is_finite() => (slope, inter),
        _ => (slope, 0.0),
    };
    let little = header.endianness == Endianness::Little;
    // Each arm is one monomorphic loop, which the compiler vectorises.
    macro_rules! convert {
        ($type:ty) => {
            if little {
                convert(source, n, scaling, |raw| <$type>::from_le_bytes(raw) as f64)
            } else {
                convert(source, n, scaling, |raw| <$type>::from_be_bytes(raw) as f64)
            }
        };
    }
    match datatype {
        NiftiType::Uint8 => convert!(u8),
        NiftiType::Int8 => convert!(i8),
        NiftiType::Uint16 => convert!(u16),
        NiftiType::Int16 => convert!(i16),
        NiftiType::Uint32 => convert!(u32),
        NiftiType::Int32 => convert!(i32),
        NiftiType::Uint64 => convert!(u64),
        NiftiType::Int64 => convert!(i64),
        NiftiType::Float32 => convert!(f32),
        NiftiType::Float64 => convert!(f64),
        other => Err(Error::Bug(format!("voxel type {other:?} passed the check for real types"))),
    }
}

fn convert<const SIZE: usize>(
    source: &mut impl Read,
    n: usize,
    (slope, inter): (f64, f64),
    value: impl Fn([u8; SIZE]) -> f64,
) -> Result<Voxels> {
    let mut voxels = Voxels { data: Vec::new(), n_nonfinite: 0, varies: false, first_finite: None };
    voxels.data.try_reserve_exact(n).map_err(|_| {
        Error::input(
            "too_large",
            format!("there is no memory for {n} voxels; lower the size limit or screen fewer scans at once"),
        )
    })?;
    let mut raw = vec![0; CHUNK_VOXELS * SIZE];
    while voxels.data.len() < n {
        let start = voxels.data.len();
        let bytes = &mut raw[..CHUNK_VOXELS.min(n - start) * SIZE];
        source.read_exact(bytes).map_err(broken_stream)?;
        let (elements, _) = bytes.as_chunks::<SIZE>();
        voxels.data.extend(elements.iter().map(|&raw| (value(raw) * slope + inter) as f32));
        voxels.settle(start);
    }
    Ok(voxels)
}

impl Voxels {
    /// Makes the voxels from `start` on finite, and notes whether they vary.
    fn settle(&mut self, start: usize) {
        let new = &mut self.data[start..];
        if !self.varies {
            // Stops at the first difference: all but free in a real image.
            let mut finite = new.iter().copied().filter(|v| v.is_finite());
            self.first_finite = self.first_finite.or_else(|| finite.next());
            self.varies = finite.any(|v| Some(v) != self.first_finite);
        }
        let n_nonfinite = new.iter().filter(|v| !v.is_finite()).count();
        if n_nonfinite > 0 {
            self.n_nonfinite += n_nonfinite;
            new.iter_mut().filter(|v| !v.is_finite()).for_each(|v| *v = 0.0);
        }
    }
}
