//! Which images of a cohort are selected, and why each of the others is not.
//!
//! Takes a [`Selection`] (from a pipeline file or the command line) and images one by one; gives `None` for a selected
//! image and a [`Reason`] for every other, so that none is skipped silently. Refuses a glob that does not parse, and a
//! participants filter without a `participants.tsv` that has its columns.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path as FilePath;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use serde::{Deserialize, Serialize};

use super::bids::Entities;
use super::dataset::Dataset;
use super::participants::Participants;
use crate::error::{Error, Result};
use crate::store::Fault;

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
    /// Largest `participants.tsv` that is read, in MiB, 1 to 1048576. Default: 256, which is a million subjects with fifty
    /// columns. A larger one is refused where `participants` filters, and else gives no metadata.
    pub participants_mib: u64,
    /// Also take the output of pipelines: images below `derivatives/`, in a dataset whose `dataset_description.json` says
    /// so, and with a name that only pipelines give (`space-`, `desc-`, `label-`, `_mask`).
    pub derivatives: bool,
    /// Also take what is not an image of its own: phase, real and imaginary parts, and echoes after the first.
    pub all_parts: bool,
    /// Also take images that `.bidsignore` names.
    pub ignored: bool,
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
            participants_mib: 256,
            derivatives: false,
            all_parts: false,
            ignored: false,
            limit: None,
        }
    }
}

/// Why an image, or another entry, is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It lies below `derivatives/`.
    Derivative,
    /// A pipeline made the dataset, by its `dataset_description.json`.
    DerivativeDataset,
    /// Its name has what only a pipeline gives: `space-`, `desc-`, `label-`, `_mask`.
    DerivedName,
    /// It lies below `sourcedata/`.
    SourceData,
    /// `.bidsignore` names it.
    BidsIgnore,
    /// Its suffix is not among the selected ones.
    Suffix,
    /// It is the phase, the real or the imaginary part of an image.
    Part,
    /// It is an echo after the first.
    Echo,
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
    /// It is of a contrast that the model was not trained on, by its suffix.
    Contrast,
    /// The limit was reached.
    OverLimit,
    /// It is a link to a file that does not exist, as in a DataLad dataset before `datalad get`.
    Absent,
    /// It is a link that leads back to itself or to a folder above it.
    LinkLoop,
    /// Its name cannot be used: no UTF-8, control characters, or an empty, `.` or `..` part.
    Name,
    /// This user may not read the folder.
    Denied,
    /// It is neither a file nor a folder.
    NotAFile,
}

impl Reason {
    /// What is said of the image.
    pub fn text(self) -> &'static str {
        match self {
            Self::Derivative => "below derivatives/",
            Self::DerivativeDataset => "dataset_description.json says that a pipeline made it",
            Self::DerivedName => "space-, desc-, label- or a mask: made by a pipeline",
            Self::SourceData => "below sourcedata/",
            Self::BidsIgnore => "named in .bidsignore",
            Self::Suffix => "suffix not selected",
            Self::Part => "phase, real or imaginary part of an image",
            Self::Echo => "an echo after the first",
            Self::Subject => "subject not selected",
            Self::Session => "session not selected",
            Self::NotIncluded => "no include glob matches",
            Self::Excluded => "an exclude glob matches",
            Self::Participants => "participants.tsv: values not selected, or no row",
            Self::Empty => "empty file",
            Self::Duplicate => "same scan id as an earlier file",
            Self::Contrast => "not the contrast that the model was trained on; model.any_contrast = true screens it",
            Self::OverLimit => "over the limit",
            Self::Absent => "absent: a link to a file that is not here; fetch it with `datalad get`",
            Self::LinkLoop => "a link that leads back to itself or to a folder above it",
            Self::Name => {
                "the name cannot be used (not UTF-8, control characters, or an empty, `.` or `..` part): rename it"
            }
            Self::Denied => "no permission to read this folder",
            Self::NotAFile => "neither a file nor a folder",
        }
    }

    /// The option of `neurosieve cohort` and the key below `cohort.select` that change it.
    pub(super) fn setting(self) -> Option<(&'static str, &'static str)> {
        Some(match self {
            Self::Derivative | Self::DerivativeDataset | Self::DerivedName => ("--derivatives", "derivatives"),
            Self::BidsIgnore => ("--ignored", "ignored"),
            Self::Suffix => ("--suffix", "suffixes"),
            Self::Part | Self::Echo => ("--all-parts", "all_parts"),
            Self::Subject => ("--subject", "subjects"),
            Self::Session => ("--session", "sessions"),
            Self::NotIncluded => ("--include", "include"),
            Self::Excluded => ("--exclude", "exclude"),
            Self::Participants => ("--where", "participants"),
            Self::OverLimit => ("--limit", "limit"),
            _ => return None,
        })
    }

    /// True where nobody chose to leave the entry out: something is wrong with it, or it does not fit the model.
    pub fn is_fault(self) -> bool {
        !self.is_about_image() || matches!(self, Self::Absent | Self::Empty | Self::Contrast)
    }

    /// False where the entry may be something else than an image: it is not known, or its name does not count.
    pub(super) fn is_about_image(self) -> bool {
        !matches!(self, Self::LinkLoop | Self::Name | Self::Denied | Self::NotAFile)
    }
}

impl From<Fault> for Reason {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Absent => Self::Absent,
            Fault::Loop => Self::LinkLoop,
            Fault::Name => Self::Name,
            Fault::Denied => Self::Denied,
            Fault::NotAFile => Self::NotAFile,
        }
    }
}

/// The text with the option of `neurosieve cohort` that changes it.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())?;
        self.setting().map_or(Ok(()), |(option, _)| write!(f, " ({option})"))
    }
}

/// A selection with its globs compiled and its filter checked.
pub(super) struct Selector<'a> {
    selection: &'a Selection,
    include: GlobSet,
    exclude: GlobSet,
    participants: Option<Participants>,
    dataset: Dataset,
    bids: bool,
}

impl<'a> Selector<'a> {
    /// `participants` is needed where the selection filters by it; `bids` is whether the tree follows BIDS.
    ///
    /// # Errors
    /// [`Error::Config`] for a glob that does not parse, and for a filter by a table or column that does not exist;
    /// [`Error::NothingSelected`] for a filter by values that the table does not have.
    pub(super) fn new(
        selection: &'a Selection,
        participants: Option<Participants>,
        dataset: Dataset,
        bids: bool,
    ) -> Result<Self> {
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
                if let Some(message) = table.without_value(&selection.participants) {
                    return Err(Error::NothingSelected(message));
                }
            }
            None => {}
        }
        let include = glob_set(&selection.include)?;
        let exclude = glob_set(&selection.exclude)?;
        Ok(Self { selection, include, exclude, participants, dataset, bids })
    }

    /// Why the image is not selected, judged by its path, or `None` where it is.
    pub(super) fn refuses(&self, uri: &str, entities: &Entities) -> Option<Reason> {
        let Selection { suffixes, subjects, sessions, participants, derivatives, ignored, .. } = self.selection;
        if entities.derivative && !derivatives {
            return Some(Reason::Derivative);
        }
        if entities.source_data {
            return Some(Reason::SourceData);
        }
        if !derivatives && self.dataset.is_derivative(uri) {
            return Some(Reason::DerivativeDataset);
        }
        if !ignored && self.dataset.ignores(uri) {
            return Some(Reason::BidsIgnore);
        }
        let suffix_fits = match &entities.suffix {
            Some(suffix) => suffixes.contains(suffix),
            None => !self.bids,
        };
        if !suffixes.is_empty() && !suffix_fits {
            return Some(Reason::Suffix);
        }
        if let Some(reason) = self.is_no_image_of_its_own(entities) {
            return Some(reason);
        }
        if !label_fits(subjects, "sub-", entities.subject.as_deref()) {
            return Some(Reason::Subject);
        }
        if !label_fits(sessions, "ses-", entities.session.as_deref()) {
            return Some(Reason::Session);
        }
        if let Some(reason) = self.refuses_path(FilePath::new(uri)) {
            return Some(reason);
        }
        let accepted = self.participants.as_ref().is_none_or(|table| {
            entities.subject.as_deref().is_some_and(|subject| table.accepts(subject, participants))
        });
        (!accepted).then_some(Reason::Participants)
    }

    /// Why a path is not selected by the globs. It need not be UTF-8.
    pub(super) fn refuses_path(&self, path: &FilePath) -> Option<Reason> {
        if !self.selection.include.is_empty() && !self.include.is_match(path) {
            return Some(Reason::NotIncluded);
        }
        self.exclude.is_match(path).then_some(Reason::Excluded)
    }

    /// Names of images that belong to another one: results of pipelines, parts of a complex image, later echoes.
    fn is_no_image_of_its_own(&self, entities: &Entities) -> Option<Reason> {
        let Entities { part, echo, derived, .. } = entities;
        if *derived && !self.selection.derivatives {
            return Some(Reason::DerivedName);
        }
        if self.selection.all_parts || entities.suffix.is_none() {
            return None;
        }
        if part.as_deref().is_some_and(|part| !part.eq_ignore_ascii_case("mag")) {
            return Some(Reason::Part);
        }
        let number = echo.as_deref().and_then(|echo| echo.parse::<u64>().ok());
        number.is_some_and(|number| number > 1).then_some(Reason::Echo)
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
        Selector::new(selection, None, Dataset::default(), bids).unwrap().refuses(uri, &entities(uri))
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
        assert!(Selector::new(&bad, None, Dataset::default(), true).err().unwrap().to_string().contains("a["));
    }

    #[test]
    fn what_is_not_an_image_of_its_own_is_left_out_unless_asked_for() {
        let any = Selection { suffixes: Vec::new(), ..Selection::default() };
        for (name, reason) in [
            ("sub-01_part-phase_T1w.nii", Some(Reason::Part)),
            ("sub-01_part-imag_T1w.nii", Some(Reason::Part)),
            ("sub-01_part-real_T1w.nii", Some(Reason::Part)),
            ("sub-01_part-mag_T1w.nii", None),
            ("sub-01_echo-1_T1w.nii", None),
            ("sub-01_echo-01_T1w.nii", None),
            ("sub-01_echo-2_T1w.nii", Some(Reason::Echo)),
            ("sub-01_echo-10_T1w.nii", Some(Reason::Echo)),
            ("sub-01_space-MNI152_T1w.nii", Some(Reason::DerivedName)),
            ("sub-01_desc-preproc_T1w.nii", Some(Reason::DerivedName)),
            ("sub-01_label-lesion_mask.nii", Some(Reason::DerivedName)),
            ("sub-01_mask.nii", Some(Reason::DerivedName)),
            ("sub-01_acq-mprage_T1w.nii", None),
        ] {
            assert_eq!(refused(&any, true, name), reason, "{name}");
            let all = Selection { derivatives: true, all_parts: true, ..any.clone() };
            assert_eq!(refused(&all, true, name), None, "{name}");
        }
    }
}
