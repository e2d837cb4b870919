//! The tasks of an executor: when one begins and ends, and whether there is room for their results.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use ballista_core::JobId;
use ballista_core::serde::protobuf::{RuntimeStatsReport, ShuffleWritePartition, TaskColumnStats, WindowStateReport};
use ballista_executor::execution_engine::{DefaultExecutionEngine, ExecutionEngine, QueryStageExecutor};
use ballista_executor::metrics::ExecutorMetricsCollector;
use datafusion::error::Result;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::metrics::MetricsSet;
use datafusion::prelude::SessionConfig;
use tokio::time::sleep;
use tracing::info;

use crate::flow::Station;

/// How long results are kept after the last chunk has ended, so that a driver can fetch them.
const KEPT: Duration = Duration::from_secs(30);

/// Tasks in a row that find no room for their results, after which an executor is unfit.
const MOST_FULL: u32 = 2;

/// The tasks of this executor: when one has ended.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    last: Mutex<Option<Instant>>,
}

impl Tasks {
    /// Waits until the results of the last task may be deleted; not at all where there was none. One that ended after this
    /// executor was `asked` to end has been reported only now.
    pub(super) async fn keep_results(&self, asked: Instant) {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = |last: Instant| if last >= asked { KEPT } else { KEPT.saturating_sub(last.elapsed()) };
        sleep(last.map_or(Duration::ZERO, kept)).await;
    }
}

impl ExecutorMetricsCollector for Tasks {
    fn record_stage(&self, job_id: &JobId, stage_id: usize, task_id: usize, _: Arc<dyn QueryStageExecutor>) {
        info!("task {task_id} of job {job_id}, stage {stage_id}, has ended");
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
}

/// Ballista's engine, with a line of the log where a task begins, and an end where the disk is full.
pub(super) struct Engine {
    engine: DefaultExecutionEngine,
    station: Arc<Station>,
    full: Arc<AtomicU32>,
}

impl Engine {
    pub(super) fn new(station: Arc<Station>) -> Self {
        Self { engine: DefaultExecutionEngine::new(), station, full: Arc::default() }
    }
}

impl ExecutionEngine for Engine {
    fn create_query_stage_exec(
        &self,
        job_id: JobId,
        stage_id: usize,
        task_id: usize,
        partitions: Vec<usize>,
        plan: Arc<dyn ExecutionPlan>,
        work_dir: &str,
        config: &SessionConfig,
    ) -> Result<Arc<dyn QueryStageExecutor>> {
        info!("task {task_id} of job {job_id}, stage {stage_id}, begins");
        let stage =
            self.engine.create_query_stage_exec(job_id, stage_id, task_id, partitions, plan, work_dir, config)?;
        Ok(Arc::new(Stage { stage, station: Arc::clone(&self.station), full: Arc::clone(&self.full) }))
    }
}

/// Ballista's stage; says that the process is unfit where its disk stays full.
#[derive(Debug)]
struct Stage {
    stage: Arc<dyn QueryStageExecutor>,
    station: Arc<Station>,
    full: Arc<AtomicU32>,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stage.fmt(f)
    }
}

#[async_trait]
impl QueryStageExecutor for Stage {
    async fn execute_query_stage(
        &self,
        task_id: usize,
        context: Arc<TaskContext>,
    ) -> Result<Vec<ShuffleWritePartition>> {
        let written = self.stage.execute_query_stage(task_id, context).await;
        match &written {
            Err(error) if is_full_here(error) => {
                if self.full.fetch_add(1, Relaxed) + 1 >= MOST_FULL {
                    self.station.declare_unfit(
                        "No space left on the disk of --work-dir, where results of chunks are kept: free some, or give another folder",
                    );
                }
            }
            _ => self.full.store(0, Relaxed),
        }
        written
    }

    fn collect_plan_metrics(&self) -> Vec<MetricsSet> {
        self.stage.collect_plan_metrics()
    }

    fn collect_runtime_stats_reports(&self) -> Vec<RuntimeStatsReport> {
        self.stage.collect_runtime_stats_reports()
    }

    fn collect_window_state_reports(&self) -> Result<Vec<WindowStateReport>> {
        self.stage.collect_window_state_reports()
    }

    fn collect_column_stats(&self) -> Vec<TaskColumnStats> {
        self.stage.collect_column_stats()
    }
}

/// Whether this machine has no room for results. A store that is full, which one of our own errors says, is another's fault.
fn is_full_here(error: &(dyn StdError + 'static)) -> bool {
    // The source of an I/O error with an error inside is the source of that one, and not that one itself.
    let is_own = |cause: &(dyn StdError + 'static)| {
        let inside = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        cause.is::<crate::Error>() || inside.is_some_and(|inside| inside.is::<crate::Error>())
    };
    let is_full = |cause: &(dyn StdError + 'static)| {
        let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        // Some errors quote the system's as text alone.
        matches!(kind, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
            || cause.to_string().contains("No space left on device")
    };
    // An engine may have made a text of it.
    let is_of_tables = error.to_string().contains("write a data file under");
    let causes = Vec::from_iter(std::iter::successors(Some(error), |&error| error.source()));
    !is_of_tables && !causes.iter().any(|&cause| is_own(cause)) && causes.iter().any(|&cause| is_full(cause))
}

#[cfg(test)]
mod tests {
    use datafusion::error::DataFusionError;

    use super::*;

    #[test]
    fn a_full_disk_of_this_machine_is_told_from_a_full_store() {
        let full = || io::Error::from_raw_os_error(28);
        assert!(is_full_here(&DataFusionError::IoError(full())));
        assert!(is_full_here(&DataFusionError::Execution("Io error: No space left on device (os error 28)".into())));
        let source = object_store::Error::Generic { store: "LocalFileSystem", source: full().into() };
        assert!(!is_full_here(&DataFusionError::from(crate::Error::storage("cannot write", source))));
        let quoted = "cannot write a data file under s3://bucket/t: No space left on device".to_owned();
        assert!(!is_full_here(&DataFusionError::Execution(quoted)));
        assert!(!is_full_here(&DataFusionError::Execution("connection reset".into())));
    }
}
