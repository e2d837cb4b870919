//! Files that describe an image, by their names: JSON sidecars, and the tables `*_scans.tsv` and `*_sessions.tsv`, beside it or
//! further up the tree.
//!
//! Takes the paths of a listing; gives those that apply to an image by the BIDS inheritance principle: of each folder, from that
//! of the image up to the root, a file with the image's suffix (of a table: its own) and with no entity that the image lacks.
//! Opens none of them; `acquisition.rs` does.

use std::collections::HashMap;

use super::bids::{Name, stem, without_extension};

/// The last part of the name of a table with a row per scan of a session.
pub(super) const SCANS_TSV: &str = "_scans.tsv";

/// The last part of the name of a table with a row per session of a subject.
pub(super) const SESSIONS_TSV: &str = "_sessions.tsv";

/// The describing files of a tree, by folder.
#[derive(Debug, Default)]
pub(super) struct Sidecars {
    by_folder: HashMap<String, Vec<String>>,
}

impl Sidecars {
    /// Whether the file may describe an image, by its name.
    pub(super) fn takes(uri: &str) -> bool {
        [".json", SCANS_TSV, SESSIONS_TSV].iter().any(|end| without_extension(uri, end).is_some())
    }

    /// Adds a file by its path relative to the root.
    pub(super) fn insert(&mut self, uri: &str) {
        let (folder, file) = uri.rsplit_once('/').unwrap_or(("", uri));
        self.by_folder.entry(folder.to_owned()).or_default().push(file.to_owned());
    }

    /// The paths of the files that describe the image at `uri`, relative to the root: JSON sidecars, the nearest first, then the
    /// nearest `*_scans.tsv` and the nearest `*_sessions.tsv`.
    pub(super) fn describing(&self, uri: &str) -> Vec<String> {
        let (folder, file) = uri.rsplit_once('/').unwrap_or(("", uri));
        let image = stem(file);
        // dcm2niix writes a JSON file of the same name beside each image, also where the name follows no BIDS rule.
        let namesake = self.json(folder).find(|json| stem(json) == image);
        let named = Name::parse(image);
        if named.label("sub").is_none() {
            return namesake.map(|json| join(folder, json)).into_iter().collect();
        }
        let inherited = |folder| {
            let applying = self.json(folder).filter(|json| Name::parse(stem(json)).applies_to(&named));
            // The name decides a tie, so that the result does not depend on the order of the listing.
            applying.max_by_key(|json| (Name::parse(stem(json)).n_entities(), *json))
        };
        let beside = namesake.or_else(|| inherited(folder)).map(|json| join(folder, json));
        let above = above(folder).filter_map(|folder| Some(join(folder, inherited(folder)?)));
        let tables = [SCANS_TSV, SESSIONS_TSV].into_iter().filter_map(|end| self.table(folder, &named, end));
        beside.into_iter().chain(above).chain(tables).collect()
    }

    /// The nearest table with this ending whose name has no entity that the image lacks.
    fn table(&self, folder: &str, image: &Name<'_>, end: &str) -> Option<String> {
        std::iter::once(folder).chain(above(folder)).find_map(|folder| {
            let stems = self.files(folder).filter_map(|file| Some((file, without_extension(file, end)?)));
            let applying = stems.filter(|(_, stem)| Name::parse(stem).describes(image)).map(|(file, _)| file);
            applying.max().map(|file| join(folder, file))
        })
    }

    fn json(&self, folder: &str) -> impl Iterator<Item = &str> {
        self.files(folder).filter(|file| without_extension(file, ".json").is_some())
    }

    fn files(&self, folder: &str) -> impl Iterator<Item = &str> {
        self.by_folder.get(folder).into_iter().flatten().map(String::as_str)
    }
}

/// The folders above one, up to the root, which is empty.
fn above(folder: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(folder), |folder| folder_above(folder)).skip(1)
}

/// The folder above one; none above the root.
fn folder_above(folder: &str) -> Option<&str> {
    (!folder.is_empty()).then(|| folder.rsplit_once('/').map_or("", |(above, _)| above))
}

fn join(folder: &str, file: &str) -> String {
    if folder.is_empty() { file.to_owned() } else { format!("{folder}/{file}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn describing(files: &[&str], image: &str) -> Vec<String> {
        let mut sidecars = Sidecars::default();
        files.iter().filter(|uri| Sidecars::takes(uri)).for_each(|uri| sidecars.insert(uri));
        sidecars.describing(image)
    }

    fn nearest(json: &[&str], image: &str) -> Option<String> {
        describing(json, image).into_iter().next()
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

    #[test]
    fn what_lies_above_is_inherited_and_tables_come_last() {
        let image = "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz";
        let beside = "sub-01/ses-a/anat/sub-01_ses-a_T1w.json";
        let (scans, sessions) = ("sub-01/ses-a/sub-01_ses-a_scans.tsv", "sub-01/sub-01_sessions.tsv");
        let foreign =
            ["sub-02/sub-02_sessions.tsv", "sub-01/ses-b/sub-01_ses-b_scans.tsv", "participants.tsv", "T2w.json"];
        let files: Vec<&str> = ["T1w.json", sessions, scans, beside].into_iter().chain(foreign).collect();
        assert_eq!(describing(&files, image), [beside, "T1w.json", scans, sessions]);
        assert_eq!(describing(&["T1w.json", scans], "IXI002-T1.nii.gz"), [] as [&str; 0]);
    }
}
