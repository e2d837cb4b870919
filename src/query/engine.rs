//! How statements run: on threads of their own, within limits of memory and time.
//!
//! ```text
//! caller ◄── rows ── channel ◄── task on the engine's threads: optimize, execute
//!    │ deadline, or dropped          ▲
//!    └── stops the task ─────────────┘ at its next batch, and inside joins at their next row
//! ```
//! Some operators compute for minutes between two batches. On the caller's thread they would keep it from hearing Ctrl-C.
//! Joins are therefore planned so that they yield and ask whether to go on (`interrupt.rs`). Where a task does not end all the
//! same, its threads are abandoned and the next statement gets new ones.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::dataframe::DataFrame;
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{SendableRecordBatchStream, execute_stream};
use datafusion::prelude::SessionContext;
use futures::StreamExt as _;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::interrupt::interruptible;
use crate::error::{Error, Result};
use crate::machine::Memory;

/// How long a statement that was stopped may take to end before its threads are abandoned. A query on a cluster is cancelled
/// within this time.
pub(super) const GRACE: Duration = Duration::from_millis(500);

/// Consumers that the message about too little memory names.
const NAMED_CONSUMERS: usize = 3;

const MIB: u64 = 1 << 20;

/// The limits of the statements of a session, and the threads that run them.
///
/// It is an extension of a session's configuration. Statements of a session without one run on the caller's threads, without
/// limits.
#[derive(Debug)]
pub struct Engine {
    memory_mib: u64,
    timeout: Option<Duration>,
    threads: Mutex<Option<Runtime>>,
    /// Set where a statement was dropped before its end.
    stopped: AtomicBool,
}

impl Engine {
    /// An engine whose statements together hold up to `memory_mib`, and each end within `timeout`. Without a number, the memory
    /// is half of what is free now.
    pub fn new(memory_mib: Option<u64>, timeout: Option<Duration>) -> Arc<Self> {
        let memory_mib = memory_mib.unwrap_or_else(|| (Memory::of_process().free / 2 / MIB).max(64));
        Arc::new(Self { memory_mib, timeout, threads: Mutex::new(None), stopped: AtomicBool::new(false) })
    }

    /// Gives a session's memory this engine's limit. Operators that can, such as sorts and aggregates, write to temporary files
    /// beyond their share; others fail.
    pub fn within_memory(&self, runtime: RuntimeEnvBuilder) -> RuntimeEnvBuilder {
        let pool = FairSpillPool::new(usize::try_from(self.memory_mib * MIB).unwrap_or(usize::MAX));
        let named = std::num::NonZeroUsize::new(NAMED_CONSUMERS).unwrap_or(std::num::NonZeroUsize::MIN);
        runtime.with_memory_pool(Arc::new(TrackConsumersPool::new(pool, named)))
    }

    /// The threads of the next statement: those of the last one, unless it was stopped and has not ended.
    async fn threads(&self) -> Result<Handle> {
        if self.stopped.swap(false, Ordering::AcqRel) {
            self.settle().await;
        }
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(threads) = &*threads {
            return Ok(threads.handle().clone());
        }
        let new = Builder::new_multi_thread().thread_name("query").enable_all().build();
        let new = new.map_err(|e| Error::io("cannot start the threads of a query", e))?;
        Ok(threads.insert(new).handle().clone())
    }

    /// Waits for the end of statements that were stopped, and abandons the threads of those that go on for long.
    async fn settle(&self) {
        let until = Instant::now() + GRACE;
        while self.busy() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if self.busy() {
            self.abandon();
        }
    }

    fn busy(&self) -> bool {
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.as_ref().is_some_and(|threads| threads.metrics().num_alive_tasks() > 0)
    }

    fn abandon(&self) {
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(threads) = threads {
            threads.shutdown_background();
        }
    }

    /// An engine's error in the words of a user.
    fn explained(&self, error: DataFusionError) -> DataFusionError {
        match error.find_root() {
            DataFusionError::ResourcesExhausted(why) => DataFusionError::ResourcesExhausted(format!(
                "the statement needs more memory than the limit of {} MiB: raise --memory-mib, or select fewer rows before a \
                 join ({why})",
                self.memory_mib
            )),
            _ => error,
        }
    }

    fn timed_out(timeout: Duration) -> DataFusionError {
        DataFusionError::Execution(format!(
            "the statement did not end within {} s, the limit of --timeout: raise it, or select fewer rows",
            timeout.as_secs_f64()
        ))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // A runtime that is dropped would wait for its tasks.
        self.abandon();
    }
}

/// The session's engine, where it has one.
fn engine(context: &SessionContext) -> Option<Arc<Engine>> {
    context.state().config().get_extension::<Engine>()
}

/// Waits, for a short time, until the statements that were dropped have ended, on a cluster as well.
pub async fn settle(context: &SessionContext) {
    if let Some(engine) = engine(context) {
        engine.settle().await;
    }
}

/// Stops a statement when its rows are dropped.
struct Running {
    task: AbortHandle,
    stop: Arc<AtomicBool>,
    engine: Arc<Engine>,
    ended: bool,
}

impl Running {
    fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.abort();
        self.engine.stopped.store(true, Ordering::Release);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            self.stop();
        }
    }
}

/// The rows of a statement. Dropping them stops it.
///
/// # Errors
/// [`Error::Query`] where the statement cannot be planned, or did not end in time; [`Error::Io`] where no thread starts.
pub(super) async fn rows(context: &SessionContext, statement: DataFrame) -> Result<SendableRecordBatchStream> {
    let Some(engine) = engine(context) else {
        return Ok(statement.execute_stream().await?);
    };
    // A time beyond what the clock can tell is no limit.
    let deadline = engine.timeout.and_then(|timeout| Some((Instant::now().checked_add(timeout)?, timeout)));
    let stop = Arc::new(AtomicBool::new(false));
    let (first, mut schema) = mpsc::channel::<DataFusionResult<SchemaRef>>(1);
    let (out, batches) = mpsc::channel::<DataFusionResult<RecordBatch>>(2);
    let asked = Arc::clone(&stop);
    let work = async move {
        let opened = async {
            let task = Arc::new(statement.task_ctx());
            let plan = interruptible(statement.create_physical_plan().await?, &asked)?;
            execute_stream(plan, task)
        };
        let mut found = match opened.await {
            Ok(found) => found,
            Err(error) => return drop(first.send(Err(error)).await),
        };
        if first.send(Ok(found.schema())).await.is_err() {
            return;
        }
        while let Some(batch) = found.next().await {
            // After an error there are no more rows.
            let failed = batch.is_err();
            if out.send(batch).await.is_err() || failed {
                return;
            }
        }
    };
    let task = engine.threads().await?.spawn(work).abort_handle();
    let mut running = Running { task, stop, engine: Arc::clone(&engine), ended: false };
    let schema = match next(&mut schema, deadline, &mut running).await {
        Some(schema) => schema.map_err(Error::from)?,
        None => return Err(Error::Bug("a statement ended without a result".into())),
    };
    let rows = futures::stream::unfold((batches, running), move |(mut batches, mut running)| async move {
        let batch = next(&mut batches, deadline, &mut running).await?;
        Some((batch, (batches, running)))
    });
    Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
}

/// What a statement gives next. `None` at its end.
async fn next<T>(
    from: &mut mpsc::Receiver<DataFusionResult<T>>,
    deadline: Option<(Instant, Duration)>,
    running: &mut Running,
) -> Option<DataFusionResult<T>> {
    if running.stop.load(Ordering::Relaxed) {
        return None;
    }
    let received = match deadline {
        None => from.recv().await,
        Some((at, timeout)) => match tokio::time::timeout_at(at, from.recv()).await {
            Ok(received) => received,
            Err(_) => {
                running.stop();
                // On a cluster, the query is cancelled in this time.
                running.engine.settle().await;
                return Some(Err(Engine::timed_out(timeout)));
            }
        },
    };
    running.ended = received.is_none();
    received.map(|outcome| outcome.map_err(|error| running.engine.explained(error)))
}
