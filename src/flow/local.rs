//! Screening in this process: one plan over all pending scans, on all cores and one device.
//!
//! ```text
//! pending scans ─► manifest, one partition per core ─► ScreenExec ─► WriteExec ─► receipts
//! ```

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError};

use arrow::array::RecordBatch;
use async_trait::async_trait;
use datafusion::catalog::memory::MemorySourceConfig;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::physical_plan::display::DisplayableExecutionPlan;
use datafusion::physical_plan::{ExecutionPlan, execute_stream_partitioned};
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::{StreamExt as _, stream};

use super::apart::Apart;
use super::budget::Budget;
use super::config::RunConfig;
use super::engine::{Assignment, Engine, Plan, Screening};
use super::journal::Journal;
use super::outage::Outages;
use super::progress::Progress;
use super::screen::ScreenExec;
use super::setup::Setup;
use super::station::{Station, device_name, device_threads, in_flight};
use super::write::{Target, WriteExec};
use crate::cohort::{ScanEntry, manifest};
use crate::error::Result;
use crate::machine::cores;
use crate::model::device::{self, DeviceChoice};
use crate::score::{Settings, Worker};

/// This process as the engine of a run.
#[derive(Debug)]
pub struct Local {
    on: tch::Device,
    choice: DeviceChoice,
    budget: Arc<Budget>,
    in_flight: usize,
    /// The setup of the run that is under way.
    setup: std::sync::Mutex<Option<Arc<Setup>>>,
}

impl Local {
    /// Finds the device and the memory that the settings ask for.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) where the device is not there, [`Error::Config`](crate::Error::Config) where there is
    /// too little memory.
    pub fn new(config: &RunConfig) -> Result<Self> {
        let on = device::resolve(config.device)?;
        let budget = Arc::new(Budget::new(config.memory_mib, device_threads(on))?);
        let in_flight = in_flight(config.scans_in_flight);
        Ok(Self { on, choice: config.device, budget, in_flight, setup: std::sync::Mutex::default() })
    }

    /// Starts the device threads, which load the networks.
    async fn setup(&self, assignment: &Assignment) -> Result<Setup> {
        let Assignment { order, scans, cohort, tables, bundle, .. } = assignment;
        let settings = Settings::new(&order.score, bundle)?;
        let worker = Worker::start(Arc::clone(bundle), self.on, settings.clone(), device_threads(self.on)).await?;
        let others = scans.iter().filter(|scan| !scan.apart).count();
        let journal = Journal::new(tables.clone(), &order.run_id, &assignment.cohort_root, &order.recipe_id);
        Ok(Setup {
            cohort: cohort.clone(),
            tables: tables.clone(),
            settings,
            worker,
            outages: Outages::new(cohort.clone(), order.samples.clone(), order.longest_outage),
            journal: Some(journal),
            apart: Apart::new(assignment.bundle_name.clone(), self.choice, self.budget.total_mib(), others),
            broken_sidecar: AtomicBool::default(),
            stop: Arc::clone(&assignment.stop),
        })
    }
}

#[async_trait]
impl Engine for Local {
    fn device(&self) -> String {
        device_name(self.on)
    }

    fn scan_bytes(&self) -> u64 {
        self.budget.scans_bytes()
    }

    fn progress(&self) -> Arc<Progress> {
        Arc::new(Progress::new(self.in_flight, cores(), device_threads(self.on)))
    }

    async fn start(self: Arc<Self>, assignment: Assignment) -> Result<Screening> {
        let setup = Arc::new(self.setup(&assignment).await?);
        *self.setup.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&setup));
        let device = (self.on, self.choice);
        let progress = Some(assignment.progress);
        let station = Station::new(device, Arc::clone(&self.budget), self.in_flight, progress);
        station.place(&assignment.order, setup).await;
        let order = Arc::new(assignment.order);
        let leaf = MemorySourceConfig::try_new_exec(&partitions(&assignment.scans)?, manifest::schema(), None)?;
        let screen = Arc::new(ScreenExec::new(leaf, Arc::clone(&order)));
        let write = WriteExec::try_new(screen, Target::OfOrder(order), assignment.policy)?;
        let plan: Arc<dyn ExecutionPlan> = Arc::new(write);
        let config = SessionConfig::new().with_extension(Arc::new(station));
        let runtime = RuntimeEnvBuilder::new().with_memory_pool(self.budget.pool()).build_arc()?;
        let context = SessionContext::new_with_config_rt(config, runtime);
        // WriteExec drives every partition in a task of its own, so all of them work while a commit is under way.
        let receipts = execute_stream_partitioned(Arc::clone(&plan), context.task_ctx())?;
        Ok(Screening { receipts: stream::select_all(receipts).boxed(), plan: Box::new(Executed(plan)) })
    }

    async fn end(&self) {
        let setup = self.setup.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(journal) = setup.as_ref().and_then(|setup| setup.journal.as_ref()) {
            journal.close().await;
        }
    }
}

/// A plan that this process executes.
struct Executed(Arc<dyn ExecutionPlan>);

impl Plan for Executed {
    fn shown(&self) -> String {
        DisplayableExecutionPlan::with_metrics(self.0.as_ref()).indent(true).to_string()
    }
}

/// The scans as one manifest batch per partition, dealt out in turn.
fn partitions(scans: &[ScanEntry]) -> Result<Vec<Vec<RecordBatch>>> {
    let partitions = cores().min(scans.len()).max(1);
    (0..partitions)
        .map(|partition| {
            let share: Vec<ScanEntry> = scans.iter().skip(partition).step_by(partitions).cloned().collect();
            Ok(vec![manifest::to_batch(&share)?])
        })
        .collect()
}
