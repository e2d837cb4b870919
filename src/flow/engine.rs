//! The engine of a run: what screens its pending scans, here or elsewhere.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use futures::stream::BoxStream;

use super::order::Order;
use super::progress::Progress;
use super::roll::RollPolicy;
use super::stop::StopSwitch;
use crate::cohort::ScanEntry;
use crate::error::Result;
use crate::model::Bundle;
use crate::store::Location;

/// Screens scans and writes data files; the run commits them. [`Local`](super::Local) works in this process.
#[async_trait]
pub trait Engine: fmt::Debug + Send + Sync {
    /// The device, for the table `runs`.
    fn device(&self) -> String;

    /// The largest memory that a scan can have, bytes. A scan that was found to need more is not tried again.
    fn scan_bytes(&self) -> u64;

    /// Counters for a run.
    fn progress(&self) -> Arc<Progress>;

    /// How long scans in flight may take once the run is to stop, where `asked` is what its settings say.
    fn time_to_finish(&self, asked: Duration) -> Duration {
        asked
    }

    /// Begins to screen the scans of a run. Where its switch is pressed, no further scan is begun; what is finished is still
    /// given.
    ///
    /// # Errors
    /// Where the work cannot begin.
    async fn start(self: Arc<Self>, assignment: Assignment) -> Result<Screening>;

    /// The run has ended, however it did.
    async fn end(&self);
}

/// What a run wants of its engine.
#[derive(Debug)]
pub struct Assignment {
    /// The instructions, the same for all scans.
    pub order: Order,
    /// The scans, those that may end a process last.
    pub scans: Vec<ScanEntry>,
    /// The opened cohort.
    pub cohort: Location,
    /// Identifies the cohort's address and the names of its scans.
    pub cohort_root: String,
    /// The root of the tables.
    pub tables: Location,
    /// The bundle.
    pub bundle: Arc<Bundle>,
    /// The bundle as the pipeline names it.
    pub bundle_name: String,
    /// When finished scans are written.
    pub policy: RollPolicy,
    /// Ends the run early.
    pub stop: Arc<StopSwitch>,
    /// Counts what is done.
    pub progress: Arc<Progress>,
}

/// Work that has begun.
pub struct Screening {
    /// Receipts of written rolls, as [`Receipt`](crate::tables::Receipt)s; each batch holds whole rolls.
    pub receipts: BoxStream<'static, datafusion::error::Result<RecordBatch>>,
    /// The plan.
    pub plan: Box<dyn Plan>,
}

impl fmt::Debug for Screening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Screening").finish_non_exhaustive()
    }
}

/// A plan that can be shown with times and counts.
pub trait Plan: Send {
    /// The plan as text, with what is known by now.
    fn shown(&self) -> String;
}
