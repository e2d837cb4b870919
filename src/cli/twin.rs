//! `neurosieve twin`: what the networks give, for comparing them with another implementation. For those who change the
//! networks, so it is not listed.

use std::path::PathBuf;

use crate::error::Result;
use crate::model::{Bundle, twin};

/// Write inputs, outputs and gradients of a bundle's networks to a safetensors file
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:
  neurosieve twin --bundle built-in --out twin.safetensors
  python benches/twin/twin.py models/t1w-2mm twin.safetensors")]
pub struct TwinArgs {
    /// `built-in`, or the folder of a bundle
    #[arg(long, default_value = "built-in")]
    bundle: String,
    /// Where the file goes
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

impl TwinArgs {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        twin::write(&Bundle::open(&self.bundle)?, &self.out)
    }
}
