//! Scans in two files: the `.hdr` and the `.img` of one name, each plain or gzip.
//!
//! Takes the halves of a listing one by one; gives images, each a header with its voxels. Where several halves share a
//! name, two plain or two gzip files form a pair first. A half without the other is an image too: reading it fails with
//! the reason, so that it is not skipped silently.

use std::collections::BTreeMap;

use object_store::ObjectMeta;

use super::bids::{self, Part};
use super::image::Image;

/// The halves of one name: headers, then images, as paths below the cohort's root.
type Namesakes = [Vec<(String, ObjectMeta)>; 2];

/// The halves seen so far, by path without extension.
#[derive(Default)]
pub(super) struct Halves(BTreeMap<String, Namesakes>);

impl Halves {
    /// Adds a half; pairs are formed when all are known.
    pub(super) fn insert(&mut self, part: Part, uri: &str, meta: ObjectMeta) {
        let namesakes = self.0.entry(bids::stem(uri).to_owned()).or_default();
        namesakes[usize::from(part == Part::Voxels)].push((uri.to_owned(), meta));
    }

    /// Every half once, with its other half where there is one.
    pub(super) fn into_images(self) -> impl Iterator<Item = Image> {
        self.0.into_values().flat_map(|[mut headers, mut voxels]| {
            headers.sort_by(|a, b| a.0.cmp(&b.0));
            voxels.sort_by(|a, b| a.0.cmp(&b.0));
            let mut images = Vec::new();
            // First pairs of which both are plain or both gzip, then the others.
            for alike in [true, false] {
                let fits = |header: &str, voxels: &str| !alike || is_gzip(header) == is_gzip(voxels);
                headers.retain(|(uri, meta)| match voxels.iter().position(|(other, _)| fits(uri, other)) {
                    Some(at) => {
                        images.push(Image::new(uri.clone(), meta.clone(), Some(voxels.remove(at))));
                        false
                    }
                    None => true,
                });
            }
            let lone = headers.into_iter().chain(voxels);
            images.extend(lone.map(|(uri, meta)| Image::new(uri, meta, None)));
            images
        })
    }
}

fn is_gzip(uri: &str) -> bool {
    bids::without_extension(uri, ".gz").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(uris: &[&str]) -> Vec<(String, Option<String>)> {
        let mut halves = Halves::default();
        for uri in uris {
            let meta = ObjectMeta {
                location: (*uri).into(),
                last_modified: chrono::DateTime::UNIX_EPOCH,
                size: 1,
                e_tag: None,
                version: None,
            };
            halves.insert(bids::image_part(uri).expect("a half"), uri, meta);
        }
        halves.into_images().map(|image| (image.uri, image.voxels.map(|(uri, _)| uri))).collect()
    }

    fn pair(header: &str, voxels: &str) -> (String, Option<String>) {
        (header.to_owned(), Some(voxels.to_owned()))
    }

    #[test]
    fn halves_of_one_name_and_folder_belong_together() {
        assert_eq!(
            pairs(&["a/x.img", "b/x.hdr", "a/x.HDR", "b/x.img.gz"]),
            [pair("a/x.HDR", "a/x.img"), pair("b/x.hdr", "b/x.img.gz")]
        );
    }

    #[test]
    fn of_several_halves_those_compressed_alike_belong_together() {
        let all = ["x.img", "x.img.gz", "x.hdr", "x.hdr.gz"];
        assert_eq!(pairs(&all), [pair("x.hdr", "x.img"), pair("x.hdr.gz", "x.img.gz")]);
        assert_eq!(pairs(&all[1..]), [pair("x.hdr.gz", "x.img.gz"), ("x.hdr".to_owned(), None)]);
    }

    #[test]
    fn a_lone_half_is_not_lost() {
        assert_eq!(pairs(&["y.img", "x.hdr"]), [("x.hdr".to_owned(), None), ("y.img".to_owned(), None)]);
    }
}
