//! What the partitions of one run share: where the scans are, how they are screened, and how far the run is.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};

use super::budget::Budget;
use super::limits::FailureLimit;
use super::progress::Progress;
use crate::preprocess::PreprocessConfig;
use crate::score::{Settings, Worker};
use crate::store::Location;

/// What all partitions of a run share.
#[derive(Debug)]
pub struct Screening {
    /// The run that writes the rows.
    pub run_id: String,
    /// Hash of everything that decides the numbers.
    pub recipe_id: String,
    /// Where the scans are.
    pub location: Location,
    /// How they are preprocessed.
    pub preprocess: PreprocessConfig,
    /// How they are scored.
    pub settings: Settings,
    /// The device threads.
    pub worker: Worker,
    /// Name of the bundle, for the tables.
    pub bundle: String,
    /// Name of the device, for the tables.
    pub device: String,
    /// Earlier failed attempts per scan with this content and recipe.
    pub attempts: HashMap<String, i32>,
    /// Largest decompressed scan, bytes.
    pub limit_bytes: u64,
    /// Scans worked on at the same time.
    pub in_flight: usize,
    /// One permit per scan in flight.
    pub permits: Arc<Semaphore>,
    /// Memory that scans in flight may take.
    pub budget: Arc<Budget>,
    /// Counters for the progress line.
    pub progress: Arc<Progress>,
    /// How long a scan may take; none: as long as it takes.
    pub timeout: Option<Duration>,
    /// How many scans may fail.
    pub max_failures: Option<FailureLimit>,
    /// True when no further scan is to be begun. Whoever says so says it here.
    pub stop: watch::Sender<bool>,
    /// Set where so many scans failed that the run was given up.
    pub gave_up: AtomicBool,
}

impl Screening {
    /// Counts a scan that ended; stops the run where too many have failed.
    pub(super) fn end(&self, failed: bool) {
        self.progress.end(failed);
        let Some(limit) = self.max_failures.filter(|_| failed) else { return };
        let now = self.progress.snapshot();
        if limit.is_passed(now.done, now.failed) && !self.gave_up.swap(true, Ordering::Relaxed) {
            self.stop.send_replace(true);
        }
    }
}
