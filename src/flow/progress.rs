//! How far a run is, for the progress line and the closing summary.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Counters shared by all partitions of a run.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    failed: AtomicU64,
    in_flight: AtomicU64,
    stages: Mutex<[StageMean; 4]>,
    device_us: AtomicU64,
}

#[derive(Debug, Default, Clone, Copy)]
struct StageMean {
    total_ms: f64,
    scans: u64,
}

/// Names of the stages in [`Snapshot::mean_ms`].
pub const STAGES: [&str; 4] = ["fetch", "decode", "preprocess", "score"];

/// The counters at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot {
    /// Scans that went through.
    pub done: u64,
    /// Scans that became a row in `failures`.
    pub failed: u64,
    /// Scans being worked on.
    pub in_flight: u64,
    /// Mean milliseconds per scan and stage, in the order of [`STAGES`].
    pub mean_ms: [f64; 4],
    /// Seconds that threads of the device were at work, summed over scans that are through it.
    pub device_s: f64,
}

impl Progress {
    pub(super) fn begin(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    pub(super) fn end(&self, failed: bool) {
        self.in_flight.fetch_sub(1, Relaxed);
        let counter = if failed { &self.failed } else { &self.done };
        counter.fetch_add(1, Relaxed);
    }

    pub(super) fn stage(&self, index: usize, ms: f64) {
        // A poisoned counter is still a counter.
        let mut stages = self.stages.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        stages[index].total_ms += ms;
        stages[index].scans += 1;
    }

    pub(super) fn device(&self, spent: Duration) {
        self.device_us.fetch_add(spent.as_micros() as u64, Relaxed);
    }

    /// The counters now.
    pub fn snapshot(&self) -> Snapshot {
        let stages = *self.stages.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Snapshot {
            done: self.done.load(Relaxed),
            failed: self.failed.load(Relaxed),
            in_flight: self.in_flight.load(Relaxed),
            mean_ms: stages.map(|s| s.total_ms / s.scans.max(1) as f64),
            device_s: self.device_us.load(Relaxed) as f64 / 1e6,
        }
    }
}
