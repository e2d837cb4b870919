//! A run on a cluster: its scans in chunks, each chunk one job.
//!
//! ```text
//! scans, largest first ─► chunk ─► job ─► receipts of the whole chunk ─► the run commits
//!                           ▲        │ failed, forgotten by the scheduler, cannot be fetched: again, three times at most
//!                           │        │ refused by an unfit executor: to another one
//!                           └────────┤ two executors were lost: in eighths, and a single scan becomes a failure
//! ```
//! Ballista gives the results of a job when all of it is done, so chunks are small and several are in flight: twice as many as the
//! cluster has slots, so that one waits while another is executed. A chunk is accepted once and whole: its receipts must count
//! exactly its scans.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use futures::StreamExt as _;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::client::{Client, Metrics};
use super::driver::Driver;
use crate::error::Result;
use crate::flow::{Assignment, Engine, Plan, Progress, Screening, clear_mark, set_mark, share_bundle};
use crate::store::Location;

/// A cluster as the engine of a run.
#[derive(Debug)]
pub struct Cluster {
    client: Client,
    /// Scans in a chunk; none: as many as suit the cluster.
    chunk_scans: Option<usize>,
    /// Kinds of devices that have been seen.
    devices: Arc<Mutex<BTreeSet<String>>>,
    run: tokio::sync::Mutex<Option<Running>>,
}

/// A run that is under way. Dropped, its driver stops.
#[derive(Debug)]
struct Running {
    tables: Location,
    run_id: String,
    _driver: JoinSet<()>,
}

impl Cluster {
    /// The cluster of a scheduler. `chunk_scans` fixes the number of scans in a chunk.
    pub fn new(client: Client, chunk_scans: Option<usize>) -> Self {
        Self { client, chunk_scans, devices: Arc::default(), run: tokio::sync::Mutex::default() }
    }
}

/// The number of scans in the next chunk, of those that are left: many small chunks at the end keep all slots busy.
pub(super) fn chunk_size(left: usize, slots: usize) -> usize {
    (left / (4 * slots.max(1))).clamp(8, 256)
}

#[async_trait]
impl Engine for Cluster {
    fn device(&self) -> String {
        let devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let kinds: Vec<&str> = devices.iter().map(String::as_str).collect();
        if kinds.is_empty() { "cluster".to_owned() } else { format!("cluster: {}", kinds.join(", ")) }
    }

    fn scan_bytes(&self) -> u64 {
        // An executor with more memory may have joined.
        u64::MAX
    }

    fn progress(&self) -> Arc<Progress> {
        Arc::new(Progress::elsewhere())
    }

    async fn start(self: Arc<Self>, assignment: Assignment) -> Result<Screening> {
        let (tables, run_id) = (assignment.tables.clone(), assignment.order.run_id.clone());
        share_bundle(&assignment.bundle_name, &assignment.bundle, &tables).await?;
        set_mark(&tables, &run_id).await?;
        let (receipts, received) = mpsc::channel(1);
        let totals = Arc::<Mutex<Totals>>::default();
        let driver = Driver::new(
            (self.client.clone(), self.chunk_scans),
            assignment,
            receipts,
            Arc::clone(&self.devices),
            Arc::clone(&totals),
        );
        let mut task = JoinSet::new();
        task.spawn(driver.run());
        *self.run.lock().await = Some(Running { tables, run_id, _driver: task });
        let receipts = futures::stream::unfold(received, |mut received: mpsc::Receiver<RecordBatch>| async move {
            received.recv().await.map(|batch| (Ok(batch), received))
        });
        Ok(Screening { receipts: receipts.boxed(), plan: Box::new(Chunks(totals)) })
    }

    async fn end(&self) {
        if let Some(run) = self.run.lock().await.take() {
            clear_mark(&run.tables, &run.run_id).await;
        }
    }
}

/// What the chunks of a run did.
#[derive(Debug, Default)]
pub(super) struct Totals {
    /// Chunks that were accepted.
    pub(super) accepted: u64,
    /// Jobs whose results were not accepted.
    pub(super) again: u64,
    /// Time from submission to acceptance, summed over accepted chunks.
    pub(super) elapsed: Duration,
    /// Metrics of the operators.
    pub(super) metrics: Metrics,
}

/// The chunks of a run as its plan.
struct Chunks(Arc<Mutex<Totals>>);

impl Plan for Chunks {
    fn shown(&self) -> String {
        let Totals { accepted, again, elapsed, metrics } = &*self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = |(name, value): (&String, &u64)| {
            if name.ends_with("time") || name == "elapsed_compute" {
                format!("{name}={:.1}s", *value as f64 / 1e9)
            } else {
                format!("{name}={value}")
            }
        };
        let metrics: Vec<String> = metrics.iter().map(shown).collect();
        format!(
            "WriteExec, ScreenExec on a cluster: chunks={accepted}, again={again}, mean chunk={:.1}s, metrics=[{}]",
            elapsed.as_secs_f64() / (*accepted).max(1) as f64,
            metrics.join(", ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_large_at_first_and_small_at_the_end() {
        assert_eq!(chunk_size(1_000_000, 16), 256);
        assert_eq!((chunk_size(1000, 4), chunk_size(500, 4), chunk_size(100, 4)), (62, 31, 8));
        assert_eq!((chunk_size(3, 4), chunk_size(64, 0)), (8, 16));
    }
}
