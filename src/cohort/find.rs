//! One scan by its path, without a listing of what lies beside it.

use object_store::{ObjectMeta, ObjectStoreExt as _};

use super::bids::{self, Part};
use super::image::Image;
use super::listing::entry;
use super::manifest::ScanEntry;
use crate::error::{Error, Result};
use crate::store::{Location, printable};

/// The scan at `uri`, which is relative to the location's root: a `.nii`, a `.nii.gz`, or either half of a `.hdr`/`.img`
/// pair, whose other half is looked for beside it. Asks the store for these names alone. The scan's id is its path.
///
/// # Errors
/// [`Error::Config`] where there is no such image; [`Error::Storage`] where the store fails.
pub async fn find(location: &Location, cohort: &str, uri: &str) -> Result<ScanEntry> {
    let Some(part) = bids::image_part(uri) else { return Err(no_image(uri)) };
    let Some(meta) = head(location, uri).await? else {
        if location.is_broken_link(uri) {
            let shown = printable(uri.as_bytes());
            return Err(Error::Config(format!(
                "{shown} is a link to a file that is not here: fetch it with `datalad get {shown}`, or repair the link"
            )));
        }
        return Err(no_image(uri));
    };
    let other = match part {
        Part::Whole => None,
        Part::Header => other_half(location, uri, ["img", "img.gz", "IMG", "IMG.GZ"]).await?,
        Part::Voxels => other_half(location, uri, ["hdr", "hdr.gz", "HDR", "HDR.GZ"]).await?,
    };
    let image = match other {
        Some((header, header_meta)) if part == Part::Voxels => {
            Image::new(header, header_meta, Some((uri.to_owned(), meta)))
        }
        voxels => Image::new(uri.to_owned(), meta, voxels),
    };
    let scan_id = format!("{cohort}/{}", bids::stem(uri));
    entry(cohort, scan_id, image, Vec::new())
}

/// The other half of a pair. As in a listing, halves that are both plain or both gzip belong together first.
async fn other_half(location: &Location, uri: &str, extensions: [&str; 4]) -> Result<Option<(String, ObjectMeta)>> {
    let is_gzip = |name: &str| bids::without_extension(name, ".gz").is_some();
    let mut names = extensions.map(|extension| format!("{}.{extension}", bids::stem(uri)));
    names.sort_by_key(|name| is_gzip(name) != is_gzip(uri));
    for name in names {
        if let Some(meta) = head(location, &name).await? {
            return Ok(Some((name, meta)));
        }
    }
    Ok(None)
}

async fn head(location: &Location, uri: &str) -> Result<Option<ObjectMeta>> {
    match location.store.head(&location.path_of(uri)?).await {
        Ok(meta) => Ok(Some(meta)),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(e) => Err(location.explain(&format!("read {} in", printable(uri.as_bytes())), e)),
    }
}

fn no_image(uri: &str) -> Error {
    Error::Config(format!(
        "no image {} in that folder; expected a .nii, a .nii.gz, or the .hdr of a .hdr/.img pair",
        printable(uri.as_bytes())
    ))
}
