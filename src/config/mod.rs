//! A pipeline file (TOML) as types.
//!
//! Every key has a default, a type and a place; an unknown key is refused with the nearest known
//! one. `--set section.key=value` overrides the file, the file overrides the defaults.

mod limits;
mod recipe;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cohort::Selection;
use crate::error::{Error, Result};
use crate::model::device::DeviceChoice;
use crate::model::{DataSource, Preset, TokenizerConfig, TransformerConfig};
use crate::preprocess::{self, PreprocessConfig};
use crate::score::{Evidence, Method, Pooling, Precision, Tail};

pub use limits::{FailureLimit, Shard};
pub use recipe::recipe_id;

/// What `neurosieve run` does.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pipeline {
    /// Where scans come from and which are taken.
    pub cohort: CohortConfig,
    /// Where results go.
    pub tables: TablesConfig,
    /// Preprocessing; left out, it is what the bundle was trained behind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preprocess: Option<PreprocessConfig>,
    /// Which model scores.
    pub model: ModelConfig,
    /// How it scores.
    pub score: ScoreConfig,
    /// How the machine is used.
    pub run: RunConfig,
    /// When `neurosieve schedule` works; `neurosieve run` works at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<ScheduleConfig>,
}

/// Times of day, as cron expressions in the machine's time zone: minute, hour, day, month, weekday.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleConfig {
    /// When the cohort is screened: `"0 1 * * *"` is every night at one.
    pub run: String,
    /// When the tables are looked after: small files put together, files deleted that nothing refers to; left out, never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upkeep: Option<String>,
    /// Size that files have afterwards, MiB.
    pub target_mib: u64,
    /// Days that files are kept which only older versions of a table refer to; longer than any run or query takes.
    pub keep_days: u64,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self { run: "0 1 * * *".into(), upkeep: None, target_mib: 128, keep_days: 7 }
    }
}

/// Where scans come from and which are taken.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CohortConfig {
    /// `s3://`, `gs://`, `az://`, `http(s)://`, `file://` URL, or a plain path.
    pub url: String,
    /// Name of the cohort in the tables; left out, the last part of the URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Which scans are taken.
    pub select: Selection,
}

/// Where results go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TablesConfig {
    /// Folder of the tables: any URL that `cohort.url` may be.
    pub url: String,
    /// Scans that finish between two commits, at most. Data files hold 64 of them, or these where they are fewer.
    pub commit_scans: usize,
    /// Seconds after which finished scans are written to data files, and files are committed, however few.
    pub commit_seconds: u64,
}

impl Default for TablesConfig {
    fn default() -> Self {
        Self { url: String::new(), commit_scans: 512, commit_seconds: 60 }
    }
}

/// Which model scores.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// `built-in`, or the folder of a bundle.
    pub bundle: String,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self { bundle: "built-in".into() }
    }
}

/// How scans are scored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScoreConfig {
    /// `mim` (the default), `ar` (the autoregressive rival) or `threshold` (intensity alone).
    pub method: Method,
    /// `mim`: what a voxel's score is made of: `detector`, `residual`, `combined`, or `intensity`, which asks no network.
    pub evidence: Evidence,
    /// Restorations that are drawn of every slice with something to restore. `mim`: 0 takes their mean instead, in one pass
    /// of the inpainter, and draws nothing.
    pub restorations: usize,
    /// Tokens with `p_anomalous` above this are in-painted; left out, the bundle's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_threshold: Option<f64>,
    /// Voxels with a score above this are in the mask; left out, the bundle's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_threshold: Option<f64>,
    /// Passes of the inpainter for a drawn restoration.
    pub steps: i64,
    /// Sharpness of the inpainter's draw; below 1 it prefers likely tokens more.
    pub temperature: f64,
    /// `mim`, `combined`: measure a voxel's score and intensity by those of healthy scans at the same place, where the
    /// bundle knows them.
    pub healthy_map: bool,
    /// `mim`, `combined`: what a standard deviation of the intensity counts in a voxel's score, beside one of the networks'
    /// score, whose tail is longer in healthy scans (one voxel in a thousand lies 9 deviations out, of the intensity 2.4);
    /// 0: the networks' alone, by place.
    pub intensity_weight: f64,
    /// `ar`: tokens with a negative log-likelihood above this (nats) are drawn anew; left out, the bundle's: what nine in
    /// ten healthy tokens lie below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ar_limit_nats: Option<f64>,
    /// `ar`: keep keys and values of earlier tokens; without, every token costs a full pass.
    pub ar_cached: bool,
    /// `threshold`: which intensities are anomalous: `dark` (lesions in T1w), `bright` (in FLAIR and T2w) or `both`.
    pub tail: Tail,
    /// How residuals are brought together: `gaussian`, or `min_mean`, the rival's boxes; left out, the method's own
    /// (`mim`, `threshold`: the first, `ar`: the second).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pooling: Option<Pooling>,
    /// Standard deviation in millimetres of the smoothing of the anomaly map.
    pub smooth_mm: f64,
    /// Connected components smaller than this many millilitres are no findings, nor in the mask.
    pub min_finding_ml: f64,
    /// Kind of number the networks compute in: `f32`, or `bf16`, which is several times faster on devices that multiply it
    /// (GPUs, processors with AMX) and slower elsewhere, and moves scores a little.
    pub precision: Precision,
    /// Slices that pass through a network at once; 0: 4 on a processor, whose caches hold no more, and 96 on a GPU.
    /// `neurosieve bench device` tries others.
    pub batch_slices: usize,
    /// Scans whose slices may share batches, where so many wait for the device; left out, 1 on a processor and 8 on a GPU.
    /// With more than 1, batches always have the same shapes, so that a scan's numbers do not depend on its company.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scans_at_once: Option<NonZeroUsize>,
    /// Seed of the inpainter's draw, combined with the scan's id.
    pub seed: u64,
}

impl Default for ScoreConfig {
    fn default() -> Self {
        Self {
            method: Method::Mim,
            evidence: Evidence::Combined,
            restorations: 0,
            token_threshold: None,
            mask_threshold: None,
            steps: 6,
            temperature: 0.7,
            healthy_map: true,
            intensity_weight: 8.0,
            ar_limit_nats: None,
            ar_cached: true,
            tail: Tail::Dark,
            pooling: None,
            smooth_mm: 4.0,
            min_finding_ml: 0.2,
            precision: Precision::F32,
            batch_slices: 0,
            scans_at_once: None,
            seed: 0,
        }
    }
}

/// How the machine is used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// `auto`, `cpu` or `cuda:N`.
    pub device: DeviceChoice,
    /// Memory of the whole program, MiB; 0: three quarters of what the machine, or the control group, has free.
    pub memory_mib: u64,
    /// Scans worked on at the same time, as far as memory allows; 0: two per core, and two that are being fetched.
    pub scans_in_flight: usize,
    /// At most this many pending scans, in the order of their names; 0: all.
    pub limit: usize,
    /// One of several parts of the cohort, for as many processes side by side: `"2/8"` is the second of eight; left out,
    /// the whole cohort.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shard: Option<Shard>,
    /// Gives the run up when more scans fail: a number, or a share of those that ended (`"5%"`, once 20 have); left out, it
    /// never is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_failures: Option<FailureLimit>,
    /// Also tries scans again whose content failed for good.
    pub retry: bool,
    /// Seconds after which a scan is given up, from its fetch to its rows, waiting for memory left out; 0: never.
    pub scan_timeout_s: u64,
    /// Largest decompressed scan in MiB.
    pub max_scan_mib: u64,
    /// Where figures for a monitor are served while a run is at work, in Prometheus' text format: `"127.0.0.1:9184"`, or
    /// port 0 for any that is free; left out, nowhere. They are counts, without names, for whoever reaches the address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<SocketAddr>,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            device: DeviceChoice::default(),
            memory_mib: 0,
            scans_in_flight: 0,
            limit: 0,
            shard: None,
            max_failures: None,
            retry: false,
            scan_timeout_s: 3600,
            max_scan_mib: 2048,
            metrics: None,
        }
    }
}

/// What `neurosieve train` does.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainPipeline {
    /// The healthy cohort; `participants.tsv` tells which subjects are fitted on.
    pub cohort: CohortConfig,
    /// Preprocessing in front of the model.
    pub preprocess: PreprocessConfig,
    /// What is trained, and where it goes.
    pub train: TrainConfig,
    /// Scoring used when thresholds are fixed on healthy scans.
    pub score: ScoreConfig,
}

/// What is trained, and where it goes. `preset = "tiny"` or `"small"` fills in the sizes of networks that are not given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Name of the bundle.
    pub name: String,
    /// Version of the weights.
    pub version: String,
    /// Folder the bundle is written to.
    pub out: PathBuf,
    /// Folder for prepared scans and checkpoints; a training started again continues from it.
    pub work: PathBuf,
    /// Column of `participants.tsv` that holds `train` or `val`.
    pub split_column: String,
    /// Columns of `participants.tsv` with the values that subjects of another site have, which are not trained on: the
    /// tokenizer is tried on their `val` scans as well, e.g. `{ source = ["ds002748"] }`.
    pub other_site: BTreeMap<String, Vec<String>>,
    /// Seconds between checkpoints.
    pub checkpoint_seconds: u64,
    /// `auto`, `cpu` or `cuda:N`.
    pub device: DeviceChoice,
    /// Compute in bfloat16 (weights stay in f32).
    pub bf16: bool,
    /// Seed of every draw.
    pub seed: u64,
    /// Lesion masks whose outlines synthetic anomalies take, any tree of NIfTI files; left out, none. Only the outlines
    /// are used: no image of a lesion is seen.
    pub shapes: String,
    /// Share of healthy brain voxels below the mask's threshold.
    pub healthy_quantile: f64,
    /// Share of healthy brain tokens that are not in-painted.
    pub token_quantile: f64,
    /// Scans fitted on, spread over all of them, that tell the healthy scores at each place; 0: there are none in the
    /// bundle.
    pub healthy_map_scans: usize,
    /// `built-in` or a bundle's folder: its networks are taken as they are, and only what healthy scans look like by place
    /// and the thresholds are learnt anew, from this cohort. Adapts a bundle to another scanner in minutes; left out,
    /// networks are trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub networks_of: Option<String>,
    /// With `networks_of`: those of its networks that are trained on from where they are, on this cohort: `inpainter`,
    /// `detector`, `prior`; their sizes stay. Left out, none.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub further: BTreeSet<Network>,
    /// The last network to train: `tokenizer`, `inpainter`, `detector` or `prior`. Its figures are printed, and no
    /// bundle is written; left out, all are trained, and one is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Network>,
    /// The tokenizer's sizes and training.
    pub tokenizer: TokenizerStage,
    /// The detector's sizes and training.
    pub detector: Stage<TransformerConfig>,
    /// What the detector learns to find.
    pub anomalies: AnomalyConfig,
    /// The inpainter's sizes and training.
    pub inpainter: Stage<TransformerConfig>,
    /// The autoregressive prior's sizes and training; left out, there is none, and the method `ar` cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prior: Option<Stage<TransformerConfig>>,
    /// Data sets with their licences, for the bundle and its model card.
    pub data: Vec<DataSource>,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            name: "custom".into(),
            version: "1".into(),
            out: "bundle".into(),
            work: "train-work".into(),
            split_column: "split".into(),
            other_site: BTreeMap::new(),
            checkpoint_seconds: 60,
            device: DeviceChoice::default(),
            bf16: true,
            seed: 1,
            shapes: String::new(),
            healthy_quantile: 0.998,
            token_quantile: 0.97,
            healthy_map_scans: 96,
            networks_of: None,
            further: BTreeSet::new(),
            until: None,
            tokenizer: TokenizerStage {
                network: TokenizerConfig::default(),
                steps: 3000,
                batch: 24,
                learning_rate: 1e-3,
                adversarial: 0.,
                feature: 0.,
                adversary_from: 0,
                decoder_steps: 0,
            },
            anomalies: AnomalyConfig::default(),
            detector: Stage {
                network: TransformerConfig { width: 128, heads: 4, layers: 4 },
                steps: 3000,
                batch: 24,
                learning_rate: 1e-3,
            },
            inpainter: Stage {
                network: TransformerConfig { width: 160, heads: 5, layers: 4 },
                steps: 2000,
                batch: 24,
                learning_rate: 1e-3,
            },
            prior: None,
            data: Vec::new(),
        }
    }
}

/// Synthetic anomalies that the detector is trained with. A slice may have both kinds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AnomalyConfig {
    /// Share of slices with anomalies in the image, 0 to 1.
    pub image_share: f64,
    /// Share of slices with blocks of other tokens, 0 to 1.
    pub token_share: f64,
}

impl Default for AnomalyConfig {
    fn default() -> Self {
        Self { image_share: 0.75, token_share: 0.2 }
    }
}

/// What `neurosieve eval` does.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalPipeline {
    /// Scans with truth masks.
    pub cohort: CohortConfig,
    /// Healthy scans, which thresholds are fixed on and scan scores are compared with.
    pub healthy: CohortConfig,
    /// Preprocessing in front of the model.
    pub preprocess: PreprocessConfig,
    /// Which model scores.
    pub model: ModelConfig,
    /// Where the `evaluations` table is; left out, nothing is written.
    pub tables: TablesConfig,
    /// What is evaluated.
    pub eval: EvalConfig,
    /// How the machine is used.
    pub run: RunConfig,
}

/// What is evaluated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalConfig {
    /// Folder of the truth masks below the cohort's root.
    pub truth: String,
    /// Share of healthy brain voxels below a method's threshold, where its settings have none.
    pub healthy_quantile: f64,
    /// Methods, side by side.
    pub methods: Vec<MethodConfig>,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self { truth: "derivatives/truth".into(), healthy_quantile: 0.998, methods: Vec::new() }
    }
}

/// One method of an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MethodConfig {
    /// What it is called in the table.
    pub name: String,
    /// How it scores.
    #[serde(default)]
    pub score: ScoreConfig,
}

/// A network of the training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "each says what it is")]
pub enum Network {
    Tokenizer,
    Inpainter,
    Detector,
    Prior,
}

impl Network {
    /// As in a pipeline file, and as its weights' file is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tokenizer => "tokenizer",
            Self::Inpainter => "inpainter",
            Self::Detector => "detector",
            Self::Prior => "prior",
        }
    }
}

/// The tokenizer's sizes and training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerStage {
    /// Sizes.
    pub network: TokenizerConfig,
    /// Updates of the weights.
    pub steps: i64,
    /// Slices per update.
    pub batch: usize,
    /// Peak learning rate of a cosine schedule with warm-up.
    pub learning_rate: f64,
    /// Pull of the adversarial loss beside that of the distance from the image; 0: none.
    #[serde(default)]
    pub adversarial: f64,
    /// Weight of the distance between the discriminator's activations, beside L1; 0: none.
    #[serde(default)]
    pub feature: f64,
    /// Further updates of the decoder alone, the codes being fixed.
    #[serde(default)]
    pub decoder_steps: i64,
    /// The step at which the discriminator begins to learn, and to be heard.
    #[serde(default)]
    pub adversary_from: i64,
}

/// One network's sizes and training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage<N> {
    /// Sizes.
    pub network: N,
    /// Updates of the weights.
    pub steps: i64,
    /// Slices per update.
    pub batch: usize,
    /// Peak learning rate of a cosine schedule with warm-up.
    pub learning_rate: f64,
}

/// Reads a pipeline file; `overrides` are `section.key=value` with TOML values (a bare word is
/// taken as text).
///
/// # Errors
/// [`Error::Config`] naming the file, the key and the nearest known one.
pub fn load<T: DeserializeOwned>(path: Option<&Path>, overrides: &[String]) -> Result<T> {
    let name = path.map_or_else(|| "the command line".into(), |p| p.display().to_string());
    let mut table = match path {
        None => toml::Table::new(),
        Some(path) => std::fs::read_to_string(path)
            .map_err(|e| {
                Error::Config(format!("cannot read pipeline file `{name}`: {e}; ready ones are in pipelines/"))
            })?
            .parse::<toml::Table>()
            .map_err(|e| Error::Config(format!("{name}: {e}")))?,
    };
    for text in overrides {
        set(&mut table, text)?;
    }
    apply_preset(&mut table)?;
    T::deserialize(toml::Value::Table(table)).map_err(|e| Error::Config(format!("{name}: {}", teach(&e))))
}

/// Puts the sizes of `train.preset` where `[train]` leaves them out; what it says of a network wins.
fn apply_preset(table: &mut toml::Table) -> Result<()> {
    let Some(train) = table.get_mut("train").and_then(toml::Value::as_table_mut) else { return Ok(()) };
    let Some(name) = train.remove("preset") else { return Ok(()) };
    let preset: Preset = name.as_str().unwrap_or_default().parse()?;
    let [nx, ny, _] = preprocess::model_grid().shape;
    preset.fits([nx, ny])?;
    let sizes = preset.sizes();
    let mut defaults = TrainConfig::default();
    let stage = Stage { network: sizes.detector, ..defaults.detector.clone() };
    defaults.prior = train.contains_key("prior").then(|| stage.clone());
    defaults.detector = stage;
    defaults.inpainter.network = sizes.inpainter;
    defaults.tokenizer.network = sizes.tokenizer;
    let defaults = toml::Table::try_from(defaults).map_err(|e| Error::Bug(format!("the training's defaults: {e}")))?;
    fill(train, defaults);
    Ok(())
}

/// Adds what is missing, in tables within tables too. A network's sizes belong together: they are given or not.
fn fill(table: &mut toml::Table, defaults: toml::Table) {
    for (key, value) in defaults {
        match (table.get_mut(&key), value) {
            (None, value) => drop(table.insert(key, value)),
            (Some(toml::Value::Table(inner)), toml::Value::Table(value)) if key != "network" => fill(inner, value),
            _ => {}
        }
    }
}

/// Applies one `section.key=value`.
fn set(table: &mut toml::Table, text: &str) -> Result<()> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| Error::Config(format!("`--set {text}`: expected section.key=value, e.g. run.limit=10")))?;
    let value = format!("v = {value}")
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut t| t.remove("v"))
        .unwrap_or_else(|| toml::Value::String(value.to_owned()));
    let mut parts: Vec<&str> = key.trim().split('.').collect();
    let last = parts.pop().unwrap_or_default();
    let mut here = table;
    for part in parts {
        here = here
            .entry(part)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()))
            .as_table_mut()
            .ok_or_else(|| Error::Config(format!("`--set {text}`: `{part}` is a value, not a section")))?;
    }
    here.insert(last.to_owned(), value);
    Ok(())
}

/// The parser's message, and for an unknown key the nearest known one.
fn teach(error: &toml::de::Error) -> String {
    let message = error.message();
    let mut quoted = message.split('`').skip(1).step_by(2);
    if !message.starts_with("unknown field") {
        return error.to_string().trim().to_owned();
    }
    let Some(unknown) = quoted.next() else { return message.to_owned() };
    let known: Vec<&str> = quoted.collect();
    let nearest =
        known.iter().max_by(|a, b| strsim::jaro_winkler(unknown, a).total_cmp(&strsim::jaro_winkler(unknown, b)));
    match nearest {
        Some(nearest) => {
            format!("unknown key `{unknown}`; did you mean `{nearest}`? Known here: {}", known.join(", "))
        }
        None => format!("unknown key `{unknown}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, overrides: &[&str]) -> Result<Pipeline> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.toml");
        std::fs::write(&path, text).unwrap();
        load(Some(&path), &overrides.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn an_unknown_key_names_the_nearest_known_one() {
        let error = parse("[score]\nmask_treshold = 0.5\n", &[]).unwrap_err().to_string();
        assert!(error.contains("`mask_treshold`") && error.contains("did you mean `mask_threshold`"), "{error}");
        let error = parse("", &["run.lmit=3"]).unwrap_err().to_string();
        assert!(error.contains("did you mean `limit`"), "{error}");
    }

    #[test]
    fn the_command_line_wins_over_the_file_and_the_file_over_the_default() {
        let pipeline = parse(
            "[run]\nlimit = 3\n[cohort]\nurl = 'a'\n",
            &["run.limit=5", "cohort.url=s3://bucket/x", "cohort.select.subjects=[\"01\"]"],
        )
        .unwrap();
        assert_eq!(pipeline.run.limit, 5);
        assert_eq!(pipeline.cohort.url, "s3://bucket/x");
        assert_eq!(pipeline.cohort.select.subjects, ["01"]);
        assert_eq!(pipeline.score, ScoreConfig::default());
    }

    #[test]
    fn a_value_of_the_wrong_type_says_where() {
        let error = parse("[run]\nlimit = 'many'\n", &[]).unwrap_err().to_string();
        assert!(error.contains("run.limit") || error.contains("limit"), "{error}");
        assert!(error.contains("expected"), "{error}");
    }

    #[test]
    fn a_preset_gives_sizes_and_what_the_file_says_wins() {
        let load = |text: &str| load::<TrainPipeline>(None, &[format!("train.preset={text}"), "train.seed=7".into()]);
        let tiny = load("tiny").unwrap().train;
        assert_eq!((tiny.detector.network.width, tiny.seed), (Preset::Tiny.sizes().detector.width, 7));
        let error = load("paper").unwrap_err().to_string();
        assert!(error.contains("160 x 160"), "{error}");
    }

    #[test]
    fn the_ready_pipelines_are_valid() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines");
        for file in ["demo.toml", "screen.toml"] {
            load::<Pipeline>(Some(&folder.join(file)), &[]).unwrap();
        }
        load::<TrainPipeline>(Some(&folder.join("train.toml")), &[]).unwrap();
        for file in ["eval.toml", "rivals.toml"] {
            load::<EvalPipeline>(Some(&folder.join(file)), &[]).unwrap();
        }
    }
}
