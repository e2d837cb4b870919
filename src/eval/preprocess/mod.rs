//! Preprocessing against its bars.
//!
//! ```text
//! cohort (split) ─► every scan through preprocess::steps ─► brain masks   against derivatives/brainmask (masks.rs)
//!                      │                                    registration  moved heads, template overlap (geometry.rs)
//!                      │                                    bias field    known fields put on and taken off (bias.rs)
//!                      │                                    lesion masks  to the model's grid and back (lesions.rs)
//!                      │                                    intensities   of two sites, by method (intensity.rs)
//!                      └─► again on one core                speed.rs
//! ```
//! Takes a BIDS cohort of T1w scans whose `participants.tsv` may have the columns `split` (which subjects are held
//! out), `skull` (`yes` or `no`: whether the scan is a whole head) and `source` (the site), with reference masks under
//! `derivatives/brainmask`. Parts whose data the cohort lacks are left out. All draws are seeded by the scan's id: the
//! same cohort gives the same figures, times aside.

mod bias;
pub mod border;
mod geometry;
mod intensity;
mod lesions;
mod masks;
mod report;
mod speed;

use std::collections::BTreeMap;

use object_store::ObjectStoreExt;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Serialize;
use sha2::{Digest, Sha256};

pub use report::{Bar, Report};
pub use speed::{Measured, measure};

use crate::cohort::{self, Participants, ScanBytes, Selection};
use crate::error::{Error, Result};
use crate::preprocess::{self, PreprocessConfig, Steps};
use crate::store::{self, Location};
use crate::synth;
use crate::volume::{Volume, nifti};

/// A scan must not be larger than this, compressed or not.
pub(super) const MAX_SCAN_BYTES: u64 = 2 << 30;

/// Bare brains with voxels up to this many mm are put back into synthetic skulls.
const FINE_MM: f64 = 1.2;

/// What is evaluated.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The cohort: a folder or a URL.
    pub cohort: String,
    /// The value in column `split` of participants.tsv; all subjects if `None`.
    pub split: Option<String>,
    /// At most so many scans.
    pub limit: Option<usize>,
    /// How often every scan is moved and registered again.
    pub moves: usize,
    /// The settings under test.
    pub preprocess: PreprocessConfig,
}

/// One scan under test.
struct Case {
    scan_id: String,
    bytes: ScanBytes,
    native: Volume,
    reference: Option<Volume>,
    /// True for a whole head, false for a bare brain, where the cohort tells.
    head: Option<bool>,
    site: String,
}

impl Case {
    /// A generator that belongs to this scan and this purpose.
    fn rng(&self, purpose: &str) -> ChaCha8Rng {
        ChaCha8Rng::from_seed(Sha256::digest(format!("{purpose}\0{}", self.scan_id)).into())
    }
}

/// What was found of one scan.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ScanFigures {
    /// The scan's id.
    pub scan_id: String,
    /// Its site.
    pub site: String,
    /// Why it was refused; all else is empty then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Whether it was taken for a bare brain.
    pub stripped_input: bool,
    /// Whether the cohort says that it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truly_stripped: Option<bool>,
    /// Dice of the brain mask with the reference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_dice: Option<f64>,
    /// Dice before the template had its say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_mask_dice: Option<f64>,
    /// Dice of the brain mask found in a synthetic skull around this bare brain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub synthetic_head_dice: Option<f64>,
    /// Dice of the brain in MNI space with the template's.
    pub template_dice: f64,
    /// Correlation with the template.
    pub registration_ncc: f32,
    /// Brain volume in ml.
    pub brain_volume_ml: f64,
    /// After each move: difference of rotation in degrees and of the brain's centre in mm.
    pub moved: Vec<[f64; 2]>,
    /// Variation in white matter after a known field was put on and taken off, over what it was before.
    pub bias_ratio: Vec<f64>,
    /// The same, over what it is when the unchanged scan is corrected.
    pub bias_ratio_corrected: Vec<f64>,
    /// Of each lesion: its volume in ml, Dice after the way to the model's grid and back, relative error of the volume.
    pub lesions: Vec<[f64; 3]>,
    /// Quality flags.
    pub flags: Vec<&'static str>,
}

/// Evaluates preprocessing on a cohort.
///
/// # Errors
/// [`Error::Config`] where the cohort has no scan of that split; storage errors. A scan that is refused is a figure,
/// not an error.
pub async fn evaluate(settings: &Settings) -> Result<Report> {
    let location = store::open(&settings.cohort)?;
    let participants = Participants::load(&location).await?.unwrap_or_default();
    let mut selection = Selection { limit: settings.limit, ..Selection::default() };
    if let Some(split) = &settings.split {
        selection.participants = BTreeMap::from([("split".to_owned(), vec![split.clone()])]);
    }
    let cases = load(&location, &selection, &participants, |_| true).await?;
    if cases.is_empty() {
        return Err(Error::Config(
            "the cohort has no T1w scan to evaluate on; `neurosieve cohort` shows what it has, and --split chooses by the \
             column `split` of participants.tsv"
                .into(),
        ));
    }
    // Bare brains at their native resolution are few: all of the cohort are taken, whatever their split.
    let mut fine = load(&location, &Selection::default(), &participants, |head| head == Some(false)).await?;
    fine.retain(|case| is_fine(&case.native));

    eprintln!("{} scans of {}, {} bare brains for synthetic skulls", cases.len(), settings.cohort, fine.len());
    let speed = speed::measure_all(&cases, &settings.preprocess)?;
    let judged: Vec<(ScanFigures, Option<Steps>)> = cases.par_iter().map(|case| judge(case, settings)).collect();
    let intensity = intensity::compare(
        cases.iter().zip(&judged).filter_map(|(case, (_, steps))| Some((case, steps.as_ref()?))),
        &settings.preprocess.normalize,
    );
    let mut scans: Vec<ScanFigures> = judged.into_iter().map(|(figures, _)| figures).collect();
    let skulls: Vec<(String, Result<f64>)> =
        fine.par_iter().map(|case| (case.scan_id.clone(), in_synthetic_skull(case, &settings.preprocess))).collect();
    for (scan_id, dice) in skulls {
        match (dice, scans.iter_mut().find(|scan| scan.scan_id == scan_id)) {
            (Ok(dice), Some(scan)) => scan.synthetic_head_dice = Some(dice),
            (Ok(dice), None) => {
                scans.push(ScanFigures { scan_id, synthetic_head_dice: Some(dice), ..ScanFigures::default() });
            }
            (Err(error), _) => eprintln!("{scan_id} in a synthetic skull: {error}"),
        }
    }
    Ok(Report::new(scans, intensity, settings.preprocess.normalize.method, speed))
}

/// Whole heads of a split and their reference masks, by path; every `nth` of them.
///
/// # Errors
/// Storage errors, and those of a mask that cannot be read.
pub async fn heads_with_masks(cohort: &str, split: &str, nth: usize) -> Result<Vec<(Volume, Volume)>> {
    let location = store::open(cohort)?;
    let participants = Participants::load(&location).await?.unwrap_or_default();
    let selection = Selection {
        participants: BTreeMap::from([("split".to_owned(), vec![split.to_owned()])]),
        ..Selection::default()
    };
    let cases = load(&location, &selection, &participants, |head| head != Some(false)).await?;
    Ok(cases.into_iter().filter_map(|case| Some((case.native, case.reference?))).step_by(nth.max(1)).collect())
}

fn is_fine(native: &Volume) -> bool {
    native.grid.spacing().iter().all(|&mm| mm <= FINE_MM)
}

/// Reads scans and what is known of them; those only that `wanted` takes, which is told whether the cohort says that a
/// scan is a whole head.
async fn load(
    location: &Location,
    selection: &Selection,
    participants: &Participants,
    wanted: impl Fn(Option<bool>) -> bool,
) -> Result<Vec<Case>> {
    let listing = cohort::list(location, location.name(), selection).await?;
    let mut cases = Vec::new();
    for entry in listing.selected {
        let about = |column: &str| entry.subject.as_deref().and_then(|subject| participants.value(subject, column));
        let head = about("skull").map(|skull| skull == "yes");
        if !wanted(head) {
            continue;
        }
        let bytes = cohort::read(location, &entry, MAX_SCAN_BYTES).await?;
        let native = match bytes.decode(MAX_SCAN_BYTES) {
            Ok(decoded) => decoded.volume,
            Err(error) => {
                eprintln!("{} left out: {error}", entry.scan_id);
                continue;
            }
        };
        let site = about("source").unwrap_or("one site").to_owned();
        let reference = match reference_mask(location, &entry.uri).await? {
            // What is left of a bare brain is its own reference.
            None if head == Some(false) => Some(native.clone()),
            found => found,
        };
        cases.push(Case { scan_id: entry.scan_id, bytes, native, reference, head, site });
    }
    Ok(cases)
}

/// The brain mask beside the scan in `derivatives/brainmask`, where there is one.
async fn reference_mask(location: &Location, uri: &str) -> Result<Option<Volume>> {
    let stem = cohort::bids::stem(uri);
    let stem = stem.strip_suffix("_T1w").unwrap_or(stem);
    let path = location.path_of(&format!("derivatives/brainmask/{stem}_space-orig_desc-brain_mask.nii.gz"))?;
    match location.store.get(&path).await {
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        found => {
            let bytes = found.map_err(|e| location.explain("read", e))?.bytes().await;
            let bytes = bytes.map_err(|e| location.explain("read", e))?;
            Ok(Some(nifti::decode(&bytes, MAX_SCAN_BYTES)?.volume))
        }
    }
}

/// Everything about one scan but its speed.
fn judge(case: &Case, settings: &Settings) -> (ScanFigures, Option<Steps>) {
    let mut figures = ScanFigures {
        scan_id: case.scan_id.clone(),
        site: case.site.clone(),
        truly_stripped: case.head.map(|head| !head),
        ..ScanFigures::default()
    };
    let steps = match preprocess::steps(&case.native, &settings.preprocess) {
        Ok(steps) => steps,
        Err(error) => {
            figures.refused = Some(error.to_string());
            return (figures, None);
        }
    };
    figures.stripped_input = steps.brain.stripped_input;
    if let Some(reference) = &case.reference {
        figures.mask_dice = Some(masks::dice_with(&steps.brain.mask, reference));
        figures.first_mask_dice = Some(masks::dice_with(&steps.first_mask, reference));
    }
    figures.template_dice = preprocess::dice(&steps.prepared.brain, preprocess::template_brain());
    figures.registration_ncc = steps.registration.ncc;
    figures.brain_volume_ml = steps.prepared.brain_volume_ml;
    figures.flags = steps.prepared.qc.flags.clone();
    let mut rng = case.rng("move");
    figures.moved = (0..settings.moves)
        .map(|_| geometry::register_moved(&case.native, &steps, &settings.preprocess, &mut rng))
        .collect();
    for [raw, corrected] in bias::put_on_and_off(&steps, &settings.preprocess.bias, &mut case.rng("bias")) {
        figures.bias_ratio.push(raw);
        figures.bias_ratio_corrected.push(corrected);
    }
    figures.lesions =
        lesions::there_and_back(&steps.brain.mask, &case.native.grid, &steps.prepared.to_mni, &mut case.rng("lesion"));
    (figures, Some(steps))
}

/// Dice of the brain that is found in a synthetic skull around a bare brain.
fn in_synthetic_skull(case: &Case, cfg: &PreprocessConfig) -> Result<f64> {
    let seed = u64::from_le_bytes(std::array::from_fn(|i| Sha256::digest(&case.scan_id)[i]));
    let (head, brain) = synth::put_in_head(&case.native, seed)?;
    let found = preprocess::steps(&head, cfg)?;
    Ok(masks::dice_of(&found.brain.mask, &brain))
}
