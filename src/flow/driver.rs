//! The driver: from a pipeline to committed tables.
//!
//! ```text
//! list cohort ─► leave out what is done (anti-join) ─► manifest ─► ScreenExec ─► WriteExec ─► receipts
//!                                                                                               │
//!                                     runs row ◄── commit: tokens, masks, findings, failures, scans
//! ```
//! [`Run::prepare`] finds what is pending; [`Run::execute`] screens it. A run that is stopped
//! finishes what is in flight, commits it and says so; started again, it takes up the rest.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chrono::Utc;
use datafusion::catalog::memory::MemorySourceConfig;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::physical_plan::display::DisplayableExecutionPlan;
use datafusion::physical_plan::{ExecutionPlan, execute_stream_partitioned};
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::{StreamExt, stream};
use serde::Serialize;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tracing::info;

use super::budget::Budget;
use super::pipeline::Pipeline;
use super::progress::{Place, Progress, Seen, Snapshot, bottleneck};
use super::screen::ScreenExec;
use super::screening::Screening;
use super::waiting::Waiting;
use super::write::{RollPolicy, WriteExec};
use crate::cohort::{self, Listing, ScanEntry};
use crate::error::{Error, Result};
use crate::machine::cores;
use crate::model::{Bundle, device};
use crate::preprocess::PreprocessConfig;
use crate::score::{Settings, Worker, recipe_id};
use crate::store::{self, Location};
use crate::tables::{Committed, Receipt, RunRow, Tables};

/// A run that knows what is to be done.
#[derive(Debug)]
pub struct Run {
    pipeline: Pipeline,
    location: Location,
    tables: Tables,
    device: tch::Device,
    budget: Arc<Budget>,
    bundle: Arc<Bundle>,
    preprocess: PreprocessConfig,
    recipe_id: String,
    listing: Listing,
    pending: Vec<ScanEntry>,
    attempts: HashMap<String, i32>,
    already_done: usize,
    quarantined: usize,
    in_other_shards: usize,
    progress: Arc<Progress>,
}

/// What a run did; as JSON, what a monitor reads.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// Its row in `runs`; none where nothing was pending.
    pub run: Option<RunRow>,
    /// Scans that were to be screened.
    pub pending: u64,
    /// Scans that went through.
    pub done: u64,
    /// Scans that became a row in `failures`.
    pub failed: u64,
    /// Scans that went through here, and that another run had committed first: its results stand.
    pub superseded: u64,
    /// Scans of earlier runs that are not tried again: their content is unusable.
    pub quarantined: u64,
    /// Wall time of the screening.
    #[serde(rename = "elapsed_s", serialize_with = "as_seconds")]
    pub elapsed: Duration,
    /// Where the scans' time went, stage by stage.
    pub places: Vec<Seen>,
    /// The stage that all others waited for; none where nothing was done.
    pub bottleneck: Option<Place>,
    /// The physical plan with its metrics, as EXPLAIN ANALYZE shows it.
    #[serde(skip)]
    pub plan: String,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Every selected scan has a result, or cannot have one.
    NothingToDo,
    /// All pending scans went through.
    Done,
    /// All ended, some as failures.
    DoneWithFailures,
    /// Somebody stopped it: scans are left.
    Stopped,
    /// More scans failed than may: scans are left.
    GaveUp,
}

fn as_seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

/// What [`Run::screen`] has to say.
struct Screened {
    plan: String,
    gave_up: bool,
    superseded: u64,
}

impl Run {
    /// Lists the cohort, opens the tables and leaves out what is already done with this recipe.
    ///
    /// # Errors
    /// [`Error::Config`] where cohort or tables are not named; storage, table and model errors.
    pub async fn prepare(pipeline: Pipeline) -> Result<Self> {
        for (value, question, option) in [
            (&pipeline.cohort.url, "where are the scans?", "--cohort"),
            (&pipeline.tables.url, "where do the tables go?", "--tables"),
        ] {
            if value.is_empty() {
                return Err(Error::Config(format!(
                    "{question} Add `{option} s3://bucket/folder` or `{option} FOLDER`"
                )));
            }
        }
        let (cohort, tables) = (pipeline.cohort.url.clone(), pipeline.tables.url.clone());
        Self::find(pipeline, || store::open(&cohort), || store::open_or_create(&tables)).await
    }

    /// As [`Run::prepare`], with stores that are already built.
    ///
    /// # Errors
    /// As [`Run::prepare`].
    pub async fn prepare_at(pipeline: Pipeline, location: Location, tables: Location) -> Result<Self> {
        Self::find(pipeline, || Ok(location), || Ok(tables)).await
    }

    async fn find(
        pipeline: Pipeline,
        location: impl FnOnce() -> Result<Location>,
        tables: impl FnOnce() -> Result<Location>,
    ) -> Result<Self> {
        // First of all: libtorch looks for CUDA once, and a missing device must not leave tables behind.
        let device = device::resolve(pipeline.run.device)?;
        let budget = Arc::new(Budget::new(pipeline.run.memory_mib, device_threads(device))?);
        let bundle = Arc::new(Bundle::open(&pipeline.model.bundle)?);
        let preprocess = pipeline.preprocess.clone().unwrap_or_else(|| bundle.info.preprocess.clone());
        let recipe_id = recipe_id(&preprocess, &pipeline.score, &bundle);
        let location = location()?;
        let name = pipeline.cohort.name.clone().unwrap_or_else(|| location.name().to_owned());
        let mut listing = cohort::list(&location, &name, &pipeline.cohort.select).await?;
        let selected = listing.selected.len();
        if let Some(shard) = pipeline.run.shard {
            listing.selected.retain(|entry| shard.holds(&entry.scan_id));
        }
        let in_other_shards = selected - listing.selected.len();
        let tables = Tables::open_or_create_at(tables()?).await?;
        let done = tables.done(&recipe_id).await?;

        let key = |entry: &ScanEntry| (entry.scan_id.clone(), entry.content_id.clone());
        let (mut already_done, mut quarantined) = (0, 0);
        let mut attempts = HashMap::new();
        let mut pending = Vec::new();
        for entry in &listing.selected {
            let key = key(entry);
            if done.finished.contains(&key) {
                already_done += 1;
                continue;
            }
            match done.failed.get(&key) {
                Some((_, true)) if !pipeline.run.retry => quarantined += 1,
                earlier => {
                    if let Some((tried, _)) = earlier {
                        attempts.insert(entry.scan_id.clone(), *tried);
                    }
                    pending.push(entry.clone());
                }
            }
        }
        if pipeline.run.limit > 0 {
            pending.truncate(pipeline.run.limit);
        }
        let in_flight = in_flight(&pipeline);
        let progress = Arc::new(Progress::new(in_flight, cores(), device_threads(device)));
        Ok(Self {
            pipeline,
            location,
            tables,
            device,
            budget,
            bundle,
            preprocess,
            recipe_id,
            listing,
            pending,
            attempts,
            already_done,
            quarantined,
            in_other_shards,
            progress,
        })
    }

    /// What the cohort holds, and what was left out and why.
    pub fn listing(&self) -> &Listing {
        &self.listing
    }

    /// Scans that [`Run::execute`] will take.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Scans that went through earlier with the same content and recipe.
    pub fn already_done(&self) -> usize {
        self.already_done
    }

    /// Scans whose content failed for good earlier; they are tried again when they change.
    pub fn quarantined(&self) -> usize {
        self.quarantined
    }

    /// Selected scans that other parts of the cohort hold, where the run takes one part.
    pub fn in_other_shards(&self) -> usize {
        self.in_other_shards
    }

    /// Hash of everything that decides the numbers.
    pub fn recipe_id(&self) -> &str {
        &self.recipe_id
    }

    /// Name and version of the bundle.
    pub fn bundle(&self) -> String {
        self.bundle.label()
    }

    /// Counters that move while [`Run::execute`] works.
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// Screens the pending scans. `stop` turning true ends the run early: nothing new is begun, what
    /// is in flight is finished and committed.
    ///
    /// # Errors
    /// Storage, table and device errors of the run as a whole; a scan's own failure is a row.
    pub async fn execute(mut self, stop: watch::Receiver<bool>) -> Result<Report> {
        let started = Instant::now();
        let (pending, quarantined) = (self.pending.len() as u64, self.quarantined as u64);
        let report = |outcome, run, counted: Snapshot, superseded, plan| Report {
            outcome,
            run,
            pending,
            done: counted.done - superseded,
            failed: counted.failed,
            superseded,
            quarantined,
            elapsed: started.elapsed(),
            places: counted.places.to_vec(),
            bottleneck: bottleneck(&counted.places).map(|seen| seen.place),
            plan,
        };
        if pending == 0 {
            return Ok(report(Outcome::NothingToDo, None, self.progress.snapshot(), 0, String::new()));
        }
        let mut row = self.run_row()?;
        self.tables.record_run(&row).await?;
        let result = self.screen(&row.run_id, stop).await;

        let counted = self.progress.snapshot();
        let left = pending - (counted.done + counted.failed).min(pending);
        let outcome = match (left, counted.failed, &result) {
            (0, 0, _) => Outcome::Done,
            (0, _, _) => Outcome::DoneWithFailures,
            (_, _, Ok(Screened { gave_up: true, .. })) => Outcome::GaveUp,
            _ => Outcome::Stopped,
        };
        row.finished_at = Some(Utc::now().timestamp_micros());
        row.status = match (&result, outcome) {
            (Err(_), _) => "failed",
            (Ok(_), Outcome::GaveUp) => "gave_up",
            (Ok(_), Outcome::Stopped) => "stopped",
            (Ok(_), _) => "finished",
        }
        .to_owned();
        let superseded = result.as_ref().map_or(0, |screened| screened.superseded);
        row.n_done = (counted.done - superseded) as i64;
        row.n_failed = counted.failed as i64;
        row.scans_per_minute = ((counted.done + counted.failed) as f64 / started.elapsed().as_secs_f64() * 60.) as f32;
        let recorded = self.tables.record_run(&row).await;
        let screened = result?;
        recorded?;
        Ok(report(outcome, Some(row), counted, superseded, screened.plan))
    }

    /// Builds the plan, drives it and commits its receipts.
    async fn screen(&mut self, run_id: &str, mut asked: watch::Receiver<bool>) -> Result<Screened> {
        let stop = watch::Sender::new(false);
        // Dropped, it ends the task.
        let mut forwarding = JoinSet::new();
        forwarding.spawn({
            let stop = stop.clone();
            async move {
                // An error means that whoever may stop the run is gone: stop as well.
                let _ = asked.wait_for(|&stop| stop).await;
                stop.send_replace(true);
            }
        });
        let in_flight = in_flight(&self.pipeline);
        let runtime = RuntimeEnvBuilder::new().with_memory_pool(self.budget.pool()).build_arc()?;
        let settings = Settings::new(&self.pipeline.score, &self.bundle)?;
        let screening = Arc::new(Screening {
            run_id: run_id.to_owned(),
            recipe_id: self.recipe_id.clone(),
            location: self.location.clone(),
            preprocess: self.preprocess.clone(),
            worker: Worker::start(Arc::clone(&self.bundle), self.device, settings.clone(), device_threads(self.device))
                .await?,
            settings,
            bundle: self.bundle.label(),
            device: device_name(self.device),
            attempts: self.attempts.clone(),
            limit_bytes: self.pipeline.run.max_scan_mib << 20,
            in_flight,
            permits: Arc::new(Semaphore::new(in_flight)),
            budget: Arc::clone(&self.budget),
            progress: Arc::clone(&self.progress),
            timeout: Some(Duration::from_secs(self.pipeline.run.scan_timeout_s)).filter(|limit| !limit.is_zero()),
            max_failures: self.pipeline.run.max_failures,
            stop,
            gave_up: AtomicBool::new(false),
        });
        let partitions = self.manifest()?;
        let leaf = MemorySourceConfig::try_new_exec(&partitions, cohort::manifest::schema(), None)?;
        let screen = Arc::new(ScreenExec::new(leaf, Arc::clone(&screening)));
        let policy = RollPolicy::default();
        let policy = RollPolicy {
            scans: policy.scans.min(self.pipeline.tables.commit_scans),
            every: Duration::from_secs(self.pipeline.tables.commit_seconds),
            ..policy
        };
        let plan: Arc<dyn ExecutionPlan> =
            Arc::new(WriteExec::try_new(screen, self.tables.location().clone(), policy)?);

        let context = SessionContext::new_with_config_rt(SessionConfig::new(), runtime);
        let streams = execute_stream_partitioned(Arc::clone(&plan), context.task_ctx())?;
        // WriteExec drives every partition on a task of its own, so all of them work while one commits.
        let mut receipts = stream::select_all(streams);
        let mut waiting = Waiting::new(&self.pipeline.tables);
        let (mut epoch, mut superseded) = (0, 0);
        let mut ended = None;
        while ended.is_none() {
            tokio::select! {
                roll = receipts.next() => match roll {
                    Some(Ok(roll)) => waiting.add(Receipt::from_batch(&roll)?),
                    // What was written before is committed all the same.
                    Some(Err(error)) => ended = Some(Err(error)),
                    None => ended = Some(Ok(())),
                },
                () = tokio::time::sleep_until(waiting.until().into()), if !waiting.is_empty() => {}
            }
            let due = ended.is_some() || waiting.is_due(Instant::now());
            if waiting.is_empty() || !due {
                continue;
            }
            let started = Instant::now();
            let (receipts, scans) = waiting.take();
            let Committed { tables, superseded: left_out } = self.tables.commit(run_id, epoch, &receipts).await?;
            info!(epoch, tables = tables.len(), files = receipts.len(), superseded = left_out, "committed");
            superseded += left_out as u64;
            self.progress.commit(scans, started.elapsed());
            epoch += 1;
        }
        ended.unwrap_or(Ok(()))?;
        Ok(Screened {
            plan: DisplayableExecutionPlan::with_metrics(plan.as_ref()).indent(true).to_string(),
            gave_up: screening.gave_up.load(Ordering::Relaxed),
            superseded,
        })
    }

    /// The pending scans as one manifest batch per partition, dealt out in turn.
    fn manifest(&self) -> Result<Vec<Vec<arrow::array::RecordBatch>>> {
        let partitions = cores().min(self.pending.len()).max(1);
        (0..partitions)
            .map(|p| {
                let share: Vec<ScanEntry> = self.pending.iter().skip(p).step_by(partitions).cloned().collect();
                Ok(vec![cohort::manifest::to_batch(&share)?])
            })
            .collect()
    }

    fn run_row(&self) -> Result<RunRow> {
        Ok(RunRow {
            run_id: uuid::Uuid::now_v7().to_string(),
            cohort: self.listing.cohort.clone(),
            started_at: Utc::now().timestamp_micros(),
            finished_at: None,
            status: "running".to_owned(),
            n_listed: (self.listing.selected.len() + self.listing.skipped.len()) as i64,
            n_selected: self.listing.selected.len() as i64,
            n_already_done: self.already_done as i64,
            n_done: 0,
            n_failed: 0,
            scans_per_minute: 0.,
            device: device_name(self.device),
            recipe_id: self.recipe_id.clone(),
            bundle: self.bundle.label(),
            bundle_digest: self.bundle.digest.clone(),
            config: self.portable_config()?,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cores: cores() as i32,
        })
    }

    /// The effective pipeline for the `runs` table, with local folders reduced to their names: a
    /// table must not tell where its host keeps its files.
    fn portable_config(&self) -> Result<String> {
        let mut pipeline = self.pipeline.clone();
        pipeline.preprocess = Some(self.preprocess.clone());
        let portable = |location: &Location| match location.url.scheme() {
            "file" => location.name().to_owned(),
            _ => location.url.to_string(),
        };
        pipeline.cohort.url = portable(&self.location);
        pipeline.tables.url = portable(self.tables.location());
        if pipeline.model.bundle != "built-in" {
            pipeline.model.bundle = self.bundle.label();
        }
        toml::to_string(&pipeline).map_err(|e| Error::Bug(format!("the pipeline as TOML: {e}")))
    }
}

fn in_flight(pipeline: &Pipeline) -> usize {
    match pipeline.run.scans_in_flight {
        // On each core one with the networks and one before them, and two that wait for the store.
        0 => 2 * cores() + 2,
        n => n,
    }
}

/// Threads that own networks: the processor has one per core, a GPU one.
fn device_threads(device: tch::Device) -> usize {
    if device == tch::Device::Cpu { cores() } else { 1 }
}

/// The device as the tables name it: `cpu`, `cuda:0`.
fn device_name(device: tch::Device) -> String {
    match device {
        tch::Device::Cuda(index) => format!("cuda:{index}"),
        other => format!("{other:?}").to_lowercase(),
    }
}
