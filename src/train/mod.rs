//! Training of a bundle from a healthy cohort.
//!
//! ```text
//! healthy cohort ─► preprocess (kept in `work`) ─► slices, seen through other scanners
//!   1. tokenizer   L1 + gradient loss of the reconstruction
//!   2. inpainter   masked image modelling on healthy tokens
//!   3. detector    tokens of slices with synthetic anomalies, and swapped blocks of tokens
//!   4. prior       next tokens of healthy slices; only where a rival is wanted
//!   5. calibration healthy scores by place, thresholds fixed on healthy `val` scans
//! ─► bundle folder
//! ```
//! With `train.networks_of`, the networks are those of another bundle; those named in `train.further` are trained on, and the
//! calibration is done anew.
//!
//! Every stage keeps a checkpoint in the work folder and continues from it; a finished stage is not
//! trained again. Batches are drawn from (seed, stage, step), so a continued training sees what an
//! undisturbed one would have seen.

mod adamw;
mod anomaly;
mod calibrate;
mod card;
mod codebook;
mod curve;
mod data;
mod detector;
mod discriminator;
mod inpainter;
mod prior;
mod tokenizer;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::cohort::{self, Selection};
use crate::config::{Network, TrainConfig, TrainPipeline};
use crate::error::{Error, Result};
use crate::model::{
    self, Bundle, BundleInfo, DataSource, Detector, HealthyMap, Inpainter, NETWORKS, PRIOR, Prior, Tokenizer, Training,
    device,
};
use crate::preprocess;
use crate::store;
use adamw::{AdamW, AdamWConfig};
use anomaly::Outline;
use curve::Curve;
use data::{Brain, Slices};

/// Scans read and preprocessed at once; bounds the bytes in memory.
const PREPARE_AT_ONCE: usize = 16;

/// What the stages share.
struct Context<'a> {
    pipeline: &'a TrainPipeline,
    device: Device,
    /// Kind the networks compute in.
    kind: Kind,
    train: Slices,
    val: Slices,
    /// Outlines of real lesions, for synthetic ones.
    outlines: Vec<Outline>,
}

impl Context<'_> {
    /// What a bundle says of its training on these scans; `data`: the data sets of all its parts.
    fn training(&self, data: Vec<DataSource>) -> Training {
        Training {
            train_scans: self.train.brains().len(),
            val_scans: self.val.brains().len(),
            program: format!("neurosieve {}", env!("CARGO_PKG_VERSION")),
            seed: self.pipeline.train.seed,
            data,
        }
    }
}

/// Trains all networks and writes the bundle, or stops before it where `train.until` says so. Prints progress to
/// standard error.
///
/// # Errors
/// [`Error::Config`] where the cohort has no `train` or no `val` scan; storage and device errors.
pub async fn train(pipeline: &TrainPipeline) -> Result<()> {
    let config = &pipeline.train;
    let device = device::resolve(config.device)?;
    for (key, share) in [("image_share", config.anomalies.image_share), ("token_share", config.anomalies.token_share)] {
        if !(0. ..=1.).contains(&share) {
            return Err(Error::Config(format!("train.anomalies.{key} is {share}: a share is between 0 and 1")));
        }
    }
    if config.networks_of.is_none() && !config.further.is_empty() {
        return Err(Error::Config(
            "train.further trains on networks of the bundle that train.networks_of names: name it".into(),
        ));
    }
    let adapted = config.networks_of.as_deref().map(|name| fitting(pipeline, name)).transpose()?;
    std::fs::create_dir_all(config.work.join("prepared"))
        .map_err(|e| Error::io(format!("cannot create the work folder `{}`", config.work.display()), e))?;
    let own = &pipeline.cohort.select.participants;
    let train = brains(pipeline, own, "train").await?;
    let val = brains(pipeline, own, "val").await?;
    let elsewhere = match config.other_site.is_empty() {
        true => None,
        false => Some(Slices::new(brains(pipeline, &config.other_site, "val").await?)),
    };
    let kind = if config.bf16 { Kind::BFloat16 } else { Kind::Float };
    let outlines = outlines(&config.shapes).await?;
    let context = Context { pipeline, device, kind, train: Slices::new(train), val: Slices::new(val), outlines };
    eprintln!("{} slices to fit on, {} held out; {device:?}, {kind:?}", context.train.len(), context.val.len());

    if let Some(bundle) = adapted {
        return adapt(&context, &bundle);
    }
    let grid = preprocess::model_grid();
    let cell = config.tokenizer.network.cell();
    let tokens = [grid.shape[1] as i64 / cell, grid.shape[0] as i64 / cell];
    let vocabulary = config.tokenizer.network.vocabulary();
    let stores = [(); 4].map(|()| VarStore::new(device));
    // Weights begin where the seed says, whichever stage a training is taken up at.
    let root = |stage: usize| {
        tch::manual_seed(config.seed as i64 * 8 + stage as i64);
        stores[stage].root()
    };
    let tokenizer = Tokenizer::new(root(0), &config.tokenizer.network);
    let detector = Detector::new(root(1), &config.detector.network, vocabulary.clone(), tokens, cell);
    let inpainter = Inpainter::new(root(2), &config.inpainter.network, vocabulary.clone(), tokens);

    let last = |network| config.until == Some(network);
    let mut metrics = tokenizer::train(&context, &stores[0], &tokenizer)?;
    if let Some(elsewhere) = &elsewhere {
        metrics.extend(tokenizer::measure_elsewhere(&context, &tokenizer, elsewhere));
    }
    if last(Network::Tokenizer) {
        return Ok(());
    }
    // Seeded as well, whatever was drawn before.
    let vectors = |stage: usize| {
        tch::manual_seed(config.seed as i64 * 8 + stage as i64);
        tokenizer.vectors()
    };
    if let Some(vectors) = vectors(2) {
        inpainter.resemble(vectors);
    }
    metrics.extend(inpainter::train(&context, &stores[2], &tokenizer, &inpainter)?);
    if last(Network::Inpainter) {
        return Ok(());
    }
    if let Some(vectors) = vectors(1) {
        detector.resemble(vectors);
    }
    metrics.extend(detector::train(&context, &stores[1], (&tokenizer, &inpainter), &detector)?);
    if last(Network::Detector) {
        return Ok(());
    }
    let mut rival = None;
    if let Some(stage) = &config.prior {
        let prior = Prior::new(root(3), &stage.network, vocabulary, tokens);
        if let Some(vectors) = vectors(3) {
            prior.resemble(vectors);
        }
        metrics.extend(prior::train(&context, stage, &stores[3], &tokenizer, &prior)?);
        rival = Some(prior);
    }
    if last(Network::Prior) {
        return Ok(());
    }
    let networks = model::Networks { tokenizer, detector, inpainter, prior: rival, device };
    let calibrated = calibrate::calibrate(&context, &networks)?;
    metrics.extend(calibrated.figures);

    let info = BundleInfo {
        format: 0,
        name: config.name.clone(),
        version: config.version.clone(),
        modality: pipeline.cohort.select.suffixes.join("+"),
        tokens,
        tokenizer: config.tokenizer.network.clone(),
        detector: config.detector.network.clone(),
        inpainter: config.inpainter.network.clone(),
        prior: config.prior.as_ref().map(|stage| stage.network.clone()),
        preprocess: pipeline.preprocess.clone(),
        calibration: calibrated.calibration,
        training: context.training(config.data.clone()),
        metrics: metrics.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        weights: Default::default(),
    };
    let card = card::model_card(&info, config);
    write_bundle(config, info, &stores, calibrated.healthy.as_ref(), &card)?;
    let stages: Vec<&str> = NETWORKS.into_iter().chain(config.prior.is_some().then_some(PRIOR)).collect();
    curve::write_parquet(config, &stages)
}

/// The bundle `name`, whose networks are to be taken for this pipeline's preprocessing.
fn fitting(pipeline: &TrainPipeline, name: &str) -> Result<Bundle> {
    let bundle = Bundle::open(name)?;
    if pipeline.preprocess != bundle.info.preprocess {
        return Err(Error::Config(format!(
            "the preprocessing differs from that of bundle `{}`, whose networks know no other: leave [preprocess] out",
            bundle.info.name
        )));
    }
    let config = &pipeline.train;
    if config.further.contains(&Network::Tokenizer) {
        return Err(Error::Config(
            "train.further: the tokenizer's codes are what the other networks know: it stays".into(),
        ));
    }
    if config.further.contains(&Network::Prior) && (config.prior.is_none() || bundle.info.prior.is_none()) {
        return Err(Error::Config(format!(
            "train.further: a prior is trained on where [train.prior] says how long and the bundle, here `{}`, has one",
            bundle.info.name
        )));
    }
    Ok(bundle)
}

/// Writes a bundle with the networks of another one, some of them trained on, and with what the cohort's healthy scans say of
/// places and thresholds.
fn adapt(context: &Context<'_>, bundle: &Bundle) -> Result<()> {
    let config = &context.pipeline.train;
    let (networks, stores) = bundle.build(context.device)?;
    let model::Networks { tokenizer, detector, inpainter, prior, .. } = &networks;
    let further = |network| config.further.contains(&network);
    let mut figures = Vec::new();
    if further(Network::Inpainter) {
        figures.extend(inpainter::train(context, &stores[2], tokenizer, inpainter)?);
    }
    if further(Network::Detector) {
        figures.extend(detector::train(context, &stores[1], (tokenizer, inpainter), detector)?);
    }
    if let (true, Some(stage), Some(prior)) = (further(Network::Prior), &config.prior, prior) {
        figures.extend(prior::train(context, stage, &stores[3], tokenizer, prior)?);
    }
    let calibrated = calibrate::calibrate(context, &networks)?;
    figures.extend(calibrated.figures);
    let mut metrics = bundle.info.metrics.clone();
    metrics.extend(figures.into_iter().map(|(name, value)| (name.to_owned(), value)));
    let info = BundleInfo {
        name: config.name.clone(),
        version: config.version.clone(),
        calibration: calibrated.calibration,
        training: context.training([&bundle.info.training.data[..], &config.data].concat()),
        metrics,
        ..bundle.info.clone()
    };
    let card = card::adapted_card(&info, bundle, config);
    write_bundle(config, info, &stores, calibrated.healthy.as_ref(), &card)?;
    let stages: Vec<&str> = config.further.iter().map(|network| network.name()).collect();
    if stages.is_empty() { Ok(()) } else { curve::write_parquet(config, &stages) }
}

fn write_bundle(
    config: &TrainConfig,
    info: BundleInfo,
    stores: &[VarStore],
    healthy: Option<&HealthyMap>,
    card: &str,
) -> Result<()> {
    model::write_bundle(&config.out, info, stores, healthy, card)?;
    eprintln!("bundle written to {}; use it with `--set model.bundle={0}`", config.out.display());
    Ok(())
}

/// Outlines of the lesion masks in a folder; none where none is named.
async fn outlines(url: &str) -> Result<Vec<Outline>> {
    let mut outlines = Vec::new();
    if url.is_empty() {
        return Ok(outlines);
    }
    let location = store::open(url)?;
    let everything = Selection { suffixes: Vec::new(), ..Selection::default() };
    for entry in cohort::list(&location, "shapes", &everything).await?.selected {
        let bytes = cohort::read(&location, &entry, data::MAX_SCAN_BYTES).await?;
        let mask = bytes.decode(data::MAX_SCAN_BYTES)?.volume;
        outlines.extend(Outline::of(&mask));
    }
    if outlines.is_empty() {
        return Err(Error::Config(format!("train.shapes: {location} holds no lesion mask of 8 mm3 or more")));
    }
    eprintln!("{} outlines of lesions", outlines.len());
    Ok(outlines)
}

/// Prepared brains of one split of the cohort, of these participants.
async fn brains(
    pipeline: &TrainPipeline,
    participants: &BTreeMap<String, Vec<String>>,
    split: &str,
) -> Result<Vec<Brain>> {
    let config = &pipeline.train;
    let location = store::open(&pipeline.cohort.url)?;
    let mut selection = Selection { participants: participants.clone(), ..pipeline.cohort.select.clone() };
    selection.participants.insert(config.split_column.clone(), vec![split.to_owned()]);
    let name = pipeline.cohort.name.clone().unwrap_or_else(|| location.name().to_owned());
    let listing = cohort::list(&location, &name, &selection).await?;
    if listing.selected.is_empty() {
        return Err(Error::Config(format!(
            "no scan of the cohort has `{split}` in column `{}` of participants.tsv; training needs `train` and `val` subjects",
            config.split_column
        )));
    }
    let mut brains = Vec::new();
    let mut missing = Vec::new();
    for entry in listing.selected {
        let path = data::cache_path(&config.work, &entry.scan_id, &entry.content_id, &pipeline.preprocess);
        match data::read_cached(&path) {
            Some(brain) => brains.push((entry.scan_id, brain)),
            None => missing.push(entry),
        }
    }
    let total = brains.len() + missing.len();
    for chunk in missing.chunks(PREPARE_AT_ONCE) {
        let mut raw = Vec::new();
        for entry in chunk {
            let bytes = cohort::read(&location, entry, data::MAX_SCAN_BYTES).await?;
            raw.push(data::Raw { scan_id: entry.scan_id.clone(), content_id: entry.content_id.clone(), bytes });
        }
        for (scan_id, result) in data::prepare(raw, &config.work, &pipeline.preprocess) {
            match result {
                Ok(brain) => brains.push((scan_id, brain)),
                Err(error) => eprintln!("{scan_id} left out: {error}"),
            }
        }
        eprintln!("prepared {} of {total} {split} scans", brains.len());
    }
    // Draws index into this list: its order must not depend on what was cached.
    brains.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(brains.into_iter().map(|(_, brain)| brain).collect())
}

/// The generator of one draw.
fn draw_rng(seed: u64, stage: &str, step: i64, item: usize) -> ChaCha8Rng {
    let mut rng =
        ChaCha8Rng::seed_from_u64(seed ^ stage.bytes().fold(0, |h: u64, b| h.wrapping_mul(131) + u64::from(b)));
    rng.set_stream(step as u64 * 4096 + item as u64);
    rng
}

/// Batches that are drawn ahead of the updates.
const AHEAD: usize = 3;

/// Runs one network's updates from where its checkpoint stands. `draw` makes a step's batch, on another thread and
/// ahead of time; `loss` builds the step's loss from it and names figures for the progress line.
fn updates<B: Send>(
    context: &Context<'_>,
    name: &str,
    store: &VarStore,
    schedule: (i64, f64),
    draw: impl Fn(i64) -> B + Sync,
    loss: impl FnMut(i64, B) -> (Tensor, Vec<(&'static str, Tensor)>),
) -> Result<()> {
    updates_beside(context, name, store, schedule, Vec::new(), draw, loss)
}

/// As [`updates`], where `loss` also changes tensors outside `store`: `beside`, which the checkpoint has to keep.
fn updates_beside<B: Send>(
    context: &Context<'_>,
    name: &str,
    store: &VarStore,
    schedule: (i64, f64),
    beside: Vec<(String, Tensor)>,
    draw: impl Fn(i64) -> B + Sync,
    mut loss: impl FnMut(i64, B) -> (Tensor, Vec<(&'static str, Tensor)>),
) -> Result<()> {
    let (steps, peak) = schedule;
    let config = &context.pipeline.train;
    let checkpoint = config.work.join(format!("{}.checkpoint.safetensors", stage_file(config, name)));
    let mut optimizer =
        AdamW::new(store, AdamWConfig { beta1: 0.9, beta2: 0.98, weight_decay: 0.05, clip: 1., ema: 0.998 });
    let mut state = optimizer.tensors();
    state.extend(beside);
    if checkpoint.exists() {
        adamw::load(&mut state, &checkpoint)?;
        eprintln!("{name}: continues after step {}", optimizer.step_count());
    }
    let mut curve = Curve::open(config, name)?;
    let first = optimizer.step_count();
    curve.rewind(first);
    let often = Duration::from_secs(context.pipeline.train.checkpoint_seconds);
    let started = Instant::now();
    let (mut saved, mut told) = (Instant::now(), Instant::now());
    std::thread::scope(|scope| {
        let (send, batches) = std::sync::mpsc::sync_channel(AHEAD);
        // Ends with the receiver, when the loop below is left.
        let draw = &draw;
        scope.spawn(move || (first..steps).map(draw).try_for_each(|batch| send.send(batch)));
        for (step, batch) in (first..steps).zip(batches) {
            let (value, figures) = loss(step, batch);
            optimizer.step(&value, learning_rate(step, steps, peak));
            if step % curve::EVERY == 0 {
                for (figure, value) in &figures {
                    curve.push(step, figure, f64::try_from(value)?);
                }
            }
            if told.elapsed() > Duration::from_secs(15) || step + 1 == steps {
                told = Instant::now();
                let rate = (step + 1 - first) as f64 / started.elapsed().as_secs_f64();
                let figures: Vec<String> =
                    figures.iter().map(|(n, t)| format!("{n} {:.4}", f64::try_from(t).unwrap_or(f64::NAN))).collect();
                eprintln!(
                    "{name}: step {}/{steps}, {}, {rate:.2} steps/s, {:.0} min left",
                    step + 1,
                    figures.join(", "),
                    (steps - step - 1) as f64 / rate / 60.
                );
            }
            if saved.elapsed() >= often {
                curve.save()?;
                adamw::save(&state, &checkpoint)?;
                saved = Instant::now();
            }
        }
        curve.save()?;
        adamw::save(&state, &checkpoint)
    })?;
    optimizer.use_average();
    Ok(())
}

/// What a network's files in the work folder begin with. One that is trained on begins with another bundle's weights, so what
/// was kept of a training from the start is nothing to continue.
fn stage_file(config: &TrainConfig, name: &str) -> String {
    if config.networks_of.is_some() { format!("{name}-further") } else { name.to_owned() }
}

/// Linear warm-up over 2 % of the steps, then a cosine down to a fiftieth.
fn learning_rate(step: i64, steps: i64, peak: f64) -> f64 {
    let warm = (steps / 50).max(1);
    if step < warm {
        return peak * (step + 1) as f64 / warm as f64;
    }
    let done = (step - warm) as f64 / (steps - warm).max(1) as f64;
    peak * (0.02 + 0.98 * 0.5 * (1. + (std::f64::consts::PI * done).cos()))
}
