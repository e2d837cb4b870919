//! Evaluation of preprocessing on a cohort with reference masks.
//!
//! ```text
//! cohort (split) ─► every scan through preprocess::steps ─► brain masks   against derivatives/brainmask (masks.rs)
//!                      │                                    registration  moved heads, template overlap (geometry.rs)
//!                      │                                    bias field    known fields added and corrected (bias.rs)
//!                      │                                    lesion masks  to the model's grid and back (lesions.rs)
//!                      │                                    intensities   of two sites, by method (intensity.rs)
//!                      └─► again on one core                time and memory (speed.rs)
//! ```
//! Takes a BIDS cohort of T1w scans whose `participants.tsv` may have the columns `split` (which subjects are held
//! out), `skull` (`yes` or `no`: whether the scan is a whole head) and `source` (the site), with reference masks under
//! `derivatives/brainmask`. Parts that the cohort has no data for are skipped. All draws are seeded by the scan's id, so the
//! same cohort gives the same figures, except times.

mod bias;
pub mod border;
mod geometry;
mod intensity;
mod lesions;
mod masks;
mod report;
mod speed;
mod targets;

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Serialize;
use sha2::{Digest, Sha256};

pub use report::PreprocessReport;
pub use speed::{ScanTime, measure};
pub use targets::Target;

use super::read::image_at;
use crate::cohort::{self, MAX_SCAN_BYTES, Participants, ScanBytes, Selection, Wanted};
use crate::error::{Error, Result};
use crate::preprocess::{self, PreprocessConfig, Steps};
use crate::store::{self, Location};
use crate::synth;
use crate::terminal::errln;
use crate::volume::Volume;

/// Bare brains with voxels up to this size, in mm, are put into synthetic skulls.
const FINE_MM: f64 = 1.2;

/// Settings of an evaluation.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The cohort: a folder or a URL.
    pub cohort: String,
    /// Only subjects with this value in column `split` of participants.tsv; `None`: all subjects.
    pub split: Option<String>,
    /// Maximum number of scans; `None`: no limit.
    pub limit: Option<usize>,
    /// Number of times that every scan is moved and registered again.
    pub moves: usize,
    /// The settings to evaluate.
    pub preprocess: PreprocessConfig,
}

/// A scan of the evaluation.
struct Case {
    scan_id: String,
    bytes: ScanBytes,
    native: Volume,
    reference: Option<Volume>,
    /// True for a whole head, false for a bare brain, `None` where the cohort does not say.
    head: Option<bool>,
    site: String,
}

impl Case {
    /// A random generator seeded by the scan and the purpose.
    fn rng(&self, purpose: &str) -> ChaCha8Rng {
        ChaCha8Rng::from_seed(Sha256::digest(format!("{purpose}\0{}", self.scan_id)).into())
    }
}

/// Figures of one scan.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ScanFigures {
    /// Id of the scan.
    pub scan_id: String,
    /// Site of the scan.
    pub site: String,
    /// Why preprocessing refused the scan. The other figures are empty then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Whether preprocessing took it for a bare brain.
    pub stripped_input: bool,
    /// Whether it is a bare brain according to the cohort.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truly_stripped: Option<bool>,
    /// Dice of the brain mask with the reference mask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_dice: Option<f64>,
    /// Dice of the first mask, made without the template, with the reference mask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_mask_dice: Option<f64>,
    /// Dice of the brain mask found after this bare brain was put into a synthetic skull.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub synthetic_head_dice: Option<f64>,
    /// Dice of the brain in MNI space with the template's brain.
    pub template_dice: f64,
    /// Correlation of the registered scan with the template.
    pub registration_ncc: f32,
    /// Brain volume in ml.
    pub brain_volume_ml: f64,
    /// Registration error after each move: rotation in degrees, and shift of the brain's centre in mm.
    pub moved: Vec<[f64; 2]>,
    /// Variation in white matter after a known field was added and corrected, relative to the original scan.
    pub bias_ratio: Vec<f64>,
    /// The same, relative to the corrected scan without an added field.
    pub bias_ratio_corrected: Vec<f64>,
    /// For each lesion mask resampled to the model's grid and back: volume in ml, Dice, relative error of the volume.
    pub lesions: Vec<[f64; 3]>,
    /// Quality flags.
    pub flags: Vec<&'static str>,
}

/// Evaluates preprocessing on a cohort.
///
/// # Errors
/// [`Error::Config`] where the cohort has no scan in the split; storage errors. A refused scan is reported as a figure.
pub async fn evaluate(settings: &Settings) -> Result<PreprocessReport> {
    let location = store::open(&settings.cohort)?;
    let participants = participants(&location).await?;
    let mut selection = Selection { limit: settings.limit, ..Selection::default() };
    if let Some(split) = &settings.split {
        selection.participants = in_split(split);
    }
    let cases = load(&location, &selection, &participants, |_| true).await?;
    if cases.is_empty() {
        return Err(Error::Config(
            "no T1w scan of the cohort is selected; `neurosieve cohort` lists its scans, and --split selects by the column \
             `split` of participants.tsv"
                .into(),
        ));
    }
    // Few bare brains have fine voxels, so those of all splits are used.
    let mut fine = load(&location, &Selection::default(), &participants, |head| head == Some(false)).await?;
    fine.retain(|case| is_fine(&case.native));

    errln!("{} scans of {}, {} bare brains for synthetic skulls", cases.len(), settings.cohort, fine.len());
    let speed = speed::measure_all(&cases, &settings.preprocess)?;
    let examined: Vec<(ScanFigures, Option<Steps>)> = cases.par_iter().map(|case| examine(case, settings)).collect();
    let intensity = intensity::compare(
        cases.iter().zip(&examined).filter_map(|(case, (_, steps))| Some((case, steps.as_ref()?))),
        &settings.preprocess.normalize,
    );
    let mut scans: Vec<ScanFigures> = examined.into_iter().map(|(figures, _)| figures).collect();
    let skulls: Vec<(String, Result<f64>)> =
        fine.par_iter().map(|case| (case.scan_id.clone(), in_synthetic_skull(case, &settings.preprocess))).collect();
    for (scan_id, dice) in skulls {
        match (dice, scans.iter_mut().find(|scan| scan.scan_id == scan_id)) {
            (Ok(dice), Some(scan)) => scan.synthetic_head_dice = Some(dice),
            (Ok(dice), None) => {
                scans.push(ScanFigures { scan_id, synthetic_head_dice: Some(dice), ..ScanFigures::default() });
            }
            (Err(error), _) => errln!("{scan_id} in a synthetic skull: {error}"),
        }
    }
    Ok(PreprocessReport::new(scans, intensity, settings.preprocess.normalize.method, speed))
}

/// Every `nth` whole head of a split, ordered by path, with its reference mask.
///
/// # Errors
/// Storage errors, and those of decoding a mask.
pub async fn heads_with_masks(cohort: &str, split: &str, nth: usize) -> Result<Vec<(Volume, Volume)>> {
    let location = store::open(cohort)?;
    let participants = participants(&location).await?;
    let selection = Selection { participants: in_split(split), ..Selection::default() };
    let cases = load(&location, &selection, &participants, |head| head != Some(false)).await?;
    Ok(cases.into_iter().filter_map(|case| Some((case.native, case.reference?))).step_by(nth.max(1)).collect())
}

/// Selects the subjects of a split by their column in participants.tsv.
fn in_split(split: &str) -> BTreeMap<String, Vec<String>> {
    BTreeMap::from([("split".to_owned(), vec![split.to_owned()])])
}

fn is_fine(native: &Volume) -> bool {
    native.grid.spacing().iter().all(|&mm| mm <= FINE_MM)
}

/// What the cohort says of its scans: whether they are whole heads, and where they come from.
async fn participants(location: &Location) -> Result<Participants> {
    let filter = ["skull", "source"].map(|column| (column.to_owned(), Vec::new())).into();
    let wanted = Wanted { filter: &filter, subjects: None, max_mib: Selection::default().participants_mib };
    Ok(Participants::load(location, &wanted).await?.unwrap_or_default())
}

/// Reads the selected scans with their reference masks. `wanted` filters them by whether they are whole heads, which is
/// `None` where the cohort does not say.
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
                errln!("{} skipped: {error}", entry.scan_id);
                continue;
            }
        };
        let site = about("source").unwrap_or("one site").to_owned();
        let reference = match reference_mask(location, &entry.uri).await? {
            // The voxels above 0 of a bare brain are its reference mask.
            None if head == Some(false) => Some(native.clone()),
            found => found,
        };
        cases.push(Case { scan_id: entry.scan_id, bytes, native, reference, head, site });
    }
    Ok(cases)
}

/// The brain mask of a scan in `derivatives/brainmask`, if it has one.
async fn reference_mask(location: &Location, uri: &str) -> Result<Option<Volume>> {
    let stem = cohort::bids::stem(uri);
    let stem = stem.strip_suffix("_T1w").unwrap_or(stem);
    image_at(location, &format!("derivatives/brainmask/{stem}_space-orig_desc-brain_mask.nii.gz")).await
}

/// All figures of one scan except its speed.
fn examine(case: &Case, settings: &Settings) -> (ScanFigures, Option<Steps>) {
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
    for [raw, corrected] in bias::add_and_correct(&steps, &settings.preprocess.bias, &mut case.rng("bias")) {
        figures.bias_ratio.push(raw);
        figures.bias_ratio_corrected.push(corrected);
    }
    figures.lesions =
        lesions::round_trips(&steps.brain.mask, &case.native.grid, &steps.prepared.to_mni, &mut case.rng("lesion"));
    (figures, Some(steps))
}

/// Dice of the brain mask found after a bare brain was put into a synthetic skull.
fn in_synthetic_skull(case: &Case, cfg: &PreprocessConfig) -> Result<f64> {
    let seed = u64::from_le_bytes(std::array::from_fn(|i| Sha256::digest(&case.scan_id)[i]));
    let (head, brain) = synth::put_in_head(&case.native, seed)?;
    let found = preprocess::steps(&head, cfg)?;
    Ok(masks::dice_of(&found.brain.mask, &brain))
}
