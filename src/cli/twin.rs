//! `neurosieve twin`: writes outputs of the networks, to compare them with another implementation. It is hidden, because
//! only developers of the networks need it.

use std::path::PathBuf;

use crate::error::Result;
use crate::model::{Bundle, twin};

/// Write inputs, outputs and gradients of a bundle's networks to a safetensors file
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:
  neurosieve twin --bundle built-in --out twin.safetensors
  python benches/twin/twin.py models/t1w-2mm twin.safetensors")]
pub struct TwinArgs {
    /// The bundle: `built-in`, or a folder
    #[arg(long, default_value = "built-in")]
    bundle: String,
    /// File to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

impl TwinArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// As [`Bundle::open`] and [`twin::write`].
    pub fn run(self) -> Result<()> {
        twin::write(&Bundle::open(&self.bundle)?, &self.out)
    }
}
