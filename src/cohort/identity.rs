//! Scan ids: a name for each image that no other image of the cohort has, and that stays the same.
//!
//! | image | id after the cohort's name |
//! |---|---|
//! | named by the BIDS rules | its file name, which holds every entity: `sub-01_ses-1_T1w` |
//! | the same, where an image in another folder has that file name | with the folders' entities that the name lacks: `ses-2/anat/sub-01_T1w` becomes `sub-01_ses-2_T1w` |
//! | the same, where the folders have no such entities | its path |
//! | any other | its path |
//!
//! The first by path keeps the file name alone. A selection by session changes no id. Files of one name in one folder
//! (`.nii` and `.nii.gz`) have one id, and so have a scanner's image and a pipeline's derivative of the same name.

use std::collections::HashMap;

use super::bids::{self, Name};
use super::image::Image;
use super::select::Reason;

/// The entities of the specification, in the order in which a file name has them.
const ENTITIES: [&str; 29] = [
    "sub",
    "ses",
    "sample",
    "task",
    "tracksys",
    "acq",
    "nuc",
    "voi",
    "ce",
    "trc",
    "stain",
    "rec",
    "dir",
    "run",
    "mod",
    "echo",
    "flip",
    "inv",
    "mt",
    "part",
    "proc",
    "hemi",
    "space",
    "split",
    "recording",
    "chunk",
    "res",
    "label",
    "desc",
];

/// The ids of `images`, which come in the order in which they are selected. An image that `refusals` refuses gets none.
pub(super) fn scan_ids(cohort: &str, images: &[Image], refusals: &[Option<Reason>], bids: bool) -> Vec<String> {
    let mut names = Names { bids, owners: HashMap::new(), longer: HashMap::new() };
    for (image, refusal) in images.iter().zip(refusals) {
        if matches!(refusal, None | Some(Reason::Session))
            && let Some(file_name) = names.file_name(image)
        {
            names.owners.entry(file_name).or_insert(&image.uri);
        }
    }
    let id = |(image, refusal): (_, &Option<_>)| match refusal {
        None => format!("{cohort}/{}", names.name(image)),
        Some(_) => String::new(),
    };
    images.iter().zip(refusals).map(id).collect()
}

struct Names<'a> {
    bids: bool,
    /// By file name without extension: the path of the first image that has it.
    owners: HashMap<&'a str, &'a str>,
    /// By file name with entities of folders: the folder of the first image that has it.
    longer: HashMap<String, &'a str>,
}

impl<'a> Names<'a> {
    /// The file name without extension of an image that is named by the BIDS rules.
    fn file_name(&self, image: &'a Image) -> Option<&'a str> {
        (self.bids && image.entities.suffix.is_some()).then(|| bids::stem(split(&image.uri).1))
    }

    fn name(&mut self, image: &'a Image) -> String {
        let path = bids::stem(&image.uri);
        let Some(short) = self.file_name(image) else { return path.to_owned() };
        let folder = split(&image.uri).0;
        let owner = self.owners.get(short).copied().unwrap_or(&image.uri);
        if split(owner).0 == folder {
            return short.to_owned();
        }
        let missing = missing(folder, short);
        if !missing.is_empty() && missing != self::missing(split(owner).0, short) {
            let longer = with_entities(short, &missing);
            let is_free = !self.owners.contains_key(longer.as_str())
                && *self.longer.entry(longer.clone()).or_insert(folder) == folder;
            if is_free || image.entities.derivative {
                return longer;
            }
        }
        if image.entities.derivative { short.to_owned() } else { path.to_owned() }
    }
}

/// A path's folder and file name.
fn split(uri: &str) -> (&str, &str) {
    uri.rsplit_once('/').unwrap_or(("", uri))
}

/// The entities of a path's folders that the file name lacks.
fn missing<'a>(folder: &'a str, name: &str) -> Vec<(&'a str, &'a str)> {
    let name = Name::parse(name);
    let pair = |part: &'a str| part.split_once('-').filter(|(_, label)| !label.is_empty());
    let known = |(key, _): &(&str, &str)| ENTITIES.contains(key) && name.label(key).is_none();
    folder.split('/').filter_map(pair).filter(known).collect()
}

/// A file name with these entities at their places.
fn with_entities(name: &str, entities: &[(&str, &str)]) -> String {
    let place = |key: &str| ENTITIES.iter().position(|entity| *entity == key);
    let mut parts: Vec<String> = name.split('_').map(str::to_owned).collect();
    for (key, label) in entities {
        let goes_before = |part: &String| part.split_once('-').is_some_and(|(other, _)| place(other) < place(key));
        let at = parts.iter().rposition(goes_before).map_or(0, |at| at + 1);
        parts.insert(at, format!("{key}-{label}"));
    }
    parts.join("_")
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use object_store::ObjectMeta;

    use super::*;

    fn ids(uris: &[(&str, Option<Reason>)]) -> Vec<String> {
        let meta = |uri: &str| ObjectMeta {
            location: uri.into(),
            last_modified: DateTime::UNIX_EPOCH,
            size: 1,
            e_tag: None,
            version: None,
        };
        let images: Vec<Image> = uris.iter().map(|(uri, _)| Image::new((*uri).to_owned(), meta(uri), None)).collect();
        let refusals: Vec<Option<Reason>> = uris.iter().map(|(_, refusal)| *refusal).collect();
        scan_ids("c", &images, &refusals, true)
    }

    #[test]
    fn a_name_that_holds_every_entity_is_the_id() {
        let uris = ["sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz", "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz"];
        assert_eq!(ids(&uris.map(|uri| (uri, None))), ["c/sub-01_ses-1_T1w", "c/sub-01_ses-2_T1w"]);
        assert_eq!(ids(&[("sub-01/ses-1/anat/sub-01_T1w.nii", None)]), ["c/sub-01_T1w"]);
    }

    #[test]
    fn entities_that_only_folders_have_tell_namesakes_apart() {
        let uris = [
            "sub-01/ses-1/anat/sub-01_T1w.nii",
            "sub-01/ses-1/anat/sub-01_T1w.nii.gz",
            "sub-01/ses-2/anat/sub-01_T1w.nii",
            "sub-01/ses-3/anat/sub-01_T1w.nii",
            "sub-01/ses-3/more/sub-01_T1w.nii",
            "sub-02/run-1/sub-02_acq-x_T1w.nii",
            "sub-02/run-2/sub-02_acq-x_T1w.nii",
        ];
        assert_eq!(
            ids(&uris.map(|uri| (uri, None))),
            [
                "c/sub-01_T1w",
                "c/sub-01_T1w",
                "c/sub-01_ses-2_T1w",
                "c/sub-01_ses-3_T1w",
                "c/sub-01/ses-3/more/sub-01_T1w",
                "c/sub-02_acq-x_T1w",
                "c/sub-02_acq-x_run-2_T1w",
            ]
        );
    }

    #[test]
    fn an_id_made_of_a_folder_takes_no_other_images_name() {
        let uris = [
            "sub-01/ses-1/anat/sub-01_T1w.nii",
            "sub-01/ses-2/anat/sub-01_T1w.nii",
            "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii",
        ];
        assert_eq!(
            ids(&uris.map(|uri| (uri, None))),
            ["c/sub-01_T1w", "c/sub-01/ses-2/anat/sub-01_T1w", "c/sub-01_ses-2_T1w"]
        );
    }

    #[test]
    fn a_selection_by_session_changes_no_id_and_an_excluded_copy_takes_none() {
        let sessions =
            [("sub-01/ses-1/a/sub-01_T1w.nii", Some(Reason::Session)), ("sub-01/ses-2/a/sub-01_T1w.nii", None)];
        assert_eq!(ids(&sessions), ["", "c/sub-01_ses-2_T1w"]);
        let copies = [("backup/sub-01/sub-01_T1w.nii", Some(Reason::Excluded)), ("sub-01/sub-01_T1w.nii", None)];
        assert_eq!(ids(&copies), ["", "c/sub-01_T1w"]);
        let sites = [("siteA/sub-01/sub-01_T1w.nii", None), ("siteB/sub-01/sub-01_T1w.nii", None)];
        assert_eq!(ids(&sites), ["c/sub-01_T1w", "c/siteB/sub-01/sub-01_T1w"]);
    }

    #[test]
    fn a_derivative_has_the_id_of_its_original() {
        let uris = [
            "sub-01/ses-1/anat/sub-01_T1w.nii",
            "sub-01/ses-2/anat/sub-01_T1w.nii",
            "derivatives/n4/sub-01/ses-1/anat/sub-01_T1w.nii",
            "derivatives/n4/sub-01/ses-2/anat/sub-01_T1w.nii",
        ];
        assert_eq!(
            ids(&uris.map(|uri| (uri, None))),
            ["c/sub-01_T1w", "c/sub-01_ses-2_T1w", "c/sub-01_T1w", "c/sub-01_ses-2_T1w"]
        );
    }
}
