//! Reading one scan: its file, or both files of a pair.

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::bids::{self, Part};
use super::manifest::ScanEntry;
use crate::error::{Error, Result, TOO_LARGE};
use crate::store::{self, Location};
use crate::volume::nifti::{self, Decoded};

/// The largest scan, in bytes, compressed or not, that is read where no setting says otherwise: by training, evaluation and
/// inspection. A larger one is refused.
pub const MAX_SCAN_BYTES: u64 = 2 << 30;

/// A scan as the store holds it, read whole.
#[derive(Debug, Clone)]
pub enum ScanBytes {
    /// A `.nii` or `.nii.gz`.
    File(Bytes),
    /// A `.hdr` and its `.img`, each of them plain or gzip.
    Pair {
        /// The `.hdr`.
        header: Bytes,
        /// The `.img`.
        voxels: Bytes,
    },
}

impl ScanBytes {
    /// Bytes read, of a pair both together.
    pub fn n_bytes(&self) -> usize {
        match self {
            Self::File(bytes) => bytes.len(),
            Self::Pair { header, voxels } => header.len() + voxels.len(),
        }
    }

    /// The SHA-256 of the bytes; of a pair, that of the header's SHA-256 followed by the image's.
    pub fn sha256(&self) -> [u8; 32] {
        match self {
            Self::File(bytes) => Sha256::digest(bytes).into(),
            Self::Pair { header, voxels } => Sha256::new()
                .chain_update(Sha256::digest(header))
                .chain_update(Sha256::digest(voxels))
                .finalize()
                .into(),
        }
    }

    /// Bytes of the decoded voxels by the header, as [`nifti::decoded_bytes`] gives them.
    pub fn decoded_bytes(&self) -> Option<u64> {
        match self {
            Self::File(bytes) | Self::Pair { header: bytes, .. } => nifti::decoded_bytes(bytes),
        }
    }

    /// The scan's volume; `limit_bytes` as in [`nifti::decode`].
    ///
    /// # Errors
    /// Those of [`nifti::decode`]: [`Error::Input`] with the reason why the bytes are not a usable volume.
    pub fn decode(&self, limit_bytes: u64) -> Result<Decoded> {
        Ok(match self {
            Self::File(bytes) => nifti::decode(bytes, limit_bytes)?,
            Self::Pair { header, voxels } => nifti::decode_pair(header, voxels, limit_bytes)?,
        })
    }
}

/// Reads a scan whole: its file, or both files of a pair.
///
/// An object that was replaced since the listing is refused, so that no result is filed under content that was never
/// read. A scan whose objects have more than `limit_bytes` together is refused, and no object above the limit is read.
///
/// # Errors
/// [`Error::Storage`] with the store's reason; [`Error::Input`] for a scan above the limit (`too_large`) and for half a pair
/// (`half_pair`). Messages name the scan as `scan.uri` does.
pub async fn read(location: &Location, scan: &ScanEntry, limit_bytes: u64) -> Result<ScanBytes> {
    let read = read_files(location, scan, limit_bytes).await;
    read.map_err(|error| match &scan.origin {
        Some(origin) => origin.hide(error, scan),
        None => error,
    })
}

async fn read_files(location: &Location, scan: &ScanEntry, limit_bytes: u64) -> Result<ScanBytes> {
    let address = scan.address();
    let first = read_object(location, address, scan.etag.as_deref(), limit_bytes);
    match (bids::image_part(address), scan.voxels_address()) {
        (Some(Part::Header), Some(uri)) => {
            let header = first.await?;
            let left = limit_bytes.saturating_sub(header.len() as u64);
            let voxels = read_object(location, uri, scan.voxels_etag.as_deref(), left).await?;
            Ok(ScanBytes::Pair { header, voxels })
        }
        (Some(Part::Header), None) => Err(half_pair(address, ".img")),
        (Some(Part::Voxels), _) => Err(half_pair(address, ".hdr")),
        (Some(Part::Whole) | None, _) => first.await.map(ScanBytes::File),
    }
}

async fn read_object(location: &Location, uri: &str, etag: Option<&str>, limit_bytes: u64) -> Result<Bytes> {
    let check_size = |size: u64| {
        if size <= limit_bytes {
            return Ok(());
        }
        Err(Error::input(
            TOO_LARGE,
            format!("{uri} has {size} bytes, more than run.max_scan_mib allows ({limit_bytes} bytes)"),
        ))
    };
    store::read(location, uri, etag, check_size).await
}

fn half_pair(uri: &str, missing: &str) -> Error {
    Error::input(
        "half_pair",
        format!(
            "{uri} is half of a .hdr/.img pair: put the {missing} of the same name beside it, or exclude this file"
        ),
    )
}
