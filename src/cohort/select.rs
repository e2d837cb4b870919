//! Which images of a cohort are selected, and why each of the others is not.
//!
//! Takes a [`Selection`] (from a pipeline file or the command line) and images one by one; gives `None` for a selected
//! image and a [`Reason`] for every other, so that none is skipped silently. Refuses a glob that does not parse, and a
//! participants filter without a `participants.tsv` that has its columns.

use std::collections::BTreeMap;
use std::fmt;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use serde::{Deserialize, Serialize};

use super::bids::Entities;
use super::participants::Participants;
use crate::error::{Error, Result};

/// Which scans of a cohort to screen. A scan must meet every condition; an empty list sets no condition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Selection {
    /// BIDS suffixes to take, by default `T1w`. In a tree that is not BIDS, a name without BIDS entities is always taken.
    pub suffixes: Vec<String>,
    /// Subjects to take, `01` or `sub-01`.
    pub subjects: Vec<String>,
    /// Sessions to take, `a` or `ses-a`.
    pub sessions: Vec<String>,
    /// Paths to take, as globs on the path below the root: `*` stays inside a folder, `**` does not, and a pattern
    /// without `/` is compared with file names alone.
    pub include: Vec<String>,
    /// Paths to skip, as globs like those of `include`. `exclude` wins over `include`.
    pub exclude: Vec<String>,
    /// Columns of `participants.tsv`, each with the values to take; `n/a` stands for an unknown value.
    pub participants: BTreeMap<String, Vec<String>>,
    /// Also take images below `derivatives/`, the output of pipelines.
    pub derivatives: bool,
    /// Limit on the number of scans; the first by path are taken.
    pub limit: Option<usize>,
}

impl Default for Selection {
    fn default() -> Self {
        Self {
            suffixes: vec!["T1w".to_owned()],
            subjects: Vec::new(),
            sessions: Vec::new(),
            include: Vec::new(),
            exclude: Vec::new(),
            participants: BTreeMap::new(),
            derivatives: false,
            limit: None,
        }
    }
}

/// Why an image is skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It lies below `derivatives/`.
    Derivative,
    /// It lies below `sourcedata/`.
    SourceData,
    /// Its suffix is not among the selected ones.
    Suffix,
    /// Its subject is not among the selected ones.
    Subject,
    /// Its session is not among the selected ones.
    Session,
    /// No include glob matches.
    NotIncluded,
    /// An exclude glob matches.
    Excluded,
    /// Its subject's row in `participants.tsv` has other values than the selected ones, or is missing.
    Participants,
    /// It has no bytes.
    Empty,
    /// Another image has the same scan id.
    Duplicate,
    /// The limit was reached.
    OverLimit,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Derivative => "below derivatives/ (--derivatives selects it)",
            Self::SourceData => "below sourcedata/",
            Self::Suffix => "suffix not selected (--suffix)",
            Self::Subject => "subject not selected",
            Self::Session => "session not selected",
            Self::NotIncluded => "no include glob matches",
            Self::Excluded => "an exclude glob matches",
            Self::Participants => "participants.tsv: values not selected, or no row",
            Self::Empty => "empty file",
            Self::Duplicate => "same scan id as an earlier file",
            Self::OverLimit => "over the limit",
        })
    }
}

/// A selection with its globs compiled and its filter checked.
pub(super) struct Selector<'a> {
    selection: &'a Selection,
    include: GlobSet,
    exclude: GlobSet,
    participants: Option<Participants>,
    bids: bool,
}

impl<'a> Selector<'a> {
    /// `participants` is needed where the selection filters by it; `bids` is whether the tree follows BIDS.
    ///
    /// # Errors
    /// [`Error::Config`] for a glob that does not parse, and for a filter by a table or column that does not exist.
    pub(super) fn new(selection: &'a Selection, participants: Option<Participants>, bids: bool) -> Result<Self> {
        match &participants {
            None if !selection.participants.is_empty() => {
                return Err(Error::Config(
                    "the selection filters by participants.tsv, but the cohort has no such file at its root: remove the \
                     participants filter, or select by subjects or globs"
                        .into(),
                ));
            }
            Some(table) => {
                if let Some(unknown) = selection.participants.keys().find(|column| !table.columns().contains(column)) {
                    let known = table.columns().join(", ");
                    return Err(Error::Config(format!(
                        "participants.tsv has no column `{unknown}` to select by; it has {known}"
                    )));
                }
            }
            None => {}
        }
        let include = glob_set(&selection.include)?;
        let exclude = glob_set(&selection.exclude)?;
        Ok(Self { selection, include, exclude, participants, bids })
    }

    /// Why the image is not selected, judged by its path, or `None` where it is.
    pub(super) fn refuses(&self, uri: &str, entities: &Entities) -> Option<Reason> {
        let Selection { suffixes, subjects, sessions, include, participants, derivatives, .. } = self.selection;
        if entities.derivative && !derivatives {
            return Some(Reason::Derivative);
        }
        if entities.source_data {
            return Some(Reason::SourceData);
        }
        let suffix_fits = match &entities.suffix {
            Some(suffix) => suffixes.contains(suffix),
            None => !self.bids,
        };
        if !suffixes.is_empty() && !suffix_fits {
            return Some(Reason::Suffix);
        }
        if !label_fits(subjects, "sub-", entities.subject.as_deref()) {
            return Some(Reason::Subject);
        }
        if !label_fits(sessions, "ses-", entities.session.as_deref()) {
            return Some(Reason::Session);
        }
        if !include.is_empty() && !self.include.is_match(uri) {
            return Some(Reason::NotIncluded);
        }
        if self.exclude.is_match(uri) {
            return Some(Reason::Excluded);
        }
        let accepted = self.participants.as_ref().is_none_or(|table| {
            entities.subject.as_deref().is_some_and(|subject| table.accepts(subject, participants))
        });
        (!accepted).then_some(Reason::Participants)
    }
}

fn label_fits(wanted: &[String], key: &str, label: Option<&str>) -> bool {
    wanted.is_empty() || wanted.iter().any(|w| Some(w.strip_prefix(key).unwrap_or(w)) == label)
}

fn glob_set(patterns: &[String]) -> Result<GlobSet> {
    let bad = |pattern: &str, e: globset::Error| {
        Error::Config(format!("`{pattern}` in include or exclude is not a glob: {}", e.kind()))
    };
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        let anywhere = if pattern.contains('/') { pattern.clone() } else { format!("**/{pattern}") };
        set.add(GlobBuilder::new(&anywhere).literal_separator(true).build().map_err(|e| bad(pattern, e))?);
    }
    set.build().map_err(|e| bad(&patterns.join(", "), e))
}

#[cfg(test)]
mod tests {
    use super::super::bids::entities;
    use super::*;

    fn refused(selection: &Selection, bids: bool, uri: &str) -> Option<Reason> {
        Selector::new(selection, None, bids).unwrap().refuses(uri, &entities(uri))
    }

    #[test]
    fn a_single_star_stays_inside_a_folder() {
        let only = |include: &str| Selection { include: vec![include.to_owned()], ..Selection::default() };
        let uri = "sub-01/anat/sub-01_T1w.nii.gz";
        for fits in ["sub-01/**", "*_T1w.nii.gz", "sub-01/anat/*.nii.gz", "sub-{01,02}/**"] {
            assert_eq!(refused(&only(fits), true, uri), None, "{fits}");
        }
        for not in ["sub-01/*", "sub-01", "anat/*.nii.gz"] {
            assert_eq!(refused(&only(not), true, uri), Some(Reason::NotIncluded), "{not}");
        }
        let both = Selection { exclude: vec!["sub-01*".to_owned()], ..only("**/*") };
        assert_eq!(refused(&both, true, uri), Some(Reason::Excluded));
    }

    #[test]
    fn names_without_entities_count_only_outside_bids() {
        let selection = Selection::default();
        assert_eq!(refused(&selection, false, "IXI002-T1.nii.gz"), None);
        assert_eq!(refused(&selection, true, "sub-01/anat/brain.nii.gz"), Some(Reason::Suffix));
        assert_eq!(refused(&selection, false, "sub-01_FLAIR.nii.gz"), Some(Reason::Suffix));
    }

    #[test]
    fn labels_with_and_without_their_key() {
        for subject in ["01", "sub-01"] {
            let selection = Selection { subjects: vec![subject.to_owned()], ..Selection::default() };
            assert_eq!(refused(&selection, true, "sub-01/anat/sub-01_T1w.nii"), None);
            assert_eq!(refused(&selection, true, "sub-010/anat/sub-010_T1w.nii"), Some(Reason::Subject));
        }
    }

    #[test]
    fn a_pipeline_file_says_only_what_differs_and_typos_are_refused() {
        let selection: Selection = toml::from_str("limit = 3\nparticipants.split = ['val']").unwrap();
        assert_eq!(selection.suffixes, ["T1w"]);
        assert_eq!((selection.limit, selection.participants["split"].len()), (Some(3), 1));
        assert!(toml::from_str::<Selection>("sufixes = ['T1w']").is_err());
        let bad = Selection { exclude: vec!["a[".to_owned()], ..Selection::default() };
        assert!(Selector::new(&bad, None, true).err().unwrap().to_string().contains("a["));
    }
}
