//! `neurosieve bench`: how fast this machine is.

use std::path::PathBuf;

use super::eval::write_json;
use crate::error::Result;
use crate::eval::device::{DeviceSettings, measure};
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

/// Time every network of a bundle on a device, beside what the device can do
///
/// Run nothing else meanwhile. OMP_NUM_THREADS sets the threads of the processor.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:
  neurosieve bench device --device cuda --batch 256 --bf16 --json bench.json")]
struct DeviceArgs {
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value_t)]
    device: DeviceChoice,
    /// `built-in`, or the folder of a bundle
    #[arg(long, default_value = "built-in")]
    bundle: String,
    /// Slices at once
    #[arg(long, value_name = "N", default_value_t = 16)]
    batch: i64,
    /// Compute in bfloat16
    #[arg(long)]
    bf16: bool,
    /// Restorations of a slice
    #[arg(long, value_name = "S", default_value_t = 1)]
    restorations: i64,
    /// Passes of the inpainter
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
            batch: args.batch,
            bf16: args.bf16,
            restorations: args.restorations,
            steps: args.steps,
            open_share: args.open_share,
        })?;
        print!("{speed}");
        write_json(args.json, &speed)
    }
}
