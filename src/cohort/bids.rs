//! What a path says about a scan, by the rules of the Brain Imaging Data Structure (BIDS).
//!
//! Takes a path relative to a dataset's root, `/` separated; gives [`Entities`]: subject, session, suffix and so on. Works
//! on the text alone and refuses none: a name that follows no rule has no entities.
//! Rules: <https://bids-specification.readthedocs.io/en/stable/common-principles.html#filenames>.

/// The entities of a path. Labels are as written, without their key: `sub-01` gives `01`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entities {
    /// `sub-`, from the file name, else from a folder.
    pub subject: Option<String>,
    /// `ses-`, from the file name, else from a folder.
    pub session: Option<String>,
    /// `acq-`: how the image was acquired.
    pub acquisition: Option<String>,
    /// `ce-`: the contrast agent.
    pub contrast: Option<String>,
    /// `rec-`: the reconstruction.
    pub reconstruction: Option<String>,
    /// `run-`: the repetition.
    pub run: Option<String>,
    /// `part-`: the part of a complex image: `mag`, `phase`, `real`, `imag`.
    pub part: Option<String>,
    /// `echo-`: the number of the echo.
    pub echo: Option<String>,
    /// The kind of image: `T1w`, `FLAIR`. Only a name that starts with `sub-` has one.
    pub suffix: Option<String>,
    /// The folder that holds the file: `anat`, `dwi`.
    pub datatype: Option<String>,
    /// True below a folder `derivatives`: made by a pipeline, not by a scanner.
    pub derivative: bool,
    /// True where the name has an entity that only pipelines give (`space-`, `desc-`, `label-`, `res-`, …), or is that of a
    /// mask or a segmentation.
    pub derived: bool,
    /// True below a folder `sourcedata`: raw data beside the dataset, not part of it.
    pub source_data: bool,
}

/// The folders that the specification calls data types.
const DATATYPES: [&str; 11] = ["anat", "beh", "dwi", "eeg", "fmap", "func", "ieeg", "meg", "micr", "perf", "pet"];

/// Entities that the specification allows in derivatives alone.
const DERIVED: [&str; 7] = ["space", "desc", "label", "res", "den", "from", "to"];

/// Suffixes of masks and segmentations.
const SEGMENTATIONS: [&str; 4] = ["mask", "defacemask", "dseg", "probseg"];

/// Suffixes that name the contrast of an MRI image, or another modality. Names outside this list say nothing of it.
const CONTRASTS: [&str; 39] = [
    "T1w",
    "T2w",
    "T1rho",
    "T1map",
    "T2map",
    "T2star",
    "T2starw",
    "T2starmap",
    "FLAIR",
    "FLASH",
    "PD",
    "PDw",
    "PDmap",
    "PDT2",
    "PDT2map",
    "R1map",
    "R2map",
    "R2starmap",
    "MTRmap",
    "MTw",
    "MTR",
    "MTVmap",
    "inplaneT1",
    "inplaneT2",
    "angio",
    "SWI",
    "SWImagandphase",
    "Chimap",
    "M0map",
    "bold",
    "cbv",
    "sbref",
    "dwi",
    "asl",
    "m0scan",
    "epi",
    "pet",
    "ct",
    "CT",
];

/// Whether a suffix says that an image is of another contrast than those of `trained`: suffixes separated by `+`.
pub fn is_another_contrast(suffix: &str, trained: &str) -> bool {
    CONTRASTS.contains(&suffix) && trained.split('+').all(|one| one != suffix)
}

/// Whether a suffix names a contrast or modality, and thus no person.
pub(super) fn is_contrast(suffix: &str) -> bool {
    CONTRASTS.contains(&suffix)
}

/// Reads the entities of a path that is relative to the dataset's root.
pub fn entities(uri: &str) -> Entities {
    let (folders, file) = uri.rsplit_once('/').unwrap_or(("", uri));
    let folders: Vec<&str> = folders.split('/').collect();
    let name = Name::parse(stem(file));
    let folder = |key: &str| folders.iter().rev().find_map(|f| f.strip_prefix(key)?.strip_prefix('-'));
    let label = |key: &str| name.label(key).map(str::to_owned);
    Entities {
        subject: label("sub").or_else(|| folder("sub").map(str::to_owned)),
        session: label("ses").or_else(|| folder("ses").map(str::to_owned)),
        acquisition: label("acq"),
        contrast: label("ce"),
        reconstruction: label("rec"),
        run: label("run"),
        part: label("part"),
        echo: label("echo"),
        suffix: name.label("sub").and(name.suffix).map(str::to_owned),
        datatype: folders.last().filter(|f| DATATYPES.contains(f)).map(|f| (*f).to_owned()),
        derivative: folders.contains(&"derivatives"),
        derived: name.label("sub").is_some()
            && (DERIVED.iter().any(|key| name.label(key).is_some())
                || name.suffix.is_some_and(|suffix| SEGMENTATIONS.contains(&suffix))),
        source_data: folders.contains(&"sourcedata"),
    }
}

/// What a file holds of an image, by its extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// `.nii`, `.nii.gz`: all of it.
    Whole,
    /// `.hdr`, `.hdr.gz`: the header of a pair. Not BIDS, but old images are often put into BIDS folders unchanged.
    Header,
    /// `.img`, `.img.gz`: the voxels of a pair.
    Voxels,
}

/// Every extension of an image.
const EXTENSIONS: [(&str, Part); 6] = [
    (".nii.gz", Part::Whole),
    (".nii", Part::Whole),
    (".hdr.gz", Part::Header),
    (".hdr", Part::Header),
    (".img.gz", Part::Voxels),
    (".img", Part::Voxels),
];

/// A path or file name without the extension of an image or `.json`, in upper or lower case.
pub fn stem(name: &str) -> &str {
    let extensions = EXTENSIONS.iter().map(|(extension, _)| *extension).chain([".json"]);
    extensions.filter_map(|extension| without_extension(name, extension)).next().unwrap_or(name)
}

/// What this file holds of an image, or `None` where it is no image. The extension may be in upper or lower case.
pub fn image_part(name: &str) -> Option<Part> {
    EXTENSIONS.iter().find(|(extension, _)| without_extension(name, extension).is_some()).map(|(_, part)| *part)
}

/// `name` without `extension` (ASCII, lower case), or `None` where it has another one.
pub fn without_extension<'a>(name: &'a str, extension: &str) -> Option<&'a str> {
    let at = name.len().checked_sub(extension.len())?;
    name.get(at..).filter(|end| end.eq_ignore_ascii_case(extension)).map(|_| &name[..at])
}

/// A file name in its parts: `key-label` pairs separated by `_`, then a suffix.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Name<'a> {
    pairs: Vec<(&'a str, &'a str)>,
    suffix: Option<&'a str>,
}

impl<'a> Name<'a> {
    /// Parses a file name without its extension. A part that is neither a pair nor last is ignored.
    pub(super) fn parse(stem: &'a str) -> Self {
        let pair = |part: &'a str| part.split_once('-').filter(|(key, label)| !key.is_empty() && !label.is_empty());
        let suffix = stem.rsplit('_').next().filter(|last| !last.is_empty() && !last.contains('-'));
        Self { pairs: stem.split('_').filter_map(pair).collect(), suffix }
    }

    /// The label of an entity: `01` for `sub`.
    pub(super) fn label(&self, key: &str) -> Option<&'a str> {
        self.pairs.iter().find(|(k, _)| *k == key).map(|(_, label)| *label)
    }

    /// True where metadata of this name applies to `image` by the inheritance principle: the same suffix, and no entity
    /// that the image lacks.
    pub(super) fn applies_to(&self, image: &Name<'_>) -> bool {
        self.suffix.is_some() && self.suffix == image.suffix && self.pairs.iter().all(|pair| image.pairs.contains(pair))
    }

    /// True where a table of this name is about `image`: it names a subject, and has no entity that the image lacks.
    pub(super) fn describes(&self, image: &Name<'_>) -> bool {
        self.label("sub").is_some() && self.pairs.iter().all(|pair| image.pairs.contains(pair))
    }

    /// The number of entities. Of two names that apply, the one with more entities is nearer.
    pub(super) fn n_entities(&self) -> usize {
        self.pairs.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    /// File names of the specification's chapters on common principles, MRI and derivatives.
    #[test]
    fn examples_of_the_specification() {
        let e = entities("sub-control01/anat/sub-control01_T1w.nii.gz");
        assert_eq!((e.subject, e.suffix, e.datatype), (some("control01"), some("T1w"), some("anat")));
        let e = entities("sub-01/ses-test/anat/sub-01_ses-test_acq-highres_ce-gad_rec-norm_run-2_T1w.nii.gz");
        assert_eq!(
            e,
            Entities {
                subject: some("01"),
                session: some("test"),
                acquisition: some("highres"),
                contrast: some("gad"),
                reconstruction: some("norm"),
                run: some("2"),
                part: None,
                echo: None,
                suffix: some("T1w"),
                datatype: some("anat"),
                derivative: false,
                derived: false,
                source_data: false,
            }
        );
        let e = entities("sub-01/func/sub-01_task-rest_run-01_bold.nii.gz");
        assert_eq!((e.run, e.suffix, e.datatype), (some("01"), some("bold"), some("func")));
        let e = entities("derivatives/fmriprep/sub-001/anat/sub-001_space-MNI305_T1w.nii.gz");
        assert!(e.derivative && e.derived);
        assert_eq!((e.subject, e.suffix), (some("001"), some("T1w")));
        let e = entities("sub-01/anat/sub-01_echo-2_part-phase_MEGRE.nii.gz");
        assert_eq!((e.part, e.echo, e.derived), (some("phase"), some("2"), false));
        for derived in ["sub-01_desc-preproc_T1w.nii", "sub-01_space-MNI_T1w.nii", "sub-01_mask.nii", "sub-01_dseg.nii"]
        {
            assert!(entities(derived).derived, "{derived}");
        }
        assert!(!entities("scan_desc-x.nii").derived && !entities("mask.nii").derived);
        assert!(entities("sourcedata/sub-01/anat/sub-01_T1w.nii.gz").source_data);
    }

    #[test]
    fn a_contrast_is_another_one_only_where_the_name_says_so() {
        for (suffix, trained, other) in [
            ("FLAIR", "T1w", true),
            ("bold", "T1w", true),
            ("T1w", "T1w", false),
            ("FLAIR", "T1w+FLAIR", false),
            ("T1w", "FLAIR", true),
            ("brain", "T1w", false),
        ] {
            assert_eq!(is_another_contrast(suffix, trained), other, "{suffix} {trained}");
        }
    }

    #[test]
    fn names_outside_the_rules_have_no_suffix() {
        for uri in ["IXI002-Guys-0828-T1.nii.gz", "avg152T1_LR_nifti.nii.gz", "T1w.nii.gz", "sub-01.nii.gz", "ä/é.nii"]
        {
            assert_eq!(entities(uri).suffix, None, "{uri}");
        }
        assert_eq!(entities("sub-01/ses-b/anat/scan.nii.gz").subject, some("01"));
        assert_eq!(entities("sub-01/ses-b/anat/scan.nii.gz").session, some("b"));
        assert!(!entities("derivatives_of_mine/x.nii").derivative);
    }

    #[test]
    fn extensions_of_any_case_and_names_shorter_than_one() {
        for (name, part) in [
            ("A.NII.GZ", Some(Part::Whole)),
            ("a.nii", Some(Part::Whole)),
            ("ä.nii", Some(Part::Whole)),
            ("a.hdr.gz", Some(Part::Header)),
            ("a.IMG", Some(Part::Voxels)),
            ("a.nii.bz2", None),
            ("img", None),
            ("ü", None),
            ("", None),
        ] {
            assert_eq!(image_part(name), part, "{name}");
        }
        assert_eq!(stem("sub-01_T1w.img.gz"), "sub-01_T1w");
        assert_eq!(stem("sub-01_desc-1.5mm_T1w.nii.gz"), "sub-01_desc-1.5mm_T1w");
    }
}
