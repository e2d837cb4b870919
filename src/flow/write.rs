//! [`WriteExec`]: from finished scans to data files in the store.
//!
//! ```text
//!  ScreenExec ─► rows of screen_schema(), one per scan
//!      │ hold                     bytes registered with the memory pool
//!      ▼
//!  N scans, N bytes, N seconds or the end of input: a roll
//!      │ sort by scan_id, encode  off the asynchronous threads; one Parquet file per table that has rows
//!      │ put
//!      ▼
//!  one batch of Receipts per roll ─► driver, which commits
//! ```
//! **Partitioning**: each partition holds, rolls and writes by itself; partitions are as the input's.
//! **Ordering**: receipts come in the order of the rolls; rows inside a file are sorted by [`Table::sorted_by`].
//! **Memory**: one roll that is being written and one that is being held, per partition; when both are full the
//! input waits. When the pool refuses more, the roll comes at once: the rows exist already, and losing finished
//! scans would be worse.
//! **Faults**: a scan that does not fit its contract stops the plan, since it is a defect of this program; a store
//! that fails stops it with an I/O error, which an engine may retry. Files without a commit count for nothing.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use datafusion::common::runtime::SpawnedTask;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{CardinalityEffect, EmissionType};
use datafusion::physical_plan::metrics::{
    BaselineMetrics, Count, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet, Time,
};
use datafusion::physical_plan::stream::RecordBatchReceiverStream;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
    ReplaceChildrenOptions,
};
use futures::StreamExt as _;
use futures::future::try_join_all;
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;

use crate::error::{Error, Retry};
use crate::store::Location;
use crate::tables::{DataFile, Receipt, Table, scan_rows, screen_schema};

/// When held scans are written out: at whichever bound comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RollPolicy {
    /// Scans.
    pub scans: usize,
    /// Bytes in memory.
    pub bytes: usize,
    /// Age of the oldest held scan.
    pub every: Duration,
}

impl Default for RollPolicy {
    fn default() -> Self {
        Self { scans: 64, bytes: 64 << 20, every: Duration::from_secs(60) }
    }
}

/// Writes the scans of its input to data files; emits receipts.
pub struct WriteExec {
    input: Arc<dyn ExecutionPlan>,
    target: Location,
    policy: RollPolicy,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl WriteExec {
    /// A writer below `target`, the root of the tables. The input's schema must be [`screen_schema`].
    pub fn try_new(input: Arc<dyn ExecutionPlan>, target: Location, policy: RollPolicy) -> Result<Self> {
        if input.schema() != screen_schema() {
            let found = input.schema();
            return Err(external(Error::Bug(format!("WriteExec takes rows of whole scans, not {found}"))));
        }
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Receipt::schema()),
            input.output_partitioning().clone(),
            EmissionType::Incremental,
            input.boundedness(),
        );
        Ok(Self { input, target, policy, properties: Arc::new(properties), metrics: ExecutionPlanMetricsSet::new() })
    }

    /// The root of the tables.
    pub fn target(&self) -> &Location {
        &self.target
    }

    /// When held scans are written out.
    pub fn policy(&self) -> RollPolicy {
        self.policy
    }
}

impl fmt::Debug for WriteExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { input, target, policy, properties: _, metrics: _ } = self;
        f.debug_struct("WriteExec").field("input", input).field("target", target).field("policy", policy).finish()
    }
}

impl DisplayAs for WriteExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RollPolicy { scans, bytes, every } = self.policy;
        write!(f, "WriteExec: roll at {scans} scans, {} MiB or {} s", bytes >> 20, every.as_secs())
    }
}

impl ExecutionPlan for WriteExec {
    fn name(&self) -> &str {
        Self::static_name()
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        // A repartition below would only mix scans between partitions that write equally well.
        vec![false]
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::LowerEqual
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let [input] = <[_; 1]>::try_from(children)
            .map_err(|c| DataFusionError::Internal(format!("WriteExec has one input, not {}", c.len())))?;
        Ok(Arc::new(Self::try_new(input, self.target.clone(), self.policy)?))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, Arc::clone(&context))?;
        let writer = Arc::new(Writer {
            target: self.target.clone(),
            policy: self.policy,
            consumer: format!("WriteExec[{partition}]"),
            pool: Arc::clone(context.memory_pool()),
            baseline: BaselineMetrics::new(&self.metrics, partition),
            encode_time: MetricBuilder::new(&self.metrics).subset_time("encode_time", partition),
            write_time: MetricBuilder::new(&self.metrics).subset_time("write_time", partition),
            bytes_written: MetricBuilder::new(&self.metrics).counter("bytes_written", partition),
            files_written: MetricBuilder::new(&self.metrics).counter("files_written", partition),
        });
        // Capacity 1: a driver that is slow to commit slows the writing, not the memory.
        let mut builder = RecordBatchReceiverStream::builder(Receipt::schema(), 1);
        builder.spawn(writer.run(input, builder.tx()));
        Ok(builder.build())
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

/// One partition's writer.
struct Writer {
    target: Location,
    policy: RollPolicy,
    consumer: String,
    pool: Arc<dyn MemoryPool>,
    baseline: BaselineMetrics,
    encode_time: Time,
    write_time: Time,
    bytes_written: Count,
    files_written: Count,
}

impl Writer {
    async fn run(
        self: Arc<Self>,
        mut input: SendableRecordBatchStream,
        receipts: Sender<Result<RecordBatch>>,
    ) -> Result<()> {
        let mut held = self.hold();
        let mut ended = false;
        // Dropping the task, with this future, stops it.
        let mut rolling: Option<SpawnedTask<Result<RecordBatch>>> = None;
        loop {
            if rolling.is_none() && !held.scans.is_empty() && (ended || held.is_due(&self.policy)) {
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
                        return Ok(()); // Nobody reads any more: the query was stopped.
                    }
                }
                () = tokio::time::sleep_until(held.since + self.policy.every),
                    if rolling.is_none() && !ended && !held.scans.is_empty() => {}
            }
        }
    }

    fn hold(&self) -> Held {
        let reservation = MemoryConsumer::new(&self.consumer).register(&self.pool);
        Held { scans: Vec::new(), reservation, pool_is_full: false, since: Instant::now() }
    }

    /// Writes the held scans, one file per table; gives their receipts.
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
        .map_err(|e| DataFusionError::Execution(format!("encoding was stopped: {e}")))?
        .map_err(external)?;

        let _writing = self.write_time.timer();
        let rows = |table| files.iter().find(|(t, _)| *t == table).map_or(0, |(_, file)| file.num_rows as i64);
        let counts = (rows(Table::Scans), rows(Table::Failures));
        let batch_id = uuid::Uuid::now_v7().to_string();
        let puts = files.iter().map(|(table, file)| self.put(*table, file, &batch_id, counts));
        let receipts = try_join_all(puts).await.map_err(external)?;
        self.baseline.record_output(receipts.len());
        Receipt::to_batch(&receipts).map_err(external)
    }

    async fn put(
        &self,
        table: Table,
        file: &DataFile,
        batch_id: &str,
        (n_scans, n_failed): (i64, i64),
    ) -> crate::error::Result<Receipt> {
        let path = file.put(&self.target, table).await?;
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

/// The result of the roll under way; a future that may be dropped and made anew.
async fn finished(rolling: &mut Option<SpawnedTask<Result<RecordBatch>>>) -> Result<RecordBatch> {
    match rolling {
        Some(task) => task
            .join_unwind_mut()
            .await
            .unwrap_or_else(|e| Err(DataFusionError::Execution(format!("writing was stopped: {e}")))),
        None => std::future::pending().await,
    }
}

/// Scans that wait for their roll.
struct Held {
    /// Each with its id and its rows in the order of [`Table::SCREENED`].
    scans: Vec<(String, [RecordBatch; 5])>,
    reservation: MemoryReservation,
    pool_is_full: bool,
    /// When the first scan came.
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
            let tables = scan_rows(batch, row).map_err(external)?;
            self.scans.push((scan_id(&tables).map_err(external)?, tables));
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

/// The scan whose rows these are. Refuses a scan that is not exactly one row in `scans` or in `failures`: it would
/// be lost, or counted twice.
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

/// The crate's error as the engine's. Faults that may pass become I/O errors, the only kind that Ballista retries.
fn external(error: Error) -> DataFusionError {
    match error.retry() {
        Retry::Backoff => DataFusionError::IoError(std::io::Error::other(error)),
        Retry::Never | Retry::Smaller => DataFusionError::External(Box::new(error)),
    }
}
