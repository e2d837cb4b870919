//! Processor time of one scan by step, peak memory, and the gain of a second thread.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use cpu_time::ThreadTime;
use rand::Rng;
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use serde::Serialize;

use super::Case;
use crate::cohort::{MAX_SCAN_BYTES, ScanBytes};
use crate::error::{Error, Result};
use crate::preprocess::{self, PreprocessConfig, Steps};
use crate::volume::resample::trilinear;
use crate::volume::{Affine, Grid, Volume, nifti};

/// Number of heads whose median is the figure of 2 mm heads.
const HEADS: usize = 8;

/// Repetitions of a measurement. The fastest counts, because other work on the machine only slows a run down.
const REPEATS: usize = 3;

/// Number of scans that are preprocessed to compare one and two threads.
const SCALING_SCANS: usize = 16;

/// Heads with a voxel size up to this, in mm, do not count as 2 mm heads.
const COARSE_MM: f64 = 1.5;

/// Time of one scan on one thread, from the bytes of its file to the model's grid.
#[derive(Debug, Clone, Serialize)]
pub struct ScanTime {
    /// Processor time of all steps, s.
    pub core_seconds: f64,
    /// Time of each step, ms; decoding is the first.
    pub steps_ms: Vec<(&'static str, f32)>,
}

/// Speed of preprocessing.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Speed {
    /// A whole head of 2 mm: the median of several heads.
    pub head_2mm: Option<ScanTime>,
    /// A whole head of 256 x 256 x 180 voxels of 1 mm, resampled from the first 2 mm head.
    pub head_1mm: Option<ScanTime>,
    /// Peak memory of a process that only preprocesses that head, in MB (10^6).
    pub peak_memory_mb: Option<f64>,
    /// Scans per second on one thread and on two.
    pub scans_per_second: Option<[f64; 2]>,
}

/// Decodes and preprocesses one scan on one thread, `repeats` times but at least once, and gives the time of the fastest
/// run.
///
/// # Errors
/// As [`ScanBytes::decode`] and [`preprocess::steps`].
pub fn measure(bytes: &ScanBytes, cfg: &PreprocessConfig, repeats: usize) -> Result<(ScanTime, Steps)> {
    let (mut fastest, steps) = measure_once(bytes, cfg)?;
    for _ in 1..repeats {
        let (time, _) = measure_once(bytes, cfg)?;
        if time.core_seconds < fastest.core_seconds {
            fastest = time;
        }
    }
    Ok((fastest, steps))
}

fn measure_once(bytes: &ScanBytes, cfg: &PreprocessConfig) -> Result<(ScanTime, Steps)> {
    threads(1)?.install(|| {
        let started = ThreadTime::now();
        let clock = Instant::now();
        let native = bytes.decode(MAX_SCAN_BYTES)?.volume;
        let decode_ms = clock.elapsed().as_secs_f32() * 1000.0;
        let steps = preprocess::steps(&native, cfg)?;
        let mut steps_ms = vec![("decode", decode_ms)];
        steps_ms.extend(&steps.prepared.timings);
        Ok((ScanTime { core_seconds: started.elapsed().as_secs_f64(), steps_ms }, steps))
    })
}

/// Measures the 2 mm heads among `cases`; empty where there are none.
pub(super) fn measure_all(cases: &[Case], cfg: &PreprocessConfig) -> Result<Speed> {
    let heads =
        cases.iter().filter(|c| c.head != Some(false) && c.native.grid.spacing().iter().all(|&s| s > COARSE_MM));
    let heads: Vec<&Case> = heads.take(HEADS).collect();
    let Some(first) = heads.first() else { return Ok(Speed::default()) };
    let times = heads.iter().map(|case| Ok(measure(&case.bytes, cfg, REPEATS)?.0));
    let mut times = times.collect::<Result<Vec<_>>>()?;
    times.sort_by(|a, b| a.core_seconds.total_cmp(&b.core_seconds));
    let head_2mm = times.swap_remove(times.len() / 2);

    let fine = nifti::encode(&one_millimetre(first), "1 mm");
    let (head_1mm, _) = measure(&ScanBytes::File(fine.clone().into()), cfg, REPEATS)?;
    let peak_memory_mb = peak_memory(&fine)?;

    let queue: Vec<&ScanBytes> = heads.iter().cycle().take(SCALING_SCANS).map(|case| &case.bytes).collect();
    let rate = |n: usize| -> Result<f64> {
        let pool = threads(n)?;
        let mut best = Duration::MAX;
        for _ in 0..2 {
            let started = Instant::now();
            pool.install(|| {
                queue
                    .par_iter()
                    .with_max_len(1)
                    .try_for_each(|bytes| preprocess::prepare(&bytes.decode(MAX_SCAN_BYTES)?.volume, cfg).map(drop))
            })?;
            best = best.min(started.elapsed());
        }
        Ok(queue.len() as f64 / best.as_secs_f64())
    };
    let scans_per_second = Some([rate(1)?, rate(2)?]);
    Ok(Speed { head_2mm: Some(head_2mm), head_1mm: Some(head_1mm), peak_memory_mb, scans_per_second })
}

fn threads(n: usize) -> Result<ThreadPool> {
    ThreadPoolBuilder::new().num_threads(n).build().map_err(|e| Error::Bug(format!("cannot start {n} threads: {e}")))
}

/// The head on 256 x 256 x 180 voxels of 1 mm, with axes to posterior, inferior and right as in sagittal scans. Noise is
/// added in the last bits.
fn one_millimetre(case: &Case) -> Volume<i16> {
    let native = &case.native;
    let middle = native.grid.affine.apply(native.grid.shape.map(|n| (n as f64 - 1.0) / 2.0));
    let grid = Grid {
        shape: [256, 256, 180],
        affine: Affine::from_rows([
            [0.0, 0.0, 1.0, middle[0] - 89.5],
            [-1.0, 0.0, 0.0, middle[1] + 127.5],
            [0.0, -1.0, 0.0, middle[2] + 127.5],
        ]),
    };
    let fine = trilinear(native, &grid, &Affine::identity());
    let top = fine.data.iter().copied().fold(0.0, f32::max).max(1.0);
    let mut rng = case.rng("1 mm");
    let noisy = fine.data.iter().map(|v| (1000.0 * v / top + rng.random_range(-8.0f32..8.0)).max(0.0) as i16);
    Volume::new(grid, noisy.collect())
}

/// Peak memory of a process that inspects this scan, MB; `None` where this is not the command line program, or the system
/// does not report it.
fn peak_memory(scan: &[u8]) -> Result<Option<f64>> {
    let Some(program) = std::env::current_exe().ok().filter(|p| p.file_stem().is_some_and(|s| s == "neurosieve"))
    else {
        return Ok(None);
    };
    let path: PathBuf = std::env::temp_dir().join(format!("neurosieve-eval-{}.nii.gz", std::process::id()));
    std::fs::write(&path, scan).map_err(|e| Error::io("cannot write the scan for measuring memory", e))?;
    let output = Command::new(program).arg("inspect").arg(&path).arg("--json").output();
    let removed = std::fs::remove_file(&path);
    let output = output.map_err(|e| Error::io("cannot start the program for measuring memory", e))?;
    removed.map_err(|e| Error::io("cannot remove the scan for measuring memory", e))?;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    Ok(report["peak_memory_mb"].as_f64())
}
