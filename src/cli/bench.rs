//! `neurosieve bench`: how fast this machine is.

use std::path::PathBuf;

use super::write_json;
use crate::cohort::CohortConfig;
use crate::config;
use crate::error::Result;
use crate::eval::device::{DeviceSettings, ModelChoice, VolumeSettings, measure, score_volumes};
use crate::flow::Pipeline;
use crate::model::Preset;
use crate::model::device::DeviceChoice;

/// Measure how fast this machine is
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Device(DeviceArgs),
    Volumes(VolumeArgs),
}

/// What both measure.
#[derive(Debug, clap::Args)]
struct On {
    /// Device that computes: auto, cpu, cuda or cuda:N
    #[arg(long, default_value_t)]
    device: DeviceChoice,
    /// `built-in`, or the folder of a bundle
    #[arg(long, default_value = "built-in")]
    bundle: String,
    /// Measure these sizes with random weights instead of a bundle: tiny, small or paper
    #[arg(long, conflicts_with = "bundle")]
    preset: Option<Preset>,
    /// Also write every figure to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl On {
    fn model(&self) -> ModelChoice {
        match self.preset {
            Some(preset) => ModelChoice::Preset(preset),
            None => ModelChoice::Bundle(self.bundle.clone()),
        }
    }
}

/// Time every network of a bundle, or of a preset's sizes, and compare it with what the device can do
///
/// Run nothing else meanwhile. On the processor one thread is timed; a screening has one per core.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:
  neurosieve bench device --bf16 --json bench.json
  neurosieve bench device --preset paper --device cuda --batch 256 --bf16 --prior --restorations 4")]
struct DeviceArgs {
    #[command(flatten)]
    on: On,
    /// Slices per batch [default: the smallest that is nearly as fast as the fastest of those tried]
    #[arg(long, value_name = "N")]
    batch: Option<i64>,
    /// Also compute in bfloat16, side by side with f32
    #[arg(long)]
    bf16: bool,
    /// Also time the autoregressive prior's restoration, with full passes and with a cache
    #[arg(long)]
    prior: bool,
    /// Restorations drawn per slice; 0: their mean, in one pass
    #[arg(long, value_name = "S", default_value_t = 0)]
    restorations: i64,
    /// Inpainter passes per drawn restoration
    #[arg(long, value_name = "T", default_value_t = 6)]
    steps: i64,
    /// Share of slices with something to in-paint
    #[arg(long, value_name = "SHARE", default_value_t = 0.5)]
    open_share: f64,
}

/// Score volumes that are held in memory: what the device does when nothing else slows it down
///
/// Reads and preprocesses a few scans of a cohort, then scores them again and again as one device thread of a screening
/// does, and says where the time goes. With --preset, volumes and weights are made up.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:
  neurosieve bench volumes --cohort ./study --device cuda --volumes 200 --set score.precision=bf16
  neurosieve bench volumes --preset paper --slices 100 --device cuda")]
struct VolumeArgs {
    #[command(flatten)]
    on: On,
    /// Where the scans are: a folder or a URL; not read with --preset
    #[arg(long, value_name = "URL", default_value = "")]
    cohort: String,
    /// How many volumes are scored
    #[arg(long, value_name = "N", default_value_t = 50)]
    volumes: usize,
    /// How many different ones of them are held in memory
    #[arg(long, value_name = "N", default_value_t = 8)]
    distinct: usize,
    /// Slices of a made-up volume
    #[arg(long, value_name = "N", default_value_t = 100)]
    slices: usize,
    /// Override a setting of [score], such as score.method=ar; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl BenchArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// What the measurement says; where the JSON file cannot be written.
    pub async fn run(self) -> Result<()> {
        match self.what {
            What::Device(args) => args.run(),
            What::Volumes(args) => args.run().await,
        }
    }
}

impl DeviceArgs {
    fn run(self) -> Result<()> {
        let speed = measure(&DeviceSettings {
            device: self.on.device,
            model: self.on.model(),
            batch: self.batch,
            bf16: self.bf16,
            prior: self.prior,
            restorations: self.restorations,
            steps: self.steps,
            open_share: self.open_share,
        })?;
        print!("{speed}");
        write_json(self.on.json, &speed)
    }
}

impl VolumeArgs {
    async fn run(self) -> Result<()> {
        let pipeline: Pipeline = config::load(None, &self.set)?;
        let speed = score_volumes(&VolumeSettings {
            device: self.on.device,
            model: self.on.model(),
            cohort: CohortConfig { url: self.cohort, ..pipeline.cohort },
            distinct: self.distinct,
            slices: self.slices,
            volumes: self.volumes,
            score: pipeline.score,
        })
        .await?;
        print!("{speed}");
        write_json(self.on.json, &speed)
    }
}
