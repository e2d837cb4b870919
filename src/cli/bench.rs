//! `neurosieve bench`: measures the speed of this machine.

use std::path::PathBuf;

use super::json_file::JsonFile;
use crate::cohort::CohortConfig;
use crate::config;
use crate::error::Result;
use crate::eval::device::{DeviceSettings, ModelChoice, VolumeSettings, measure, score_volumes};
use crate::flow::Pipeline;
use crate::model::Preset;
use crate::model::device::DeviceChoice;
use crate::terminal::out;

/// Measure the speed of this machine
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Debug, clap::Subcommand)]
enum BenchCommand {
    Device(DeviceArgs),
    Volumes(VolumeArgs),
}

/// The device and the networks to measure.
#[derive(Debug, clap::Args)]
struct Subject {
    /// Device to measure: auto, cpu, cuda or cuda:N
    #[arg(long, default_value_t)]
    device: DeviceChoice,
    /// The bundle to measure: `built-in`, or a folder
    #[arg(long, default_value = "built-in")]
    bundle: String,
    /// Measure networks of these sizes with random weights instead of a bundle: tiny, small or paper
    #[arg(long, conflicts_with = "bundle")]
    preset: Option<Preset>,
    /// Also write all figures to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Subject {
    fn model(&self) -> ModelChoice {
        match self.preset {
            Some(preset) => ModelChoice::Preset(preset),
            None => ModelChoice::Bundle(self.bundle.clone()),
        }
    }
}

/// Measure the time of every network, and its share of the device's arithmetic speed
///
/// Run nothing else at the same time. On the processor, one thread is measured; a screening uses one per core.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:
  neurosieve bench device --bf16 --json bench.json
  neurosieve bench device --preset paper --device cuda --batch 256 --bf16 --prior --restorations 4")]
struct DeviceArgs {
    #[command(flatten)]
    subject: Subject,
    /// Slices per batch [default: the smallest batch that is nearly as fast as the fastest of those tried]
    #[arg(long, value_name = "N")]
    batch: Option<i64>,
    /// Also measure in bfloat16, beside f32
    #[arg(long)]
    bf16: bool,
    /// Also measure restorations by the autoregressive prior, with full passes and with a cache
    #[arg(long)]
    prior: bool,
    /// Restorations drawn per slice; 0: the mean restoration, in one pass
    #[arg(long, value_name = "S", default_value_t = 0)]
    restorations: i64,
    /// Inpainter passes per drawn restoration
    #[arg(long, value_name = "T", default_value_t = 6)]
    steps: i64,
    /// Share of slices with tokens to in-paint, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.5)]
    open_share: f64,
}

/// Measure the speed of scoring volumes that are held in memory
///
/// Reads and preprocesses a few scans of a cohort, scores them repeatedly as one device thread of a screening does, and
/// reports where the time is spent. With --preset, the volumes are synthetic and the weights random.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:
  neurosieve bench volumes --cohort ./study --device cuda --volumes 200 --set score.precision=bf16
  neurosieve bench volumes --preset paper --slices 100 --device cuda")]
struct VolumeArgs {
    #[command(flatten)]
    subject: Subject,
    /// Where the scans are: a folder or a URL; not used with --preset
    #[arg(long, value_name = "URL", default_value = "")]
    cohort: String,
    /// Number of volumes to score
    #[arg(long, value_name = "N", default_value_t = 50)]
    volumes: usize,
    /// Number of different volumes held in memory
    #[arg(long, value_name = "N", default_value_t = 8)]
    distinct: usize,
    /// Slices per synthetic volume
    #[arg(long, value_name = "N", default_value_t = 100)]
    slices: usize,
    /// Override a setting of [score], such as score.method=ar; repeat for more
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl BenchArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// As [`measure`] and [`score_volumes`]; [`Error::Io`](crate::Error::Io) where the JSON file cannot be written.
    pub async fn run(self) -> Result<()> {
        match self.command {
            BenchCommand::Device(args) => args.run(),
            BenchCommand::Volumes(args) => args.run().await,
        }
    }
}

impl DeviceArgs {
    fn run(self) -> Result<()> {
        let json = JsonFile::open(self.subject.json.as_deref())?;
        let speed = measure(&DeviceSettings {
            device: self.subject.device,
            model: self.subject.model(),
            batch: self.batch,
            bf16: self.bf16,
            prior: self.prior,
            restorations: self.restorations,
            steps: self.steps,
            open_share: self.open_share,
        })?;
        out!("{speed}");
        json.map_or(Ok(()), |file| file.write(&speed))
    }
}

impl VolumeArgs {
    async fn run(self) -> Result<()> {
        let json = JsonFile::open(self.subject.json.as_deref())?;
        let pipeline: Pipeline = config::load(None, &self.set)?;
        let speed = score_volumes(&VolumeSettings {
            device: self.subject.device,
            model: self.subject.model(),
            cohort: CohortConfig { url: self.cohort, ..pipeline.cohort },
            distinct: self.distinct,
            slices: self.slices,
            volumes: self.volumes,
            score: pipeline.score,
        })
        .await?;
        out!("{speed}");
        json.map_or(Ok(()), |file| file.write(&speed))
    }
}
