//! Comparison of methods on a cohort with truth masks.
//!
//! ```text
//! cohort with truth ─► preprocess ─┐
//! healthy cohort    ─► preprocess ─┴─► every method: a threshold fixed on the healthy scans alone,
//!                                      maps, masks and scores of all scans ─► figures.rs ─► report.rs
//! ```
//! Every method gets the same preprocessed scans and runs on the same device. Its maps are compared with the truth in native
//! space, over the voxels of the brain mask and of the lesions. A truth mask is at
//! `<truth>/<folder of the scan>/<name without suffix>_label-lesion_mask.nii.gz` and above 0 inside lesions. Scans without
//! a truth mask are skipped and reported.

mod figures;
mod report;

use std::collections::BTreeSet;
use std::time::Instant;

use rayon::prelude::*;

pub use report::{Estimate, MethodFigures, MethodReport, Ratio, ScanFigures};

use self::figures::Counts;
use super::config::EvalPipeline;
use super::read::image_at;
use crate::cohort::{self, CohortConfig, MAX_SCAN_BYTES};
use crate::config::Validate as _;
use crate::error::{Error, Result};
use crate::model::{Bundle, Networks, device};
use crate::preprocess::{self, Prepared, PreprocessConfig, mask_to};
use crate::score::{self, Assessment, Scan, ScoreConfig, Settings};
use crate::store::{self, Location};
use crate::tables::Tables;
use crate::terminal::errln;
use crate::volume::{Volume, resample};

/// A lesion counts as found when at least this share of it is in the mask.
const FOUND_SHARE: f64 = 0.1;

/// Lesions and findings below this volume, a voxel or two, are not counted; in ml.
const MIN_ML: f64 = 0.03;

/// A preprocessed scan.
struct Case {
    scan_id: String,
    prepared: Prepared,
    /// 1 in a lesion, native grid; `None` for a healthy scan.
    truth: Option<Volume<u8>>,
}

/// One method's result for one scan, compared with the truth.
struct Compared {
    figures: ScanFigures,
    counts: Counts,
    /// The mask on the model's grid.
    mask: Vec<u8>,
}

/// Evaluates the methods of the pipeline.
///
/// # Errors
/// [`Error::Config`] where no method is given, a cohort has no usable scan, or a method's settings are invalid; storage and
/// device errors. A scan that preprocessing refuses is skipped and reported.
pub async fn evaluate(pipeline: &EvalPipeline) -> Result<MethodReport> {
    pipeline.validate()?;
    if pipeline.eval.methods.is_empty() {
        return Err(Error::Config(
            "no method to evaluate: add [[eval.methods]] sections as in pipelines/eval.toml".into(),
        ));
    }
    let device = device::resolve(pipeline.run.device)?;
    // As in a screening, every thread computes alone.
    device::on_calling_thread();
    let bundle = Bundle::open(&pipeline.model.bundle)?;
    let networks = bundle.networks(device)?;
    let lesioned = cases(&pipeline.cohort, Some(&pipeline.eval.truth), &pipeline.preprocess).await?;
    let healthy = cases(&pipeline.healthy, None, &pipeline.preprocess).await?;
    errln!("{} scans with truth, {} healthy scans; {}, {device:?}", lesioned.len(), healthy.len(), bundle.label());

    let mut methods = Vec::new();
    for method in &pipeline.eval.methods {
        let started = Instant::now();
        let networks = bundle.networks_in(device, method.score.precision.kind())?;
        let run = MethodRun { networks: &networks, score: &method.score, bundle: &bundle };
        let figures = run.evaluate(&method.name, &lesioned, &healthy, pipeline.eval.healthy_quantile)?;
        errln!("{}: {:.0} s", method.name, started.elapsed().as_secs_f64());
        methods.push(figures);
    }
    let report = MethodReport {
        bundle: bundle.label(),
        bundle_digest: bundle.digest.clone(),
        device: format!("{device:?}").to_lowercase(),
        cohort: pipeline.cohort.name_at(&store::open(&pipeline.cohort.url)?).to_owned(),
        n_lesioned: lesioned.len(),
        n_healthy: healthy.len(),
        reconstruction_l1: reconstruction(&networks, &healthy)?,
        reconstruction_l1_lesioned: reconstruction(&networks, &lesioned)?,
        ratios: methods.iter().skip(1).map(|other| Ratio::new(&methods[0], other)).collect(),
        methods,
    };
    if !pipeline.tables.url.is_empty() {
        let mut tables = Tables::open_or_create(&pipeline.tables.url).await?;
        tables.record_evaluation(&report.rows(&pipeline.eval.methods)?).await?;
    }
    Ok(report)
}

/// A method with its networks.
struct MethodRun<'a> {
    networks: &'a Networks,
    score: &'a ScoreConfig,
    bundle: &'a Bundle,
}

impl MethodRun<'_> {
    fn evaluate(&self, name: &str, lesioned: &[Case], healthy: &[Case], quantile: f64) -> Result<MethodFigures> {
        let mut settings = Settings::new(self.score, self.bundle)?;
        // No mask yet: the threshold is computed from the healthy scans, and the bundle's is not used.
        settings.mask_threshold = f32::INFINITY;
        let mut maps = Vec::new();
        for case in healthy {
            maps.push(self.assess(case, &settings)?.0.score);
        }
        let mut scores: Vec<f32> = maps
            .iter()
            .zip(healthy)
            .flat_map(|(map, case)| {
                let voxels = map.data.iter().zip(&case.prepared.brain.data);
                voxels.filter(|&(_, &b)| b > 0).map(|(&s, _)| s).collect::<Vec<_>>()
            })
            .collect();
        let place = (scores.len().saturating_sub(1) as f64 * quantile).round() as usize;
        settings.mask_threshold = match self.score.mask_threshold {
            Some(given) => given as f32,
            None if scores.is_empty() => {
                return Err(Error::Config(format!(
                    "the healthy cohort has no brain voxel to fix the threshold of `{name}` on: choose other scans with \
                     [healthy.select]"
                )));
            }
            None => *scores.select_nth_unstable_by(place, f32::total_cmp).1,
        };
        let healthy_scores: Vec<f64> = maps.iter().map(|map| f64::from(score::scan_score(map))).collect();
        let healthy_ml: Vec<f64> = maps.iter().map(|map| called_ml(map, &settings)).collect();

        let mut compared = Vec::new();
        for case in lesioned {
            let (assessment, seconds) = self.assess(case, &settings)?;
            compared.push(compare(case, &assessment, seconds));
        }
        Ok(MethodFigures::new(name, settings.mask_threshold, compared, &healthy_scores, &healthy_ml))
    }

    /// The maps of a scan, and the seconds that the networks took.
    fn assess(&self, case: &Case, settings: &Settings) -> Result<(Assessment, f64)> {
        let scan = Scan::new(&case.scan_id, &case.prepared);
        let started = Instant::now();
        let inferences = score::infer(self.networks, &[scan], settings)?;
        let seconds = started.elapsed().as_secs_f64();
        Ok((score::assess(&inferences[0], scan.image, scan.brain, settings)?, seconds))
    }
}

/// Volume of a map's findings, ml.
fn called_ml(map: &Volume, settings: &Settings) -> f64 {
    let above = map.data.iter().map(|&s| u8::from(s > settings.mask_threshold)).collect();
    let above = Volume::new(map.grid, above);
    let (mask, _) = score::components(&above, map, settings.config.min_finding_ml);
    mask.data.iter().filter(|&&v| v > 0).count() as f64 * map.grid.voxel_ml()
}

/// Compares a scan's maps with its truth, in native space.
fn compare(case: &Case, assessment: &Assessment, seconds: f64) -> Compared {
    let truth = case.truth.as_ref().expect("lesioned scans have a truth");
    let (native, to_mni) = (truth.grid, &case.prepared.to_mni);
    let scores = resample::trilinear(&assessment.score, &native, to_mni);
    let called = mask_to(&assessment.mask, &native, to_mni);
    let brain = mask_to(&case.prepared.brain, &native, to_mni);
    let voxels = || (0..truth.data.len()).filter(|&i| brain.data[i] > 0 || truth.data[i] > 0);
    let counts = Counts::of(voxels().map(|i| (scores.data[i], truth.data[i] > 0)));
    let shared = |a: &Volume<u8>, b: &Volume<u8>| voxels().filter(|&i| a.data[i] > 0 && b.data[i] > 0).count() as u64;
    let (n_shared, n_called, n_truth) = (shared(&called, truth), shared(&called, &called), shared(truth, truth));

    let min_voxels = MIN_ML / native.voxel_ml();
    let large = |mask: &Volume<u8>| -> Vec<Vec<u32>> {
        score::connected(mask).into_iter().filter(|part| part.len() as f64 >= min_voxels).collect()
    };
    let (lesions, findings) = (large(truth), large(&called));
    let covered = |part: &[u32], by: &Volume<u8>| part.iter().filter(|&&i| by.data[i as usize] > 0).count();
    let found = lesions.iter().filter(|part| covered(part, &called) as f64 >= FOUND_SHARE * part.len() as f64).count();
    let false_findings = findings.iter().filter(|part| covered(part, truth) == 0).count();
    Compared {
        figures: ScanFigures {
            scan_id: case.scan_id.clone(),
            truth_ml: n_truth as f64 * native.voxel_ml(),
            called_ml: n_called as f64 * native.voxel_ml(),
            shared: n_shared,
            called: n_called,
            truth: n_truth,
            dice: figures::dice(n_shared, n_called, n_truth),
            average_precision: figures::pooled(std::iter::once(&counts)).average_precision,
            lesions: lesions.len(),
            lesions_found: found,
            false_findings,
            anomaly_score: f64::from(assessment.anomaly_score),
            device_seconds: seconds,
        },
        counts,
        mask: assessment.mask.data.clone(),
    }
}

/// Mean |image - decoded tokens| over the brains without their lesions: the error that the tokens alone cause.
fn reconstruction(networks: &Networks, cases: &[Case]) -> Result<f64> {
    let (mut sum, mut n) = (0f64, 0f64);
    for case in cases {
        let Prepared { image, brain, to_mni, .. } = &case.prepared;
        let decoded = score::reconstruct(networks, Scan::new(&case.scan_id, &case.prepared))?;
        let lesion = case.truth.as_ref().zip(to_mni.inverse()).map(|(truth, to_native)| {
            let truth = Volume::new(truth.grid, truth.data.iter().map(|&v| f32::from(v)).collect());
            resample::trilinear(&truth, &image.grid, &to_native)
        });
        let healthy = |i: usize| brain.data[i] > 0 && lesion.as_ref().is_none_or(|lesion| lesion.data[i] == 0.);
        for i in (0..image.data.len()).filter(|&i| healthy(i)) {
            sum += f64::from((image.data[i] - decoded.data[i]).abs());
            n += 1.;
        }
    }
    Ok(sum / n)
}

/// Reads and preprocesses the scans of a cohort, with their truth masks where `truth` names the folder of those.
async fn cases(config: &CohortConfig, truth: Option<&str>, preprocess: &PreprocessConfig) -> Result<Vec<Case>> {
    let location = store::open(&config.url)?;
    let listing = config.list(&location).await?;
    let mut read = Vec::new();
    let mut missing = BTreeSet::new();
    for entry in listing.selected {
        let mask = match truth {
            None => None,
            Some(folder) => match truth_mask(&location, folder, entry.address()).await? {
                Some(mask) => Some(mask),
                None => {
                    missing.insert(entry.scan_id);
                    continue;
                }
            },
        };
        read.push((entry.scan_id.clone(), cohort::read(&location, &entry, MAX_SCAN_BYTES).await?, mask));
    }
    if !missing.is_empty() {
        let missing_ids: Vec<&str> = missing.iter().map(String::as_str).collect();
        errln!("{} scans skipped, no truth mask: {}", missing.len(), missing_ids.join(", "));
    }
    let prepared: Vec<(String, Result<Case>)> = read
        .into_par_iter()
        .map(|(scan_id, bytes, truth)| {
            let case = || {
                let native = bytes.decode(MAX_SCAN_BYTES)?.volume;
                let prepared = preprocess::prepare(&native, preprocess)?;
                if let Some(truth) = truth.as_ref().filter(|truth| truth.grid.shape != native.grid.shape) {
                    return Err(Error::input(
                        "truth",
                        format!(
                            "the truth mask has {:?} voxels, but the scan has {:?}",
                            truth.grid.shape, native.grid.shape
                        ),
                    ));
                }
                Ok(Case { scan_id: scan_id.clone(), prepared, truth })
            };
            (scan_id.clone(), case())
        })
        .collect();
    let mut cases = Vec::new();
    for (scan_id, case) in prepared {
        match case {
            Ok(case) => cases.push(case),
            Err(error) => errln!("{scan_id} skipped: {error}"),
        }
    }
    if cases.is_empty() {
        let wanted = if truth.is_some() { "scan with a truth mask" } else { "healthy scan" };
        return Err(Error::Config(format!(
            "{} has no usable {wanted}; `neurosieve cohort` lists its scans",
            config.url
        )));
    }
    Ok(cases)
}

/// The lesion mask of a scan, if it has one.
async fn truth_mask(location: &Location, folder: &str, uri: &str) -> Result<Option<Volume<u8>>> {
    let stem = cohort::bids::stem(uri);
    let stem = stem.rsplit_once('_').map_or(stem, |(before, _)| before);
    let mask = image_at(location, &format!("{folder}/{stem}_label-lesion_mask.nii.gz")).await?;
    Ok(mask.map(|mask| Volume::new(mask.grid, mask.data.iter().map(|&v| u8::from(v > 0.)).collect())))
}
