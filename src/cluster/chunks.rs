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
//! exactly its scans. What executors were lost with is given out one chunk at a time, so that a scan which ends its process is not
//! taken for another one.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use futures::StreamExt as _;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::board::device_kinds;
use super::client::Client;
use super::driver::Driver;
use super::totals::{Chunks, Jobs, Shared};
use crate::error::Result;
use crate::flow::{Assignment, Engine, Progress, Screening, clear_mark, set_mark, share_bundle};
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
    jobs: Jobs,
    driver: JoinSet<()>,
}

impl Cluster {
    /// The cluster of a scheduler. `chunk_scans` fixes the number of scans in a chunk.
    ///
    /// # Errors
    /// [`Error::Cluster`](crate::Error::Cluster) where the scheduler does not answer.
    pub async fn new(client: Client, chunk_scans: Option<usize>) -> Result<Self> {
        let devices = Arc::new(Mutex::new(device_kinds(&client.stations().await?).collect()));
        Ok(Self { client, chunk_scans, devices, run: tokio::sync::Mutex::default() })
    }
}

#[async_trait]
impl Engine for Cluster {
    fn device(&self) -> String {
        let devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let kinds: Vec<&str> = devices.iter().map(String::as_str).collect();
        if kinds.is_empty() { "unknown".to_owned() } else { kinds.join(", ") }
    }

    fn scan_bytes(&self) -> u64 {
        // An executor with more memory may have joined.
        u64::MAX
    }

    fn progress(&self) -> Arc<Progress> {
        Arc::new(Progress::elsewhere())
    }

    fn time_to_finish(&self, _: Duration) -> Duration {
        // A chunk gives nothing before all of it is done, which may take minutes.
        Duration::MAX
    }

    async fn start(self: Arc<Self>, assignment: Assignment) -> Result<Screening> {
        let (tables, run_id) = (assignment.tables.clone(), assignment.order.run_id.clone());
        share_bundle(&assignment.bundle_name, &assignment.bundle, &tables).await?;
        set_mark(&tables, &run_id).await?;
        let (receipts, received) = mpsc::channel(1);
        let shared = Shared { devices: Arc::clone(&self.devices), ..Shared::default() };
        let driver = Driver::new((self.client.clone(), self.chunk_scans), assignment, receipts, shared.clone());
        let mut task = JoinSet::new();
        task.spawn(driver.run());
        *self.run.lock().await = Some(Running { tables, run_id, jobs: shared.jobs, driver: task });
        let receipts = futures::stream::unfold(received, |mut received: mpsc::Receiver<RecordBatch>| async move {
            received.recv().await.map(|batch| (Ok(batch), received))
        });
        Ok(Screening { receipts: receipts.boxed(), plan: Box::new(Chunks(shared.totals)) })
    }

    async fn end(&self) {
        let Some(Running { tables, run_id, jobs, mut driver }) = self.run.lock().await.take() else { return };
        driver.shutdown().await;
        let left = std::mem::take(&mut *jobs.lock().unwrap_or_else(PoisonError::into_inner));
        for job in left {
            // One that cannot be cancelled is executed in vain.
            let _ = self.client.cancel(&job).await;
        }
        clear_mark(&tables, &run_id).await;
    }
}
