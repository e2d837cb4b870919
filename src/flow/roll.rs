//! Rolls: scans that are held in memory and written together, one data file per table.
//!
//! A roll is the unit of a commit. Its files share a batch id, and its scans are complete in them. When the run is to end early,
//! what is held is written at once.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use datafusion::common::runtime::SpawnedTask;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation};
use datafusion::physical_plan::metrics::{BaselineMetrics, Count, ExecutionPlanMetricsSet, MetricBuilder, Time};
use futures::StreamExt as _;
use futures::future::try_join_all;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;

use super::stop::StopSwitch;
use crate::error::Error;
use crate::store::{self, Location};
use crate::tables::{DataFile, Receipt, Table, TablesConfig, scan_rows};

/// When held scans become a roll: at whichever bound is reached first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollPolicy {
    /// Number of scans.
    pub scans: usize,
    /// Bytes in memory.
    pub bytes: usize,
    /// Age of the oldest held scan.
    pub every: Duration,
}

impl RollPolicy {
    /// The default bounds, lowered so that a roll never holds more, nor waits longer, than a commit may.
    pub fn within(config: &TablesConfig) -> Self {
        let policy = Self::default();
        let every = Duration::from_secs(config.commit_seconds);
        Self { scans: policy.scans.min(config.commit_scans), every, ..policy }
    }
}

impl Default for RollPolicy {
    fn default() -> Self {
        Self { scans: 64, bytes: 64 << 20, every: Duration::from_secs(60) }
    }
}

/// What a writer of rolls heeds of its run.
#[derive(Debug, Clone, Default)]
pub struct RunLimits {
    /// When pressed, held scans are written at once.
    pub stop: Arc<StopSwitch>,
    /// How long an outage of the store is waited for.
    pub longest_outage: Duration,
}

/// How long a run that is to end still tries to write after it has abandoned its scans: a store that is slow takes as long.
const LAST_WRITES: Duration = Duration::from_secs(30);

impl RunLimits {
    /// Completes when a run that is to end has tried for too long to write what is finished.
    pub(super) async fn time_is_up(&self) {
        self.stop.abandoned().await;
        tokio::time::sleep(LAST_WRITES).await;
    }

    /// The error of a run that ended before it could write this.
    pub(super) fn error(&self, what: &str) -> Error {
        let source = object_store::Error::Generic { store: "stop", source: "no time left".into() };
        let context = format!("{what} could not be written before the run had to stop; the next run does that work");
        Error::storage(context, source)
    }
}

/// One partition's writer of rolls.
pub(super) struct RollWriter {
    target: Location,
    policy: RollPolicy,
    limits: RunLimits,
    /// Name of the partition in the memory pool.
    consumer: String,
    pool: Arc<dyn MemoryPool>,
    baseline: BaselineMetrics,
    encode_time: Time,
    write_time: Time,
    bytes_written: Count,
    files_written: Count,
}

impl RollWriter {
    pub(super) fn new(
        target: Location,
        (policy, limits): (RollPolicy, RunLimits),
        pool: Arc<dyn MemoryPool>,
        metrics: &ExecutionPlanMetricsSet,
        partition: usize,
    ) -> Self {
        Self {
            target,
            policy,
            limits,
            consumer: format!("WriteExec[{partition}]"),
            pool,
            baseline: BaselineMetrics::new(metrics, partition),
            encode_time: MetricBuilder::new(metrics).subset_time("encode_time", partition),
            write_time: MetricBuilder::new(metrics).subset_time("write_time", partition),
            bytes_written: MetricBuilder::new(metrics).counter("bytes_written", partition),
            files_written: MetricBuilder::new(metrics).counter("files_written", partition),
        }
    }

    /// Holds the scans of `input`, writes roll after roll and sends the receipts of each.
    ///
    /// # Errors
    /// Those of the input; [`Error::Bug`] for a scan that is not exactly one row in `scans` or in `failures`. A roll that
    /// cannot be written is sent as an error in place of its receipts.
    pub(super) async fn run(
        self: Arc<Self>,
        mut input: SendableRecordBatchStream,
        receipts: Sender<Result<RecordBatch>>,
    ) -> Result<()> {
        let mut held = self.hold();
        let mut ended = false;
        // Dropped with this future, the task stops.
        let mut rolling: Option<SpawnedTask<Result<RecordBatch>>> = None;
        loop {
            let is_stopping = self.limits.stop.is_pressed();
            if rolling.is_none() && !held.scans.is_empty() && (ended || is_stopping || held.is_due(&self.policy)) {
                let roll = std::mem::replace(&mut held, self.hold());
                rolling = Some(SpawnedTask::spawn(Arc::clone(&self).roll(roll)));
            }
            if ended && rolling.is_none() {
                return Ok(());
            }
            tokio::select! {
                next = input.next(), if !ended && !held.is_full(&self.policy) => match next {
                    Some(batch) => held.push(&batch?)?,
                    None => ended = true,
                },
                done = finished(&mut rolling), if rolling.is_some() => {
                    rolling = None;
                    if receipts.send(done).await.is_err() {
                        return Ok(()); // The receiver is dropped: the query was stopped.
                    }
                }
                () = tokio::time::sleep_until(held.since + self.policy.every),
                    if rolling.is_none() && !ended && !held.scans.is_empty() => {}
                () = self.limits.stop.pressed(), if !is_stopping => {}
            }
        }
    }

    fn hold(&self) -> Held {
        let reservation = MemoryConsumer::new(&self.consumer).register(&self.pool);
        Held { scans: Vec::new(), reservation, pool_is_full: false, since: Instant::now() }
    }

    /// Writes the held scans as a roll, one file per table; gives its receipts.
    async fn roll(self: Arc<Self>, held: Held) -> Result<RecordBatch> {
        let encoder = Arc::clone(&self);
        // The reservation travels along and is given back when the rows are dropped.
        let files = SpawnedTask::spawn_blocking(move || {
            let _encoding = encoder.encode_time.timer();
            let _computing = encoder.baseline.elapsed_compute().timer();
            held.encode()
        })
        .join_unwind()
        .await
        .map_err(|e| DataFusionError::Execution(format!("encoding was stopped: {e}")))??;

        let _writing = self.write_time.timer();
        let rows = |table| files.iter().find(|(t, _)| *t == table).map_or(0, |(_, file)| file.num_rows as i64);
        let counts = (rows(Table::Scans), rows(Table::Failures));
        let batch_id = uuid::Uuid::now_v7().to_string();
        let puts = files.iter().map(|(table, file)| self.put(*table, file, &batch_id, counts));
        let receipts = try_join_all(puts).await?;
        self.baseline.record_output(receipts.len());
        Ok(Receipt::to_batch(&receipts)?)
    }

    async fn put(
        &self,
        table: Table,
        file: &DataFile,
        batch_id: &str,
        (n_scans, n_failed): (i64, i64),
    ) -> crate::error::Result<Receipt> {
        let writing = store::with_patience(self.limits.longest_outage, || file.put(&self.target, table));
        let path = tokio::select! {
            path = store::warn_if_slow("writing a data file", writing) => path?,
            () = self.limits.time_is_up() => return Err(self.limits.error("a data file")),
        };
        self.bytes_written.add(file.bytes.len());
        self.files_written.add(1);
        Ok(Receipt {
            batch_id: batch_id.to_owned(),
            table,
            path,
            size_bytes: file.bytes.len() as i64,
            num_rows: file.num_rows as i64,
            stats: file.stats.clone(),
            n_scans,
            n_failed,
        })
    }
}

/// The result of the roll that is being written. The future may be dropped and created again.
async fn finished(rolling: &mut Option<SpawnedTask<Result<RecordBatch>>>) -> Result<RecordBatch> {
    match rolling {
        Some(task) => task
            .join_unwind_mut()
            .await
            .unwrap_or_else(|e| Err(DataFusionError::Execution(format!("writing was stopped: {e}")))),
        None => std::future::pending().await,
    }
}

/// Scans that wait to become a roll.
struct Held {
    /// Each scan's id, and its rows in the order of [`Table::SCREENED`].
    scans: Vec<(String, [RecordBatch; 5])>,
    reservation: MemoryReservation,
    pool_is_full: bool,
    /// When the first of them came.
    since: Instant,
}

impl Held {
    fn push(&mut self, batch: &RecordBatch) -> Result<()> {
        if self.scans.is_empty() {
            self.since = Instant::now();
        }
        let bytes = batch.get_array_memory_size();
        if self.reservation.try_grow(bytes).is_err() {
            self.reservation.grow(bytes);
            self.pool_is_full = true;
        }
        for row in 0..batch.num_rows() {
            let tables = scan_rows(batch, row)?;
            self.scans.push((scan_id(&tables)?, tables));
        }
        Ok(())
    }

    fn is_full(&self, policy: &RollPolicy) -> bool {
        self.scans.len() >= policy.scans || self.reservation.size() >= policy.bytes || self.pool_is_full
    }

    fn is_due(&self, policy: &RollPolicy) -> bool {
        self.is_full(policy) || self.since.elapsed() >= policy.every
    }

    fn encode(mut self) -> crate::error::Result<Vec<(Table, DataFile)>> {
        self.scans.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut files = Vec::with_capacity(Table::SCREENED.len());
        for (i, table) in Table::SCREENED.into_iter().enumerate() {
            let rows: Vec<_> = self.scans.iter().map(|(_, t)| t[i].clone()).filter(|t| t.num_rows() > 0).collect();
            if !rows.is_empty() {
                files.push((table, DataFile::encode(table, &rows)?));
            }
        }
        Ok(files)
    }
}

/// The id of the scan that these rows belong to. Refuses rows that are not exactly one in `scans` or one in `failures`: such a
/// scan would be lost, or counted twice.
fn scan_id(tables: &[RecordBatch; 5]) -> crate::error::Result<String> {
    let ends = Table::SCREENED.iter().zip(tables).filter(|(t, _)| matches!(t, Table::Scans | Table::Failures));
    let ends: Vec<_> = ends.map(|(_, rows)| rows).filter(|rows| rows.num_rows() > 0).collect();
    match ends.as_slice() {
        [end] if end.num_rows() == 1 => {
            let ids = end.column_by_name("scan_id").and_then(|ids| ids.as_string_opt::<i32>());
            ids.map(|ids| ids.value(0).to_owned()).ok_or_else(|| Error::Bug("a scan without an id".into()))
        }
        _ => Err(Error::Bug("a scan must end as one row in scans or in failures".into())),
    }
}
