//! Speed of scoring volumes that are held in memory, and where a device spends its time.
//!
//! Takes preprocessed scans of a cohort, or synthetic volumes of a preset's size with random weights, and scores them
//! repeatedly as a device thread of a screening does: in groups that share batches, with half the batch size after the
//! device ran out of memory. Fetching, decoding, preprocessing, maps and tables are not measured.

use std::cell::Cell;
use std::fmt;
use std::time::Instant;

use rayon::prelude::*;
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use super::clock::{seconds, wait_for};
use super::inputs::{self, Batch};
use super::{Model, ModelChoice};
use crate::cohort::{self, CohortConfig, MAX_SCAN_BYTES};
use crate::error::{Error, Result};
use crate::model::{Bundle, Networks, device};
use crate::preprocess;
use crate::score::memory::within_memory;
use crate::score::{self, Inference, Method, Scan, ScoreConfig, Settings, batch_slices};
use crate::store;
use crate::volume::Volume;

/// Share of tokens that are in-painted with random weights, for which the bundle's thresholds mean nothing.
const OPEN_TOKENS: f64 = 0.1;

/// Settings of [`score_volumes`].
#[derive(Debug, Clone)]
pub struct VolumeSettings {
    /// Device to measure.
    pub device: device::DeviceChoice,
    /// The networks. A bundle scores scans of `cohort`, a preset synthetic volumes.
    pub model: ModelChoice,
    /// Where the scans come from; not used with a preset.
    pub cohort: CohortConfig,
    /// Number of different volumes held in memory.
    pub distinct: usize,
    /// Slices of a synthetic volume.
    pub slices: usize,
    /// Number of volumes to score; the different ones take turns.
    pub volumes: usize,
    /// How the volumes are scored.
    pub score: ScoreConfig,
}

/// Speed of scoring volumes in memory.
#[derive(Debug, Clone, Serialize)]
pub struct VolumeSpeed {
    /// libtorch's name of the device.
    pub device: String,
    /// Name and version of the bundle, or the preset.
    pub model: String,
    /// `mim`, `ar` or `threshold`.
    pub method: Method,
    /// Number format of the networks.
    pub precision: score::Precision,
    /// Slices per batch, as configured.
    pub batch_slices: usize,
    /// Slices per batch that fit into the device's memory.
    pub batch_slices_fitting: usize,
    /// Volumes whose slices share batches.
    pub scans_at_once: usize,
    /// Number of volumes scored.
    pub volumes: usize,
    /// Slices with brain per volume, on average.
    pub slices: f64,
    /// Share of those slices with something to in-paint, 0 to 1.
    pub open_share: f64,
    /// Seconds for all volumes.
    pub seconds: f64,
    /// Volumes per second.
    pub volumes_per_second: f64,
    /// Device time of a volume by part; only for the mean restoration of `mim`.
    pub breakdown: Option<Breakdown>,
}

/// Device time of one volume by part, in ms. Networks and copies are measured separately, on batches of the same size;
/// `other_ms` is the rest of the total.
#[derive(Debug, Clone, Serialize)]
pub struct Breakdown {
    /// Total time.
    pub total_ms: f64,
    /// Networks: encoder, detector, inpainter, decoder.
    pub networks_ms: f64,
    /// Part of `networks_ms` that launches the work on a GPU; `None` on the processor.
    pub launch_ms: Option<f64>,
    /// Copies of a volume to the device.
    pub to_device_ms: f64,
    /// Copies of the results back.
    pub from_device_ms: f64,
    /// The rest: assembling batches, waiting between steps, work on the processor.
    pub other_ms: f64,
}

/// A volume held in memory.
struct Loaded {
    name: String,
    image: Volume<f32>,
    brain: Volume<u8>,
}

/// Measures the speed of scoring volumes that are held in memory.
///
/// # Errors
/// [`Error::Config`] where no cohort is given or it has no scan; errors of listing, reading, preprocessing and scoring.
pub async fn score_volumes(settings: &VolumeSettings) -> Result<VolumeSpeed> {
    let device = device::resolve(settings.device)?;
    device::on_calling_thread();
    let model = Model::open(&settings.model)?;
    let distinct = settings.distinct.clamp(1, settings.volumes.max(1));
    let volumes = match &model {
        Model::Preset(preset) => (0..distinct)
            .map(|number| {
                let (image, brain) = inputs::volume(&preset.sizes(), settings.slices.max(1), number as u64);
                Loaded { name: format!("synthetic-{number}"), image, brain }
            })
            .collect(),
        Model::Bundle(bundle) => load(&settings.cohort, bundle, distinct).await?,
    };
    let networks = model.networks(device, settings.score.precision.kind())?;
    let scoring = match &model {
        Model::Bundle(bundle) => Settings::new(&settings.score, bundle)?,
        Model::Preset(_) => random_settings(&settings.score, &networks, &volumes)?,
    };
    let run = Scoring { networks, settings: scoring, volumes, fitting: Cell::new(usize::MAX) };
    run.measure(&model, settings.volumes.max(1))
}

/// Reads and preprocesses the first scans of a cohort.
async fn load(cohort: &CohortConfig, bundle: &Bundle, limit: usize) -> Result<Vec<Loaded>> {
    if cohort.url.is_empty() {
        return Err(Error::Config(
            "no scans to score: add --cohort URL, or --preset paper for synthetic volumes".into(),
        ));
    }
    let location = store::open(&cohort.url)?;
    let listing = cohort.list(&location).await?;
    let mut fetched = Vec::new();
    for entry in listing.selected.iter().take(limit) {
        fetched.push((entry.scan_id.clone(), cohort::read(&location, entry, MAX_SCAN_BYTES).await?));
    }
    if fetched.is_empty() {
        return Err(Error::Config(format!(
            "no scan in {location} is selected; `neurosieve cohort` lists its images and why they are skipped"
        )));
    }
    let prepare = |(name, bytes): (String, cohort::ScanBytes)| {
        let decoded = bytes.decode(MAX_SCAN_BYTES)?;
        let prepared = preprocess::prepare(&decoded.volume, &bundle.info.preprocess)?;
        Ok(Loaded { name, image: prepared.image, brain: prepared.brain })
    };
    fetched.into_par_iter().map(prepare).collect()
}

/// Settings for random weights: the threshold at which a tenth of the tokens are in-painted.
fn random_settings(config: &ScoreConfig, networks: &Networks, volumes: &[Loaded]) -> Result<Settings> {
    let batch = batch_slices(config.batch_slices, networks.device);
    let mut p = score::detect(networks, volumes[0].scan(&volumes[0].name), batch)?;
    let place = (p.len() as f64 * (1. - OPEN_TOKENS)) as usize;
    let threshold = *p.select_nth_unstable_by(place, f32::total_cmp).1;
    Ok(Settings {
        config: config.clone(),
        token_threshold: threshold,
        mask_threshold: f32::INFINITY,
        ar_limit_nats: 5.,
        healthy: None,
    })
}

impl Loaded {
    fn scan<'a>(&'a self, scan_id: &'a str) -> Scan<'a> {
        Scan { scan_id, image: &self.image, brain: &self.brain }
    }
}

/// Volumes, with the networks and settings that score them.
struct Scoring {
    networks: Networks,
    settings: Settings,
    volumes: Vec<Loaded>,
    /// Smallest batch size that was tried; smaller than configured where memory ran out.
    fitting: Cell<usize>,
}

impl Scoring {
    fn measure(&self, model: &Model, volumes: usize) -> Result<VolumeSpeed> {
        let device = self.networks.device;
        let group = self.settings.scans_at_once(device);
        // The first group loads kernels and chooses algorithms, so it is not timed.
        let inferences = self.score(0..group.min(volumes))?;
        let started = Instant::now();
        for first in (0..volumes).step_by(group) {
            self.score(first..(first + group).min(volumes))?;
        }
        wait_for(device);
        let elapsed = started.elapsed().as_secs_f64();

        let n_slices = |inference: &Inference| inference.slices.len();
        let all: usize = inferences.iter().map(n_slices).sum();
        let open: usize = inferences.iter().map(n_open).sum();
        let slices = all as f64 / inferences.len() as f64;
        let open_share = open as f64 / all as f64;
        let config = &self.settings.config;
        let batch = batch_slices(config.batch_slices, device);
        let fitting = self.fitting.get().min(batch);
        let explained = config.method == Method::Mim && config.restorations == 0;
        let total_ms = 1e3 * elapsed / volumes as f64;
        Ok(VolumeSpeed {
            device: format!("{device:?}"),
            model: model.label(),
            method: config.method,
            precision: config.precision,
            batch_slices: batch,
            batch_slices_fitting: fitting,
            scans_at_once: group,
            volumes,
            slices,
            open_share,
            seconds: elapsed,
            volumes_per_second: volumes as f64 / elapsed,
            breakdown: explained.then(|| self.breakdown(model, fitting, [total_ms, slices, open_share])),
        })
    }

    /// Scores a range of volumes together. Each number is a separate scan id.
    fn score(&self, numbers: std::ops::Range<usize>) -> Result<Vec<Inference>> {
        let chosen: Vec<(String, &Loaded)> = numbers
            .map(|number| {
                let volume = &self.volumes[number % self.volumes.len()];
                (format!("{}-{number}", volume.name), volume)
            })
            .collect();
        let scans: Vec<Scan<'_>> = chosen.iter().map(|(name, volume)| volume.scan(name)).collect();
        let configured = batch_slices(self.settings.config.batch_slices, self.networks.device);
        within_memory(configured, |batch_slices| {
            self.fitting.set(self.fitting.get().min(batch_slices));
            let config = ScoreConfig { batch_slices, ..self.settings.config.clone() };
            let settings = Settings { config, ..self.settings.clone() };
            device::caught(|| score::infer(&self.networks, &scans, &settings))
        })
    }

    fn breakdown(&self, model: &Model, batch: usize, [total_ms, slices, open_share]: [f64; 3]) -> Breakdown {
        let (device, kind) = (self.networks.device, self.settings.config.precision.kind());
        let sizes = model.sizes();
        let measured =
            Batch::new(&sizes, batch.min(slices as usize).max(1) as i64, device).networks(&self.networks, 1, kind);
        // Every slice is encoded, classified and decoded once. Only slices with anomalous tokens pass the inpainter.
        let passes = |name: &str| match name {
            "encode" | "detector" | "decode" => 1.,
            "mean" => open_share,
            _ => 0.,
        };
        let networks_ms = measured.iter().map(|n| slices * passes(n.name) * n.ms_per_slice).sum();
        let launches = measured.iter().map(|n| n.launch_ms_per_slice.map(|ms| slices * passes(n.name) * ms));
        let launch_ms = launches.sum::<Option<f64>>();
        let [to_device_ms, from_device_ms] = self.copies(&sizes.tokens, slices as i64);
        let other_ms = total_ms - networks_ms - to_device_ms - from_device_ms;
        Breakdown { total_ms, networks_ms, launch_ms, to_device_ms, from_device_ms, other_ms }
    }

    /// Milliseconds to copy one volume's pixels to the device, and the tensors of its [`Inference`] back.
    fn copies(&self, tokens: &[i64; 2], slices: i64) -> [f64; 2] {
        let device = self.networks.device;
        if device == Device::Cpu {
            return [0.; 2];
        }
        let plane = self.volumes[0].image.grid.shape[..2].iter().product::<usize>();
        let pixels = vec![0.5f32; plane * slices as usize];
        let per_pixel = Tensor::zeros([slices, plane as i64], (Kind::Float, device));
        let per_token = Tensor::zeros([slices, tokens[0] * tokens[1]], (Kind::Float, device));
        let codes = per_token.to_kind(Kind::Int64);
        let to = seconds(device, &|| drop(Tensor::from_slice(&pixels).to_device(device)));
        let back = seconds(device, &|| {
            for tensor in [&per_pixel, &per_pixel, &per_pixel, &per_token, &per_token, &codes] {
                drop(tensor.to_device(Device::Cpu));
            }
        });
        [to, back].map(|seconds| 1e3 * seconds)
    }
}

/// Number of slices with in-painted tokens.
fn n_open(inference: &Inference) -> usize {
    let per_slice = inference.tokens.iter().product::<usize>().max(1);
    inference.nll.chunks(per_slice).filter(|slice| slice.iter().any(|nll| !nll.is_nan())).count()
}

impl fmt::Display for VolumeSpeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} on {}: {} volumes of {:.0} slices in {:.2} s, {:.2} volumes/s; {} volume(s) together, batches of {} slices",
            self.model,
            self.device,
            self.volumes,
            self.slices,
            self.seconds,
            self.volumes_per_second,
            self.scans_at_once,
            self.batch_slices_fitting,
        )?;
        if self.batch_slices_fitting < self.batch_slices {
            writeln!(f, "batches of {} slices exceeded the device's memory", self.batch_slices)?;
        }
        let Some(parts) = &self.breakdown else { return Ok(()) };
        let share = |ms: f64| format!("{ms:.2} ms ({:.0} %)", 100. * ms / parts.total_ms);
        let launch = parts.launch_ms.map_or(String::new(), |ms| format!(", launches take {}", share(ms)));
        writeln!(
            f,
            "a volume takes {:.2} ms: networks {}{launch}; copies to the device {}, back {}; other {}",
            parts.total_ms,
            share(parts.networks_ms),
            share(parts.to_device_ms),
            share(parts.from_device_ms),
            share(parts.other_ms),
        )
    }
}
