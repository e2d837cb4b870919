//! `ScreenExec`: from a manifest row to a scan's results.
//!
//! ```text
//!  manifest rows (one row = one scan)
//!      │  at most `in_flight` scans at a time over all partitions, each with its share of the memory budget
//!      ▼
//!  fetch (tokio) ─► decode ─► preprocess (rayon) ─► networks (device threads) ─► assess (rayon)
//!      │ an error or a panic at any stage
//!      ▼
//!  one row of `screen_schema` per scan: its rows for every table, or its row in `failures`
//! ```
//! Unary and partition-preserving: one output partition per input partition. A volume lives inside
//! one scan's future from fetch to rows; only rows leave. Output order within a partition is the
//! order in which scans finish.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result as DfResult};
use datafusion::execution::TaskContext;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{
    CardinalityEffect, ChildrenPropertiesMode, EmissionType, ReplaceChildrenOptions,
};
use datafusion::physical_plan::metrics::{Count, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet, Time};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties, SendableRecordBatchStream,
};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::oneshot;
use tracing::{Instrument, debug, info_span, warn};

use super::budget::{self, Grant};
use super::progress::{Here, Place};
use super::rows::{self, Finished, StageTimes};
use super::screening::Screening;
use crate::cohort::{self, ScanBytes, ScanEntry};
use crate::error::{Error, Result, Stage};
use crate::preprocess;
use crate::score;
use crate::store::Location;
use crate::tables::screen_schema;

/// The operator; see the module's documentation.
#[derive(Debug, Clone)]
pub struct ScreenExec {
    input: Arc<dyn ExecutionPlan>,
    screening: Arc<Screening>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

/// Timers and counters of one partition, shown by EXPLAIN ANALYZE.
#[derive(Debug, Clone)]
struct Metrics {
    memory_wait: Time,
    fetch: Time,
    decode: Time,
    preprocess: Time,
    device_wait: Time,
    device: Time,
    assess: Time,
    bytes: Count,
    done: Count,
    failed: Count,
    output_rows: Count,
}

impl Metrics {
    fn new(set: &ExecutionPlanMetricsSet, partition: usize) -> Self {
        let time = |name: &'static str| MetricBuilder::new(set).subset_time(name, partition);
        let count = |name: &'static str| MetricBuilder::new(set).counter(name, partition);
        Self {
            memory_wait: time("memory_wait_time"),
            fetch: time("fetch_time"),
            decode: time("decode_time"),
            preprocess: time("preprocess_time"),
            device_wait: time("device_wait_time"),
            device: time("device_time"),
            assess: time("assess_time"),
            bytes: count("bytes_fetched"),
            done: count("scans_done"),
            failed: count("scans_failed"),
            output_rows: MetricBuilder::new(set).output_rows(partition),
        }
    }
}

impl ScreenExec {
    /// An operator over a leaf of manifest rows (`cohort::manifest` schema).
    pub fn new(input: Arc<dyn ExecutionPlan>, screening: Arc<Screening>) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(screen_schema()),
            input.output_partitioning().clone(),
            EmissionType::Incremental,
            input.boundedness(),
        );
        Self { input, screening, properties: Arc::new(properties), metrics: ExecutionPlanMetricsSet::new() }
    }
}

impl DisplayAs for ScreenExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = &self.screening;
        write!(
            f,
            "ScreenExec: bundle={}, device={}, recipe={}, in_flight={}, memory={} MiB",
            s.bundle,
            s.device,
            s.recipe_id,
            s.in_flight,
            s.budget.scans_mib()
        )
    }
}

impl ExecutionPlan for ScreenExec {
    fn name(&self) -> &'static str {
        "ScreenExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> DfResult<TreeNodeRecursion>,
    ) -> DfResult<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        let input = children
            .pop()
            .filter(|_| children.is_empty())
            .ok_or_else(|| DataFusionError::Internal("ScreenExec has exactly one child".to_owned()))?;
        Ok(Arc::new(Self::new(input, Arc::clone(&self.screening))))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> DfResult<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    // One row in, one row out, 20 MB of voxels between: nothing above or below gains from a shuffle.
    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::Equal
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> DfResult<SendableRecordBatchStream> {
        let metrics = Metrics::new(&self.metrics, partition);
        let screening = Arc::clone(&self.screening);
        let entries = self
            .input
            .execute(partition, context)?
            .map(|batch| {
                Ok::<_, DataFusionError>(stream::iter(cohort::manifest::from_batch(&batch?).map_err(external)?))
            })
            .map(|batch| batch.map(|entries| entries.map(Ok::<_, DataFusionError>)))
            .try_flatten();
        let mut stop = screening.stop.subscribe();
        let stopped = async move {
            // An error means that the driver is gone: stop as well.
            let _ = stop.wait_for(|&stop| stop).await;
        };
        let in_flight = screening.in_flight;
        let rows = entries
            .take_until(stopped)
            .map_ok(move |entry| {
                let (screening, metrics) = (Arc::clone(&screening), metrics.clone());
                async move {
                    let Ok(_permit) = Arc::clone(&screening.permits).acquire_owned().await else {
                        return Ok(None);
                    };
                    if *screening.stop.borrow() {
                        return Ok(None);
                    }
                    screen(&screening, &entry, &metrics).await.map(Some).map_err(external)
                }
            })
            .try_buffer_unordered(in_flight)
            .try_filter_map(|row| async move { Ok(row) });
        Ok(Box::pin(RecordBatchStreamAdapter::new(screen_schema(), rows)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

fn external(error: Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

/// Takes one scan all the way; its failure is a row as well.
async fn screen(screening: &Arc<Screening>, entry: &ScanEntry, metrics: &Metrics) -> Result<RecordBatch> {
    let mut here = screening.progress.begin();
    let span = info_span!("scan", scan_id = %entry.scan_id);
    // The clock does not run: a scan that waits for others' memory does not hang.
    let waiting = Instant::now();
    let grant = screening.budget.take(budget::before_fetching(entry, screening.limit_bytes)).await?;
    metrics.memory_wait.add_duration(waiting.elapsed());
    here.go_on(Place::Fetch, waiting.elapsed());
    let reached = Arc::new(AtomicU8::new(0));
    let result = process(screening, entry, metrics, &reached, here, grant).instrument(span.clone()).await;
    screening.end(result.is_err());
    metrics.output_rows.add(1);
    let _entered = span.enter();
    match result {
        Ok(rows) => {
            metrics.done.add(1);
            debug!("done");
            Ok(rows)
        }
        Err((stage, error)) => {
            metrics.failed.add(1);
            let message = portable(&error.to_string(), &screening.location);
            warn!(%stage, kind = error.kind(), "failed: {message}");
            rows::failed(screening, entry, stage, &error, message)
        }
    }
}

/// An error's text without the folder in which a local cohort lies: logs and tables must not tell
/// where a host keeps its files.
fn portable(message: &str, location: &Location) -> String {
    match location.url.to_file_path() {
        Ok(folder) => message.replace(&format!("{}/", folder.display()), ""),
        Err(()) => message.to_owned(),
    }
}

/// The stage behind those that are through.
fn stage(reached: &AtomicU8) -> Stage {
    Stage::ALL[usize::from(reached.load(Relaxed)).min(Stage::ALL.len() - 1)]
}

/// Does a part of a scan's work in what is left of its time, of which `spent` is gone. Work that was begun on rayon or the
/// device may go on unheard where that is not enough.
async fn in_time<T>(
    limit: Option<Duration>,
    spent: Duration,
    reached: &AtomicU8,
    work: impl Future<Output = Result<T, (Stage, Error)>>,
) -> Result<T, (Stage, Error)> {
    let Some(limit) = limit else { return work.await };
    let result = tokio::time::timeout(limit.saturating_sub(spent), work).await;
    result.unwrap_or_else(|_| Err((stage(reached), Error::TimedOut { seconds: limit.as_secs() })))
}

/// All stages of a scan. `reached` counts the ones that are through; `grant` is what it may take until it is fetched.
async fn process(
    screening: &Arc<Screening>,
    entry: &ScanEntry,
    metrics: &Metrics,
    reached: &Arc<AtomicU8>,
    mut here: Here,
    mut grant: Grant,
) -> Result<RecordBatch, (Stage, Error)> {
    let started = Instant::now();
    let fetching = async {
        let bytes = cohort::read(&screening.location, entry, screening.limit_bytes).await;
        bytes.map_err(|e| (Stage::Fetch, e))
    };
    let bytes = in_time(screening.timeout, Duration::ZERO, reached, fetching).await?;
    let spent = started.elapsed();
    metrics.fetch.add_duration(spent);
    metrics.bytes.add(bytes.n_bytes());
    here.go_on(Place::Memory, spent);
    reached.fetch_add(1, Relaxed);

    let waiting = Instant::now();
    let needed = budget::before_scoring(bytes.n_bytes(), bytes.decoded_bytes(), screening.limit_bytes);
    grant = screening.budget.settle(grant, needed).await.map_err(|e| (Stage::Decode, e))?;
    metrics.memory_wait.add_duration(waiting.elapsed());
    here.go_on(Place::Decode, waiting.elapsed());

    let rest = score_fetched(screening, entry, metrics, reached, Fetched { bytes, spent, here, grant });
    in_time(screening.timeout, spent, reached, rest).await
}

/// A scan's bytes, with what goes along with it.
struct Fetched {
    bytes: ScanBytes,
    /// What the fetch took.
    spent: Duration,
    here: Here,
    /// What the scan may take until it is preprocessed.
    grant: Grant,
}

fn ms(spent: Duration) -> f32 {
    spent.as_secs_f32() * 1e3
}

/// All stages from the fetched bytes on.
async fn score_fetched(
    screening: &Arc<Screening>,
    entry: &ScanEntry,
    metrics: &Metrics,
    reached: &Arc<AtomicU8>,
    fetched: Fetched,
) -> Result<RecordBatch, (Stage, Error)> {
    let Fetched { bytes, spent, mut here, grant } = fetched;
    let mut times = StageTimes { fetch_ms: ms(spent), ..StageTimes::default() };
    // In one go, so that decoded volumes do not pile up before they are preprocessed. The work holds the grant itself: it
    // takes memory until it is through, even where the scan's time is over before.
    let (shared, through) = (Arc::clone(screening), Arc::clone(reached));
    let work = move || {
        let started = Instant::now();
        let decoded = bytes.decode(shared.limit_bytes)?;
        drop(bytes);
        let decoding = started.elapsed();
        here.go_on(Place::Preprocess, decoding);
        through.fetch_add(1, Relaxed);
        let started = Instant::now();
        let prepared = preprocess::prepare(&decoded.volume, &shared.preprocess)?;
        here.go_on(Place::Queue, started.elapsed());
        through.fetch_add(1, Relaxed);
        Ok((Arc::new(prepared), decoded.datatype, decoding, started.elapsed(), here, grant))
    };
    let (done, _) = on_rayon(work).await.map_err(|e| (stage(reached), e))?;
    let (prepared, datatype, decoding, preparing, mut here, grant) = done;
    (times.decode_ms, times.preprocess_ms) = (ms(decoding), ms(preparing));
    metrics.decode.add_duration(decoding);
    metrics.preprocess.add_duration(preparing);
    let _grant = screening.budget.settle(grant, budget::SCORED).await.map_err(|e| (Stage::Score, e))?;

    let started = Instant::now();
    let (taken, taken_up) = oneshot::channel();
    let scored = screening.worker.score(&entry.scan_id, Arc::clone(&prepared), taken);
    let follow = async {
        // An error means that no thread took it up: `scored` says why.
        if taken_up.await.is_ok() {
            here.go_on(Place::Device, started.elapsed());
        }
    };
    let (scored, ()) = tokio::join!(scored, follow);
    let (inference, on_device) = scored.map_err(|e| (Stage::Score, e))?;
    metrics.device_wait.add_duration(started.elapsed().saturating_sub(on_device));
    metrics.device.add_duration(on_device);
    here.go_on(Place::Assess, on_device);

    let (shared, scan) = (Arc::clone(screening), entry.clone());
    let (rows, spent) = on_rayon(move || {
        let started = Instant::now();
        let assessment = score::assess(&inference, &prepared.image, &prepared.brain, &shared.settings);
        times.score_ms = ms(on_device + started.elapsed());
        let finished = Finished {
            prepared: &prepared,
            datatype: &datatype,
            inference: &inference,
            assessment: &assessment,
            times,
        };
        rows::finished(&shared, &scan, &finished)
    })
    .await
    .map_err(|e| (Stage::Score, e))?;
    metrics.assess.add_duration(spent);
    here.go_on(Place::Commit, spent);
    Ok(rows)
}

/// Runs `work` on rayon, so that no tokio worker blocks; a panic becomes an error. Also tells the
/// time that `work` itself took.
async fn on_rayon<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<(T, Duration)> {
    let (reply, answer) = oneshot::channel();
    rayon::spawn(move || {
        let started = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&s| s.to_owned()));
            Err(Error::Bug(format!("a step panicked: {}", text.unwrap_or_default())))
        });
        let _ = reply.send(result.map(|value| (value, started.elapsed())));
    });
    answer.await.map_err(|_| Error::Bug("a step ended without an answer".into()))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_scan_has_the_time_that_earlier_work_left() {
        let (limit, reached) = (Some(Duration::from_secs(60)), AtomicU8::new(1));
        let quick = in_time(limit, Duration::from_secs(59), &reached, async { Ok(7) }).await;
        assert_eq!(quick.map_err(|(_, error)| error.to_string()), Ok(7));
        let nothing_left = Duration::from_secs(60);
        let late = in_time(limit, nothing_left, &reached, std::future::pending::<Result<(), _>>()).await;
        assert!(matches!(late, Err((Stage::Decode, Error::TimedOut { seconds: 60 }))), "{late:?}");
        assert!(in_time(None, nothing_left, &reached, async { Ok(()) }).await.is_ok(), "no limit");
    }

    #[tokio::test]
    async fn a_step_that_panics_is_an_error_of_its_scan() {
        let failed = on_rayon(|| -> Result<()> { panic!("index {} of nothing", 7) }).await.unwrap_err();
        assert!(failed.to_string().contains("index 7 of nothing"), "{failed}");
        assert_eq!(on_rayon(|| Ok(7)).await.map(|(value, _)| value).unwrap(), 7, "the pool goes on");
    }
}
