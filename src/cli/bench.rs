//! `neurosieve bench`: how fast this machine is.

use std::path::PathBuf;

use super::write_json;
use crate::error::Result;
use crate::eval::device::{DeviceSettings, measure};
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
}

/// Time every network of a bundle, or of a preset's sizes, on a device, beside what the device can do
///
/// Run nothing else meanwhile. On the processor one thread is timed; a screening has one per core.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:
  neurosieve bench device --bf16 --json bench.json
  neurosieve bench device --preset paper --device cuda --batch 256 --bf16 --prior --restorations 4")]
struct DeviceArgs {
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value_t)]
    device: DeviceChoice,
    /// `built-in`, or the folder of a bundle
    #[arg(long, default_value = "built-in")]
    bundle: String,
    /// tiny, small or paper: these sizes with random weights, instead of a bundle
    #[arg(long, conflicts_with = "bundle")]
    preset: Option<Preset>,
    /// Slices at once; left out, those from 4 to 256 are tried and the fastest is told
    #[arg(long, value_name = "N")]
    batch: Option<i64>,
    /// Also compute in bfloat16, side by side with f32
    #[arg(long)]
    bf16: bool,
    /// Also time the autoregressive prior's restoration, by full passes and with a cache
    #[arg(long)]
    prior: bool,
    /// Restorations of a slice; 0: their mean, in one pass
    #[arg(long, value_name = "S", default_value_t = 0)]
    restorations: i64,
    /// Passes of the inpainter for a drawn restoration
    #[arg(long, value_name = "T", default_value_t = 6)]
    steps: i64,
    /// Share of slices with something to in-paint
    #[arg(long, value_name = "SHARE", default_value_t = 0.5)]
    open_share: f64,
    /// Also write every figure to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl BenchArgs {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let What::Device(args) = self.what;
        let speed = measure(&DeviceSettings {
            device: args.device,
            bundle: args.bundle,
            preset: args.preset,
            batch: args.batch,
            bf16: args.bf16,
            prior: args.prior,
            restorations: args.restorations,
            steps: args.steps,
            open_share: args.open_share,
        })?;
        print!("{speed}");
        write_json(args.json, &speed)
    }
}
