//! An image that a listing finds, before the selection decides about it.

use object_store::ObjectMeta;

use super::bids::{self, Entities, Part};

/// An image: one file, or a `.hdr` with its `.img`.
pub(super) struct Image {
    /// Path below the cohort's root; of a pair, that of the `.hdr`.
    pub(super) uri: String,
    pub(super) entities: Entities,
    pub(super) meta: ObjectMeta,
    /// The `.img` of a `.hdr`, with its path.
    pub(super) voxels: Option<(String, ObjectMeta)>,
}

impl Image {
    pub(super) fn new(uri: String, meta: ObjectMeta, voxels: Option<(String, ObjectMeta)>) -> Self {
        Self { entities: bids::entities(&uri), uri, meta, voxels }
    }

    /// A link to an absent file, of which only the path is known.
    pub(super) fn absent_meta(uri: &str) -> ObjectMeta {
        let last_modified = chrono::DateTime::UNIX_EPOCH;
        ObjectMeta { location: uri.into(), last_modified, size: 0, e_tag: None, version: None }
    }

    /// The paths of its files.
    pub(super) fn uris(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.uri.as_str()).chain(self.voxels.iter().map(|(uri, _)| uri.as_str()))
    }

    /// A `.hdr` without its `.img`, or the reverse.
    pub(super) fn is_half(&self) -> bool {
        self.voxels.is_none() && bids::image_part(&self.uri) != Some(Part::Whole)
    }

    /// Whether the file, or one of a pair, has no bytes.
    pub(super) fn is_empty(&self) -> bool {
        self.meta.size == 0 || self.voxels.as_ref().is_some_and(|(_, meta)| meta.size == 0)
    }
}
