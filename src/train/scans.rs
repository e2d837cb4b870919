//! The scans of a training: listed in the cohort, preprocessed once, and kept in the work folder.
//!
//! A preprocessed brain takes 1 MB (u8), so that a training that is started again reads it back. [`brains`] gives the
//! brains of one split, [`outlines`] the lesion outlines for synthetic anomalies.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use tch::Tensor;

use super::anomaly::Outline;
use super::config::TrainPipeline;
use super::dataset::Brain;
use super::work;
use crate::cohort::{self, MAX_SCAN_BYTES, ScanBytes, Selection};
use crate::error::{Error, Result};
use crate::preprocess::{self, PreprocessConfig};
use crate::store;
use crate::terminal::errln;

/// Scans that are read and preprocessed at once; bounds the bytes in memory.
const PREPARE_AT_ONCE: usize = 16;

/// A scan that was read, to be preprocessed.
struct Raw {
    scan_id: String,
    bytes: ScanBytes,
    /// File for the preprocessed brain.
    path: PathBuf,
}

/// Preprocessed brains of the participants with `split` in the cohort's split column, in the order of their scan ids.
/// `participants` selects participants further. Scans that preprocessing refuses are skipped and reported.
///
/// # Errors
/// [`Error::Config`] where no scan of the cohort has this split; storage errors.
pub(super) async fn brains(
    pipeline: &TrainPipeline,
    participants: &BTreeMap<String, Vec<String>>,
    split: &str,
) -> Result<Vec<Brain>> {
    let config = &pipeline.train;
    let location = store::open(&pipeline.cohort.url)?;
    let mut cohort = pipeline.cohort.clone();
    cohort.select.participants = participants.clone();
    cohort.select.participants.insert(config.split_column.clone(), vec![split.to_owned()]);
    let listing = cohort.list(&location).await?;
    if listing.selected.is_empty() {
        return Err(Error::Config(format!(
            "no scan of the cohort has `{split}` in column `{}` of participants.tsv; training needs `train` and `val` \
             subjects",
            config.split_column
        )));
    }
    let mut brains = Vec::new();
    let mut missing = Vec::new();
    for entry in listing.selected {
        let path = work::prepared(config, &entry.scan_id, &entry.content_id, &pipeline.preprocess);
        match read_prepared(&path) {
            Some(brain) => brains.push((entry.scan_id, brain)),
            None => missing.push((entry, path)),
        }
    }
    let total = brains.len() + missing.len();
    for chunk in missing.chunks(PREPARE_AT_ONCE) {
        let mut raw = Vec::new();
        for (entry, path) in chunk {
            let bytes = cohort::read(&location, entry, MAX_SCAN_BYTES).await?;
            raw.push(Raw { scan_id: entry.scan_id.clone(), bytes, path: path.clone() });
        }
        for (scan_id, result) in prepare(raw, &pipeline.preprocess) {
            match result {
                Ok(brain) => brains.push((scan_id, brain)),
                Err(error) => errln!("{scan_id} skipped: {error}"),
            }
        }
        errln!("prepared {} of {total} {split} scans", brains.len());
    }
    // Draws index into this list, so its order must not depend on which scans were in the work folder already.
    brains.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(brains.into_iter().map(|(_, brain)| brain).collect())
}

/// Reads a preprocessed brain back; `None` where there is none.
fn read_prepared(path: &Path) -> Option<Brain> {
    let tensors: HashMap<_, _> = Tensor::read_safetensors(path).ok()?.into_iter().collect();
    let bytes = |name: &str| Vec::<u8>::try_from(tensors.get(name)?).ok();
    Some(Brain { image: bytes("image")?, mask: bytes("mask")? })
}

/// Decodes and preprocesses scans on all cores, and writes the results to their files. Gives a result by scan id.
fn prepare(raw: Vec<Raw>, config: &PreprocessConfig) -> Vec<(String, Result<Brain>)> {
    raw.into_par_iter()
        .map(|raw| {
            let brain = prepare_one(&raw, config);
            (raw.scan_id, brain)
        })
        .collect()
}

fn prepare_one(raw: &Raw, config: &PreprocessConfig) -> Result<Brain> {
    let decoded = raw.bytes.decode(MAX_SCAN_BYTES)?;
    let prepared = preprocess::prepare(&decoded.volume, config)?;
    let image: Vec<u8> = prepared.image.data.iter().map(|v| (v * 255.).round().clamp(0., 255.) as u8).collect();
    let mask = prepared.brain.data;
    let partial = raw.path.with_extension("partial");
    Tensor::write_safetensors(&[("image", Tensor::from_slice(&image)), ("mask", Tensor::from_slice(&mask))], &partial)?;
    std::fs::rename(&partial, &raw.path).map_err(|e| Error::io("cannot write a preprocessed scan", e))?;
    Ok(Brain { image, mask })
}

/// Outlines of the lesion masks in a folder; none for an empty `url`.
///
/// # Errors
/// [`Error::Config`] where the folder holds no lesion mask; storage errors, and those of a file that cannot be decoded.
pub(super) async fn outlines(url: &str) -> Result<Vec<Outline>> {
    let mut outlines = Vec::new();
    if url.is_empty() {
        return Ok(outlines);
    }
    let location = store::open(url)?;
    let everything = Selection { suffixes: Vec::new(), derivatives: true, ..Selection::default() };
    for entry in cohort::list(&location, "shapes", &everything).await?.selected {
        let bytes = cohort::read(&location, &entry, MAX_SCAN_BYTES).await?;
        let mask = bytes.decode(MAX_SCAN_BYTES)?.volume;
        outlines.extend(Outline::of(&mask));
    }
    if outlines.is_empty() {
        return Err(Error::Config(format!("train.shapes: {location} holds no lesion mask of 8 mm3 or more")));
    }
    errln!("{} outlines of lesions", outlines.len());
    Ok(outlines)
}
