//! Where scans come from: a cohort in object storage, listed, selected and made a manifest.
//!
//! ```text
//! URL or folder ─ store::open ─► Location ─ list ─► Listing ─ manifest::to_batch ─► record batch
//!                                   ▲                  │
//!                               Selection         report::describe ─► text for people
//! ```
//! A cohort is a folder or a prefix of a bucket that holds NIfTI images (`.nii`, `.nii.gz`, pairs of
//! `.hdr` and `.img`). Where its root has a
//! `dataset_description.json` or `sub-*` folders it is read as BIDS, and file names say subject, session and the
//! kind of image. Any other tree works too: every image in it is a scan. No image is opened here.
//!
//! [`list`] takes a [`Location`], the cohort's name and a [`Selection`]; gives a [`Listing`]: the scans to screen,
//! and every other image with the [`Reason`] why not. It refuses a name that cannot stand in a scan id, and a
//! tree that the store cannot list whole.

pub mod bids;
mod config;
mod fetch;
pub mod manifest;
mod pair;
pub mod participants;
mod profile;
pub mod report;
mod select;
pub mod sidecar;
pub mod store;

use std::collections::HashSet;

use futures::TryStreamExt;
use object_store::ObjectMeta;

use self::bids::{Entities, Part};
pub use self::config::CohortConfig;
pub use self::fetch::{ScanBytes, read};
pub use self::manifest::ScanEntry;
use self::pair::Halves;
use self::participants::Participants;
use self::select::Selector;
pub use self::select::{Reason, Selection};
use self::sidecar::Sidecars;
pub use self::store::{Location, open, open_or_create};
use crate::error::{Error, Result};

/// What a cohort holds: what is screened, and what is not and why.
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
    /// Files that are no NIfTI image: tables, sidecars, pictures.
    pub n_other: usize,
    /// Files whose name, or a folder's above them, starts with a dot. They are not looked at.
    pub n_hidden: usize,
}

/// An image that is not screened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Path below the cohort's root, `/` separated.
    pub uri: String,
    /// The BIDS suffix, where its name has one.
    pub suffix: Option<String>,
    /// Why not.
    pub reason: Reason,
}

/// An image found, before it is chosen.
struct Image {
    uri: String,
    entities: Entities,
    meta: ObjectMeta,
    /// The `.img` of a `.hdr`.
    voxels: Option<(String, ObjectMeta)>,
}

impl Image {
    fn new(uri: String, meta: ObjectMeta, voxels: Option<(String, ObjectMeta)>) -> Self {
        Self { entities: bids::entities(&uri), uri, meta, voxels }
    }

    fn is_half(&self) -> bool {
        self.voxels.is_none() && bids::image_part(&self.uri) != Some(Part::Whole)
    }

    fn is_empty(&self) -> bool {
        self.meta.size == 0 || self.voxels.as_ref().is_some_and(|(_, meta)| meta.size == 0)
    }
}

/// Lists a cohort and chooses its scans. `name` is the first part of every scan id; [`Location::name`] is a good one.
///
/// Memory: some hundred bytes per image and per JSON file; other files are only counted.
pub async fn list(location: &Location, name: &str, selection: &Selection) -> Result<Listing> {
    if name.is_empty() || name.contains(|c: char| c == '/' || c.is_control()) {
        let said = name.escape_debug();
        return Err(Error::Config(format!("`{said}` cannot name a cohort: give a name without `/` and line breaks")));
    }
    let mut images: Vec<Image> = Vec::new();
    let mut halves = Halves::default();
    let mut sidecars = Sidecars::default();
    let mut bids = false;
    let (mut n_other, mut n_hidden) = (0, 0);

    let prefix = (!location.root.is_root()).then_some(&location.root);
    let mut objects = location.store.list(prefix);
    while let Some(meta) = objects.try_next().await.map_err(|e| location.explain("list", e))? {
        let Some(uri) = location.relative(&meta.location) else { continue };
        if uri.split('/').any(|part| part.starts_with('.')) {
            n_hidden += 1;
            continue;
        }
        bids |= uri == "dataset_description.json" || (uri.starts_with("sub-") && uri.contains('/'));
        match bids::image_part(uri) {
            Some(Part::Whole) => images.push(Image::new(uri.to_owned(), meta, None)),
            Some(part) => {
                let uri = uri.to_owned();
                halves.insert(part, &uri, meta);
            }
            None => {
                if bids::without_extension(uri, ".json").is_some() {
                    sidecars.insert(uri);
                }
                n_other += 1;
            }
        }
    }
    images.extend(halves.into_images());

    let filtered = !selection.participants.is_empty();
    let participants = if filtered { Participants::load(location).await? } else { None };
    let selector = Selector::new(selection, participants, bids)?;
    // Of two images with one scan id the first is kept; the scanner's own comes before what a pipeline made of it, and
    // half a pair comes last.
    let order = |image: &Image| (image.entities.derivative, image.is_half());
    images.sort_unstable_by(|a, b| order(a).cmp(&order(b)).then_with(|| a.uri.cmp(&b.uri)));

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

fn scan_id(cohort: &str, image: &Image, bids: bool) -> String {
    // A BIDS file name holds every entity and is unique in its dataset; any other needs its folders.
    let by_file_name = bids && image.entities.suffix.is_some();
    let named = if by_file_name { image.meta.location.filename() } else { None };
    format!("{cohort}/{}", bids::stem(named.unwrap_or(&image.uri)))
}

fn entry(cohort: &str, scan_id: String, image: Image, sidecar_uri: Option<String>) -> Result<ScanEntry> {
    let Image { uri, entities, meta, voxels } = image;
    let size = voxels.iter().fold(meta.size, |size, (_, voxels)| size.saturating_add(voxels.size));
    let size_bytes = i64::try_from(size)
        .map_err(|_| Error::input("size_impossible", format!("{uri}: the store says {size} bytes")))?;
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
