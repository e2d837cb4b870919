//! Listing a cohort: every image found, and whether it is selected.

use std::collections::HashSet;

use futures::TryStreamExt;

use super::bids::{self, Part};
use super::image::Image;
use super::manifest::{self, ScanEntry};
use super::pair::Halves;
use super::participants::Participants;
use super::select::{Reason, Selection, Selector};
use super::sidecar::Sidecars;
use crate::error::{Error, Result};
use crate::store::Location;

/// What a cohort holds: the scans to screen, and the images that are skipped.
#[derive(Debug, Clone)]
pub struct Listing {
    /// The cohort's address, without a password.
    pub address: String,
    /// The cohort's name.
    pub cohort: String,
    /// True where the tree is read as BIDS.
    pub bids: bool,
    /// The scans to screen, by path.
    pub selected: Vec<ScanEntry>,
    /// The images that are not screened, by path.
    pub skipped: Vec<Skipped>,
    /// Files that are not NIfTI images: tables, sidecars, pictures.
    pub n_other: usize,
    /// Files that are ignored because their name, or a folder's above them, starts with a dot.
    pub n_hidden: usize,
}

/// An image that is not screened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Path below the cohort's root, `/` separated.
    pub uri: String,
    /// The BIDS suffix, where its name has one.
    pub suffix: Option<String>,
    /// Why it is skipped.
    pub reason: Reason,
}

/// Lists a cohort and selects its scans.
///
/// `name` becomes the first part of every scan id; [`Location::name`] is a good one. Takes some hundred bytes of memory
/// per image and per JSON file; other files are only counted.
///
/// # Errors
/// [`Error::Config`] for a name with `/` or control characters, a selection that does not fit the cohort, or a
/// `participants.tsv` that cannot be read; [`Error::Storage`] where the tree cannot be listed completely;
/// [`Error::Input`] for an object size that cannot be true.
pub async fn list(location: &Location, name: &str, selection: &Selection) -> Result<Listing> {
    if name.is_empty() || name.contains(|c: char| c == '/' || c.is_control()) {
        let given = name.escape_debug();
        return Err(Error::Config(format!("`{given}` cannot name a cohort: give a name without `/` and line breaks")));
    }
    let Tree { images, sidecars, bids, n_other, n_hidden } = Tree::walk(location).await?;
    let filtered = !selection.participants.is_empty();
    let participants = if filtered { Participants::load(location).await? } else { None };
    let selector = Selector::new(selection, participants, bids)?;

    let limit = selection.limit.unwrap_or(usize::MAX);
    let mut taken = HashSet::new();
    let (mut selected, mut skipped) = (Vec::new(), Vec::new());
    for image in images {
        let scan_id = scan_id(name, &image, bids);
        let reason = selector.refuses(&image.uri, &image.entities).or_else(|| {
            if image.is_empty() {
                Some(Reason::Empty)
            } else if taken.contains(&scan_id) {
                Some(Reason::Duplicate)
            } else if selected.len() >= limit {
                Some(Reason::OverLimit)
            } else {
                None
            }
        });
        match reason {
            Some(reason) => skipped.push(Skipped { uri: image.uri, suffix: image.entities.suffix, reason }),
            None => {
                taken.insert(scan_id.clone());
                let sidecar_uri = sidecars.nearest(&image.uri);
                selected.push(entry(name, scan_id, image, sidecar_uri)?);
            }
        }
    }
    selected.sort_unstable_by(|a, b| a.uri.cmp(&b.uri));
    skipped.sort_unstable_by(|a, b| a.uri.cmp(&b.uri));
    Ok(Listing { address: location.to_string(), cohort: name.to_owned(), bids, selected, skipped, n_other, n_hidden })
}

/// Everything below a cohort's root.
struct Tree {
    /// In the order in which they are selected.
    images: Vec<Image>,
    sidecars: Sidecars,
    bids: bool,
    n_other: usize,
    n_hidden: usize,
}

impl Tree {
    async fn walk(location: &Location) -> Result<Self> {
        let mut tree = Self { images: Vec::new(), sidecars: Sidecars::default(), bids: false, n_other: 0, n_hidden: 0 };
        let mut halves = Halves::default();
        let prefix = (!location.root.is_root()).then_some(&location.root);
        let mut objects = location.store.list(prefix);
        while let Some(meta) = objects.try_next().await.map_err(|e| location.explain("list", e))? {
            let Some(uri) = location.relative(&meta.location) else { continue };
            if uri.split('/').any(|part| part.starts_with('.')) {
                tree.n_hidden += 1;
                continue;
            }
            tree.bids |= uri == "dataset_description.json" || (uri.starts_with("sub-") && uri.contains('/'));
            match bids::image_part(uri) {
                Some(Part::Whole) => tree.images.push(Image::new(uri.to_owned(), meta, None)),
                Some(part) => {
                    let uri = uri.to_owned();
                    halves.insert(part, &uri, meta);
                }
                None => {
                    if bids::without_extension(uri, ".json").is_some() {
                        tree.sidecars.insert(uri);
                    }
                    tree.n_other += 1;
                }
            }
        }
        tree.images.extend(halves.into_images());
        // Of two images with the same scan id, the first is selected: the scanner's own before a pipeline's derivative,
        // and half a pair last.
        let order = |image: &Image| (image.entities.derivative, image.is_half());
        tree.images.sort_unstable_by(|a, b| order(a).cmp(&order(b)).then_with(|| a.uri.cmp(&b.uri)));
        Ok(tree)
    }
}

fn scan_id(cohort: &str, image: &Image, bids: bool) -> String {
    // A BIDS file name holds every entity and is unique in its dataset; any other name needs its folders.
    let by_file_name = bids && image.entities.suffix.is_some();
    let named = if by_file_name { image.meta.location.filename() } else { None };
    format!("{cohort}/{}", bids::stem(named.unwrap_or(&image.uri)))
}

fn entry(cohort: &str, scan_id: String, image: Image, sidecar_uri: Option<String>) -> Result<ScanEntry> {
    let Image { uri, entities, meta, voxels } = image;
    let size = voxels.iter().fold(meta.size, |size, (_, voxels)| size.saturating_add(voxels.size));
    let size_bytes = i64::try_from(size).map_err(|_| {
        Error::input("size_impossible", format!("{uri}: the store reports {size} bytes, more than an object can have"))
    })?;
    let last_modified = voxels.iter().fold(meta.last_modified, |at, (_, voxels)| at.max(voxels.last_modified));
    let last_modified = manifest::to_micros(last_modified);
    let content_id = match &voxels {
        Some((_, voxels)) => manifest::pair_content_id(&meta, voxels),
        None => manifest::content_id(meta.e_tag.as_deref(), last_modified, size_bytes),
    };
    let (voxels_uri, voxels_etag) = voxels.map(|(uri, meta)| (uri, meta.e_tag)).unzip();
    Ok(ScanEntry {
        scan_id,
        content_id,
        size_bytes,
        etag: meta.e_tag,
        last_modified,
        cohort: cohort.to_owned(),
        subject: entities.subject,
        session: entities.session,
        acquisition: entities.acquisition,
        run: entities.run,
        suffix: entities.suffix,
        sidecar_uri,
        voxels_uri,
        voxels_etag: voxels_etag.flatten(),
        uri,
    })
}
