//! Preprocesses one scan and prints what was measured: no network, no table.
//!
//!     cargo run --release --example inspect_scan -- sub-01_T1w.nii.gz

use std::path::Path;

use neurosieve::preprocess::{Prepared, PreprocessConfig, prepare};
use neurosieve::volume::nifti;

/// Scans whose voxels take more memory than this are refused.
const LIMIT_BYTES: u64 = 1 << 30;

/// Reads a NIfTI file and brings its brain into the model's space.
///
/// # Errors
/// Where the file cannot be read, is no NIfTI image, or shows no brain.
pub fn inspect(file: &Path) -> Result<Prepared, Box<dyn std::error::Error>> {
    let decoded = nifti::decode(&std::fs::read(file)?, LIMIT_BYTES)?;
    Ok(prepare(&decoded.volume, &PreprocessConfig::default())?)
}

/// The measures as text, one a line.
pub fn describe(prepared: &Prepared) -> String {
    let [nx, ny, nz] = prepared.native.shape;
    let [x, y, z] = prepared.native.spacing();
    let mut lines = vec![
        format!("{nx} x {ny} x {nz} voxels of {x:.2} x {y:.2} x {z:.2} mm, {}", prepared.native.orientation()),
        format!("brain volume: {:.0} ml", prepared.brain_volume_ml),
    ];
    for (name, value) in prepared.qc.measures() {
        lines.push(format!("{name}: {}", value.map_or("n/a".to_owned(), |value| format!("{value:.3}"))));
    }
    lines.push(format!("flags: {}", prepared.qc.flags.join(", ")));
    lines.join("\n")
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = std::env::args().nth(1).ok_or("usage: inspect_scan FILE")?;
    println!("{}", describe(&inspect(Path::new(&file))?));
    Ok(())
}
