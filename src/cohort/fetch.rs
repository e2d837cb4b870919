//! Reading one scan's bytes.

use bytes::Bytes;
use object_store::GetOptions;

use super::bids::{self, Part};
use super::store::with_retries;
use super::{Location, ScanEntry};
use crate::error::{Error, Result};
use crate::volume::nifti::{self, Decoded};

/// A scan as it lies in the store, read whole.
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
    /// How many bytes were read.
    pub fn n_bytes(&self) -> usize {
        match self {
            Self::File(bytes) => bytes.len(),
            Self::Pair { header, voxels } => header.len() + voxels.len(),
        }
    }

    /// Bytes of the decoded voxels, as [`nifti::decoded_bytes`] tells.
    pub fn decoded_bytes(&self) -> Option<u64> {
        match self {
            Self::File(bytes) | Self::Pair { header: bytes, .. } => nifti::decoded_bytes(bytes),
        }
    }

    /// The scan's volume; `limit_bytes` as in [`nifti::decode`].
    ///
    /// # Errors
    /// [`Error::Input`] of the kinds of [`nifti`].
    pub fn decode(&self, limit_bytes: u64) -> Result<Decoded> {
        Ok(match self {
            Self::File(bytes) => nifti::decode(bytes, limit_bytes)?,
            Self::Pair { header, voxels } => nifti::decode_pair(header, voxels, limit_bytes)?,
        })
    }
}

/// Reads a scan whole: its file, or both files of a pair.
///
/// An object that was replaced since the listing saw it is refused, so that no result is filed under content that was
/// never read. `limit_bytes`: a scan whose objects are larger in all is refused; none of them is read that is larger.
///
/// # Errors
/// [`Error::Storage`], with the store's reason; [`Error::Input`] for a scan above the limit (`too_large`) and for half
/// a pair (`half_pair`).
pub async fn read(location: &Location, scan: &ScanEntry, limit_bytes: u64) -> Result<ScanBytes> {
    let first = read_object(location, &scan.uri, scan.etag.as_deref(), limit_bytes);
    match (bids::image_part(&scan.uri), &scan.voxels_uri) {
        (Some(Part::Header), Some(uri)) => {
            let header = first.await?;
            let left = limit_bytes.saturating_sub(header.len() as u64);
            let voxels = read_object(location, uri, scan.voxels_etag.as_deref(), left).await?;
            Ok(ScanBytes::Pair { header, voxels })
        }
        (Some(Part::Header), None) => Err(half_pair(&scan.uri, ".img")),
        (Some(Part::Voxels), _) => Err(half_pair(&scan.uri, ".hdr")),
        (Some(Part::Whole) | None, _) => first.await.map(ScanBytes::File),
    }
}

async fn read_object(location: &Location, uri: &str, etag: Option<&str>, limit_bytes: u64) -> Result<Bytes> {
    with_retries(|| read_once(location, uri, etag, limit_bytes)).await
}

async fn read_once(location: &Location, uri: &str, etag: Option<&str>, limit_bytes: u64) -> Result<Bytes> {
    let path = location.path_of(uri)?;
    let options = GetOptions { if_match: etag.map(str::to_owned), ..GetOptions::default() };
    // Without the location's address: the message goes into the tables.
    let failed = |e| Error::storage(format!("cannot read {uri}"), e);
    let found = location.store.get_opts(&path, options).await.map_err(failed)?;
    if found.meta.size > limit_bytes {
        return Err(Error::input(
            "too_large",
            format!("{uri} has {} bytes, more than run.max_scan_mib allows ({limit_bytes} bytes)", found.meta.size),
        ));
    }
    let promised = found.meta.size;
    let bytes = found.bytes().await.map_err(failed)?;
    if bytes.len() as u64 != promised {
        let said = format!("{} bytes came, {promised} were promised", bytes.len());
        return Err(failed(object_store::Error::Generic { store: "body", source: said.into() }));
    }
    Ok(bytes)
}

fn half_pair(uri: &str, missing: &str) -> Error {
    Error::input(
        "half_pair",
        format!(
            "{uri} is half of a .hdr/.img pair: put the {missing} of the same name beside it, or exclude this file"
        ),
    )
}
