//! `neurosieve inspect`: shows the preprocessing of one scan, as numbers and as a picture.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::cohort::{self, MAX_SCAN_BYTES, ScanEntry};
use crate::error::{Error, Result};
use crate::eval::preprocess::{ScanTime, measure};
use crate::preprocess::{PreprocessConfig, Steps};
use crate::report::{Panel, picture};
use crate::store::{self, Location};
use crate::terminal::{out, outln};
use crate::volume::{Affine, Volume, nifti};

/// Show the preprocessing of one scan: its numbers, and a picture of every step
///
/// The picture (PNG) has a row per step with three planes and the outline of the brain. The subject's right is on the left.
/// Only the brain is drawn, never the face. Research use only.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  neurosieve inspect sub-01_T1w.nii.gz                       numbers, and sub-01_T1w_inspect.png
  neurosieve inspect s3://bucket/study/sub-01/anat/sub-01_T1w.nii.gz --nifti ./steps
  neurosieve inspect sub-01_T1w.nii.gz --json --repeat 5     times of the fastest of five runs on one thread")]
pub struct InspectArgs {
    /// The scan: a file or a URL
    pub scan: String,
    /// File of the picture [default: <scan>_inspect.png in the current folder; with --json no picture]
    #[arg(long, value_name = "FILE")]
    pub png: Option<PathBuf>,
    /// Also write the result of each step as NIfTI into this folder, created if missing; 0 outside the brain
    #[arg(long, value_name = "DIR")]
    pub nifti: Option<PathBuf>,
    /// With --nifti: write the whole head, whose face identifies the person
    #[arg(long, requires = "nifti")]
    pub with_head: bool,
    /// Print the numbers as JSON
    #[arg(long)]
    pub json: bool,
    /// Repeat preprocessing N times and report the fastest run
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeat: u32,
}

impl InspectArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// [`Error::Config`] where the scan does not exist; errors of reading, decoding, preprocessing and writing.
    pub async fn run(self) -> Result<()> {
        let (folder, name) = self.scan.rsplit_once('/').unwrap_or((".", &self.scan));
        let location = store::open(if folder.is_empty() { "/" } else { folder })?;
        let entry = find(&location, folder, name).await?;
        let stem = cohort::bids::stem(name);
        let png = self.png.or_else(|| (!self.json).then(|| PathBuf::from(format!("{stem}_inspect.png"))));
        refuse_over_the_scan(&self.scan, png.as_deref(), self.nifti.as_deref())?;
        let bytes = cohort::read(&location, &entry, MAX_SCAN_BYTES).await?;
        let decoded = bytes.decode(MAX_SCAN_BYTES)?;
        let cfg = PreprocessConfig::default();
        let (time, steps) = measure(&bytes, &cfg, self.repeat as usize)?;
        if self.json {
            outln!("{:#}", as_json(&steps, &time));
        } else {
            out!("{}", as_text(&self.scan, &decoded.datatype, &steps, &time));
        }
        if let Some(path) = png {
            write(&path, &draw(&steps, stem)?)?;
            if !self.json {
                outln!("\npicture: {}", path.display());
            }
        }
        if let Some(folder) = self.nifti {
            write_steps(&folder, stem, &steps, self.with_head)?;
        }
        Ok(())
    }
}

/// Refuses to write the picture over the scan, and the steps into the folder of a data set.
fn refuse_over_the_scan(scan: &str, png: Option<&Path>, nifti: Option<&Path>) -> Result<()> {
    let same =
        |path: &Path| path.canonicalize().is_ok_and(|path| Path::new(scan).canonicalize().is_ok_and(|s| s == path));
    match (png, nifti) {
        (Some(png), _) if same(png) => {
            Err(Error::Config(format!("--png {} is the scan itself: give another file", png.display())))
        }
        (_, Some(folder)) if folder.join("dataset_description.json").exists() => Err(Error::Config(format!(
            "--nifti {} is the folder of a data set: give a folder of its own",
            folder.display()
        ))),
        _ => Ok(()),
    }
}

/// The scan of this name, alone: what lies beside it is not listed. In a URL the name may be percent-encoded.
async fn find(location: &Location, folder: &str, name: &str) -> Result<ScanEntry> {
    let as_written = cohort::find(location, "scan", name).await;
    let decoded = object_store::path::Path::from_url_path(name).ok();
    match (as_written, decoded) {
        (Err(Error::Config(_)), Some(decoded)) if folder.contains("://") && decoded.as_ref() != name => {
            cohort::find(location, "scan", decoded.as_ref()).await
        }
        (as_written, _) => as_written,
    }
}

/// The picture of all steps.
fn draw(steps: &Steps, stem: &str) -> Result<Vec<u8>> {
    let field = steps.field.on(&steps.working.grid, &Affine::identity());
    let mask = &steps.brain.mask;
    let panel = |title, volume, brain| Panel { title, volume, brain, outlined: None, overlay: None };
    let prepared = &steps.prepared;
    let panels = [
        // The first mask may reach into the orbits or the neck: it is outlined, and the image ends at the brain.
        Panel { outlined: Some(&steps.first_mask), ..panel("1 skull strip, first mask", &steps.working, mask) },
        panel("2 with the template as prior", &steps.working, mask),
        panel("3 bias field", &field, mask),
        panel("4 bias corrected", &steps.corrected, mask),
        panel("5 MNI space, normalized", &prepared.image, &prepared.brain),
    ];
    let flags = if prepared.qc.flags.is_empty() { "none".to_owned() } else { prepared.qc.flags.join(", ") };
    let footer = format!(
        "{stem}: brain {:.0} ml, correlation with the template {:.3}, flags: {flags}. neurosieve {}",
        prepared.brain_volume_ml,
        steps.registration.ncc,
        env!("CARGO_PKG_VERSION")
    );
    picture(&panels, &footer)
}

fn as_text(scan: &str, datatype: &str, steps: &Steps, time: &ScanTime) -> String {
    let (prepared, native) = (&steps.prepared, steps.prepared.native);
    let [x, y, z] = native.spacing();
    let [nx, ny, nz] = native.shape;
    let kind = if prepared.stripped_input { "a bare brain" } else { "a whole head" };
    let mut text = format!(
        "{scan}\n{nx} x {ny} x {nz} voxels of {x:.2} x {y:.2} x {z:.2} mm, {}, {datatype}; {kind}\n\n",
        native.orientation()
    );
    let mut line = |name: &str, value: String| text.push_str(&format!("  {name:<26} {value}\n"));
    line("brain volume", format!("{:.0} ml", prepared.brain_volume_ml));
    for (name, value) in prepared.qc.measures() {
        line(name, value.map_or_else(|| "n/a".to_owned(), |v| format!("{v:.3}")));
    }
    let flags = if prepared.qc.flags.is_empty() { "none".to_owned() } else { prepared.qc.flags.join(", ") };
    line("flags", flags);
    for (row, name) in prepared.to_mni.0.iter().zip(["native to MNI, mm", "", ""]) {
        line(name, format!("{:8.4} {:8.4} {:8.4} {:9.3}", row[0], row[1], row[2], row[3]));
    }
    let times: Vec<String> = time.steps_ms.iter().map(|(step, ms)| format!("{step} {ms:.0}")).collect();
    line("core-seconds", format!("{:.3} (ms: {})", time.core_seconds, times.join(", ")));
    text.push_str("\nResearch software. Not a medical device.\n");
    text
}

fn as_json(steps: &Steps, time: &ScanTime) -> serde_json::Value {
    let prepared = &steps.prepared;
    let timings: serde_json::Map<String, serde_json::Value> =
        time.steps_ms.iter().map(|(step, ms)| ((*step).to_owned(), json!(ms))).collect();
    let qc: serde_json::Map<String, serde_json::Value> =
        prepared.qc.measures().into_iter().map(|(name, value)| (name.replace([' ', '-'], "_"), json!(value))).collect();
    json!({
        "shape": prepared.native.shape,
        "spacing_mm": prepared.native.spacing(),
        "orientation": prepared.native.orientation(),
        "stripped_input": prepared.stripped_input,
        "brain_volume_ml": prepared.brain_volume_ml,
        "registration_ncc": steps.registration.ncc,
        "to_mni": prepared.to_mni.to_row_major(),
        "qc": qc,
        "qc_flags": prepared.qc.flags,
        "core_seconds": time.core_seconds,
        "timings_ms": timings,
        "peak_memory_mb": peak_memory_mb(),
    })
}

/// Peak memory of this process, in MB (10^6); `None` where the system does not report it.
fn peak_memory_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}

/// Writes the result of each step as `<stem>_step-<name>.nii.gz`. Images are 0 outside the brain, unless `with_head`.
fn write_steps(folder: &Path, stem: &str, steps: &Steps, with_head: bool) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io(format!("cannot create {}", folder.display()), e))?;
    let put = |name: &str, bytes: Vec<u8>| write(&folder.join(format!("{stem}_step-{name}.nii.gz")), &bytes);
    let image = |volume: &Volume| nifti::encode(volume, "neurosieve inspect");
    let mask = |volume: &Volume<u8>| nifti::encode(volume, "neurosieve inspect");
    let shown = |volume: &Volume| {
        let mut shown = volume.clone();
        if !with_head {
            shown.data.iter_mut().zip(&steps.brain.mask.data).for_each(|(v, &b)| *v *= f32::from(u8::from(b != 0)));
        }
        image(&shown)
    };
    put("1working", shown(&steps.working))?;
    put("2firstmask", mask(&steps.first_mask))?;
    put("3mask", mask(&steps.brain.mask))?;
    put("4field", image(&steps.field.on(&steps.working.grid, &Affine::identity())))?;
    put("5corrected", shown(&steps.corrected))?;
    put("6mni", image(&steps.prepared.image))?;
    put("7mnimask", mask(&steps.prepared.brain))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).map_err(|e| Error::io(format!("cannot write {}", path.display()), e))
}
