//! Sidecars: JSON files that describe an image, beside it or further up the tree.
//!
//! Takes the JSON paths of a listing; gives the nearest one that applies to an image by the BIDS inheritance principle: a
//! file with the image's suffix and with no entity that the image lacks. Opens none of them.

use std::collections::HashMap;

use super::bids::{Name, stem};

/// The JSON files of a tree, by folder.
#[derive(Debug, Default)]
pub(super) struct Sidecars {
    by_folder: HashMap<String, Vec<String>>,
}

impl Sidecars {
    /// Adds a JSON file by its path relative to the root.
    pub(super) fn insert(&mut self, uri: &str) {
        let (folder, file) = uri.rsplit_once('/').unwrap_or(("", uri));
        self.by_folder.entry(folder.to_owned()).or_default().push(file.to_owned());
    }

    /// The path of the nearest sidecar that applies to the image at `uri`, relative to the root.
    pub(super) fn nearest(&self, uri: &str) -> Option<String> {
        let (mut folder, file) = uri.rsplit_once('/').unwrap_or(("", uri));
        let image = stem(file);
        // dcm2niix writes a JSON file of the same name beside each image, also where the name follows no BIDS rule.
        if let Some(namesake) = self.files(folder).find(|json| stem(json) == image) {
            return Some(join(folder, namesake));
        }
        let image = Name::parse(image);
        image.label("sub")?;
        loop {
            let applying = self.files(folder).filter(|json| Name::parse(stem(json)).applies_to(&image));
            // The name decides a tie, so that the result does not depend on the order of the listing.
            if let Some(json) = applying.max_by_key(|json| (Name::parse(stem(json)).n_entities(), *json)) {
                return Some(join(folder, json));
            }
            if folder.is_empty() {
                return None;
            }
            folder = folder.rsplit_once('/').map_or("", |(above, _)| above);
        }
    }

    fn files(&self, folder: &str) -> impl Iterator<Item = &str> {
        self.by_folder.get(folder).into_iter().flatten().map(String::as_str)
    }
}

fn join(folder: &str, file: &str) -> String {
    if folder.is_empty() { file.to_owned() } else { format!("{folder}/{file}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nearest(json: &[&str], image: &str) -> Option<String> {
        let mut sidecars = Sidecars::default();
        json.iter().for_each(|uri| sidecars.insert(uri));
        sidecars.nearest(image)
    }

    /// The specification's inheritance examples: deeper wins, and only what applies.
    #[test]
    fn the_nearest_that_applies_wins() {
        let image = "sub-01/ses-a/anat/sub-01_ses-a_acq-x_T1w.nii.gz";
        let beside = "sub-01/ses-a/anat/sub-01_ses-a_acq-x_T1w.json";
        let subject = "sub-01/sub-01_T1w.json";
        let foreign =
            ["T2w.json", "sub-02_T1w.json", "sub-01/ses-a/anat/sub-01_ses-a_acq-y_T1w.json", "participants.json"];
        assert_eq!(nearest(&["T1w.json", subject, beside], image).as_deref(), Some(beside));
        assert_eq!(nearest(&["T1w.json", subject], image).as_deref(), Some(subject));
        assert_eq!(nearest(&["T1w.json", "acq-x_T1w.json"], image).as_deref(), Some("acq-x_T1w.json"));
        assert_eq!(nearest(&foreign, image), None);
    }

    #[test]
    fn any_image_has_its_namesake() {
        assert_eq!(nearest(&["a/3D T1.json"], "a/3D T1.nii").as_deref(), Some("a/3D T1.json"));
        assert_eq!(nearest(&["3D T1.json"], "a/3D T1.nii"), None);
    }
}
