//! The tasks of an executor: when one begins and ends, and whether there is room for their results.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use ballista_core::JobId;
use ballista_core::error::BallistaError;
use ballista_core::serde::protobuf::{RuntimeStatsReport, ShuffleWritePartition, TaskColumnStats, WindowStateReport};
use ballista_executor::execution_engine::{DefaultExecutionEngine, ExecutionEngine, QueryStageExecutor};
use ballista_executor::metrics::ExecutorMetricsCollector;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::metrics::MetricsSet;
use datafusion::prelude::SessionConfig;
use tokio::time::sleep;
use tracing::info;

use crate::flow::{Refusal, Station};

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
        written.map_err(failed)
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

/// The error of a stage. Where one of our own caused it, its message alone.
fn failed(error: DataFusionError) -> DataFusionError {
    let own = causes(&error).find_map(own_error).map(Refusal::failed);
    own.unwrap_or(error)
}

/// Whether this machine has no room for results. A store that is full, which one of our own errors says, is another's fault.
fn is_full_here(error: &(dyn StdError + 'static)) -> bool {
    let is_full = |cause: &(dyn StdError + 'static)| {
        let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        // Some errors quote the system's as text alone.
        matches!(kind, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
            || cause.to_string().contains("No space left on device")
    };
    // An engine may have made a text of it.
    let is_of_tables = error.to_string().contains("write a data file under");
    !is_of_tables && causes(error).find_map(own_error).is_none() && causes(error).any(is_full)
}

/// An error and what caused it, outermost first. Ballista's errors name no source.
fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| match error.downcast_ref() {
        Some(BallistaError::DataFusionError(inside)) => Some(inside.as_ref() as &(dyn StdError + 'static)),
        _ => error.source(),
    })
}

/// Our own error, where this cause is one. The source of an I/O error with an error inside is the source of that one, and not that
/// one itself.
fn own_error<'a>(cause: &'a (dyn StdError + 'static)) -> Option<&'a crate::Error> {
    let inside = || cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    cause.downcast_ref().or_else(|| inside()?.downcast_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Reason;

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
    #[test]
    fn the_message_of_an_own_error_is_found_in_the_words_around_it_and_an_io_error_stays_one() {
        let full = io::Error::from_raw_os_error(28);
        let source = object_store::Error::Generic { store: "LocalFileSystem", source: full.into() };
        for (own, is_io) in
            [(crate::Error::storage("cannot write x", source), true), (crate::Error::Bug("lost".into()), false)]
        {
            let message = own.text();
            let inside = DataFusionError::from(own).context("stage 1");
            let of_ballista = DataFusionError::External(Box::new(BallistaError::DataFusionError(Box::new(inside))));
            let failed = failed(DataFusionError::Shared(Arc::new(of_ballista)));
            assert_eq!(matches!(failed, DataFusionError::IoError(_)), is_io, "{failed:?}");
            let found = Refusal::find(&format!("Job failed: {:?}", BallistaError::from(failed)));
            assert_eq!(found, Some(Refusal::new(Reason::Failed, message)));
        }
        let foreign = failed(DataFusionError::Execution("no such function".into()));
        assert_eq!(foreign.to_string(), "Execution error: no such function");
    }
}
