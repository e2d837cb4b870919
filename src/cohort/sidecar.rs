//! Sidecars: JSON files that describe an image, beside it or further up the tree.
//!
//! [`Sidecars`] takes the JSON paths of a listing and gives the nearest one that applies to an image (the BIDS
//! inheritance principle): a file whose suffix is the image's and whose entities the image has too. [`read`]
//! opens one when its values are wanted; a listing opens none.

use std::collections::HashMap;

use object_store::ObjectStoreExt;
use serde::Deserialize;

use super::bids::{Name, stem};
use super::store::Location;
use crate::error::{Error, Result};

/// dcm2niix writes some kB; slice timings and b-values can make it more.
const MAX_BYTES: u64 = 4 << 20;

/// What a sidecar says about the scanner. Everything is optional in BIDS.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Sidecar {
    /// The scanner's maker: `Siemens`, `GE`, `Philips`.
    pub manufacturer: Option<String>,
    /// The scanner's model.
    pub manufacturers_model_name: Option<String>,
    /// Tesla.
    pub magnetic_field_strength: Option<f64>,
}

/// The JSON files of a tree, by folder.
#[derive(Debug, Default)]
pub struct Sidecars {
    by_folder: HashMap<String, Vec<String>>,
}

impl Sidecars {
    /// Takes in a JSON file, its path relative to the root.
    pub fn insert(&mut self, uri: &str) {
        let (folder, file) = uri.rsplit_once('/').unwrap_or(("", uri));
        self.by_folder.entry(folder.to_owned()).or_default().push(file.to_owned());
    }

    /// The path of the nearest sidecar that applies to the image at `uri`, relative to the root.
    pub fn nearest(&self, uri: &str) -> Option<String> {
        let (mut folder, file) = uri.rsplit_once('/').unwrap_or(("", uri));
        let image = stem(file);
        // A name outside the BIDS rules still has its namesake, as dcm2niix writes it.
        if let Some(namesake) = self.files(folder).find(|json| stem(json) == image) {
            return Some(join(folder, namesake));
        }
        let image = Name::parse(image);
        image.label("sub")?;
        loop {
            let applying = self.files(folder).filter(|json| Name::parse(stem(json)).applies_to(&image));
            // The name settles a draw, so that a listing's order does not.
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

/// Reads a sidecar; `uri` as a manifest's `sidecar_uri`, relative to the root.
pub async fn read(location: &Location, uri: &str) -> Result<Sidecar> {
    let attempted = format!("read {uri} in");
    let found = location.store.get(&location.path_of(uri)?).await.map_err(|e| location.explain(&attempted, e))?;
    if found.meta.size > MAX_BYTES {
        return Err(Error::input("sidecar_too_large", format!("{uri} has more than {MAX_BYTES} bytes")));
    }
    let bytes = found.bytes().await.map_err(|e| location.explain(&attempted, e))?;
    serde_json::from_slice(&bytes)
        .map_err(|e| Error::input("sidecar_invalid", format!("{uri} is no BIDS sidecar: {e}")))
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
