//! Listing a cohort: every image found, and whether it is selected.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use futures::TryStreamExt;

use super::bids::{self, Part};
use super::dataset::{self, Dataset};
use super::identity::scan_ids;
use super::image::Image;
use super::manifest::{self, DescribedBy, ScanEntry};
use super::pair::Halves;
use super::participants::{Participants, Wanted, listed};
use super::select::{Reason, Selection, Selector};
use super::sidecar::Sidecars;
use crate::error::{Error, Result};
use crate::store::{Entry, Fault, Location, Unusable, printable, warn_if_slow};

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
    /// The images that are not screened, and entries that cannot be read, by path.
    pub skipped: Vec<Skipped>,
    /// Files that are not NIfTI images: tables, sidecars, pictures.
    pub n_other: usize,
    /// The same by extension, in lower case; an empty one for names without.
    pub others: BTreeMap<String, usize>,
    /// Files that are ignored because their name, or a folder's above them, starts with a dot.
    pub n_hidden: usize,
}

/// An image that is not screened, or an entry that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Path below the cohort's root, `/` separated. Characters that are not safe to print are escaped in a name that
    /// cannot be used.
    pub uri: String,
    /// The BIDS suffix, where its name has one.
    pub suffix: Option<String>,
    /// Why it is skipped.
    pub reason: Reason,
}

impl Listing {
    /// Leaves out the selected scans whose suffix names another contrast than those of `trained`: BIDS suffixes, separated
    /// by `+`.
    pub fn leave_out_other_contrasts(&mut self, trained: &str) {
        let other =
            |entry: &mut ScanEntry| entry.suffix.as_deref().is_some_and(|s| bids::is_another_contrast(s, trained));
        let left_out = self.selected.extract_if(.., other);
        self.skipped.extend(left_out.map(|entry| Skipped {
            uri: entry.uri,
            suffix: entry.suffix,
            reason: Reason::Contrast,
        }));
        self.skipped.sort_by(|a, b| a.uri.cmp(&b.uri));
    }
}

/// Lists a cohort and selects its scans.
///
/// `name` becomes the first part of every scan id; [`Location::name`] is a good one. Takes some hundred bytes of memory
/// per image and per JSON file; other files are only counted. An entry that cannot be read is left out with its reason.
///
/// # Errors
/// [`Error::Config`] for a name with `/` or control characters, a selection that does not fit the cohort, or a
/// `participants.tsv` that cannot be read; [`Error::NothingSelected`] for a filter by values that `participants.tsv` does
/// not have; [`Error::Storage`] and [`Error::Io`] where the tree cannot be listed completely; [`Error::Input`] for an
/// object size that cannot be true.
pub async fn list(location: &Location, name: &str, selection: &Selection) -> Result<Listing> {
    if name.is_empty() || name.contains(|c: char| c == '/' || c.is_control()) {
        let given = name.escape_debug();
        return Err(Error::Config(format!("`{given}` cannot name a cohort: give a name without `/` and line breaks")));
    }
    let tree = warn_if_slow("listing the cohort", Tree::walk(location)).await?;
    let Tree { images, absent, unusable, sidecars, bids, descriptions, has_ignore, .. } = tree;
    let dataset = Dataset::load(location, descriptions, has_ignore && !selection.ignored).await?;
    let filtered = !selection.participants.is_empty();
    let participants = if filtered { participants(location, &images, selection).await? } else { None };
    let selector = Selector::new(selection, participants, dataset, bids)?;

    let refusals: Vec<_> = images.iter().map(|image| selector.refuses(&image.uri, &image.entities)).collect();
    let ids = scan_ids(name, &images, &refusals, bids);
    let limit = selection.limit.unwrap_or(usize::MAX);
    let mut taken = HashSet::new();
    let (mut selected, mut skipped) = (Vec::new(), Vec::new());
    for ((image, refusal), scan_id) in images.into_iter().zip(refusals).zip(ids) {
        let reason = refusal.or_else(|| {
            if !absent.is_empty() && image.uris().any(|uri| absent.contains(uri)) {
                Some(Reason::Absent)
            } else if image.is_empty() {
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
                let described_by = sidecars.describing(&image.uri);
                selected.push(entry(name, scan_id, image, described_by)?);
            }
        }
    }
    skipped.extend(unusable.into_iter().map(|entry| {
        let reason = selector.refuses_path(entry.path()).unwrap_or(entry.fault.into());
        Skipped { uri: printable(&entry.name), suffix: None, reason }
    }));
    selected.sort_unstable_by(|a, b| a.uri.cmp(&b.uri));
    skipped.sort_unstable_by(|a, b| a.uri.cmp(&b.uri));
    Ok(Listing {
        address: location.to_string(),
        cohort: name.to_owned(),
        bids,
        selected,
        skipped,
        n_other: tree.others.values().sum(),
        others: tree.others,
        n_hidden: tree.n_hidden,
    })
}

/// The cohort's `participants.tsv`, whose rows are matched with the subjects of the images.
///
/// # Errors
/// Those of [`Participants::load`]; [`Error::NothingSelected`] where it has no row of any subject.
async fn participants(location: &Location, images: &[Image], selection: &Selection) -> Result<Option<Participants>> {
    let subjects: BTreeSet<&str> = images.iter().filter_map(|image| image.entities.subject.as_deref()).collect();
    let wanted = Wanted {
        filter: &selection.participants,
        subjects: Some(subjects.clone()),
        max_mib: selection.participants_mib,
    };
    let Some(mut table) = Participants::load(location, &wanted).await? else { return Ok(None) };
    table.tell_apart(subjects.iter().copied());
    if !subjects.is_empty() && !subjects.iter().any(|subject| table.has(subject)) {
        return Err(Error::NothingSelected(format!(
            "participants.tsv has no row of any subject here: its column participant_id has {}; the subjects are {}. Write \
             the ids as the folders have them, such as sub-01",
            table.ids(),
            listed(subjects.into_iter(), false)
        )));
    }
    Ok(Some(table))
}

/// Everything below a cohort's root.
#[derive(Default)]
struct Tree {
    /// In the order in which they are selected.
    images: Vec<Image>,
    /// Paths of images, or of halves, that are links to absent files.
    absent: HashSet<String>,
    unusable: Vec<Unusable>,
    sidecars: Sidecars,
    bids: bool,
    /// Paths of the files `dataset_description.json`, except below `derivatives/` and `sourcedata/`.
    descriptions: Vec<String>,
    has_ignore: bool,
    others: BTreeMap<String, usize>,
    n_hidden: usize,
}

impl Tree {
    async fn walk(location: &Location) -> Result<Self> {
        let mut tree = Self::default();
        let mut halves = Halves::default();
        let mut entries = location.list();
        while let Some(entry) = entries.try_next().await? {
            let (uri, meta) = match entry {
                Entry::Object { uri, meta } => (uri, Some(meta)),
                Entry::Unusable(unusable) => match tree.absent_file(unusable) {
                    Some(uri) => (uri, None),
                    None => continue,
                },
            };
            tree.has_ignore |= uri == dataset::IGNORE && meta.is_some();
            if uri.split('/').any(|part| part.starts_with('.')) {
                tree.n_hidden += 1;
                continue;
            }
            tree.bids |= uri == dataset::DESCRIPTION || (uri.starts_with("sub-") && uri.contains('/'));
            let part = bids::image_part(&uri);
            if part.is_some() && meta.is_none() {
                tree.absent.insert(uri.clone());
            }
            match (part, meta) {
                (Some(part), meta) => {
                    let meta = meta.unwrap_or_else(|| Image::absent_meta(&uri));
                    match part {
                        Part::Whole => tree.images.push(Image::new(uri, meta, None)),
                        half => halves.insert(half, &uri, meta),
                    }
                }
                (None, Some(_)) => tree.other(uri),
                (None, None) => *tree.others.entry(extension(&uri)).or_default() += 1,
            }
        }
        tree.images.extend(halves.into_images());
        // Of two images with the same scan id, the first is selected: the scanner's own before a pipeline's derivative,
        // and half a pair last.
        let order = |image: &Image| (image.entities.derivative, image.is_half());
        tree.images.sort_unstable_by(|a, b| order(a).cmp(&order(b)).then_with(|| a.uri.cmp(&b.uri)));
        Ok(tree)
    }

    /// The path of an absent file that is counted as if it were there: an image, or a file with another extension. Any
    /// other entry is kept with its fault, unless it is hidden.
    fn absent_file(&mut self, entry: Unusable) -> Option<String> {
        let mut parts = entry.name.split(|byte| *byte == b'/');
        if parts.any(|part| part.starts_with(b".") && !matches!(part, b"." | b"..")) {
            self.n_hidden += 1;
            return None;
        }
        if entry.fault == Fault::Absent
            && let Ok(uri) = std::str::from_utf8(&entry.name)
            && uri.rsplit('/').next().is_some_and(|file| file.contains('.'))
            && !uri.contains(|c: char| c.is_ascii_control())
        {
            return Some(uri.to_owned());
        }
        self.unusable.push(entry);
        None
    }

    /// Counts a file that is no image.
    fn other(&mut self, uri: String) {
        *self.others.entry(extension(&uri)).or_default() += 1;
        let (folder, file) = uri.rsplit_once('/').unwrap_or(("", &uri));
        if Sidecars::takes(&uri) {
            self.sidecars.insert(&uri);
        }
        if file == dataset::DESCRIPTION && !folder.split('/').any(|part| matches!(part, "derivatives" | "sourcedata")) {
            self.descriptions.push(uri);
        }
    }
}

/// Extensions longer than this are parts of names.
const LONGEST_EXTENSION: usize = 8;

/// What follows the last dot of a file name, in lower case; empty where that is no extension.
fn extension(uri: &str) -> String {
    let file = uri.rsplit('/').next().unwrap_or(uri);
    let extension = file.rsplit_once('.').map_or("", |(_, extension)| extension);
    let is_one = extension.len() <= LONGEST_EXTENSION
        && extension.bytes().all(|byte| byte.is_ascii_alphanumeric())
        // DICOM files are often named by numbers: 1.3.12.2.1107.
        && !extension.bytes().all(|byte| byte.is_ascii_digit());
    if is_one { extension.to_ascii_lowercase() } else { String::new() }
}

pub(super) fn entry(cohort: &str, scan_id: String, image: Image, described_by: Vec<String>) -> Result<ScanEntry> {
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
        described_by: DescribedBy(described_by),
        voxels_uri,
        voxels_etag: voxels_etag.flatten(),
        origin: None,
        attempts: 0,
        apart: false,
        uri,
    })
}
