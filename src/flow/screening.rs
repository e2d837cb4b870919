//! What the partitions of one run share: where the scans are, how they are screened, and how far the run is.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{Semaphore, watch};

use super::progress::Progress;
use crate::cohort::Location;
use crate::preprocess::PreprocessConfig;
use crate::score::{Settings, Worker};

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
    /// Counters for the progress line.
    pub progress: Arc<Progress>,
    /// True when no further scan is to be begun.
    pub stop: watch::Receiver<bool>,
}
